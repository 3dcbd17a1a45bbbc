//! `pingfleet quarantine`: the table at several widths, its JSON, and what it says of an empty one.

use rusqlite::Connection;
use serde_json::Value;

use crate::{
    rig::TestDir,
    screens::{generated, matches_its_snapshot},
};

/// 2 January 2020 14:00:00 UTC, in microseconds.
const LONG_AGO: i64 = 1_577_973_600_000_000;

/// A database with refused messages: many of one kind, one with a text that controls a terminal, and a long one.
fn refused() -> anyhow::Result<TestDir> {
    let dir = generated(10, 1)?;
    let connection = Connection::open(dir.path("pingfleet.db"))?;
    let long = format!("target 7: {}", "many words ".repeat(20));
    let texts = (0..1234).map(|chunk| ("wrong token", format!("chunk {chunk} of run 1")));
    let others = [
        ("cannot be decoded", "a\u{1b}[2Jb\u{202e}".to_owned()),
        ("cannot be decoded", long),
        ("set the clock", String::new()),
    ];
    for (number, (reason, detail)) in (0..).zip(texts.chain(others)) {
        connection.execute(
            "INSERT INTO quarantine (received_at_us, queue, reason, detail, length, body)
             VALUES (?1, 'results', ?2, ?3, ?4, x'00')",
            (LONG_AGO + number, reason, detail, 1000 * number),
        )?;
    }
    Ok(dir)
}

#[test]
fn the_table_fits_the_width_and_controls_no_terminal() -> anyhow::Result<()> {
    let dir = refused()?;
    let shown = dir.pingfleet(&["quarantine"])?.ends_with(0).stdout;
    assert!(
        shown.contains(r"a\u{1b}[2Jb\u{202e}") && !shown.contains(['\u{1b}', '\u{202e}']),
        "{shown}"
    );
    matches_its_snapshot(&dir, "quarantine", "quarantine")
}

#[test]
fn the_logins_are_there_when_messages_have_one() -> anyhow::Result<()> {
    let dir = refused()?;
    let connection = Connection::open(dir.path("pingfleet.db"))?;
    let shown = |arguments: &[&str]| anyhow::Ok(dir.pingfleet(arguments)?.ends_with(0).stdout);
    let table = shown(&["quarantine"])?;
    assert!(!table.contains("LOGIN"), "{table}");
    connection.execute("UPDATE quarantine SET login = 'rack-7'", ())?;
    let table = shown(&["quarantine"])?;
    assert!(
        table.contains("LOGIN") && table.contains("rack-7"),
        "{table}"
    );
    connection.execute(
        "UPDATE quarantine SET login = char(27) || '[2Jthief' WHERE id = (SELECT max(id) FROM quarantine)",
        (),
    )?;
    let table = shown(&["quarantine"])?;
    assert!(
        table.contains("LOGIN") && table.contains(r"\u{1b}[2Jthief") && !table.contains('\u{1b}'),
        "{table}"
    );
    let json = shown(&["quarantine", "--json"])?;
    let found: Value = serde_json::from_str(&json)?;
    assert_eq!(found["newest"][0]["login"], "\u{1b}[2Jthief");
    assert_eq!(found["newest"][1]["login"], "rack-7");
    Ok(())
}

#[test]
fn json_counts_by_reason_and_lists_the_newest() -> anyhow::Result<()> {
    let shown = refused()?
        .pingfleet(&["quarantine", "--json"])?
        .ends_with(0);
    let found: Value = serde_json::from_str(&shown.stdout)?;
    assert_eq!(found["messages"], 1237);
    let first = &found["reasons"][0];
    assert_eq!(first["reason"], "wrong token");
    assert_eq!(
        (&first["queue"], &first["messages"]),
        (&"results".into(), &1234.into())
    );
    let newest = &found["newest"];
    assert_eq!(newest.as_array().map(Vec::len), Some(20));
    assert_eq!(newest[0]["received_at"], "2020-01-02T14:00:00.001Z");
    assert_eq!(newest[0]["bytes"], 1_236_000);
    assert_eq!(newest[3]["reason"], "wrong token");
    assert_eq!(newest[3]["detail"], "chunk 1233 of run 1");
    Ok(())
}

#[test]
fn an_empty_one_says_so() -> anyhow::Result<()> {
    let dir = generated(10, 1)?;
    let shown = dir.pingfleet(&["quarantine"])?.ends_with(0);
    assert_eq!(shown.stdout, "");
    assert!(
        shown.stderr.contains("no message is in quarantine"),
        "{shown:#?}"
    );
    Ok(())
}
