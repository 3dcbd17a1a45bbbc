//! Whose messages they were: the login is stored with what it sent, and changes nothing of another login.

use anyhow::{Context as _, Result, ensure};
use pingfleet_store::{DecodedDelivery, ReportFilter, Sender, Transport, Writer};
use pingfleet_wire::{Heartbeat, ResultChunk, Status, WorkChunk};
use rusqlite::Connection;
use tempfile::TempDir;
use uuid::Uuid;

use crate::sample::{delivery, options, reader, result, start};

/// A login with all that would be harmful on a terminal or in a page.
const HOSTILE: &str = "<b>\u{1b}[2J\u{202e}";

fn open(folder: &TempDir) -> Result<Writer> {
    Ok(options(&folder.path().join("fleet.db")).open()?)
}

/// A result as this login published it.
fn result_by(login: &str, message: ResultChunk) -> DecodedDelivery {
    let mut delivery = delivery(message);
    if let DecodedDelivery::Result { raw, .. } = &mut delivery {
        raw.login = Some(login.to_owned());
    }
    delivery
}

fn named(worker: &str, work: &WorkChunk, status: Status) -> ResultChunk {
    ResultChunk {
        worker: worker.to_owned(),
        ..result(work, &[status])
    }
}

fn heartbeat(login: &str, worker: &str, instance: u128) -> Heartbeat {
    Heartbeat {
        prefetch: 21,
        ..Heartbeat::new(format!("{worker}-of-{login}"), Uuid::from_u128(instance))
    }
}

fn beat(login: &str, heartbeat: Heartbeat) -> DecodedDelivery {
    DecodedDelivery::Heartbeat {
        heartbeat,
        login: Some(login.to_owned()),
    }
}

#[test]
fn one_login_opens_the_publish_window_only_so_far() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let many = |login: &str, count: u128| -> Vec<_> {
        (0..count)
            .map(|number| {
                let heartbeat = heartbeat(login, "rack-7", number);
                beat(
                    login,
                    Heartbeat {
                        prefetch: 256,
                        ..heartbeat
                    },
                )
            })
            .collect()
    };
    store.apply(Transport::Broker, &many("rack-7", 2))?;
    ensure!(store.live_workers()?.prefetch == 512);
    store.apply(Transport::Broker, &many("thief", 500))?;
    let live = store.live_workers()?;
    ensure!(
        (live.count, live.prefetch) == (502, 512 + 64 * 256),
        "{live:?}"
    );
    Ok(())
}

#[test]
fn a_row_has_the_login_that_sent_it_whatever_name_it_gave() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let (planned, works) = start(&mut store, Transport::Broker, &[1, 1, 1])?;
    store.apply(
        Transport::Broker,
        &[
            result_by("rack-7", named("rack-7", &works[0], Status::Up)),
            result_by(HOSTILE, named("rack-7", &works[1], Status::Up)),
            delivery(named("rack-7", &works[2], Status::Up)),
        ],
    )?;
    let reader = reader(&store)?;
    let logins = [Some("rack-7".to_owned()), Some(HOSTILE.to_owned()), None];
    let mut pages = reader.report(planned.run, &ReportFilter::default());
    let rows = pages.next_page()?;
    ensure!(rows.iter().map(|row| row.login.clone()).eq(logins.clone()));
    let mut exported = Vec::new();
    for part in reader.export(planned.run, &ReportFilter::default()) {
        let page = part?.read()?;
        exported.extend(page.rows().map(|row| row.login.map(str::to_owned)));
    }
    ensure!(exported == logins);
    // One name, three workers.
    let overview = reader.overview(planned.run)?;
    let workers: Vec<_> = overview
        .workers
        .iter()
        .map(|worker| {
            (
                worker.worker.as_deref(),
                worker.login.as_deref(),
                worker.targets,
            )
        })
        .collect();
    ensure!(
        workers
            == [
                (Some("rack-7"), None, 1),
                (Some("rack-7"), Some(HOSTILE), 1),
                (Some("rack-7"), Some("rack-7"), 1)
            ],
        "{workers:?}"
    );
    Ok(())
}

#[test]
fn a_contradiction_and_a_refused_message_name_the_logins() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let (planned, works) = start(&mut store, Transport::Broker, &[1])?;
    let mut forged = named("rack-7", &works[0], Status::Up);
    let applied = store.apply(
        Transport::Broker,
        &[
            result_by("thief", forged.clone()),
            result_by("rack-7", named("rack-7", &works[0], Status::DOWN)),
        ],
    )?;
    let (found, count) = applied.contradictions.first_key_value().context("one")?;
    let by = |login: &str| Sender {
        worker: "rack-7".to_owned(),
        login: Some(login.to_owned()),
    };
    ensure!((found.run, *count) == (planned.run, 1));
    ensure!((&found.stored_from, &found.later_from) == (&by("thief"), &by("rack-7")));
    ensure!(found.stored_from.to_string() == "rack-7 (login thief)");
    forged.token.0 = Uuid::new_v4();
    store.apply(Transport::Broker, &[result_by("thief", forged)])?;
    let refused = &reader(&store)?.quarantine()?.newest[0];
    ensure!((refused.reason.as_str(), refused.login.as_deref()) == ("wrong token", Some("thief")));

    Ok(())
}

#[test]
fn one_login_changes_no_worker_of_another_even_with_its_instance() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let (_planned, works) = start(&mut store, Transport::Broker, &[1])?;
    let clock = Connection::open(store.path())?;
    store.apply(Transport::Broker, &[beat("a", heartbeat("a", "w", 1))])?;
    clock.execute_batch("UPDATE workers SET last_seen_us = last_seen_us - 60 * 1000000")?;
    // Another login says that this process stops, and sends a result under its name.
    let mut leaving = heartbeat("a", "w", 1);
    leaving.prefetch = 9;
    store.apply(Transport::Broker, &[beat("b", leaving.clone())])?;
    leaving.draining = true;
    store.apply(
        Transport::Broker,
        &[
            beat("b", leaving),
            result_by("b", named("w-of-a", &works[0], Status::Up)),
        ],
    )?;
    let workers = reader(&store)?.workers()?;
    ensure!(workers.len() == 1 && workers[0].login.as_deref() == Some("a"));
    ensure!((workers[0].prefetch, store.live_workers()?.count) == (21, 0));
    // The control: its own login does both.
    let (_planned, works) = start(&mut store, Transport::Broker, &[1])?;
    store.apply(
        Transport::Broker,
        &[result_by("a", named("w-of-a", &works[0], Status::Up))],
    )?;
    ensure!(store.live_workers()?.count == 1);
    let mut leaving = heartbeat("a", "w", 1);
    leaving.draining = true;
    store.apply(Transport::Broker, &[beat("a", leaving)])?;
    ensure!(reader(&store)?.workers()?.is_empty());
    Ok(())
}

#[test]
fn a_name_that_two_logins_use_at_the_same_time_is_found() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let clock = Connection::open(store.path())?;
    let of =
        |login: &str, instance| beat(login, Heartbeat::new("rack-7", Uuid::from_u128(instance)));
    store.apply(Transport::Broker, &[of("rack-7", 1), of("rack-7", 2)])?;
    let shared = |store: &Writer| -> Result<bool> {
        let fleet = reader(store)?.fleet()?;
        Ok(fleet.shared_names() == [("rack-7", vec!["rack-7", "thief"])])
    };
    ensure!(!shared(&store)? && !reader(&store)?.fleet()?.has_logins());
    store.apply(Transport::Broker, &[of("thief", 1)])?;
    ensure!(shared(&store)? && reader(&store)?.fleet()?.has_logins());
    // It was given another login, and the row of the old one is still there.
    clock.execute_batch(
        "UPDATE workers SET last_seen_us = last_seen_us - 60 * 1000000 WHERE login = 'thief'",
    )?;
    ensure!(!shared(&store)?);
    Ok(())
}

#[test]
fn ten_thousand_names_of_one_login_are_bounded_and_displace_no_other() -> Result<()> {
    const MAX: usize = 1000;
    let folder = TempDir::new()?;
    let mut store = open(&folder)?;
    let clock = Connection::open(store.path())?;
    let count = |login: &str| -> Result<usize> {
        let sql = "SELECT count(*) FROM workers WHERE login = ?1";
        let count: i64 = clock.query_row(sql, [login], |row| row.get(0))?;
        Ok(count.unsigned_abs() as usize)
    };
    let flood = |login: &str, instances: std::ops::Range<u128>| -> Vec<_> {
        instances
            .map(|number| beat(login, heartbeat(login, &number.to_string(), number)))
            .collect()
    };
    store.apply(Transport::Broker, &flood("true", 0..100))?;
    let applied = store.apply(Transport::Broker, &flood("thief", 0..10_000))?;
    ensure!(applied.heartbeats_of_too_many == 9000, "{applied:?}");
    ensure!((count("true")?, count("thief")?) == (100, MAX));
    // The first ones are silent now, and new ones replace as many of them, the oldest first. Those of the other login stay,
    // although they are silent for longer.
    clock.execute_batch(
        "UPDATE workers SET last_seen_us = last_seen_us - 40 * 1000000;
         UPDATE workers SET last_seen_us = last_seen_us - 40 * 1000000 WHERE login = 'true' OR instance < x'00000000000000000000000000000032'",
    )?;
    let applied = store.apply(Transport::Broker, &flood("thief", 20_000..20_050))?;
    ensure!(applied.heartbeats_of_too_many == 0);
    ensure!((count("true")?, count("thief")?) == (100, MAX));
    let oldest: i64 = clock.query_row(
        "SELECT count(*) FROM workers WHERE login = 'thief' AND instance < x'00000000000000000000000000000032'",
        (),
        |row| row.get(0),
    )?;
    ensure!(oldest == 0, "{oldest} of the oldest are left");
    Ok(())
}
