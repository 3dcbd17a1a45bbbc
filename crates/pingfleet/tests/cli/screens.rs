//! Snapshots of what stands on the screen.
//!
//! The expected screens are the files in `snapshots`. `UPDATE_SNAPSHOTS=1` writes them anew; look at what changed.

use std::{env, fs, path::Path};

use anyhow::Context;
use pingfleet_testbed::GeneratedRuns;

use crate::rig::TestDir;

/// A folder with a generated database.
pub(crate) fn generated(targets: u32, runs: u32) -> anyhow::Result<TestDir> {
    let dir = TestDir::new()?;
    let generated = GeneratedRuns {
        targets,
        runs,
        seed: 7,
    };
    generated.write(&dir.path("pingfleet.db"))?;
    Ok(dir)
}

/// What the terminal shows of a command, with the environment of `prefix`.
pub(crate) fn on_a_terminal(
    dir: &TestDir,
    command: &str,
    columns: u32,
    prefix: &str,
) -> anyhow::Result<String> {
    let line = format!(
        "{prefix} TZ=UTC script --quiet --return --command 'stty rows 40 cols {columns}; pingfleet {command}' /dev/null"
    );
    Ok(dir.shell(&line)?.ends_with(0).stdout.replace("\r\n", "\n"))
}

/// The widths of the terminals; none is no terminal.
const SCREENS: [Option<u32>; 4] = [Some(60), Some(80), Some(140), None];

/// Compares the output of a command at all widths with the expected one. How many days ago something was changes with the
/// day, so these numbers are not compared.
pub(crate) fn matches_its_snapshot(dir: &TestDir, name: &str, command: &str) -> anyhow::Result<()> {
    let screens = SCREENS.map(|columns| screen(dir, command, columns));
    let screens: String = screens.into_iter().collect::<anyhow::Result<_>>()?;
    is_expected(name, &without_ages(&screens))
}

/// The same for a command that changes the database: each time it gets a copy. `same` replaces what is different each
/// time.
pub(crate) fn matches_its_snapshot_on_copies(
    dir: &TestDir,
    name: &str,
    command: &str,
    same: impl Fn(&str) -> String,
) -> anyhow::Result<()> {
    let mut screens = String::new();
    for columns in SCREENS {
        let copy = TestDir::new()?;
        fs::copy(dir.path("pingfleet.db"), copy.path("pingfleet.db"))?;
        screens += &same(&screen(&copy, command, columns)?);
    }
    is_expected(name, &screens)
}

/// What a command prints, with its heading.
fn screen(dir: &TestDir, command: &str, columns: Option<u32>) -> anyhow::Result<String> {
    let Some(columns) = columns else {
        let arguments: Vec<_> = command.split(' ').collect();
        let piped = dir.call("pingfleet", &arguments)?.env("TZ", "UTC").end()?;
        return Ok(format!("== no terminal\n{}", piped.ends_with(0).stdout));
    };
    let screen = on_a_terminal(dir, command, columns, "NO_COLOR=1")?;
    let widest = screen.lines().map(|line| line.chars().count()).max();
    assert!(widest <= Some(columns as usize), "{columns}: {screen}");
    Ok(format!("== {columns} columns\n{screen}"))
}

fn is_expected(name: &str, screens: &str) -> anyhow::Result<()> {
    let file =
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/cli/snapshots/{name}.txt"));
    if env::var_os("UPDATE_SNAPSHOTS").is_some() {
        fs::write(&file, screens)?;
    }
    let expected = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    assert_eq!(screens, expected, "{name}");
    Ok(())
}

/// The text with other digits in each "1,234 days".
fn without_ages(text: &str) -> String {
    let parts: Vec<_> = text.split(" days").collect();
    let (last, others) = parts.split_last().unwrap_or((&"", &[]));
    let mut shown = String::new();
    for part in others {
        let number = part.trim_end_matches(|letter: char| letter.is_ascii_digit() || letter == ',');
        let is_age = part[number.len()..].contains(',');
        shown += number;
        shown += if is_age {
            "N,NNN"
        } else {
            &part[number.len()..]
        };
        shown += " days";
    }
    shown + last
}
