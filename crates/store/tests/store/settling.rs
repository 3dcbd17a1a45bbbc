//! The effect of single deliveries on their chunk, their run and the counters.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use pingfleet_store::{
    Applied, Contradiction, DecodedDelivery, RawMessage, Refusal, RunState, Sender, Transport,
    Writer,
};
use pingfleet_wire::{DnsFailure, DownReason, LocalLoss, Outcome, Status, StatusKind};
use rusqlite::Connection;
use tempfile::TempDir;

use crate::sample::{
    dead_letter, dead_letter_for, delivery, options, outcome, reader, result, sent, start,
};

const DOWN: Status = Status::DOWN;

fn open(folder: &TempDir) -> Result<Writer> {
    let mut store = options(&folder.path().join("fleet.db")).open()?;
    store.note_writer_alive(Transport::Broker, "test")?;
    Ok(store)
}

fn counted(applied: &Applied) -> [u64; 3] {
    [applied.applied, applied.duplicates, applied.quarantined]
}

/// A worker without a login.
pub(crate) fn sender(worker: &str) -> Sender {
    Sender {
        worker: worker.to_owned(),
        login: None,
    }
}

#[test]
fn the_first_result_wins_whole() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let (planned, works) = start(&mut store, Transport::Broker, &[3, 1])?;
    let first = delivery(result(&works[0], &[Status::Up, DOWN]));
    let second = delivery(result(&works[0], &[DOWN, Status::Up]));
    let applied = store.apply(Transport::Broker, &[first, second.clone()])?;
    ensure!(counted(&applied) == [1, 1, 0] && applied.rows == 3);
    let applied = store.apply(Transport::Broker, &[second])?;
    ensure!(counted(&applied) == [0, 1, 0] && applied.rows == 0);
    let summary = store.summary(planned.run)?;
    ensure!(summary.duplicates == 2 && summary.settled() == 3);
    ensure!(summary.counts == [2, 0, 0, 0, 0, 0, 1].into());
    ensure!(store.chunk_targets(planned.run, 0, true)? == ["10.0.0.0", "host-2.example"]);
    ensure!(store.chunk_targets(planned.run, 0, false)? == ["10.0.0.1"]);
    Ok(())
}

#[test]
fn a_later_result_with_another_status_is_counted_with_both_workers() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let (planned, works) = start(&mut store, Transport::Broker, &[3, 2])?;
    let of = |worker: &str, statuses: &[Status]| {
        let mut message = result(&works[0], statuses);
        worker.clone_into(&mut message.worker);
        message
    };
    let first = of("one", &[Status::Up, DOWN, DOWN]);
    let mut slower = of("two", &[Status::Up, DOWN, DOWN]);
    slower.outcomes[0].rtt = outcome(Status::Up).rtt.map(|rtt| pingfleet_wire::Rtt {
        max_ns: 3_000_000,
        ..rtt
    });
    slower.outcomes[1].status = Status::Down(DownReason::NoArp);
    // The control: the same result, another round-trip time, another reason, and a dead letter.
    let batch = [
        delivery(first.clone()),
        delivery(first.clone()),
        delivery(slower),
        dead_letter(&works[0]),
    ];
    let applied = store.apply(Transport::Broker, &batch)?;
    ensure!(counted(&applied) == [1, 3, 0] && applied.contradictions.is_empty());
    ensure!(store.summary(planned.run)?.contradictions == 0);

    let last = of("two", &[Status::Up, DOWN, Status::Late]);
    let all = of("three", &[DOWN]);
    let batch = [last.clone(), all, last, first].map(delivery);
    let applied = store.apply(Transport::Broker, &batch)?;
    ensure!(counted(&applied) == [0, 4, 0], "{applied:?}");
    let by = |later: &str| Contradiction {
        run: planned.run,
        stored_from: sender("one"),
        later_from: sender(later),
    };
    let wanted = BTreeMap::from([(by("two"), 2), (by("three"), 1)]);
    ensure!(applied.contradictions == wanted, "{applied:?}");
    let summary = store.summary(planned.run)?;
    ensure!((summary.duplicates, summary.contradictions) == (7, 3));
    ensure!(summary.counts[StatusKind::Down] == 2);
    ensure!(reader(&store)?.verify(planned.run)?.is_consistent());
    Ok(())
}

#[test]
fn a_dead_letter_for_a_done_chunk_is_a_duplicate() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let (planned, works) = start(&mut store, Transport::Broker, &[1, 1])?;
    let done = delivery(result(&works[0], &[DOWN]));
    let applied = store.apply(Transport::Broker, &[done, dead_letter(&works[0])])?;
    ensure!(counted(&applied) == [1, 1, 0]);
    ensure!(store.summary(planned.run)?.chunks_dead == 0);
    ensure!(store.done_chunks(planned.run, 0)? == [0]);
    Ok(())
}

#[test]
fn a_result_makes_a_dead_chunk_done_and_its_run_complete() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let (planned, works) = start(&mut store, Transport::Broker, &[1, 1])?;
    let batch = [
        delivery(result(&works[0], &[DOWN])),
        dead_letter(&works[1]),
        dead_letter(&works[1]),
    ];
    let applied = store.apply(Transport::Broker, &batch)?;
    ensure!(counted(&applied) == [2, 1, 0]);
    ensure!(applied.closed.len() == 1 && !applied.closed[0].complete);
    ensure!(store.summary(planned.run)?.state == RunState::Incomplete);
    let proof = reader(&store)?.verify(planned.run)?;
    ensure!(proof.is_consistent() && !proof.is_complete());
    ensure!(proof.dead_chunks == [(1, "delivery_limit".to_owned())]);

    let applied = store.apply(
        Transport::Broker,
        &[delivery(result(&works[1], &[Status::Late]))],
    )?;
    ensure!(applied.closed.len() == 1 && applied.closed[0].complete);
    let summary = store.summary(planned.run)?;
    ensure!(summary.state == RunState::Complete && summary.chunks_dead == 0);
    ensure!(reader(&store)?.verify(planned.run)?.is_complete());
    Ok(())
}

#[test]
fn the_batch_that_settles_the_last_chunk_closes_the_run() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let (planned, works) = start(&mut store, Transport::Broker, &[2, 2, 2])?;
    let results: Vec<_> = works
        .iter()
        .map(|work| delivery(result(work, &[Status::Up])))
        .collect();
    ensure!(
        store
            .apply(Transport::Broker, &results[..2])?
            .closed
            .is_empty()
    );
    ensure!(store.summary(planned.run)?.state == RunState::Running);
    // The last result and a duplicate of it: the run is closed once.
    let applied = store.apply(Transport::Broker, &results)?;
    ensure!(counted(&applied) == [1, 2, 0]);
    ensure!(applied.closed.len() == 1 && applied.closed[0].run == planned.run);
    let summary = store.summary(planned.run)?;
    ensure!(summary.state == RunState::Complete && summary.finished_at.is_some());
    ensure!(store.apply(Transport::Broker, &results)?.closed.is_empty());
    Ok(())
}

#[test]
fn one_batch_settles_several_runs() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let (first, works) = start(&mut store, Transport::Broker, &[2])?;
    let (second, others) = start(&mut store, Transport::Broker, &[2, 2])?;
    let batch: Vec<_> = works
        .iter()
        .chain(&others)
        .map(|work| delivery(result(work, &[DOWN])))
        .collect();
    let applied = store.apply(Transport::Broker, &batch)?;
    let closed: Vec<_> = applied.closed.iter().map(|closed| closed.run).collect();
    ensure!(closed == [first.run, second.run]);
    ensure!(
        reader(&store)?.verify(first.run)?.is_complete()
            && reader(&store)?.verify(second.run)?.is_complete()
    );
    Ok(())
}

#[test]
fn a_message_that_answers_no_chunk_is_kept_with_its_reason() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let (planned, works) = start(&mut store, Transport::Broker, &[2])?;
    let good = result(&works[0], &[Status::Up]);
    let mut token = good.clone();
    token.token.0 = uuid::Uuid::new_v4();
    let mut count = good.clone();
    count.outcomes.push(outcome(Status::Up));
    let mut chunk = good.clone();
    chunk.key.chunk = 7;
    let mut run = good.clone();
    let unknown_run = uuid::Uuid::now_v7();
    run.key.run = unknown_run;
    let mut database = good.clone();
    let other_database = uuid::Uuid::new_v4();
    database.database = other_database;
    let mut dead = works[0].clone();
    dead.token.0 = uuid::Uuid::new_v4();
    let long = DecodedDelivery::Refused {
        raw: RawMessage::new("dead", vec![0xff; 100_000]),
        refusal: Refusal::new("not a message", "for a test"),
    };
    let mut batch: Vec<_> = [token, count, chunk, run, database].map(delivery).into();
    batch.extend([dead_letter(&dead), long]);
    let applied = store.apply(Transport::Broker, &batch)?;
    ensure!(counted(&applied) == [0, 0, 7], "{applied:?}");
    ensure!(store.summary(planned.run)?.settled() == 0);

    let connection = Connection::open(store.path())?;
    let mut statement = connection.prepare(
        "SELECT reason || ': ' || detail, length, length(body), queue FROM quarantine ORDER BY id",
    )?;
    let kept = statement
        .query_map((), |row| {
            Ok((
                row.get::<_, String>(0)?,
                row.get::<_, i64>(1)?,
                row.get::<_, i64>(2)?,
                row.get::<_, String>(3)?,
            ))
        })?
        .collect::<Result<Vec<_>, _>>()?;
    let wanted = [
        "wrong token: chunk 0 of run 1",
        "another number of outcomes than of targets: 3 of 2",
        "unknown chunk: chunk 7 of run 1",
        &format!("unknown run: {unknown_run}"),
        &format!("for another database: {other_database}"),
        "wrong token: chunk 0 of run 1",
        "not a message: for a test",
    ];
    for (row, wanted) in kept.iter().zip(wanted) {
        ensure!(row.0 == wanted, "{row:?} instead of {wanted}");
    }
    ensure!(kept[0].1 == kept[0].2 && kept[0].3 == "results");
    ensure!((kept[6].1, kept[6].2, kept[6].3.as_str()) == (100_000, 4096, "dead"));
    let sign = store.writer_liveness(Transport::Broker)?;
    ensure!(sign.is_some_and(|sign| (sign.taken, sign.quarantined) == (7, 7)));
    Ok(())
}

#[test]
fn the_quarantine_keeps_the_newest_ten_thousand_messages() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let mut refuse = |detail: &str| -> Result<()> {
        let refused = DecodedDelivery::Refused {
            raw: RawMessage::new("results", vec![1]),
            refusal: Refusal::new("not a message", detail),
        };
        store.apply(Transport::Broker, &[refused])?;
        Ok(())
    };
    refuse("first")?;
    let connection = Connection::open(folder.path().join("fleet.db"))?;
    connection.execute(
        "WITH RECURSIVE ids (id) AS (SELECT 2 UNION ALL SELECT id + 1 FROM ids WHERE id < 9999)
         INSERT INTO quarantine (id, received_at_us, queue, reason, length, body)
         SELECT id, 0, 'results', 'not a message', 0, x'' FROM ids",
        (),
    )?;
    let kept = || -> Result<(i64, bool)> {
        let sql = "SELECT count(*), sum(detail = 'first') FROM quarantine";
        Ok(connection.query_row(sql, (), |row| Ok((row.get(0)?, row.get(1)?)))?)
    };
    refuse("the last one for which there is room")?;
    ensure!(kept()? == (10_000, true), "{:?}", kept()?);
    refuse("one more")?;
    ensure!(kept()? == (10_000, false), "{:?}", kept()?);
    Ok(())
}

#[test]
fn what_was_delivered_before_is_counted_as_redelivered() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let (planned, works) = start(&mut store, Transport::Broker, &[1; 4])?;
    let mut batch = Vec::new();
    for (work, [of_work, of_result]) in
        works
            .iter()
            .zip([[false, false], [true, false], [false, true], [true, true]])
    {
        let mut message = result(work, &[DOWN]);
        message.redelivered = of_work;
        let mut incoming = delivery(message);
        if let DecodedDelivery::Result { redelivered, .. } = &mut incoming {
            *redelivered = of_result;
        }
        batch.push(incoming);
    }
    store.apply(Transport::Broker, &batch)?;
    ensure!(store.summary(planned.run)?.redelivered == 3);
    Ok(())
}

#[test]
fn every_status_is_stored_with_its_reason() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let statuses = [
        Status::Up,
        Status::Late,
        Status::Unreachable {
            icmp_type: 3,
            code: 1,
            reporter: "2001:db8::9".parse()?,
        },
        Status::DnsFailed(DnsFailure::Servfail),
        Status::SendFailed { errno: 13 },
        Status::Unknown(LocalLoss::SOCKET_DROPS.and(LocalLoss::STALLED)),
        Status::Down(DownReason::NoArp),
    ];
    let (planned, works) = start(&mut store, Transport::Broker, &[7])?;
    let mut message = result(&works[0], &statuses);
    message.outcomes[2] = Outcome {
        address: Some("2001:db8::1".parse()?),
        ..message.outcomes[2].clone()
    };
    store.apply(Transport::Broker, &[delivery(message)])?;
    let mut rows = Vec::new();
    for row in crate::reader::report(&store, planned.run)? {
        rows.push((row.status, row.reason, row.target, row.address));
    }
    let text = |text: &str| Some(text.to_owned());
    let row = |status: &str, reason, target: &str, address| {
        (status.to_owned(), reason, target.to_owned(), address)
    };
    ensure!(
        rows == [
            row("up", None, "10.0.0.0", text("10.0.0.0")),
            row("late", None, "10.0.0.1", text("10.0.0.1")),
            row(
                "unreachable",
                text("type 3 code 1 from 2001:db8::9"),
                "host-2.example",
                text("2001:db8::1")
            ),
            row("dns_failed", text("servfail"), "10.0.0.3", text("10.0.0.3")),
            row(
                "send_failed",
                text("errno 13 (Permission denied)"),
                "10.0.0.4",
                text("10.0.0.4")
            ),
            row(
                "unknown",
                text("socket_drops,stalled"),
                "host-5.example",
                None
            ),
            row("down", text("no_arp"), "10.0.0.6", text("10.0.0.6")),
        ],
        "{rows:?}"
    );
    ensure!(store.summary(planned.run)?.counts == [1; 7].into());
    ensure!(reader(&store)?.verify(planned.run)?.is_complete());
    Ok(())
}

#[test]
fn a_rejected_chunk_of_a_run_without_a_producer_is_not_dead() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let (planned, works) = start(&mut store, Transport::Broker, &[2, 2])?;
    let run = planned.run;
    store.mark_published(run, &sent(&[0, 1]))?;
    store.release_lease(run)?;
    let letters = [
        dead_letter_for(&works[0], "rejected"),
        dead_letter_for(&works[1], "expired"),
    ];
    let applied = store.apply(Transport::Broker, &letters)?;
    ensure!(applied.removed.by_rejection == 1 && applied.removed.by_policy == 0);
    // The control: nobody would publish what a policy removed.
    ensure!(store.summary(run)?.chunks_dead == 1);
    ensure!(store.removed_chunks(run, 10)? == [0]);
    Ok(())
}

#[test]
fn a_chunk_whose_message_a_policy_or_a_stranger_removed_is_published_again() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let (planned, works) = start(&mut store, Transport::Broker, &[2; 4])?;
    let run = planned.run;
    store.mark_published(run, &sent(&[0, 1, 2, 3]))?;
    ensure!(store.removed_chunks(run, 10)?.is_empty());
    let batch = [
        dead_letter_for(&works[0], "expired"),
        dead_letter_for(&works[1], "maxlen"),
        // The control: this one is dead.
        dead_letter_for(&works[2], "delivery_limit"),
        dead_letter_for(&works[3], "rejected"),
    ];
    let applied = store.apply(Transport::Broker, &batch)?;
    ensure!(counted(&applied) == [4, 0, 0]);
    ensure!(applied.removed.by_policy == 2 && applied.removed.by_rejection == 1);
    ensure!(store.removed_chunks(run, 10)? == [0, 1, 3]);
    ensure!(store.removed_chunks(run, 1)? == [0]);
    let summary = store.summary(run)?;
    ensure!(summary.state == RunState::Running && summary.chunks_dead == 1);
    ensure!(
        store
            .outstanding_work(run, 0)?
            .is_some_and(|chunk| !chunk.work.is_empty())
    );
    store.mark_published(run, &sent(&[0, 3]))?;
    ensure!(store.removed_chunks(run, 10)? == [1]);
    // Its result may be on its way all the same.
    store.apply(
        Transport::Broker,
        &[delivery(result(&works[1], &[Status::Up]))],
    )?;
    ensure!(store.removed_chunks(run, 10)?.is_empty());
    ensure!(reader(&store)?.verify(run)?.is_consistent());
    Ok(())
}
