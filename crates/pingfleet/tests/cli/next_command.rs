//! Commands that are printed for the user work as they stand, and what `-q` leaves out.

use anyhow::Context;

use crate::rig::{Call, TestDir};

/// A name that no shell reads as it stands.
const NAME: &str = "it's $(a) \"sweep\" \\ `b`\u{fc}.db";

/// A sweep that takes six seconds and prints its first targets within one.
fn slow(dir: &TestDir, flags: &[&str]) -> anyhow::Result<Call> {
    let sweep = [
        "sweep",
        "-a",
        "-r0",
        "-t200ms",
        "--rate",
        "10",
        "--chunk-size",
        "5",
        "127.0.0.0/26",
    ];
    dir.call("pingfleet", &[&sweep, flags].concat())
}

#[test]
fn the_command_that_resumes_a_run_can_be_typed_whatever_the_files_are_called() -> anyhow::Result<()>
{
    let dir = TestDir::new()?;
    dir.write(
        "my settings.toml",
        format!("[store]\npath = '''{NAME}'''\n"),
    )?;
    for flags in [
        ["--db", NAME].as_slice(),
        &["--db", "bell\u{7}\n.db"],
        &["--db=-flag.db"],
        &["--config", "my settings.toml"],
    ] {
        let finished = slow(&dir, flags)?.interrupted()?.ends_with(130);
        let (_, command) = finished
            .stderr
            .split_once("Continue with: ")
            .context("no command")?;
        let command = command.trim_end();
        assert!(!command.contains(['\n', '\u{7}']), "{command}");
        let verify = command.replace("resume", "verify");
        // Another command prints the same one.
        let proof = dir.shell(&verify)?.ends_with(5);
        let (_, again) = proof
            .stdout
            .split_once("continue it: ")
            .context("no command")?;
        assert_eq!(again.trim_end(), command);
        dir.shell(command)?.ends_with(0);
        dir.shell(&verify)?.ends_with(0);
    }
    Ok(())
}

#[test]
fn verify_says_that_the_command_for_a_run_over_a_broker_needs_one() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    slow(&dir, &[])?.interrupted()?.ends_with(130);
    let note = "with --broker URL";
    let proof = dir.pingfleet(&["verify"])?.ends_with(5);
    assert!(!proof.stdout.contains(note), "{proof:#?}");
    dir.sqlite3("pingfleet.db", "UPDATE runs SET transport = 'broker'")?;
    let proof = dir.pingfleet(&["verify"])?.ends_with(5);
    assert!(proof.stdout.contains(note), "{proof:#?}");
    Ok(())
}

#[test]
fn quiet_commands_print_errors_and_what_was_asked_for() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    let quiet = |arguments: &[&str]| {
        let arguments = [arguments, &["-q"]].concat();
        dir.pingfleet(&arguments)
    };
    for arguments in [
        ["sweep", "127.0.0.1"].as_slice(),
        &["resume"],
        &["retry"],
        &["cancel"],
    ] {
        let finished = quiet(arguments)?.ends_with(0);
        assert_eq!((&*finished.stdout, &*finished.stderr), ("", ""));
    }
    let summary = quiet(&["sweep", "127.0.0.1", "-s"])?.ends_with(0);
    assert!(summary.stdout.contains("1  targets"), "{summary:#?}");
    assert_eq!(summary.stderr, "");
    assert_eq!(
        quiet(&["sweep", "127.0.0.1", "-a"])?.ends_with(0).stdout,
        "127.0.0.1\n"
    );
    assert_eq!(quiet(&["runs"])?.ends_with(0).stdout.lines().count(), 4);
    quiet(&["verify", "9"])?.fails(3, &["no run"]);
    Ok(())
}
