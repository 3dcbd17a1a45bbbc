//! `pingfleet workers`: the table at several widths, its JSON, and what it says when something is wrong.

use rusqlite::Connection;
use serde_json::Value;

use crate::{
    rig::{Finished, TestDir},
    screens::{generated, matches_its_snapshot},
};

/// 2 January 2020 14:00:00 UTC and 1 January 2100, in microseconds: ages since the first one are masked in snapshots, and
/// what was seen at the second one was seen just now.
const LONG_AGO: i64 = 1_577_973_600_000_000;
const NOW: i64 = 4_102_444_800_000_000;

/// A worker as the table `workers` has it.
struct Row {
    name: &'static str,
    first_seen_us: i64,
    last_seen_us: i64,
    draining: bool,
    chunks_done: i64,
    in_hand: i64,
    losses: [i64; 2],
}

fn insert(connection: &Connection, number: u8, row: &Row) -> anyhow::Result<()> {
    let instance = [number; 16];
    connection.execute(
        "INSERT INTO workers (login, instance, worker, pid, version, worker_group, threads, prefetch, rate, first_seen_us,
            last_seen_us, draining, chunks_done, targets_done, requests_sent, replies, lost_socket_drops, lost_send_path,
            lost_stalled, lost_canary, lost_interrupted, lost_link_down, lost_no_route, lost_no_address,
            lost_gateway_no_arp, lost_local_firewall, lost_rp_filter, heartbeat_us, heartbeat_before_us, requests_before)
         VALUES ('', ?1, ?2, 42, '0.1.0', 'default', 2, 20, nullif(?3, 1) * 5000, ?4, ?5, ?6, ?7, ?7 * 250, ?7 * 260, ?7 * 200,
            ?8, 0, ?9, 0, 0, 0, 0, 0, 0, 0, 0, ?5, ?5 - 5000000, ?7 * 260 - 6170)",
        (
            instance,
            row.name,
            number,
            row.first_seen_us,
            row.last_seen_us,
            row.draining,
            row.chunks_done,
            row.losses[0],
            row.losses[1],
        ),
    )?;
    for chunk in 0..row.in_hand {
        connection.execute(
            "INSERT INTO in_hand (run, chunk, login, instance, taken_at_us, counts_until_us)
             VALUES (?1, ?2, '', ?3, ?4, ?4 + 3600 * 1000000)",
            (number, chunk, instance, row.last_seen_us - chunk * 100_000),
        )?;
    }
    Ok(())
}

/// A database with a worker in each state, and a writer that was seen at this time.
fn fleet(writer_seen_us: i64) -> anyhow::Result<TestDir> {
    let dir = generated(10, 1)?;
    let connection = Connection::open(dir.path("pingfleet.db"))?;
    connection.execute_batch("DELETE FROM workers; DELETE FROM writers; DELETE FROM in_hand")?;
    connection.execute(
        "INSERT INTO writers (transport, seen_us, holder) VALUES ('broker', ?1, 'pid 7')",
        [writer_seen_us],
    )?;
    let live = |name| Row {
        name,
        first_seen_us: LONG_AGO,
        last_seen_us: NOW,
        draining: false,
        chunks_done: 4321,
        in_hand: 19,
        losses: [0, 0],
    };
    let rows = [
        live("berlin-1.example.net"),
        Row {
            losses: [1200, 3],
            ..live("berlin-2.example.net")
        },
        Row {
            draining: true,
            in_hand: 1,
            ..live("oslo-1")
        },
        Row {
            first_seen_us: NOW,
            chunks_done: 0,
            in_hand: 1,
            ..live("oslo-2")
        },
        Row {
            last_seen_us: LONG_AGO,
            ..live("paris-7")
        },
    ];
    for (number, row) in (1..).zip(&rows) {
        insert(&connection, number, row)?;
    }
    Ok(dir)
}

#[test]
fn the_table_fits_the_width_and_the_lost_worker_comes_first() -> anyhow::Result<()> {
    matches_its_snapshot(&fleet(NOW)?, "workers", "workers")
}

#[test]
fn logins_are_shown_where_workers_have_several_and_one_name_of_two_is_named() -> anyhow::Result<()>
{
    let dir = fleet(NOW)?;
    let connection = Connection::open(dir.path("pingfleet.db"))?;
    let shown = || anyhow::Ok(dir.pingfleet(&["workers"])?.ends_with(0).stdout);
    connection.execute_batch("UPDATE workers SET login = 'fleet'")?;
    let table = shown()?;
    assert!(
        !table.contains("LOGIN") && !table.contains("fleet"),
        "{table}"
    );
    // A lost worker of another login is named with it, and is no second user of a name.
    connection.execute_batch("UPDATE workers SET login = 'old' WHERE worker = 'paris-7'")?;
    let table = shown()?;
    assert!(
        table.contains("LOGIN") && table.contains("paris-7 (login old)"),
        "{table}"
    );
    assert!(!table.contains("at the same time"), "{table}");
    connection.execute_batch(
        "UPDATE workers SET login = 'a' || char(27) || '[2Jb', worker = 'oslo-1' WHERE worker = 'oslo-2'",
    )?;
    let table = shown()?;
    let words: Vec<_> = table.split_whitespace().collect();
    let expected =
        r"The logins a\u{1b}[2Jb, fleet all have a worker of the name oslo-1 at the same time.";
    assert!(
        words.join(" ").contains(expected) && !table.contains('\u{1b}'),
        "{table}"
    );
    let json = dir.pingfleet(&["workers", "--json"])?.ends_with(0).stdout;
    assert!(
        json.contains("\"login\":\"old\"") && json.contains("\"login\":\"fleet\""),
        "{json}"
    );
    Ok(())
}

fn in_utc(dir: &TestDir) -> anyhow::Result<Finished> {
    let shown = dir.call("pingfleet", &["workers"])?.env("TZ", "UTC");
    Ok(shown.end()?.ends_with(0))
}

#[test]
fn without_a_writer_ages_are_as_of_its_last_sign_of_life() -> anyhow::Result<()> {
    // The worker that was seen 2 minutes before the writer was seen last is lost, and the others were live then.
    let dir = fleet(LONG_AGO + 125_000_000)?;
    let shown = in_utc(&dir)?;
    for part in [
        "No writer is running",
        "consumer-writer",
        "no heartbeat for 2 min",
    ] {
        assert!(shown.stdout.contains(part), "{part}: {shown:#?}");
    }
    // The control: with the writer, that worker was lost for longer.
    let shown = in_utc(&fleet(NOW)?)?;
    assert!(!shown.stdout.contains("No writer"), "{shown:#?}");
    assert!(
        shown.stdout.contains("days (since 2 Jan 2020 14:00)"),
        "{shown:#?}"
    );
    Ok(())
}

#[test]
fn json_has_a_line_for_each_worker() -> anyhow::Result<()> {
    let shown = fleet(NOW)?.pingfleet(&["workers", "--json"])?.ends_with(0);
    let workers: Vec<Value> = shown
        .stdout
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let states: Vec<_> = workers
        .iter()
        .map(|worker| worker["state"].as_str())
        .collect();
    assert_eq!(
        states,
        ["LOST", "live", "live", "draining", "starting"].map(Some)
    );
    assert_eq!(workers[0]["requests_per_s"], Value::Null);
    assert_eq!(workers[1]["requests_per_s"], 1234.0);
    assert_eq!(workers[2]["local_losses"]["socket_drops"], 1200);
    assert_eq!(workers[1]["chunks_in_hand"], 19);
    assert_eq!(
        (&workers[1]["rate"], &workers[2]["rate"]),
        (&Value::Null, &Value::from(10_000))
    );
    assert_eq!(workers[0]["last_seen"], "2020-01-02T14:00:00.000Z");
    Ok(())
}

#[test]
fn an_empty_list_says_how_to_start_a_worker() -> anyhow::Result<()> {
    let dir = generated(10, 1)?;
    Connection::open(dir.path("pingfleet.db"))?.execute_batch("DELETE FROM workers")?;
    let shown = dir.pingfleet(&["workers"])?.ends_with(0);
    assert_eq!(shown.stdout, "");
    assert!(shown.stderr.contains("ping-worker --broker"), "{shown:#?}");
    assert_eq!(
        dir.pingfleet(&["workers", "--json"])?.ends_with(0).stdout,
        ""
    );
    Ok(())
}

#[test]
fn watching_needs_a_terminal() -> anyhow::Result<()> {
    let dir = fleet(NOW)?;
    dir.pingfleet(&["workers", "--watch"])?
        .fails(3, &["--watch needs a terminal"]);
    // On one it is shown again and again, until it is ended.
    let line = "script --quiet --return /dev/null \
            --command 'stty rows 40 cols 80; pingfleet workers --watch & echo $! > watching; wait' \
        | { grep --max-count=2 --count STATE; kill $(cat watching); }";
    assert_eq!(dir.shell(line)?.ends_with(0).stdout, "2\n");
    Ok(())
}

#[test]
fn a_name_that_controls_a_terminal_is_escaped() -> anyhow::Result<()> {
    let dir = fleet(NOW)?;
    Connection::open(dir.path("pingfleet.db"))?.execute_batch(
        "UPDATE workers SET worker = 'a' || char(27) || '[2Jb' WHERE worker = 'oslo-1'",
    )?;
    let shown = dir.pingfleet(&["workers"])?.ends_with(0).stdout;
    assert!(
        shown.contains(r"a\u{1b}[2Jb") && !shown.contains('\u{1b}'),
        "{shown}"
    );
    Ok(())
}

#[test]
fn of_workers_that_fell_silent_at_once_one_sentence_has_the_possible_alarm() -> anyhow::Result<()> {
    let dir = fleet(NOW)?;
    let connection = Connection::open(dir.path("pingfleet.db"))?;
    let shown = || -> anyhow::Result<String> {
        connection.execute("UPDATE writers SET seen_us = unixepoch() * 1000000", ())?;
        Ok(dir.pingfleet(&["workers"])?.ends_with(0).stdout)
    };
    // Within two intervals of heartbeats, except for the one that was lost before.
    connection.execute(
        "UPDATE workers SET last_seen_us = (unixepoch() - 60) * 1000000 - unicode(instance) * 2400000
         WHERE worker <> 'paris-7'",
        (),
    )?;
    let text = shown()?;
    assert!(text.contains("4 workers fell silent at once"), "{text}");
    assert!(!text.contains("oslo-1: no heartbeat"), "{text}");
    assert!(text.contains("paris-7: no heartbeat"), "{text}");
    // The controls: not at once; one of them is heard; one alone.
    connection.execute(
        "UPDATE workers SET last_seen_us = last_seen_us - 11000000 * unicode(instance)",
        (),
    )?;
    let text = shown()?;
    assert!(
        !text.contains("at once") && text.contains("berlin-1.example.net: no heartbeat"),
        "{text}"
    );
    connection.execute(
        "UPDATE workers SET last_seen_us = (unixepoch() - 60 * (worker <> 'oslo-1')) * 1000000",
        (),
    )?;
    let text = shown()?;
    assert!(
        !text.contains("at once") && text.contains("oslo-2: no heartbeat"),
        "{text}"
    );
    connection.execute_batch(
        "DELETE FROM workers WHERE worker <> 'oslo-1'; UPDATE workers SET last_seen_us = (unixepoch() - 60) * 1000000",
    )?;
    let text = shown()?;
    assert!(
        !text.contains("at once") && text.contains("oslo-1: no heartbeat"),
        "{text}"
    );
    Ok(())
}

#[test]
fn a_worker_that_was_started_again_says_so() -> anyhow::Result<()> {
    let dir = fleet(NOW)?;
    let connection = Connection::open(dir.path("pingfleet.db"))?;
    let again = || -> anyhow::Result<Vec<(String, bool)>> {
        let shown = dir.pingfleet(&["workers", "--json"])?.ends_with(0);
        let workers = shown.json()?;
        let again = workers.iter().filter_map(|worker| {
            let name = worker["worker"].as_str()?.to_owned();
            Some((name, worker["started_again"].as_bool()?))
        });
        Ok(again.filter(|(_, again)| *again).collect())
    };
    assert_eq!(again()?, []);
    // The processes of one name that are heard are both at work.
    connection.execute(
        "UPDATE workers SET worker = 'oslo-2', last_seen_us = last_seen_us - (worker = 'oslo-1') WHERE worker LIKE 'oslo%'",
        (),
    )?;
    assert_eq!(again()?, []);
    connection.execute(
        "UPDATE workers SET worker = 'oslo-2' WHERE worker = 'paris-7'",
        (),
    )?;
    assert_eq!(again()?, [("oslo-2".to_owned(), true)]);
    let text = dir.pingfleet(&["workers"])?.ends_with(0).stdout;
    assert!(text.contains("LOST, started again"), "{text}");
    assert!(!text.contains("no heartbeat"), "{text}");
    Ok(())
}
