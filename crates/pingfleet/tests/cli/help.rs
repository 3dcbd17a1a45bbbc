//! Help, versions and usage errors.

use crate::rig::TestDir;

/// All programs and commands that have their own `--help`.
const ALL: [(&str, &[&str]); 13] = [
    ("pingfleet", &[]),
    ("pingfleet", &["sweep"]),
    ("pingfleet", &["runs"]),
    ("pingfleet", &["report"]),
    ("pingfleet", &["verify"]),
    ("pingfleet", &["resume"]),
    ("pingfleet", &["retry"]),
    ("pingfleet", &["cancel"]),
    ("pingfleet", &["doctor"]),
    ("pingfleet", &["broker", "init"]),
    ("producer", &[]),
    ("ping-worker", &[]),
    ("consumer-writer", &[]),
];

#[test]
fn help_goes_to_standard_output_and_fits_eighty_columns() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    for (program, command) in ALL {
        let arguments = [command, &["--help"]].concat();
        let help = dir
            .call(program, &arguments)?
            .env("COLUMNS", "80")
            .end()?
            .ends_with(0);
        assert_eq!(help.stderr, "", "{help:#?}");
        for part in [
            "Usage: ",
            "--db <PATH>",
            "--config <FILE>",
            "--broker <URL>",
        ] {
            assert!(help.stdout.contains(part), "{part}: {help:#?}");
        }
        // Texts that clap adds by default.
        for leftover in ["see a summary", "see more", "Possible values:"] {
            assert!(!help.stdout.contains(leftover), "{leftover}: {help:#?}");
        }
        let mut explained = help.stdout.lines().take_while(|line| *line != "Examples:");
        let too_long = explained.find(|line| line.chars().count() > 80);
        assert_eq!(too_long, None, "{arguments:?}");
        let (_, examples) = help
            .stdout
            .split_once("\nExamples:\n")
            .unwrap_or_else(|| panic!("no examples: {help:#?}"));
        assert!(examples.contains(program), "{help:#?}");
    }
    let short = dir.pingfleet(&["help", "sweep"])?.ends_with(0);
    let long = dir.pingfleet(&["sweep", "--help"])?.ends_with(0);
    assert_eq!(short.stdout, long.stdout);
    Ok(())
}

#[test]
fn help_shows_the_defaults_that_are_used() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    let help = dir
        .call("pingfleet", &["sweep", "--help"])?
        .env("COLUMNS", "300")
        .end()?
        .ends_with(0);
    let defaults = [
        ("--count", "1"),
        ("--interval", "1s"),
        ("--timeout", "1s"),
        ("--retries", "2"),
        ("--backoff", "1.5"),
        ("--late-window", "0s"),
        ("--size", "56"),
        ("--rate", "1000"),
        ("--chunk-size", "250"),
        ("--db", "pingfleet.db"),
    ];
    for (flag, default) in defaults {
        let line = help
            .stdout
            .lines()
            .find(|line| line.contains(&format!("{flag} <")));
        let shown = format!("[default: {default}]");
        assert!(
            line.is_some_and(|line| line.contains(&shown)),
            "{flag}: {line:?}"
        );
    }
    // The shown defaults are the used ones: setting them changes nothing.
    let dry = ["sweep", "--dry-run", "--no-shuffle", "127.0.0.0/22"];
    let usual = dir.pingfleet(&dry)?.ends_with(0).stdout;
    let mut given = dry.to_vec();
    for (flag, default) in defaults {
        given.extend([flag, default]);
    }
    assert_eq!(dir.pingfleet(&given)?.ends_with(0).stdout, usual);
    Ok(())
}

#[test]
fn every_program_prints_its_version() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    for program in ["pingfleet", "producer", "ping-worker", "consumer-writer"] {
        let version = dir.call(program, &["--version"])?.end()?.ends_with(0);
        assert_eq!(
            version.stdout,
            format!("{program} {}\n", env!("CARGO_PKG_VERSION"))
        );
    }
    Ok(())
}

#[test]
fn usage_errors_end_with_3_on_standard_error() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    for (program, arguments, part) in [
        ("pingfleet", ["sweep", "--nothing"].as_slice(), "--nothing"),
        ("pingfleet", &["nothing"], "nothing"),
        (
            "pingfleet",
            &["sweep", "-a", "-u", "127.0.0.1"],
            "--unanswered",
        ),
        ("pingfleet", &["sweep", "-4", "-6", "127.0.0.1"], "--ipv6"),
        (
            "pingfleet",
            &["sweep", "--seed", "x", "127.0.0.1"],
            "--seed",
        ),
        (
            "pingfleet",
            &["sweep", "--seed", "1", "--no-shuffle", "127.0.0.1"],
            "--no-shuffle",
        ),
        ("pingfleet", &["-q", "-v", "runs"], "--quiet"),
        ("pingfleet", &["report", "--json", "--csv"], "--csv"),
        (
            "pingfleet",
            &["report", "--status", "sideways"],
            "dns_failed",
        ),
        ("pingfleet", &["verify", "1", "2"], "2"),
        ("pingfleet", &["runs", "--log-format", "xml"], "json"),
        ("producer", &["127.0.0.1", "--resume", "1"], "--resume"),
        ("ping-worker", &["127.0.0.1"], "127.0.0.1"),
        ("consumer-writer", &["--detach"], "--detach"),
    ] {
        dir.call(program, arguments)?.end()?.fails(3, &[part]);
    }
    let bare = dir.pingfleet(&[])?.ends_with(3);
    assert!(bare.stderr.contains("Usage: "), "{bare:#?}");
    assert!(dir.files()?.is_empty());
    Ok(())
}
