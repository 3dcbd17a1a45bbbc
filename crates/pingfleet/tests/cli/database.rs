//! Foreign, damaged, newer or protected databases: refused with one message, and not changed.

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use crate::rig::TestDir;

/// All programs and commands that open a database, with their arguments.
const OPENERS: [(&str, &[&str]); 11] = [
    ("pingfleet", &["sweep", "127.0.0.1"]),
    ("pingfleet", &["report"]),
    ("pingfleet", &["export", "-o", "rows.csv"]),
    ("pingfleet", &["verify"]),
    ("pingfleet", &["runs"]),
    ("pingfleet", &["cancel"]),
    ("pingfleet", &["resume"]),
    ("pingfleet", &["retry", "--only", "down"]),
    ("pingfleet", &["prune", "--keep", "1"]),
    ("producer", &["--resume", "latest"]),
    ("consumer-writer", &[]),
];

/// All openers refuse the database with these words, and change nothing in the folder.
fn refused_by_all(dir: &TestDir, database: &str, parts: &[&str]) -> anyhow::Result<()> {
    let before = dir.files()?;
    for (program, arguments) in OPENERS {
        let mut arguments = arguments.to_vec();
        arguments.extend(["--db", database]);
        dir.call(program, &arguments)?.end()?.fails(4, parts);
        assert_eq!(dir.files()?, before, "{program} {arguments:?}");
    }
    Ok(())
}

#[test]
fn a_file_that_is_not_a_database_is_not_changed() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    dir.write(
        "notes.txt",
        "not a database at all, and quite dear to its owner\n",
    )?;
    refused_by_all(
        &dir,
        "notes.txt",
        &["notes.txt", "not a pingfleet database", "--db"],
    )?;
    dir.write("long.txt", "dear\n".repeat(10_000))?;
    refused_by_all(&dir, "long.txt", &["long.txt", "not a pingfleet database"])
}

#[test]
fn a_sqlite_database_of_another_program_is_not_changed() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    dir.sqlite3(
        "other.db",
        "CREATE TABLE runs (a); INSERT INTO runs VALUES (1)",
    )?;
    refused_by_all(
        &dir,
        "other.db",
        &["other.db", "not a pingfleet database", "--db"],
    )?;
    // Also with the application id of another program.
    dir.sqlite3("marked.db", "PRAGMA application_id = 7; CREATE TABLE t (a)")?;
    refused_by_all(&dir, "marked.db", &["marked.db", "application id 7"])
}

#[test]
fn a_database_with_a_newer_schema_is_not_changed() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    dir.swept("newer.db")?;
    dir.sqlite3("newer.db", "PRAGMA user_version = 99")?;
    refused_by_all(
        &dir,
        "newer.db",
        &["newer.db", "schema version 99", "newer pingfleet"],
    )
}

#[test]
fn a_damaged_database_is_neither_used_nor_replaced() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    dir.swept("damaged.db")?;
    let path = dir.path("damaged.db");
    let mut content = fs::read(&path)?;
    assert!(content.len() > 8 * 4096, "{} bytes", content.len());
    // These pages are not read when the database is opened. Only a check of the whole file finds the damage.
    content[3 * 4096..].fill(0x5a);
    fs::write(&path, &content)?;
    let before = dir.files()?;
    for (program, arguments) in [
        ("pingfleet", ["sweep", "127.0.0.1"].as_slice()),
        ("consumer-writer", &[]),
    ] {
        let mut arguments = arguments.to_vec();
        arguments.extend(["--db", "damaged.db"]);
        dir.call(program, &arguments)?
            .end()?
            .fails(4, &["damaged.db is damaged", "backup", ".recover"]);
        assert_eq!(dir.files()?, before);
    }
    // Truncated, as by a full disk or an interrupted copy.
    dir.write("cut.db", &content[..5000])?;
    refused_by_all(&dir, "cut.db", &["cut.db is damaged"])
}

#[test]
fn a_large_damaged_database_stops_a_sweep() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    dir.swept("large.db")?;
    dir.sqlite3(
        "large.db",
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200)
         INSERT INTO quarantine (received_at_us, queue, reason, length, body)
         SELECT i, 'results', 'made for a test', 65536, randomblob(65536) FROM n",
    )?;
    let check = ["verify", "--database", "--db", "large.db"];
    let sound = dir.pingfleet(&check)?.ends_with(0);
    assert_eq!(sound.stdout, "large.db: no damage found\n");
    let mut content = fs::read(dir.path("large.db"))?;
    let middle = content.len() / 2 / 4096 * 4096;
    content[middle..middle + 64].fill(0x5a);
    fs::write(dir.path("large.db"), &content)?;
    dir.pingfleet(&check)?
        .fails(4, &["large.db is damaged", "backup", ".recover"]);
    // The sweep takes 12 s unless it is stopped.
    dir.pingfleet(&["sweep", "127.0.0.0/24", "--rate", "20", "--db", "large.db"])?
        .fails(4, &["large.db is damaged", "backup", ".recover"]);
    // No other command reads the damaged page.
    dir.pingfleet(&["verify", "1", "--db", "large.db"])?
        .ends_with(0);
    dir.pingfleet(&["verify", "1", "--database", "--db", "large.db"])?
        .fails(3, &["--database"]);
    Ok(())
}

#[test]
fn a_missing_folder_is_not_created() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    refused_by_all(&dir, "missing/sweeps.db", &["missing/sweeps.db"])?;
    fs::create_dir(dir.path("folder"))?;
    refused_by_all(&dir, "folder", &["folder", "directory"])
}

#[test]
fn commands_on_existing_runs_create_no_database() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    for command in [
        "report", "export", "verify", "runs", "cancel", "resume", "retry",
    ] {
        dir.pingfleet(&[command])?
            .fails(4, &["no database pingfleet.db", "--db"]);
    }
    dir.call("producer", &["--resume", "latest"])?
        .end()?
        .fails(4, &["no database pingfleet.db"]);
    assert!(dir.files()?.is_empty());
    Ok(())
}

#[test]
fn a_write_protected_folder_or_file_is_named() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    dir.swept("sweeps.db")?;
    fs::set_permissions(dir.path("sweeps.db"), fs::Permissions::from_mode(0o444))?;
    let before = dir.files()?;
    for database in ["new.db", "sweeps.db"] {
        dir.call_as_nobody(
            Command::new("timeout"),
            "consumer-writer",
            &["--db", database],
        )?
        .end()?
        .fails(4, &["cannot open", database]);
        assert_eq!(dir.files()?, before);
    }
    Ok(())
}

#[test]
fn a_protected_database_can_be_read_and_is_not_changed() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    dir.swept("sweeps.db")?;
    fs::set_permissions(dir.path("sweeps.db"), fs::Permissions::from_mode(0o444))?;
    fs::set_permissions(dir.path("."), fs::Permissions::from_mode(0o555))?;
    let before = dir.files()?;
    for arguments in [["runs"].as_slice(), &["report"], &["export"], &["verify"]] {
        let mut arguments = arguments.to_vec();
        arguments.extend(["--db", "sweeps.db"]);
        dir.call_as_nobody(Command::new("timeout"), "pingfleet", &arguments)?
            .end()?
            .ends_with(0);
        assert_eq!(dir.files()?, before, "{arguments:?}");
    }
    // The control: this user may not write.
    dir.call_as_nobody(
        Command::new("timeout"),
        "pingfleet",
        &["cancel", "--db", "sweeps.db"],
    )?
    .end()?
    .fails(4, &["cannot open", "sweeps.db"]);
    Ok(())
}

#[test]
fn a_uri_or_another_name_that_sqlite_takes_for_no_path_is_refused_and_opens_nothing()
-> anyhow::Result<()> {
    let dir = TestDir::new()?;
    dir.write("uri.toml", "[store]\npath = 'file:x.db'\n")?;
    dir.write("empty.toml", "[store]\npath = ''\n")?;
    let before = dir.files()?;
    let elsewhere = format!("file:{}", dir.path("y.db").display());
    for (program, arguments) in OPENERS {
        for (flag, value, parts) in [
            ("--db", "file:x.db", ["--db: file:x.db", "./file:x.db"]),
            ("--db", "file:x.db?mode=ro", ["--db: ", "is a URI"]),
            ("--db", &elsewhere, ["--db: ", "is a URI"]),
            ("--db", ":memory:", ["--db: :memory:", "path of a file"]),
            ("--config", "uri.toml", ["uri.toml: store.path", "is a URI"]),
            ("--config", "empty.toml", ["store.path", "empty"]),
        ] {
            let arguments = [arguments, &[flag, value]].concat();
            dir.call(program, &arguments)?.end()?.fails(3, &parts);
            assert_eq!(dir.files()?, before, "{program} {arguments:?}");
        }
        let arguments = [arguments, &["--db", ""]].concat();
        dir.call(program, &arguments)?.end()?.ends_with(3);
        assert_eq!(dir.files()?, before, "{program} {arguments:?}");
    }
    // A file can have such a name.
    dir.swept("./file:x.db")?;
    assert!(dir.path("file:x.db").exists());
    dir.pingfleet(&["verify", "--db", "./file:x.db"])?
        .ends_with(0);
    Ok(())
}

#[test]
fn a_pipe_or_a_device_is_not_opened() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    dir.shell("mkfifo pipe")?.ends_with(0);
    for name in ["pipe", "/dev/null"] {
        refused_by_all(&dir, name, &[name, "no regular file"])?;
    }
    Ok(())
}

/// A setting goes before the umask.
#[test]
fn the_group_reads_the_database_if_the_setting_says_so_whatever_the_umask_forbids()
-> anyhow::Result<()> {
    let dir = TestDir::new()?;
    for (who, umask, mode) in [
        ("user", "000", "600"),
        ("group", "022", "640"),
        ("group", "077", "640"),
    ] {
        let line = format!(
            "umask {umask}; PINGFLEET_STORE__READABLE_BY={who} pingfleet sweep --db {who}{umask}.db 127.0.0.1 && \
             stat -c 'mode %a' {who}{umask}.db"
        );
        let swept = dir.shell(&line)?.ends_with(0);
        assert!(
            swept.stdout.contains(&format!("mode {mode}")),
            "{line}: {swept:?}"
        );
    }
    Ok(())
}
