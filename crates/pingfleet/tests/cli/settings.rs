//! Settings: which layer overrides which, and that all problems are reported at once, with their places and without
//! passwords.

use crate::rig::TestDir;

/// Shows the resolved settings: the number of requests is the number of targets times `probing.count`.
const DRY: [&str; 4] = ["sweep", "--dry-run", "--no-shuffle", "127.0.0.1"];

fn requests(stdout: &str) -> Option<u32> {
    let line = stdout
        .lines()
        .find(|line| line.contains(" when all answer"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[test]
fn flags_override_the_environment_which_overrides_the_file_which_overrides_defaults()
-> anyhow::Result<()> {
    let dir = TestDir::new()?;
    let dry = |flags: &[&str], environment: Option<&str>| -> anyhow::Result<Option<u32>> {
        let arguments = [DRY.as_slice(), flags].concat();
        let mut call = dir.call("pingfleet", &arguments)?;
        if let Some(count) = environment {
            call = call.env("PINGFLEET_PROBING__COUNT", count);
        }
        Ok(requests(&call.end()?.ends_with(0).stdout))
    };
    assert_eq!(dry(&[], None)?, Some(1));
    dir.write("pingfleet.toml", "[probing]\ncount = 2\n")?;
    assert_eq!(dry(&[], None)?, Some(2));
    assert_eq!(dry(&[], Some("3"))?, Some(3));
    assert_eq!(dry(&["--count", "4"], Some("3"))?, Some(4));
    dir.write("other.toml", "probing.count = 5\n")?;
    assert_eq!(dry(&["--config", "other.toml"], None)?, Some(5));
    // An empty variable counts as unset.
    assert_eq!(dry(&[], Some(""))?, Some(2));
    Ok(())
}

#[test]
fn all_problems_of_all_layers_are_reported_at_once_with_their_places() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    dir.write(
        "pingfleet.toml",
        "top = 1\n[probing]\ncount = 0\ntimeout = 5\ntiemout = '1s'\nttl = [1, 2]\n\
         [broker]\nurl = 'http://user:hunter2@x'\npassword_file = '/nonexistent/secret'\n[nothing]\na = 1\n",
    )?;
    let before = dir.files()?;
    // A sweep does not read the two settings of the broker.
    for (program, arguments, count) in [
        ("pingfleet", ["sweep"].as_slice(), "10 problems"),
        ("producer", &[], "12 problems"),
    ] {
        let arguments = [arguments, &["127.0.0.1", "--rate", "-1", "-p", "3"]].concat();
        let mut call = dir
            .call(program, &arguments)?
            .env("PINGFLEET_PROBING__RETRYS", "3")
            .env("PINGFLEET_BROKER__URL", "");
        call = call.env("PINGFLEET_PROBING__BACKOFF", "0.5");
        let finished = call.end()?.fails(
            3,
            &[
                &format!("{count} in the settings:"),
                "pingfleet.toml: top ",
                "pingfleet.toml: probing.count: \"0\"",
                "pingfleet.toml: probing.timeout: \"5\"",
                "with a unit",
                "pingfleet.toml: probing.tiemout: no such setting",
                "pingfleet.toml: probing.ttl: ",
                "pingfleet.toml: nothing.a: no such setting",
                "PINGFLEET_PROBING__RETRYS: no such setting",
                "PINGFLEET_PROBING__BACKOFF: \"0.5\"",
                "--rate: \"-1\"",
                "--interval: \"3\"",
            ],
        );
        for of_the_broker in [
            "pingfleet.toml: broker.url: ",
            "pingfleet.toml: broker.password_file: /nonexistent/secret",
        ] {
            let is_reported = finished.stderr.contains(of_the_broker);
            assert_eq!(is_reported, program == "producer", "{finished:#?}");
        }
        finished.hides("hunter2");
        assert_eq!(dir.files()?, before);
    }
    Ok(())
}

#[test]
fn variables_of_other_programs_are_ignored_and_typing_errors_are_not() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    dir.call("pingfleet", &DRY)?
        .env("PINGFLEET_BIND", "0.0.0.0")
        .end()?
        .ends_with(0);
    dir.call("pingfleet", &DRY)?
        .env("PINGFLEET_BROKER_URL", "amqp://user:hunter2@h")
        .end()?
        .fails(3, &["PINGFLEET_BROKER_URL", "PINGFLEET_BROKER__URL"])
        .hides("hunter2");
    dir.call("pingfleet", &DRY)?
        .env("PINGFLEET_NOTHING__A", "1")
        .end()?
        .fails(3, &["PINGFLEET_NOTHING__A: no such setting"]);
    Ok(())
}

#[test]
fn an_unreadable_settings_file_is_reported_without_its_text() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    dir.pingfleet(&["runs", "--config", "/nonexistent/p.toml"])?
        .fails(3, &["/nonexistent/p.toml", "No such file"]);
    dir.write("pingfleet.toml", "[broker]\npassword = hunter2\n")?;
    dir.pingfleet(&["runs"])?
        .fails(3, &["pingfleet.toml", "line 2"])
        .hides("hunter2");
    Ok(())
}

#[test]
fn settings_outside_their_limits_are_refused() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    for (flags, parts) in [
        (["--timeout", "5"], ["--timeout: \"5\"", "unit"]),
        (["--interval", "2h"], ["--interval: \"2h\"", "at most 1h"]),
        (["--count", "0"], ["--count: \"0\"", "1 to 1000"]),
        (["--chunk-size", "10001"], ["--chunk-size: ", "1 to 10000"]),
        (["--rate", "fast"], ["--rate: \"fast\"", "unlimited"]),
        (["--source", "here"], ["--source: \"here\"", "address"]),
        (["--size", "70000"], ["--size: \"70000\"", "65507"]),
        (
            ["--late-window", "11m"],
            ["one target can take", "10 minutes"],
        ),
    ] {
        dir.pingfleet(&["sweep", "127.0.0.1", flags[0], flags[1]])?
            .fails(3, &parts);
    }
    dir.call("ping-worker", &["--threads", "0", "--prefetch", "x"])?
        .end()?
        .fails(3, &["--threads: \"0\"", "--prefetch: \"x\""]);
    dir.call(
        "consumer-writer",
        &["--batch-size", "0", "--batch-interval", "1"],
    )?
    .end()?
    .fails(3, &["--batch-size: \"0\"", "--batch-interval: \"1\""]);
    assert!(dir.files()?.is_empty());
    Ok(())
}

/// Only a file with a password, and only if others can read it.
#[test]
fn a_settings_file_with_a_password_that_others_can_read_is_a_warning() -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = TestDir::new()?;
    let apart = "[broker]\npassword = \"hunter2\"\n";
    let in_url = "[broker]\nurl = \"amqp://u:hunter2@127.0.0.1:1\"\n";
    let without = "[broker]\nurl = \"amqp://u@127.0.0.1:1\"\n";
    for (text, mode, expected) in [
        (apart, 0o644, true),
        (in_url, 0o640, true),
        (apart, 0o600, false),
        (without, 0o644, false),
    ] {
        let file = dir.write("login.toml", text)?;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode))?;
        let arguments = ["broker", "show", "--config", &file];
        let shown = dir.pingfleet(&arguments)?.hides("hunter2").ends_with(4);
        let has_warned = shown.stderr.contains("(chmod 600)") && shown.stderr.contains(&file);
        assert_eq!(has_warned, expected, "{mode:o} {shown:?}");
    }
    Ok(())
}
