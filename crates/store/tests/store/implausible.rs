//! Results that no worker of the plan can have: they are quarantined whole, and the true result is stored.

use anyhow::{Result, ensure};
use pingfleet_store::{Transport, Writer};
use pingfleet_wire::{DownReason, Outcome, ResultChunk, Rtt, Status, Target};
use rusqlite::Connection;
use tempfile::TempDir;

use crate::sample::{delivery, options, plan_of, reader, result};

/// Changes the outcome of one target of a true result.
type Forge = fn(&mut Outcome);

fn rtt(max_ns: u64) -> Rtt {
    Rtt {
        min_ns: 1,
        avg_ns: 1,
        max_ns,
        stddev_ns: 1,
    }
}

fn unreachable_by(outcome: &mut Outcome, icmp_type: u8, reporter: &str) {
    outcome.status = Status::Unreachable {
        icmp_type,
        code: 1,
        reporter: reporter.parse().expect("an address"),
    };
    (outcome.received, outcome.rtt) = (0, None);
}

/// The targets: an address, a name, an address in another spelling, and one with a zone.
fn targets() -> Vec<Target> {
    let mut targets = vec![Target::Address([10, 0, 0, 1].into())];
    targets.extend(
        ["host.example", "::ffff:10.0.0.2", "fe80::1%lo"].map(|text| Target::Text(text.to_owned())),
    );
    targets
}

fn open(folder: &TempDir) -> Result<Writer> {
    let mut store = options(&folder.path().join("fleet.db")).open()?;
    store.note_writer_alive(Transport::Broker, "test")?;
    Ok(store)
}

/// The true result: with the plan's defaults (one request and two retries).
fn true_result(store: &mut Writer) -> Result<(i64, ResultChunk)> {
    let (planned, works) = plan_of(store, Transport::Broker, vec![targets()])?;
    store.start_run(planned.run)?;
    let mut message = result(&works[0], &[Status::Up]);
    message.outcomes[1].address = Some([192, 0, 2, 7].into());
    message.outcomes[2].address = Some([10, 0, 0, 2].into());
    message.outcomes[3].address = Some("fe80::1".parse()?);
    Ok((planned.run, message))
}

/// Which target is forged how, and the reason and detail of the refusal.
const FORGERIES: &[(usize, &str, Forge)] = &[
    (0, "more requests than the plan allows: 4 of 3", |it| {
        it.sent = 4;
    }),
    (0, "more requests than the plan allows: 65535 of 3", |it| {
        it.sent = u16::MAX;
    }),
    (0, "an impossible number of attempts: 255", |it| {
        it.attempts = u8::MAX;
    }),
    (0, "an impossible number of attempts: 4", |it| {
        it.attempts = 4;
    }),
    (0, "an impossible number of attempts: 0", |it| {
        it.attempts = 0;
    }),
    (0, "an impossible round-trip time: 9223372036854 ms", |it| {
        it.rtt = Some(rtt(i64::MAX as u64));
    }),
    (3, "an impossible round-trip time: 602000 ms", |it| {
        it.rtt = Some(rtt(602_000_000_001));
    }),
    (
        0,
        "another address than that of the target: 10.0.0.9 instead of 10.0.0.1",
        |it| {
            it.address = Some([10, 0, 0, 9].into());
        },
    ),
    (
        2,
        "another address than that of the target: 10.0.0.9 instead of 10.0.0.2",
        |it| {
            it.address = Some([10, 0, 0, 9].into());
        },
    ),
    (
        3,
        "another address than that of the target: fe80::2 instead of fe80::1",
        |it| {
            it.address = "fe80::2".parse().ok();
        },
    ),
    (
        1,
        "an address that no name of the plan has: 0.0.0.0",
        |it| {
            it.address = Some([0, 0, 0, 0].into());
        },
    ),
    (
        1,
        "an address that no name of the plan has: 224.0.0.1",
        |it| {
            it.address = Some([224, 0, 0, 1].into());
        },
    ),
    (
        1,
        "a name that answered without an address: host.example",
        |it| it.address = None,
    ),
    (
        0,
        "an address that cannot have answered: 255.255.255.255",
        |it| {
            unreachable_by(it, 3, "255.255.255.255");
        },
    ),
    (
        0,
        "an address that cannot have answered: 2001:db8::1",
        |it| {
            unreachable_by(it, 1, "2001:db8::1");
        },
    ),
    (
        0,
        "an ICMP type that is no error about a target: type 8 from 10.0.0.254",
        |it| {
            unreachable_by(it, 8, "10.0.0.254");
        },
    ),
    (
        0,
        "an ICMP type that is no error about a target: type 5 from 10.0.0.254",
        |it| {
            unreachable_by(it, 5, "10.0.0.254");
        },
    ),
    (
        3,
        "an ICMP type that is no error about a target: type 129 from fe80::9",
        |it| {
            unreachable_by(it, 129, "fe80::9");
        },
    ),
    (0, "an address that cannot have answered: ff02::1", |it| {
        it.status = Status::Down(DownReason::AnsweredBy(
            "ff02::1".parse().expect("an address"),
        ));
        (it.received, it.rtt) = (0, None);
    }),
];

#[test]
fn what_the_plan_does_not_allow_is_quarantined_whole_and_the_true_result_is_stored() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let (run, message) = true_result(&mut store)?;
    for (position, reason, forge) in FORGERIES {
        let mut forged = message.clone();
        forge(&mut forged.outcomes[*position]);
        let applied = store.apply(Transport::Broker, &[delivery(forged)])?;
        ensure!(
            (applied.quarantined, applied.applied, applied.rows) == (1, 0, 0),
            "{reason}: {applied:?}"
        );
        let kept: String = Connection::open(store.path())?.query_row(
            "SELECT reason || ': ' || detail FROM quarantine ORDER BY id DESC LIMIT 1",
            (),
            |row| row.get(0),
        )?;
        let expected = reason.replacen(": ", &format!(": target {position}: "), 1);
        ensure!(kept == expected, "{kept} instead of {expected}");
    }
    ensure!(store.summary(run)?.settled() == 0);
    // The control: what is just allowed is applied.
    let mut message = message;
    message.outcomes[0].attempts = 3;
    message.outcomes[3].rtt = Some(rtt(602_000_000_000));
    unreachable_by(&mut message.outcomes[2], 11, "10.0.0.254");
    let applied = store.apply(Transport::Broker, &[delivery(message)])?;
    ensure!(applied.applied == 1 && applied.rows == 4, "{applied:?}");
    ensure!(reader(&store)?.verify(run)?.is_complete());
    Ok(())
}

#[test]
fn an_answer_that_came_after_the_worst_case_of_the_plan_is_stored() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let (run, mut message) = true_result(&mut store)?;
    // The plan allows 4.75 s for a target alone. In a large chunk at a low rate its retries wait for those of the others,
    // and an answer counts until the target is settled.
    message.outcomes[0].status = Status::Late;
    message.outcomes[0].rtt = Some(rtt(200_000_000_000));
    let applied = store.apply(Transport::Broker, &[delivery(message)])?;
    ensure!(
        (applied.applied, applied.quarantined) == (1, 0),
        "{applied:?}"
    );
    ensure!(reader(&store)?.verify(run)?.is_complete());
    Ok(())
}

#[test]
fn a_row_with_a_time_that_sqlite_does_not_know_is_read_without_it() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let (run, message) = true_result(&mut store)?;
    let applied = store.apply(Transport::Broker, &[delivery(message)])?;
    ensure!(applied.applied == 1, "{applied:?}");
    let times = || -> Result<Vec<String>> {
        let rows = crate::reader::report(&store, run)?;
        Ok(rows.into_iter().map(|row| row.probed_at).collect())
    };
    // The control: an ordinary time is there.
    ensure!(times()?.iter().all(|time| time.ends_with('Z')));
    // The last microsecond of the year 9999 is rounded to the next year, as an older version could store it.
    Connection::open(store.path())?.execute(
        "UPDATE chunks SET started_at_us = 253402300799999999 WHERE run = ?1",
        [run],
    )?;
    ensure!(times()? == ["", "", "", ""], "{:?}", times()?);
    let reader = reader(&store)?;
    reader.verify(run)?;
    reader.overview(run)?;
    Ok(())
}
