//! Output: formats of the report, other commands that read the database, and closed or full outputs.

use pingfleet_testbed::Namespace;
use serde_json::{Value, json};

use crate::rig::TestDir;

/// A folder whose database has one run of 10.0.0.1, which answered, and 10.128.0.1, which did not.
fn mixed() -> anyhow::Result<TestDir> {
    let dir = TestDir::new()?;
    let namespace = Namespace::answering("10.0.0.0/24")?;
    let arguments = [
        "sweep",
        "--no-shuffle",
        "-r0",
        "-t200ms",
        "10.0.0.1",
        "10.128.0.1",
    ];
    dir.call_as(namespace.command("timeout"), "pingfleet", &arguments)?
        .end()?
        .ends_with(0);
    Ok(dir)
}

#[test]
fn json_lines_have_numbers_as_numbers_and_null_for_what_was_not_measured() -> anyhow::Result<()> {
    let dir = mixed()?;
    let rows = dir.pingfleet(&["export"])?.ends_with(0).json()?;
    let [up, down] = rows.as_slice() else {
        panic!("{rows:#?}")
    };
    assert_eq!(
        (&up["target"], &up["status"]),
        (&json!("10.0.0.1"), &json!("up"))
    );
    for rtt in ["rtt_min_ms", "rtt_avg_ms", "rtt_max_ms"] {
        assert!(up[rtt].as_f64().is_some_and(|ms| ms > 0.0), "{up:#}");
        assert_eq!(down[rtt], Value::Null, "{down:#}");
    }
    assert_eq!(down["rtt_stddev_ms"], Value::Null, "{down:#}");
    assert_eq!(
        (&down["target"], &down["status"]),
        (&json!("10.128.0.1"), &json!("down"))
    );
    for (row, sent, received, loss) in [(up, 1, 1, 0.0), (down, 1, 0, 100.0)] {
        assert_eq!(row["run"], json!(1));
        assert_eq!(row["sent"], json!(sent), "{row:#}");
        assert_eq!(row["received"], json!(received), "{row:#}");
        assert_eq!(row["loss_pct"], json!(loss), "{row:#}");
        assert_eq!(row["labels"], Value::Null);
    }
    Ok(())
}

#[test]
fn csv_has_the_columns_of_the_view_and_empty_fields_for_what_was_not_measured() -> anyhow::Result<()>
{
    let dir = mixed()?;
    let report = dir.pingfleet(&["export", "--format", "csv"])?.ends_with(0);
    let mut reader = csv::Reader::from_reader(report.stdout.as_bytes());
    let header: Vec<_> = reader.headers()?.iter().map(str::to_owned).collect();
    assert_eq!(
        header.join("|"),
        dir.sqlite3(
            "pingfleet.db",
            "SELECT group_concat(name, '|') FROM pragma_table_info('report')"
        )?
    );
    let records = reader.records().collect::<Result<Vec<_>, _>>()?;
    let field = |row: usize, name: &str| {
        let column = header.iter().position(|column| column == name);
        records[row][column.expect("a column of the view")].to_owned()
    };
    assert_eq!(field(0, "status"), "up");
    assert!(field(0, "rtt_avg_ms").parse::<f64>()? > 0.0);
    assert_eq!(field(1, "status"), "down");
    assert_eq!(field(1, "rtt_avg_ms"), "");
    assert_eq!(field(1, "loss_pct").parse::<f64>()?.to_string(), "100");
    // The same rows by JSON, in the same order and with the same names.
    let json = dir.pingfleet(&["export"])?.ends_with(0);
    let line = json.stdout.lines().next().expect("a row");
    let names: Vec<_> = header
        .iter()
        .map(|name| line.find(&format!("\"{name}\":")))
        .collect();
    assert!(names.is_sorted() && names[0].is_some(), "{line}");
    Ok(())
}

#[test]
fn the_table_has_dashes_for_what_was_not_measured() -> anyhow::Result<()> {
    let dir = mixed()?;
    let report = dir.pingfleet(&["report", "--targets"])?.ends_with(0);
    let lines: Vec<_> = report.stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{report:#?}");
    let words: Vec<_> = lines[2].split_whitespace().collect();
    assert_eq!(words[..6], ["10.128.0.1", "down", "0/1", "-", "-", "-"]);
    let only = dir.pingfleet(&["report", "--status", "down"])?.ends_with(0);
    assert_eq!(only.stdout.lines().count(), 2, "{only:#?}");
    Ok(())
}

#[test]
fn runs_are_listed_for_people_and_for_programs() -> anyhow::Result<()> {
    let dir = mixed()?;
    let table = dir.pingfleet(&["runs"])?.ends_with(0);
    assert_eq!(table.stdout.lines().count(), 2, "{table:#?}");
    let rows = dir.pingfleet(&["runs", "--json"])?.ends_with(0).json()?;
    let [run] = rows.as_slice() else {
        panic!("{rows:#?}")
    };
    for (field, value) in [
        ("run", json!(1)),
        ("state", json!("complete")),
        ("targets", json!(2)),
        ("up", json!(1)),
        ("down", json!(1)),
        ("chunks_done", json!(1)),
        ("transport", json!("sweep")),
    ] {
        assert_eq!(run[field], value, "{field} of {run:#}");
    }
    Ok(())
}

#[test]
fn a_closed_pipe_ends_a_report_quietly() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    // More than a pipe holds, so that the report is still being written when the reader exits.
    dir.pingfleet(&["sweep", "--rate", "unlimited", "127.0.0.0/20"])?
        .ends_with(0);
    for form in ["--targets", "--json"] {
        let line = format!("pingfleet report {form} | head -n 1; exit ${{PIPESTATUS[0]}}");
        let finished = dir.shell(&line)?.ends_with(0);
        assert_eq!(finished.stderr, "", "{finished:#?}");
        assert_eq!(finished.stdout.lines().count(), 1, "{finished:#?}");
    }
    for command in [
        "report",
        "report --json",
        "runs",
        "verify",
        "--help",
        "sweep --dry-run 127.0.0.0/24",
    ] {
        let line = format!("pingfleet {command} | true; exit ${{PIPESTATUS[0]}}");
        let finished = dir.shell(&line)?.ends_with(0);
        assert_eq!(finished.stderr, "", "{finished:#?}");
    }
    Ok(())
}

#[test]
fn a_full_disk_is_reported() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    dir.swept("pingfleet.db")?;
    for command in ["report", "report --json", "runs", "verify"] {
        dir.shell(&format!("pingfleet {command} > /dev/full"))?
            .fails(4, &["cannot write the output", "No space left"]);
    }
    Ok(())
}

#[test]
fn a_closed_standard_error_changes_no_exit_code() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    for (command, code) in [
        ("sweep 10.0.0.300", 2),
        ("sweep -vv 127.0.0.1", 0),
        ("--nothing", 3),
        ("verify 7", 3),
    ] {
        // The reader of the pipe exits before the program writes.
        let line = format!("exec 2> >(exec true); wait $!; pingfleet {command} > /dev/null");
        dir.shell(&line)?.ends_with(code);
    }
    Ok(())
}

#[test]
fn no_escape_sequence_is_written_to_a_pipe() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    for arguments in [
        ["sweep", "-vv", "127.0.0.1"].as_slice(),
        &["report"],
        &["export"],
        &["runs"],
        &["verify"],
        &["doctor"],
        &["--help"],
        &["--nothing"],
    ] {
        let finished = dir
            .call("pingfleet", arguments)?
            .env("CLICOLOR", "1")
            .end()?;
        finished.hides("\u{1b}").hides("\r");
    }
    Ok(())
}

#[test]
fn no_color_is_honoured_on_a_terminal() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    // `script` runs the program on a terminal.
    let on_a_terminal = |prefix: &str, command: &str| {
        dir.shell(&format!(
            "{prefix} script --quiet --return --command '{command}' /dev/null"
        ))
    };
    for command in [
        "pingfleet sweep -v 127.0.0.0/28",
        "pingfleet report",
        "pingfleet --help",
        "pingfleet verify 99 || true",
    ] {
        let plain = on_a_terminal("NO_COLOR=1", command)?.ends_with(0);
        assert!(!plain.stdout.contains('\u{1b}'), "{plain:#?}");
    }
    // Control: without NO_COLOR there is colour.
    let colour = on_a_terminal("", "pingfleet sweep -v 127.0.0.0/28")?.ends_with(0);
    assert!(colour.stdout.contains("\u{1b}["), "{colour:#?}");
    Ok(())
}

#[test]
fn an_unknown_run_is_a_usage_error() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    dir.swept("pingfleet.db")?;
    let before = dir.files()?;
    for command in ["verify", "report", "export", "cancel", "resume", "retry"] {
        for run in ["7", "zz", "-1", "ffff"] {
            dir.pingfleet(&[command, "--", run])?
                .fails(3, &["no run", run, "pingfleet runs"]);
        }
    }
    assert_eq!(dir.files()?, before);
    Ok(())
}

#[test]
fn resume_and_retry_print_the_summary_of_a_complete_run_and_cancel_leaves_it() -> anyhow::Result<()>
{
    let dir = TestDir::new()?;
    dir.swept("pingfleet.db")?;
    for command in ["resume", "retry"] {
        let output = dir.pingfleet(&[command])?.ends_with(0);
        assert!(output.stdout.contains("run 1 complete"), "{output:#?}");
    }
    let cancelled = dir.pingfleet(&["cancel"])?.ends_with(0);
    assert!(
        cancelled.stdout.contains("nothing to cancel"),
        "{cancelled:#?}"
    );
    assert!(!dir.path("pingfleet.db-run-1.lock").exists());
    dir.pingfleet(&["verify"])?.ends_with(0);
    Ok(())
}
