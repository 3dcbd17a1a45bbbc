//! What the reading commands ask of the database: each statement that they really run, on a database with rows. None
//! walks over a table with a row for each target of each run, and a page comes without being sorted.

use std::{collections::BTreeSet, path::Path, sync::mpsc};

use anyhow::{Result, ensure};
use pingfleet_testbed::GeneratedRuns;
use pingfleet_wire::StatusKind;
use rusqlite::{Connection, functions::FunctionFlags};
use tempfile::TempDir;

use super::queries::{plan, walks};
use crate::{DiffLimits, HostFilter, HostOrder, Reader, ReportFilter, RowOrder, StoreError};

const RUNS: u32 = 3;

/// Statements that walk over a table, by how they begin, and the table: none of them has a row for each target of each run.
const WALKS: [(&str, &str); 7] = [
    // A row for each run.
    ("SELECT run FROM pruned_runs", "pruned_runs"),
    ("SELECT run, finished_at_us IS NOT NULL FROM runs", "runs"),
    ("SELECT s.run, s.run_id, n.transport, s.state", "runs"),
    // The newest ones of an index.
    (
        "SELECT target FROM latest_rows WHERE status > 1",
        "latest_rows",
    ),
    // A row for each worker of the last week: a window function over them.
    ("SELECT w.*, count(h.chunk) AS in_hand", "(subquery-2)"),
    // At most 10,000 messages.
    (
        "SELECT queue, reason, count(*) FROM quarantine",
        "quarantine",
    ),
    (
        "SELECT received_at_us, queue, reason, detail, length, login FROM quarantine",
        "quarantine",
    ),
];

/// Statements that sort, by how they begin.
const SORTS: [&str; 3] = [
    // `verify`: which targets of a run are there twice.
    "SELECT coalesce(name, CASE typeof(address)",
    // Into a group for each status, or for each worker.
    "SELECT status, count(*) FROM results WHERE run = ?1 AND address",
    "SELECT w.*, count(h.chunk) AS in_hand",
];

/// Calls `next` until the end.
fn drain(mut next: impl FnMut() -> Result<bool, StoreError>) -> Result<usize> {
    let mut pages = 0;
    while !next()? {
        pages += 1;
    }
    Ok(pages)
}

/// Each kind of filter.
fn filters(reader: &Reader, is_latest: bool) -> Result<Vec<ReportFilter>> {
    let condition = if is_latest {
        reader.latest_condition("changes_30d > 0 OR rtt_avg_ms > 1")?
    } else {
        reader.report_condition("worker LIKE 'b%' AND labels IS NOT NULL")?
    };
    let none = ReportFilter::default;
    Ok(vec![
        none(),
        ReportFilter {
            statuses: vec![StatusKind::Down, StatusKind::Unknown],
            ..none()
        },
        ReportFilter {
            labels: vec![("site".to_owned(), "berlin".to_owned())],
            ..none()
        },
        ReportFilter {
            subnets: vec!["10.0.0.0/12".parse()?],
            ..none()
        },
        ReportFilter {
            condition: Some(condition),
            ..none()
        },
    ])
}

/// `report`, `export`, `verify` and `prune`: what is read of one run.
fn read_a_run(reader: &Reader, run: i64) -> Result<()> {
    reader.find_run("latest")?;
    reader.find_run(&reader.summary(run)?.run_id.to_string()[..13])?;
    reader.planned_probing(run)?;
    reader.seed(run)?;
    reader.overview(run)?;
    reader.overview_with_detail(run)?;
    ensure!(reader.verify(run)?.is_complete());
    reader.progress(run)?;
    reader.latest_counts()?;
    for filter in filters(reader, false)? {
        let mut pages = reader.report(run, &filter);
        ensure!(drain(|| Ok(pages.next_page()?.is_empty()))? > 0);
        let mut exported = 0;
        for part in reader.export(run, &filter) {
            exported += part?.read()?.len();
        }
        ensure!(exported > 0);
        for order in [RowOrder::Rtt, RowOrder::Loss, RowOrder::Target] {
            let mut pages = reader.sorted_report(run, &filter, order)?;
            ensure!(drain(|| Ok(pages.next_page()?.is_empty()))? > 0);
        }
    }
    Ok(())
}

/// `diff`, `hosts` and `history`: what is read of several runs.
fn read_over_time(reader: &Reader) -> Result<()> {
    let limits = DiffLimits {
        rtt_factor: 2.0,
        rtt_min_ns: 5_000_000,
    };
    ensure!(reader.diff(1, 2, limits)?.total() > 0);
    ensure!(!reader.newest_changes(10)?.is_empty());
    let orders = [
        HostOrder::Target,
        HostOrder::Rtt,
        HostOrder::Changed,
        HostOrder::Changes,
    ];
    let mut targets = Vec::new();
    for rows in filters(reader, true)? {
        for order in orders {
            for probed_before_us in [None, Some(i64::MAX)] {
                let filter = HostFilter {
                    rows: rows.clone(),
                    probed_before_us,
                };
                let mut listed = 0;
                for part in reader.hosts(&filter, order)? {
                    let (page, _) = part?.read()?;
                    listed += page.len();
                    targets.extend(page.hosts().take(1).map(|host| host.row.target));
                }
                ensure!(listed > 0, "{filter:?}");
            }
        }
    }
    for target in targets
        .iter()
        .map(String::as_str)
        .chain(["host-0.net-9.example"])
    {
        reader.target_runs(target)?;
        reader.similar_targets(target)?;
    }
    for subnet in ["10.3.0.0/24", "2001:db8:0:9::/64"] {
        ensure!(reader.subnet_runs(subnet.parse()?)?.runs.len() == RUNS as usize);
    }
    Ok(())
}

/// `workers`, `doctor` and the live page: what is read of the pipeline, and of the list of runs.
fn read_the_pipeline(reader: &Reader) -> Result<()> {
    reader.summaries()?;
    reader.runs_to_compare(None)?;
    reader.runs_to_compare(Some(2))?;
    reader.newest_run_of_its_source(1)?;
    reader.fleet()?;
    reader.quarantine()?;
    reader.dead_chunks()?;
    reader.writers()?;
    Ok(())
}

/// The plans of all statements that a function runs: statement, and one line for each of its loops.
fn plans(
    path: &Path,
    function: impl FnOnce(&Reader) -> Result<()>,
) -> Result<Vec<(String, Vec<String>)>> {
    let (sender, receiver) = mpsc::channel();
    let reader = Reader::open(path)?.with_statements_to(sender);
    function(&reader)?;
    drop(reader);
    let connection = Connection::open(path)?;
    connection.create_scalar_function("in_subnets", 1, FunctionFlags::SQLITE_UTF8, |_| Ok(true))?;
    let statements: BTreeSet<String> = receiver.into_iter().collect();
    let is_query = |sql: &String| sql.starts_with("SELECT") || sql.starts_with("WITH");
    statements
        .into_iter()
        .filter(is_query)
        .map(|sql| {
            let lines = plan(&connection, &sql)?;
            Ok((sql, lines))
        })
        .collect()
}

fn generated() -> Result<(TempDir, std::path::PathBuf)> {
    let folder = TempDir::new()?;
    let path = folder.path().join("fleet.db");
    let runs = GeneratedRuns {
        targets: 2100,
        runs: RUNS,
        seed: 7,
    };
    runs.write(&path)?;
    Ok((folder, path))
}

/// The statements that walk or sort and are not in the lists.
fn unexpected(plans: &[(String, Vec<String>)]) -> Vec<String> {
    let mut found = Vec::new();
    for (sql, lines) in plans {
        // The labels of one target are a virtual table.
        let walks = walks(lines).into_iter();
        for walk in walks.filter(|line| !line.contains("VIRTUAL TABLE")) {
            let is_known = |(start, table): &(&str, &str)| {
                sql.starts_with(start) && walk.split_whitespace().nth(1) == Some(table)
            };
            if !WALKS.iter().any(is_known) {
                found.push(format!("{walk}: {sql}"));
            }
        }
        let sorts = lines.iter().any(|line| line.contains("TEMP B-TREE"));
        if sorts && !SORTS.iter().any(|start| sql.starts_with(start)) {
            found.push(format!("it sorts: {sql}"));
        }
    }
    found
}

#[test]
fn no_command_that_reads_walks_over_rows_or_sorts_them() -> Result<()> {
    let (_folder, path) = generated()?;
    let mut all = plans(&path, |reader| read_a_run(reader, 2))?;
    all.extend(plans(&path, read_over_time)?);
    all.extend(plans(&path, read_the_pipeline)?);
    let unexpected = unexpected(&all);
    ensure!(unexpected.is_empty(), "{}", unexpected.join("\n\n"));
    // The control: the statements on each table were among them, and those of the lists.
    for (start, _) in WALKS.iter().copied().chain(SORTS.map(|start| (start, ""))) {
        ensure!(all.iter().any(|(sql, _)| sql.starts_with(start)), "{start}");
    }
    for table in [
        "results r",
        "chunks",
        "labels",
        "latest_rows",
        "status_changes",
        "runs",
    ] {
        let reads = all
            .iter()
            .filter(|(sql, _)| sql.contains(&format!("FROM {table}")));
        ensure!(reads.count() > 0, "{table}");
    }
    ensure!(all.len() > 40, "{} statements", all.len());
    Ok(())
}

/// The control: a walk over all rows, and one that sorts them, are seen.
#[test]
fn a_walk_and_a_sort_of_a_reader_are_seen() -> Result<()> {
    let (_folder, path) = generated()?;
    for sql in [
        "SELECT count(*) FROM results WHERE status = 1",
        "SELECT labels FROM labels WHERE run = 1 ORDER BY labels",
    ] {
        let seen = plans(&path, |reader| {
            Ok(reader.read(|connection| Ok(connection.query_row(sql, (), |_| Ok(()))?))?)
        })?;
        ensure!(unexpected(&seen).len() == 1, "{seen:?}");
    }
    Ok(())
}
