//! Filters of a report: by status, label, subnet, and a condition in SQL that can neither harm nor read anything else.

use std::{path::Path, thread};

use anyhow::{Result, ensure};
use pingfleet_store::{Condition, Reader, ReportFilter, StoreError, Transport, Writer};
use pingfleet_wire::{Status, StatusKind, Target};
use rusqlite::Connection;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::sample::{delivery, options, plan_of, reader, result, start};

/// A run of 10.0.0.0, 10.0.0.1, host-2.example, 10.0.0.3, 10.0.0.4, host-5.example: up and down in turn. The first
/// target of each of the two chunks has the chunk's number as label `rack`.
fn filled(folder: &Path) -> Result<Writer> {
    let mut store = options(&folder.join("fleet.db")).open()?;
    let (_planned, works) = start(&mut store, Transport::Sweep, &[3, 3])?;
    for work in &works {
        let statuses = [Status::Up, Status::DOWN];
        store.apply(Transport::Sweep, &[delivery(result(work, &statuses))])?;
    }
    Ok(store)
}

fn targets(reader: &Reader, filter: &ReportFilter) -> Result<Vec<String>> {
    let mut pages = reader.report(1, filter);
    let mut targets = Vec::new();
    loop {
        let page = pages.next_page()?;
        if page.is_empty() {
            return Ok(targets);
        }
        targets.extend(page.into_iter().map(|row| row.target));
    }
}

fn with_condition(reader: &Reader, condition: &str) -> Result<ReportFilter> {
    Ok(ReportFilter {
        condition: Some(reader.report_condition(condition)?),
        ..ReportFilter::default()
    })
}

fn refusal(found: Result<Condition, StoreError>) -> Result<String> {
    match found {
        Err(StoreError::BadCondition { reason }) => Ok(reason),
        other => anyhow::bail!("{other:?}"),
    }
}

#[test]
fn only_rows_of_the_wanted_statuses_are_read() -> Result<()> {
    let folder = TempDir::new()?;
    let store = filled(folder.path())?;
    let filter = ReportFilter {
        statuses: vec![StatusKind::Down, StatusKind::Late],
        ..ReportFilter::default()
    };
    let found = targets(&reader(&store)?, &filter)?;
    ensure!(found == ["10.0.0.1", "10.0.0.4"], "{found:?}");
    Ok(())
}

#[test]
fn labels_of_one_key_are_alternatives_and_other_keys_must_match_too() -> Result<()> {
    let folder = TempDir::new()?;
    let store = filled(folder.path())?;
    let reader = reader(&store)?;
    for (labels, expected) in [
        ([("rack", "0")].as_slice(), ["10.0.0.0"].as_slice()),
        (&[("rack", "0"), ("rack", "1")], &["10.0.0.0", "10.0.0.3"]),
        (&[("rack", "0"), ("site", "berlin")], &[]),
        (&[("rack", "2")], &[]),
        // Neither a path of JSON nor the end of a text in SQL.
        (&[("$.rack", "0")], &[]),
        (&[("rack", "0' OR '1' = '1")], &[]),
    ] {
        let filter = ReportFilter {
            labels: labels
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            ..ReportFilter::default()
        };
        let found = targets(&reader, &filter)?;
        ensure!(found == expected, "{labels:?}: {found:?}");
    }
    Ok(())
}

#[test]
fn subnets_hold_the_addresses_that_were_probed() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = options(&folder.path().join("fleet.db")).open()?;
    let addresses = [
        "0.0.0.1",
        "127.255.255.255",
        "128.0.0.0",
        "255.255.255.254",
        "2001:db8::1",
        "2001:db8:0:1::",
    ];
    let all = addresses
        .iter()
        .map(|text| Ok(Target::Address(text.parse()?)));
    let mut all = all.collect::<Result<Vec<_>>>()?;
    all.push(Target::Text("core.example".to_owned()));
    let (planned, works) = plan_of(&mut store, Transport::Sweep, vec![all])?;
    store.start_run(planned.run)?;
    let mut answer = result(&works[0], &[Status::Up]);
    answer.outcomes[6].address = Some("192.0.2.7".parse()?);
    store.apply(Transport::Sweep, &[delivery(answer)])?;
    let reader = reader(&store)?;
    for (subnets, expected) in [
        (
            ["0.0.0.0/1"].as_slice(),
            ["0.0.0.1", "127.255.255.255"].as_slice(),
        ),
        (&["128.0.0.0/32"], &["128.0.0.0"]),
        (
            &["255.0.0.0/8", "192.0.2.0/24"],
            &["255.255.255.254", "core.example"],
        ),
        (&["2001:db8::/64"], &["2001:db8::1"]),
        (
            &["2001:db8::/32", "0.0.0.0/8"],
            &["0.0.0.1", "2001:db8::1", "2001:db8:0:1::"],
        ),
        (&["::/0"], &["2001:db8::1", "2001:db8:0:1::"]),
        (&["203.0.113.0/24"], &[]),
    ] {
        let parsed: Result<Vec<_>, _> = subnets.iter().map(|text| text.parse()).collect();
        let filter = ReportFilter {
            subnets: parsed?,
            ..ReportFilter::default()
        };
        let found = targets(&reader, &filter)?;
        ensure!(found == expected, "{subnets:?}: {found:?}");
    }
    Ok(())
}

#[test]
fn a_condition_is_about_the_columns_of_the_view() -> Result<()> {
    let folder = TempDir::new()?;
    let store = filled(folder.path())?;
    let reader = reader(&store)?;
    for (condition, expected) in [
        ("status = 'down'", ["10.0.0.1", "10.0.0.4"].as_slice()),
        (
            "report.rtt_avg_ms > 1 AND target LIKE 'host%'",
            &["host-2.example", "host-5.example"],
        ),
        ("labels ->> 'rack' = '1' -- and a comment", &["10.0.0.3"]),
        ("run = 7 OR address = '10.0.0.4'", &["10.0.0.4"]),
        (
            "(address = '10.0.0.1') OR (address = '10.0.0.4')",
            &["10.0.0.1", "10.0.0.4"],
        ),
        ("substr(probed_at, 1, 4) <> '2023'", &[]),
        ("loss_pct IS NULL", &[]),
        ("NULL", &[]),
    ] {
        let found = targets(&reader, &with_condition(&reader, condition)?)?;
        ensure!(found == expected, "{condition}: {found:?}");
    }
    Ok(())
}

#[test]
fn all_filters_hold_together_and_other_runs_are_never_read() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = filled(folder.path())?;
    let (_second, works) = start(&mut store, Transport::Sweep, &[3])?;
    store.apply(
        Transport::Sweep,
        &[delivery(result(&works[0], &[Status::Up]))],
    )?;
    let reader = reader(&store)?;
    let filter = ReportFilter {
        statuses: vec![StatusKind::Up],
        subnets: vec!["10.0.0.0/31".parse()?],
        labels: vec![("rack".to_owned(), "0".to_owned())],
        // It is true for every row, also for those of the other run.
        condition: Some(reader.report_condition("1 OR run = 2")?),
    };
    let found = targets(&reader, &filter)?;
    ensure!(found == ["10.0.0.0"], "{found:?}");
    Ok(())
}

/// Conditions that try to read, write or do something else, and whether SQLite would run them if they were only put into
/// parentheses.
const HOSTILE: [(&str, bool); 26] = [
    ("1) OR (1", true),
    ("1) UNION SELECT token FROM plan WHERE (1", true),
    ("1) UNION SELECT 1 FROM report WHERE (1", true),
    ("1) THEN 1 END FROM report WHERE CASE WHEN (1", false),
    ("1 THEN 1 END FROM report WHERE CASE WHEN 1", false),
    ("1); DELETE FROM results; --", false),
    ("1; DROP TABLE runs", false),
    ("1); ATTACH 'other.db' AS other; --", false),
    ("1) ORDER BY (1", true),
    ("1) LIMIT (1", true),
    ("1 /*", false),
    ("1) --", false),
    ("EXISTS (SELECT 1 FROM plan)", true),
    ("run IN (SELECT run FROM runs)", true),
    ("run IN runs", false),
    ("(SELECT count(*) FROM results) > 0", true),
    ("EXISTS (SELECT 1 FROM report)", true),
    (
        "EXISTS (WITH report AS (SELECT * FROM workers) SELECT 1 FROM report)",
        true,
    ),
    (
        "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n) > 0",
        true,
    ),
    ("(SELECT 1 FROM sqlite_schema)", true),
    ("EXISTS (SELECT 1 FROM pragma_database_list)", true),
    ("load_extension('evil')", true),
    ("fts3_tokenizer('simple') IS NULL", true),
    ("length(randomblob(1000000000)) > 0", true),
    ("run = ?1", true),
    ("count(*) > 0", false),
];

#[test]
fn hostile_conditions_are_refused() -> Result<()> {
    let folder = TempDir::new()?;
    let store = filled(folder.path())?;
    let reader = reader(&store)?;
    for (condition, _) in HOSTILE {
        let reason = refusal(reader.report_condition(condition));
        ensure!(reason.is_ok(), "{condition}: {reason:?}");
    }
    Ok(())
}

/// The control: most of them are valid SQL that runs on a connection without a guard.
#[test]
fn hostile_conditions_would_run_without_the_check() -> Result<()> {
    let folder = TempDir::new()?;
    let store = filled(folder.path())?;
    let connection = Connection::open(store.path())?;
    for (condition, runs) in HOSTILE {
        let sql = format!("SELECT 1 FROM report WHERE ({condition}\n)");
        let prepared = connection.prepare(&sql);
        ensure!(
            prepared.is_ok() == runs,
            "{condition}: {:?}",
            prepared.err()
        );
    }
    Ok(())
}

#[test]
fn a_refusal_has_the_words_of_sqlite_and_the_columns() -> Result<()> {
    let folder = TempDir::new()?;
    let store = filled(folder.path())?;
    let reader = reader(&store)?;
    for (condition, parts) in [
        (
            "rtt > 1",
            ["no such column: rtt", "rtt_avg_ms, rtt_max_ms"].as_slice(),
        ),
        // A text in double quotes would silently be compared as a text.
        (
            "status = \"down\"",
            &["no such column", "down", "columns are run, run_id"],
        ),
        ("row_chunk = 1", &["no such column: row_chunk"]),
        ("rowid = 1", &["no such column: rowid"]),
        ("status = = 'up'", &["near \"=\": syntax error"]),
        ("", &["syntax error"]),
        ("spell(1)", &["no such function: spell"]),
        ("load_extension('x')", &["load_extension()", "not allowed"]),
        ("EXISTS (SELECT 1 FROM plan)", &["SELECT of its own"]),
        ("run = ?1", &["parameter"]),
    ] {
        let reason = refusal(reader.report_condition(condition))?;
        for part in parts {
            ensure!(reason.contains(part), "{condition}: {reason}");
        }
    }
    Ok(())
}

/// Some mistakes show only with the value of a row.
#[test]
fn a_condition_that_fails_on_a_row_is_refused_as_well() -> Result<()> {
    let folder = TempDir::new()?;
    let store = filled(folder.path())?;
    let reader = reader(&store)?;
    for (condition, part) in [
        ("json_extract(target, '$') = 1", "malformed JSON"),
        ("length(printf('%.*c', 2000000, 'x')) > 1", "too big"),
    ] {
        let filter = with_condition(&reader, condition)?;
        match reader.report(1, &filter).next_page() {
            Err(StoreError::BadCondition { reason }) => {
                ensure!(reason.contains(part), "{condition}: {reason}");
            }
            other => anyhow::bail!("{condition}: {other:?}"),
        }
    }
    Ok(())
}

/// The condition is slow on purpose, and false for every row, so that one statement reads the whole run.
#[test]
fn a_running_query_is_interrupted() -> Result<()> {
    let folder = TempDir::new()?;
    let store = filled(folder.path())?;
    let token = CancellationToken::new();
    let reader = reader(&store)?.interrupted_by(token.clone());
    let doubled = (0..15).fold("target || 'b'".to_owned(), |text, _| {
        format!("replace({text}, 'b', 'bb')")
    });
    let filter = with_condition(&reader, &format!("length({doubled}) = 0"))?;
    let canceller = thread::spawn(move || token.cancel());
    // It reads the run again and again, until a query is interrupted.
    let error = loop {
        match reader.report(1, &filter).next_page() {
            Ok(rows) => ensure!(rows.is_empty()),
            Err(error) => break error,
        }
    };
    ensure!(matches!(error, StoreError::Interrupted), "{error:?}");
    ensure!(canceller.join().is_ok());
    Ok(())
}
