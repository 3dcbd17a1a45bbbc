//! `export`: other programs read its files and find every value of the view, and a file appears whole or not at all.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};
use pingfleet_testbed::SmallDisk;
use serde_json::{Value, json};

use crate::rig::{Finished, TestDir, built};
#[cfg(feature = "parquet")]
use crate::screens::generated;

/// Adds a run of 45,000 rows with every status, both families, names, labels and text that formats have to quote.
const RUN_2: &str = r#"
INSERT INTO runs (run, run_id, state, transport, source, probing, started_at_us, finished_at_us, worst_chunk_us,
                  targets, chunks, chunks_done)
VALUES (2, '01890000-0000-7000-8000-000000000002', 'complete', 'sweep', 'hosts, "all"', '{}', 1700000000123456,
        1700000300000000, 1, 45000, 180, 180);
WITH RECURSIVE c(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM c WHERE n < 179)
INSERT INTO chunks (run, chunk, state, targets, worker, started_at_us)
SELECT 2, n, 3, 250, 'wörker "' || n % 3 || '"', 1700000000123456 + n * 1000003 FROM c;
WITH RECURSIVE r(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM r WHERE n < 44999),
     s AS (SELECT n, n % 7 AS status, CASE WHEN n % 7 < 2 THEN (n * 7919) % 900000000 + 1 END AS avg FROM r)
INSERT INTO results
SELECT 2, n / 250, n % 250, status, CASE WHEN status IN (3, 4) THEN 0 ELSE 3 END,
       CASE WHEN status < 2 THEN 1 + n % 3 ELSE 0 END, 1 + n % 2, n % 250 * 1999,
       CASE WHEN status = 3 THEN NULL WHEN n % 11 = 0 THEN printf('2001:db8::%x', n + 1)
            ELSE n * 90001 - 2147483648 END,
       avg, CASE WHEN n % 5 = 0 THEN avg / 2 END, CASE WHEN n % 5 = 0 THEN avg * 3 END,
       CASE WHEN n % 5 = 0 AND avg IS NOT NULL THEN n END,
       CASE WHEN status = 3 OR n % 13 = 0 THEN 'host-' || n || '.exämple' END,
       CASE WHEN status = 2 THEN 'says "10.0.0.1", twice' WHEN status = 3 THEN 'nxdomain' END
FROM s;
INSERT INTO labels
SELECT run, chunk, position, json_object('site', 'a,"b"' || char(10) || 'c', 'größe', position)
FROM results WHERE run = 2 AND position % 17 = 0;
"#;

/// A database with a run of 127.0.0.1 and with [`RUN_2`].
fn filled() -> anyhow::Result<TestDir> {
    let dir = TestDir::new()?;
    dir.swept("pingfleet.db")?;
    dir.sqlite3("pingfleet.db", RUN_2)?;
    Ok(dir)
}

/// All files but the database's.
fn exported(dir: &TestDir) -> anyhow::Result<Vec<String>> {
    let names = dir.files()?.into_keys();
    Ok(names
        .filter(|name| !name.starts_with("pingfleet.db"))
        .collect())
}

/// Python with the libraries that read the files.
fn python() -> anyhow::Result<PathBuf> {
    let folder = built("pingfleet")?;
    let folder = folder.ancestors().nth(2).context("the build folder")?;
    let python = folder.join("test-python/bin/python");
    ensure!(
        python.exists(),
        "no {}: scripts/test makes it",
        python.display()
    );
    Ok(python)
}

/// Runs exports.py.
fn compare(dir: &TestDir, database: &str, files: &[&str]) -> anyhow::Result<Finished> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/exports.py");
    let line = format!(
        "{} {script} {database} 2 {}",
        python()?.display(),
        files.join(" ")
    );
    dir.shell(&line)
}

#[test]
fn every_value_of_the_view_is_in_the_files() -> anyhow::Result<()> {
    let dir = filled()?;
    let files = if cfg!(feature = "parquet") {
        ["a.jsonl", "a.csv", "a.parquet"].as_slice()
    } else {
        &["a.jsonl", "a.csv"]
    };
    for file in files {
        let finished = dir.pingfleet(&["export", "-o", file])?.ends_with(0);
        assert!(
            finished.stderr.contains("45000 rows of run 2"),
            "{finished:#?}"
        );
    }
    let compared = compare(&dir, "pingfleet.db", files)?.ends_with(0);
    let readers = compared.stdout.matches("45000").count();
    assert_eq!(
        readers,
        if files.len() == 3 { 4 } else { 2 },
        "{compared:#?}"
    );
    // Control: one other value, of a row in the last part, is found in each of them.
    fs::copy(dir.path("pingfleet.db"), dir.path("other.db"))?;
    dir.sqlite3(
        "other.db",
        "UPDATE results SET rtt_avg_ns = rtt_avg_ns + 1 WHERE run = 2 AND chunk = 179 AND position = 204",
    )?;
    for file in files {
        let compared = compare(&dir, "other.db", &[file])?.ends_with(1);
        assert!(compared.stderr.contains("another row"), "{compared:#?}");
    }
    Ok(())
}

#[cfg(feature = "parquet")]
#[test]
fn a_row_group_has_100000_rows_and_each_row_is_in_one() -> anyhow::Result<()> {
    let dir = generated(210_000, 1)?;
    dir.pingfleet(&["export", "-o", "a.parquet"])?.ends_with(0);
    let script = "import pyarrow.parquet as parquet
file = parquet.ParquetFile('a.parquet')
print([file.metadata.row_group(at).num_rows for at in range(file.num_row_groups)])
print(len(set(file.read(['target']).column(0).to_pylist())))";
    let line = format!("{} -c \"{script}\"", python()?.display());
    let read = dir.shell(&line)?.ends_with(0);
    assert_eq!(read.stdout, "[100000, 100000, 10000]\n210000\n");
    Ok(())
}

#[test]
fn jq_reads_json_lines_and_the_lines_of_csv_end_as_the_rfc_wants() -> anyhow::Result<()> {
    let dir = filled()?;
    let sum = dir
        .shell("pingfleet export 2 | jq -s 'map(.sent) | add'")?
        .ends_with(0);
    let sql = "SELECT sum(sent) FROM report WHERE run = 2";
    assert_eq!(sum.stdout.trim(), dir.sqlite3("pingfleet.db", sql)?);
    let csv = dir
        .pingfleet(&["export", "1", "--format", "csv"])?
        .ends_with(0);
    let lines: Vec<_> = csv.stdout.split("\r\n").collect();
    let columns = "SELECT group_concat(name, ',') FROM pragma_table_info('report')";
    assert_eq!(lines[0], dir.sqlite3("pingfleet.db", columns)?);
    assert_eq!((lines.len(), lines[2]), (3, ""), "{csv:#?}");
    Ok(())
}

#[test]
fn only_the_rows_of_the_filters_are_exported() -> anyhow::Result<()> {
    let dir = filled()?;
    for (flags, condition) in [
        (
            ["--status", "up", "--status", "late"].as_slice(),
            "status IN ('up', 'late')",
        ),
        (
            &["--subnet", "2001:db8::/112"],
            "address LIKE '2001:db8::%' AND length(address) <= 14",
        ),
        (&["--label", "größe=17"], "0"),
        (
            &["--where", "rtt_avg_ms > 100 AND reason IS NULL"],
            "rtt_avg_ms > 100",
        ),
        (&["--where", "1 = 2"], "0"),
    ] {
        let export = [["export", "2"].as_slice(), flags].concat();
        let rows = dir.pingfleet(&export)?.ends_with(0).json()?;
        let sql = format!("SELECT count(*) FROM report WHERE run = 2 AND {condition}");
        assert_eq!(
            rows.len().to_string(),
            dir.sqlite3("pingfleet.db", &sql)?,
            "{flags:?}"
        );
    }
    dir.pingfleet(&["export", "--where", "rtt > 1", "-o", "a.csv"])?
        .fails(3, &["no such column: rtt"]);
    assert!(exported(&dir)?.is_empty());
    Ok(())
}

#[test]
fn metadata_has_the_run_its_state_the_filters_and_the_number_of_rows() -> anyhow::Result<()> {
    let dir = filled()?;
    let arguments = [
        "export",
        "-o",
        "a.csv",
        "--metadata",
        "a.json",
        "--status",
        "up",
    ];
    dir.pingfleet(&arguments)?.ends_with(0);
    let about: Value = serde_json::from_slice(&fs::read(dir.path("a.json"))?)?;
    for (field, value) in [
        ("format_version", json!(1)),
        ("run", json!(2)),
        ("run_id", json!("01890000-0000-7000-8000-000000000002")),
        ("state", json!("complete")),
        ("source", json!("hosts, \"all\"")),
        ("started_at", json!("2023-11-14T22:13:20.123Z")),
        ("rows", json!(6429)),
        (
            "filter",
            json!({"status": ["up"], "label": [], "subnet": [], "where": null}),
        ),
    ] {
        assert_eq!(about[field], value, "{field} of {about:#}");
    }
    Ok(())
}

#[test]
fn metadata_has_the_settings_and_the_seed_and_each_field_is_documented() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    let sweep = [
        "sweep",
        "127.0.0.0/29",
        "--seed",
        "18446744073709551615",
        "-c",
        "2",
    ];
    let flags = [
        "-p",
        "20ms",
        "-t",
        "700ms",
        "--ttl",
        "9",
        "--chunk-size",
        "3",
    ];
    dir.pingfleet(&[&sweep[..], &flags].concat())?.ends_with(0);
    dir.pingfleet(&["retry", "--only", "up"])?.ends_with(0);
    let about = |run: &str| -> anyhow::Result<Value> {
        let export = ["export", run, "-o", "a.csv", "--metadata", "a.json"];
        dir.pingfleet(&export)?.ends_with(0);
        Ok(serde_json::from_slice(&fs::read(dir.path("a.json"))?)?)
    };
    let (first, second) = (about("1")?, about("2")?);
    assert_eq!(first["seed"], json!(u64::MAX));
    for (field, value) in [
        ("count", json!(2)),
        ("interval_s", json!(0.02)),
        ("ttl", json!(9)),
        ("family", json!("any")),
        ("chunk_size", json!(3)),
    ] {
        assert_eq!(first["probing"][field], value, "{field} of {first:#}");
    }
    let report = dir.pingfleet(&["report", "1", "--json"])?.ends_with(0);
    assert_eq!(report.json()?[0]["probing"], first["probing"]);
    assert_eq!(
        (&first["parent_run"], &second["parent_run"]),
        (&Value::Null, &json!(1))
    );
    // The control: a retry has its own order, and settings that cannot be read are null.
    assert_eq!(second["seed"], Value::Null);
    dir.sqlite3(
        "pingfleet.db",
        "UPDATE runs SET probing = '{}' WHERE run = 2",
    )?;
    assert_eq!(about("2")?["probing"], Value::Null);
    let documents = ["export.md", "report-json.md"].map(|name| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
        fs::read_to_string(folder.join(name))
    });
    let [of_export, of_report] = documents;
    for (object, document) in [(&first, of_export?), (&first["probing"], of_report?)] {
        for field in object.as_object().context("an object")?.keys() {
            assert!(document.contains(&format!("`{field}`")), "{field}");
        }
    }
    Ok(())
}

#[test]
fn a_run_in_progress_is_exported_as_it_is() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    let slow = ["sweep", "--rate", "20", "--chunk-size", "1", "127.0.0.0/22"];
    let sweep = dir.start("pingfleet", &slow, &[])?;
    // Until it has a row.
    loop {
        let rows = dir.pingfleet(&["export"])?;
        if rows.code == Some(0) && !rows.stdout.is_empty() {
            break;
        }
    }
    let export = dir
        .pingfleet(&["export", "-o", "a.jsonl", "--metadata", "a.json"])?
        .ends_with(0);
    assert!(export.stderr.contains("run 1 is running"), "{export:#?}");
    let about: Value = serde_json::from_slice(&fs::read(dir.path("a.json"))?)?;
    assert_eq!(about["state"], json!("running"), "{about:#}");
    drop(sweep);
    let killed = dir.pingfleet(&["export"])?.ends_with(0);
    assert!(killed.stderr.contains("run 1 is incomplete"), "{killed:#?}");
    let quiet = dir.pingfleet(&["export", "-q"])?.ends_with(0);
    assert_eq!(quiet.stderr, "");
    Ok(())
}

#[test]
fn the_format_follows_the_name_of_the_file() -> anyhow::Result<()> {
    let dir = filled()?;
    for (file, start) in [
        ("a.csv", "run,run_id,"),
        ("b.JSONL", "{\"run\":1,"),
        ("c.ndjson", "{"),
    ] {
        dir.pingfleet(&["export", "1", "-o", file])?.ends_with(0);
        let text = fs::read_to_string(dir.path(file))?;
        assert!(text.starts_with(start), "{file}: {text}");
    }
    for (flags, part) in [
        (["-o", "a.txt"].as_slice(), ".jsonl, .csv or .parquet"),
        (&["-o", "a"], "add --format"),
        (&["--format", "xml"], "--format"),
        (&["-o", "a.csv", "--metadata", "a.csv"], "same file"),
        (&["-o", "new.csv", "--metadata", "./new.csv"], "same file"),
        (
            &["-o", "./pingfleet.db-wal", "--format", "csv"],
            "belongs to the database",
        ),
        (
            &["-o", "pingfleet.db", "--format", "csv"],
            "is the database",
        ),
        (
            &["-o", "a.csv", "--metadata", "pingfleet.db"],
            "is the database",
        ),
    ] {
        let export = [["export", "1"].as_slice(), flags].concat();
        dir.pingfleet(&export)?.fails(3, &[part]);
    }
    dir.pingfleet(&["report", "--csv"])?
        .fails(3, &["pingfleet export --format csv"]);
    dir.pingfleet(&["verify", "--database"])?.ends_with(0);
    Ok(())
}

#[test]
fn a_closed_pipe_ends_an_export_quietly() -> anyhow::Result<()> {
    let dir = filled()?;
    for format in ["jsonl", "csv"] {
        let line =
            format!("pingfleet export --format {format} | head -n 1; exit ${{PIPESTATUS[0]}}");
        let finished = dir.shell(&line)?.ends_with(0);
        assert_eq!(finished.stderr, "", "{finished:#?}");
        assert_eq!(finished.stdout.lines().count(), 1, "{finished:#?}");
    }
    Ok(())
}

#[test]
fn a_path_that_cannot_be_written_is_one_message() -> anyhow::Result<()> {
    let dir = filled()?;
    fs::create_dir(dir.path("folder"))?;
    let before = dir.files()?;
    for (path, part) in [
        ("nowhere/a.csv", "No such file"),
        ("folder", "directory"),
        ("pingfleet.db/a.csv", "Not a directory"),
        ("/dev/full", "No space left"),
    ] {
        let export = ["export", "--format", "csv", "-o", path];
        dir.pingfleet(&export)?
            .fails(4, &["cannot write", path, part]);
        let export = ["export", "--format", "csv", "--metadata", path];
        let failed = dir.pingfleet(&export)?.ends_with(4);
        assert!(failed.stderr.contains("cannot write"), "{failed:#?}");
    }
    dir.shell("pingfleet export > /dev/full")?
        .fails(4, &["cannot write the output", "No space left"]);
    fs::set_permissions(dir.path("pingfleet.db"), fs::Permissions::from_mode(0o644))?;
    let timeout = Command::new("timeout");
    dir.call_as_nobody(timeout, "pingfleet", &["export", "-o", "a.csv"])?
        .end()?
        .fails(4, &["cannot write a.csv", "Permission denied"]);
    assert_eq!(dir.files()?, before);
    Ok(())
}

#[test]
fn a_full_disk_leaves_the_older_file_and_nothing_else() -> anyhow::Result<()> {
    let dir = filled()?;
    let disk = SmallDisk::new(1024)?;
    let formats = if cfg!(feature = "parquet") {
        ["jsonl", "csv", "parquet"].as_slice()
    } else {
        &["jsonl", "csv"]
    };
    for format in formats {
        let path = disk.path().join(format!("a.{format}"));
        fs::write(&path, "older")?;
        disk.fill(64 * 1024)?;
        let name = path.to_str().context("a plain name")?;
        dir.pingfleet(&["export", "-o", name])?
            .fails(4, &["cannot write", name, "No space left"]);
        assert_eq!(fs::read_to_string(&path)?, "older");
        fs::remove_file(&path)?;
        let left: Vec<_> = fs::read_dir(disk.path())?.collect::<Result<_, _>>()?;
        assert_eq!(left.len(), 1, "{left:?}");
    }
    Ok(())
}

#[test]
fn an_interrupted_export_leaves_the_older_file_and_nothing_else() -> anyhow::Result<()> {
    let dir = filled()?;
    dir.write("a.csv", "older")?;
    let before = dir.files()?;
    // It takes minutes.
    let text = (0..18).fold("target || 'b'".to_owned(), |text, _| {
        format!("replace({text}, 'b', 'bb')")
    });
    let condition = format!("length({text}) = 0");
    let line = format!(
        "pingfleet export -o a.csv --where \"{condition}\" & while ! ls .a.csv.*.part; do :; done \
         2>/dev/null >&2; kill -INT $!; wait $!"
    );
    let finished = dir.shell(&line)?.ends_with(130);
    let message = "error: interrupted: a.csv is not written";
    assert!(finished.stderr.contains(message), "{finished:#?}");
    assert_eq!(dir.files()?, before);
    Ok(())
}

#[test]
fn a_file_is_replaced_as_a_whole_and_a_link_is_followed() -> anyhow::Result<()> {
    let dir = filled()?;
    dir.write("real.csv", "older")?;
    symlink("real.csv", dir.path("link.csv"))?;
    dir.pingfleet(&["export", "1", "-o", "link.csv"])?
        .ends_with(0);
    assert!(fs::symlink_metadata(dir.path("link.csv"))?.is_symlink());
    assert!(fs::read_to_string(dir.path("real.csv"))?.starts_with("run,"));
    dir.shell("umask 027; pingfleet export 1 -o new.csv")?
        .ends_with(0);
    let mode = fs::metadata(dir.path("new.csv"))?.permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    let to_a_pipe = dir
        .shell("pingfleet export 1 --format csv -o /dev/stdout | cat")?
        .ends_with(0);
    assert_eq!(to_a_pipe.stdout.lines().count(), 2, "{to_a_pipe:#?}");
    assert!(PathBuf::from("/dev/stdout").exists());
    Ok(())
}

#[test]
fn an_empty_run_is_an_empty_file_of_its_format() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    dir.swept("pingfleet.db")?;
    dir.pingfleet(&["export", "--status", "down"])?.ends_with(0);
    let csv = ["export", "--status", "down", "--format", "csv"];
    let csv = dir.pingfleet(&csv)?.ends_with(0);
    assert_eq!(csv.stdout.lines().count(), 1, "{csv:#?}");
    dir.sqlite3(
        "pingfleet.db",
        "DELETE FROM results; DELETE FROM chunks; DELETE FROM runs;",
    )?;
    dir.pingfleet(&["export", "-o", "a.csv"])?
        .fails(3, &["no run \"latest\""]);
    assert!(exported(&dir)?.is_empty());
    Ok(())
}

#[cfg(not(feature = "parquet"))]
#[test]
fn a_build_without_parquet_names_the_command_that_builds_with_it() -> anyhow::Result<()> {
    let dir = filled()?;
    dir.pingfleet(&["export", "-o", "a.parquet"])?
        .fails(3, &["cargo build --release --features parquet"]);
    assert!(exported(&dir)?.is_empty());
    Ok(())
}

#[cfg(feature = "parquet")]
#[test]
fn parquet_is_not_written_to_a_terminal() -> anyhow::Result<()> {
    let dir = filled()?;
    let command = "pingfleet export --format parquet";
    let line = format!("script --quiet --return --command '{command}' /dev/null");
    let refused = dir.shell(&line)?.ends_with(3);
    assert!(
        refused.stdout.contains("name a file with -o"),
        "{refused:#?}"
    );
    let piped = dir.shell(&format!("{command} | tail -c 4"))?.ends_with(0);
    assert_eq!(piped.stdout, "PAR1");
    Ok(())
}

/// Texts of the rows of run 1, field by field.
fn fields(csv: &str) -> anyhow::Result<Vec<Vec<String>>> {
    let mut reader = csv::Reader::from_reader(csv.as_bytes());
    let rows = reader.records().map(|row| {
        let row = row?;
        Ok(row.iter().map(str::to_owned).collect())
    });
    rows.collect()
}

#[test]
fn excel_safe_leaves_no_formula_and_changes_nothing_else() -> anyhow::Result<()> {
    const FORMULAS: [&str; 6] = [
        "=cmd|'/c calc'!A0",
        "+1+1",
        "-2",
        "@SUM(1)",
        "\t=1",
        "\u{ff1d}1",
    ];
    let dir = filled()?;
    let is_formula = |field: &str| FORMULAS.contains(&field);
    for (position, formula) in FORMULAS.iter().enumerate() {
        let text = formula.replace('\'', "''");
        dir.sqlite3(
            "pingfleet.db",
            &format!(
                "UPDATE results SET name = '{text}', reason = '{text}' WHERE run = 2 AND chunk = 0 AND position = {position};
                 UPDATE chunks SET worker = '{text}' WHERE run = 2 AND chunk = {position}"
            ),
        )?;
    }
    let plain = dir
        .pingfleet(&["export", "2", "--format", "csv"])?
        .ends_with(0);
    let safe = dir
        .pingfleet(&["export", "2", "--format", "csv", "--excel-safe"])?
        .ends_with(0);
    let (plain, safe) = (fields(&plain.stdout)?, fields(&safe.stdout)?);
    let mut changed = 0;
    for (plain, safe) in plain.iter().flatten().zip(safe.iter().flatten()) {
        if is_formula(plain) {
            assert_eq!(*safe, format!("'{plain}"));
            changed += 1;
        } else {
            assert_eq!(safe, plain);
        }
    }
    // Names and reasons of six rows, and the workers of six chunks of 250.
    assert!(changed > 1500, "{changed}");
    assert_eq!(plain.len(), safe.len());
    dir.pingfleet(&["export", "2", "--excel-safe"])?
        .fails(3, &["--excel-safe is for CSV"]);
    Ok(())
}
