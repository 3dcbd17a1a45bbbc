//! Databases that are not ours, not sound, or not permitted: refused with one message, and left as they were.

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use crate::rig::Room;

/// Every program and command that opens a database, with what it needs to get that far.
const OPENERS: [(&str, &[&str]); 8] = [
    ("pingfleet", &["sweep", "127.0.0.1"]),
    ("pingfleet", &["report"]),
    ("pingfleet", &["verify"]),
    ("pingfleet", &["runs"]),
    ("pingfleet", &["cancel"]),
    ("pingfleet", &["resume"]),
    ("producer", &["--resume", "latest"]),
    ("consumer-writer", &[]),
];

/// Each opener refuses the database with these words, and changes nothing in the folder.
fn refused_by_all(room: &Room, database: &str, parts: &[&str]) -> anyhow::Result<()> {
    let before = room.files()?;
    for (program, arguments) in OPENERS {
        let mut arguments = arguments.to_vec();
        arguments.extend(["--db", database]);
        room.call(program, &arguments)?.end()?.fails(4, parts);
        assert_eq!(room.files()?, before, "{program} {arguments:?}");
    }
    Ok(())
}

#[test]
fn a_file_that_is_no_database_is_left_alone() -> anyhow::Result<()> {
    let room = Room::new()?;
    room.write(
        "notes.txt",
        "not a database at all, and quite dear to its owner\n",
    )?;
    refused_by_all(
        &room,
        "notes.txt",
        &["notes.txt", "not a pingfleet database", "--db"],
    )?;
    room.write("long.txt", "dear\n".repeat(10_000))?;
    refused_by_all(&room, "long.txt", &["long.txt", "not a pingfleet database"])
}

#[test]
fn a_sqlite_database_of_another_program_is_left_alone() -> anyhow::Result<()> {
    let room = Room::new()?;
    room.sqlite3(
        "other.db",
        "CREATE TABLE runs (a); INSERT INTO runs VALUES (1)",
    )?;
    refused_by_all(
        &room,
        "other.db",
        &["other.db", "not a pingfleet database", "--db"],
    )?;
    // Another application's own mark is no better than none.
    room.sqlite3("marked.db", "PRAGMA application_id = 7; CREATE TABLE t (a)")?;
    refused_by_all(&room, "marked.db", &["marked.db", "application id 7"])
}

#[test]
fn a_database_of_a_newer_schema_is_left_alone() -> anyhow::Result<()> {
    let room = Room::new()?;
    room.swept("newer.db")?;
    room.sqlite3("newer.db", "PRAGMA user_version = 99")?;
    refused_by_all(
        &room,
        "newer.db",
        &["newer.db", "schema version 99", "newer pingfleet"],
    )
}

#[test]
fn a_damaged_database_is_neither_used_nor_created_anew() -> anyhow::Result<()> {
    let room = Room::new()?;
    room.swept("damaged.db")?;
    let path = room.path("damaged.db");
    let mut content = fs::read(&path)?;
    assert!(content.len() > 8 * 4096, "{} bytes", content.len());
    // Behind the pages that an opening reads: only a look at all of the file finds it.
    content[3 * 4096..].fill(0x5a);
    fs::write(&path, &content)?;
    let before = room.files()?;
    for (program, arguments) in [
        ("pingfleet", ["sweep", "127.0.0.1"].as_slice()),
        ("consumer-writer", &[]),
    ] {
        let mut arguments = arguments.to_vec();
        arguments.extend(["--db", "damaged.db"]);
        room.call(program, &arguments)?
            .end()?
            .fails(4, &["damaged.db is damaged", "backup", ".recover"]);
        assert_eq!(room.files()?, before);
    }
    // Cut off, as by a full disk or a broken copy.
    room.write("cut.db", &content[..5000])?;
    refused_by_all(&room, "cut.db", &["cut.db is damaged"])
}

#[test]
fn a_database_is_not_looked_for_where_there_is_no_folder() -> anyhow::Result<()> {
    let room = Room::new()?;
    refused_by_all(&room, "missing/sweeps.db", &["missing/sweeps.db"])?;
    fs::create_dir(room.path("folder"))?;
    refused_by_all(&room, "folder", &["folder", "directory"])
}

#[test]
fn what_only_reads_creates_no_database() -> anyhow::Result<()> {
    let room = Room::new()?;
    for command in ["report", "verify", "runs", "cancel", "resume", "retry"] {
        room.pingfleet(&[command])?
            .fails(4, &["no database pingfleet.db", "--db"]);
    }
    room.call("producer", &["--resume", "latest"])?
        .end()?
        .fails(4, &["no database pingfleet.db"]);
    assert!(room.files()?.is_empty());
    Ok(())
}

#[test]
fn a_folder_or_file_that_may_not_be_written_is_named() -> anyhow::Result<()> {
    let room = Room::new()?;
    room.swept("sweeps.db")?;
    fs::set_permissions(room.path("sweeps.db"), fs::Permissions::from_mode(0o444))?;
    let before = room.files()?;
    for database in ["new.db", "sweeps.db"] {
        room.call_as_nobody(
            Command::new("timeout"),
            "consumer-writer",
            &["--db", database],
        )?
        .end()?
        .fails(4, &["cannot open", database]);
        assert_eq!(room.files()?, before);
    }
    Ok(())
}
