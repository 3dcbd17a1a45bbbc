//! What a page shows of the pipeline: quarantine, dead chunks, writers, the publish window and the newest changes.

use anyhow::{Context, Result, ensure};
use pingfleet_store::{
    DecodedDelivery, QuarantinedMessage, RawMessage, Refusal, Transport, WindowUse,
};
use pingfleet_wire::{Status, StatusKind};
use rusqlite::Connection;
use tempfile::TempDir;

use crate::sample::{STARTED_AT_US, dead_letter, delivery, options, reader, result, start};

#[test]
fn quarantine_is_counted_by_reason_and_its_newest_messages_are_listed() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = options(&folder.path().join("fleet.db")).open()?;
    store.note_writer_alive(Transport::Broker, "pid 7")?;
    let reader = reader(&store)?;
    ensure!(reader.quarantine()?.total == 0);
    let refused = |number: usize, reason, detail| DecodedDelivery::Refused {
        raw: RawMessage::new("results", vec![0; number]),
        refusal: Refusal::new(reason, detail),
    };
    // Names with digits in them are no part of a reason, and no reason becomes another one because it has digits.
    let clocks =
        (0..28).map(|number| refused(number, "set the clock", format!("worker w{number}")));
    let others = [
        refused(28, "wire version 1", String::new()),
        refused(29, "wire version 2", String::new()),
    ];
    let batch: Vec<_> = clocks.chain(others).collect();
    let applied = store.apply(Transport::Broker, &batch)?;
    let counts = [
        ("set the clock", 28),
        ("wire version 1", 1),
        ("wire version 2", 1),
    ];
    let without_login = counts.map(|(reason, count)| ((reason, None), count));
    ensure!(applied.reasons.into_iter().eq(without_login));
    let found = reader.quarantine()?;
    let counts =
        counts.map(|(reason, count)| ("results".to_owned(), reason.to_owned(), count as i64));
    ensure!(found.total == 30 && found.reasons == counts, "{found:?}");
    let newest: Vec<_> = found.newest.iter().map(|message| message.length).collect();
    ensure!(newest == (10..30).rev().collect::<Vec<_>>(), "{newest:?}");
    let why: Vec<_> = found.newest.iter().map(QuarantinedMessage::why).collect();
    ensure!(
        why[..3]
            == [
                "wire version 2",
                "wire version 1",
                "set the clock: worker w27"
            ],
        "{why:?}"
    );
    let writers = reader.writers()?;
    let (transport, writer) = writers.first().context("a writer")?;
    ensure!(writers.len() == 1 && *transport == Transport::Broker);
    ensure!((writer.taken, writer.quarantined) == (30, 30) && writer.holder == "pid 7");
    Ok(())
}

#[test]
fn dead_chunks_of_open_runs_and_of_the_last_run_are_listed() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = options(&folder.path().join("fleet.db")).open()?;
    store.note_writer_alive(Transport::Broker, "test")?;
    let reader = reader(&store)?;
    let (_old, old) = start(&mut store, Transport::Broker, &[1])?;
    let (open, works) = start(&mut store, Transport::Broker, &[2, 2])?;
    let (last, last_works) = start(&mut store, Transport::Broker, &[1])?;
    for work in [&old[0], &works[0], &last_works[0]] {
        store.apply(Transport::Broker, &[dead_letter(work)])?;
    }
    let found = reader.dead_chunks()?;
    let keys: Vec<_> = found
        .newest
        .iter()
        .map(|dead| (dead.run, dead.chunk, dead.targets))
        .collect();
    ensure!(keys == [(last.run, 0, 1), (open.run, 0, 2)], "{found:?}");
    ensure!(found.total == 2 && found.reasons == [("delivery_limit".to_owned(), 2)]);
    // The control: what is sent again is not dead.
    store.retry_dead(open.run)?;
    ensure!(reader.dead_chunks()?.total == 1);
    Ok(())
}

#[test]
fn the_publish_window_is_that_of_a_producer_that_has_the_run() -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("fleet.db");
    let mut store = options(&path).open()?;
    let (planned, _works) = start(&mut store, Transport::Broker, &[1, 1])?;
    // The plan has the lock.
    let run = planned.run;
    let reader = reader(&store)?;
    ensure!(reader.summary(run)?.window.is_none());
    let window = WindowUse {
        size: 64,
        in_use: 2,
    };
    store.renew_lease(run, Some(window))?;
    ensure!(reader.summary(run)?.window == Some(window));
    // A killed producer leaves its lock.
    drop(planned);
    std::fs::write(folder.path().join(format!("fleet.db-run-{run}.lock")), "")?;
    ensure!(reader.summary(run)?.window.is_none());
    store.release_lease(run)?;
    let stored: Option<i64> =
        Connection::open(&path)?
            .query_row("SELECT publish_window FROM runs", (), |row| row.get(0))?;
    ensure!(stored.is_none());
    Ok(())
}

#[test]
fn the_newest_changes_are_those_of_targets_that_are_not_up_now() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = options(&folder.path().join("fleet.db")).open()?;
    let down = Status::DOWN;
    let unknown = Status::Unknown(pingfleet_wire::LocalLoss::STALLED);
    let up = Status::Up;
    // Ten addresses and names; each run is an hour after the one before.
    let statuses = [
        [up, up, up, up, down],
        [down, up, up, down, down],
        [down, down, up, up, up],
        [down, unknown, down, up, down],
    ];
    for (hour, statuses) in (0..).zip(&statuses) {
        let (_planned, works) = start(&mut store, Transport::Sweep, &[5])?;
        let mut message = result(&works[0], statuses);
        message.started_at_us = STARTED_AT_US + hour * 3_600_000_000;
        for (position, outcome) in (0..).zip(&mut message.outcomes) {
            outcome.probed_after_us = position;
        }
        store.apply(Transport::Sweep, &[delivery(message)])?;
    }
    let reader = reader(&store)?;
    let hours = |at: i64| (at - STARTED_AT_US as i64) / 3_600_000_000;
    let found: Vec<_> = reader
        .newest_changes(10)?
        .into_iter()
        .map(|found| {
            (
                found.host.row.target,
                hours(found.host.changed_at_us),
                found
                    .change
                    .map(|change| (hours(change.changed_at_us), change.new)),
            )
        })
        .collect();
    // 10.0.0.1 is unknown since the last run, and was down before.
    let expected = [
        ("10.0.0.4", 3, 3),
        ("host-2.example", 3, 3),
        ("10.0.0.1", 3, 2),
        ("10.0.0.0", 1, 1),
    ];
    let expected = expected.map(|(target, since, changed)| {
        let change = Some((changed, StatusKind::Down));
        (target.to_owned(), since, change)
    });
    ensure!(found == expected, "{found:?}");
    ensure!(reader.newest_changes(1)?.len() == 1);
    Ok(())
}
