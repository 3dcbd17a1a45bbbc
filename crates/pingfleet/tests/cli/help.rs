//! Help, versions and usage errors.

use pingfleet_settings::{Program, keys};

use crate::rig::TestDir;

const DB: &str = "--db <PATH>";
const BROKER: &str = "--broker <URL>";

/// All programs and commands that have their own `--help`, and which of `--db` and `--broker` they offer: those that open
/// the database, and those that use a broker.
const ALL: [(&str, &[&str], &[&str]); 21] = [
    ("pingfleet", &[], &[]),
    ("pingfleet", &["sweep"], &[DB]),
    ("pingfleet", &["runs"], &[DB]),
    ("pingfleet", &["report"], &[DB]),
    ("pingfleet", &["export"], &[DB]),
    ("pingfleet", &["diff"], &[DB]),
    ("pingfleet", &["hosts"], &[DB]),
    ("pingfleet", &["history"], &[DB]),
    ("pingfleet", &["workers"], &[DB]),
    ("pingfleet", &["quarantine"], &[DB]),
    ("pingfleet", &["verify"], &[DB]),
    ("pingfleet", &["resume"], &[DB, BROKER]),
    ("pingfleet", &["retry"], &[DB, BROKER]),
    ("pingfleet", &["cancel"], &[DB]),
    ("pingfleet", &["prune"], &[DB]),
    ("pingfleet", &["doctor"], &[DB, BROKER]),
    ("pingfleet", &["broker", "init"], &[BROKER]),
    ("pingfleet", &["broker", "foreign"], &[BROKER]),
    ("producer", &[], &[DB, BROKER]),
    ("ping-worker", &[], &[BROKER]),
    ("consumer-writer", &[], &[DB, BROKER]),
];

#[test]
fn help_goes_to_standard_output_and_fits_eighty_columns() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    for (program, command, offered) in ALL {
        let arguments = [command, &["--help"]].concat();
        let help = dir
            .call(program, &arguments)?
            .env("COLUMNS", "80")
            .end()?
            .ends_with(0);
        assert_eq!(help.stderr, "", "{help:#?}");
        for part in [
            "Usage: ",
            "--config <FILE>",
            "--quiet",
            "--verbose",
            "--log-format <FORMAT>",
        ] {
            assert!(help.stdout.contains(part), "{part}: {help:#?}");
        }
        for flag in [DB, BROKER] {
            assert_eq!(
                help.stdout.contains(flag),
                offered.contains(&flag),
                "{flag}: {help:#?}"
            );
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
    let defaults: Vec<_> = [keys::PROBING, keys::STORE]
        .into_iter()
        .flatten()
        .filter_map(|key| Some((key.flag()?.to_string(), key.default().value()?)))
        .collect();
    assert_eq!(defaults.len(), 10, "{defaults:?}");
    for (flag, default) in &defaults {
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
    for (flag, default) in &defaults {
        given.extend([flag.as_str(), default]);
    }
    assert_eq!(dir.pingfleet(&given)?.ends_with(0).stdout, usual);
    Ok(())
}

#[test]
fn a_role_offers_the_flags_of_the_settings_that_it_uses() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    for program in [
        Program::Producer,
        Program::PingWorker,
        Program::ConsumerWriter,
    ] {
        let help = dir
            .call(program.name(), &["--help"])?
            .env("COLUMNS", "300")
            .end()?
            .ends_with(0);
        for key in keys::all() {
            let Some(flag) = key.flag() else { continue };
            let line = format!("{flag} <{}>  ", flag.value);
            let is_offered = help
                .stdout
                .lines()
                .any(|shown| shown.contains(&line) && shown.trim_end().ends_with(&key.help()));
            let is_used = key.programs().contains(&program);
            assert_eq!(is_offered, is_used, "{}: {help:#?}", key.name());
        }
    }
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
        ("pingfleet", &["export", "--format", "xml"], "parquet"),
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
