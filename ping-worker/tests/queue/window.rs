//! How many chunks the worker has in hand: in every session one until the first is settled, then the full prefetch.

use std::{net::UdpSocket, num::NonZeroU16, time::Duration};

use anyhow::Result;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use pingfleet_prober::resolve::Resolver;
use pingfleet_wire::Target;

use crate::rig::{Event, Rig, count, place};

/// 20,000 requests a second x 0.19 s / 250 targets = 15.2, so 16, and two more.
const PREFETCH: u16 = 18;

const CHUNKS: u32 = 60;

fn taken(events: &[Event]) -> usize {
    count(events, |event| matches!(event, Event::Taken(_)))
}

#[tokio::test]
async fn every_session_takes_one_chunk_until_that_is_settled_and_then_the_full_prefetch()
-> Result<()> {
    let mut rig = Rig::limited();
    rig.settings.prefetch = None;
    for chunk in 0..CHUNKS {
        rig.give(chunk).await?;
    }
    let worker = rig.start();
    rig.permits.add_permits(1);
    let window = usize::from(PREFETCH);
    rig.floor
        .log
        .wait_for("the full prefetch", |events| taken(events) > window)
        .await?;
    rig.permits.add_permits(1);
    let events = rig
        .floor
        .log
        .wait_for("room in the prefetch", |events| taken(events) > window + 1)
        .await?;
    let opened = Event::Opened(Some(1));
    assert_eq!(count(&events, |event| *event == opened), 1);
    let opening = place(&events, &Event::Prefetch(PREFETCH));
    assert_eq!(taken(&events[..opening]), 1);
    assert!(place(&events, &Event::Acked(0)) < opening);
    let second_ack = place(&events, &Event::Acked(1));
    assert_eq!(taken(&events[..second_ack]), window + 1);

    rig.floor.cut.notify_one();
    rig.floor
        .log
        .wait_for_some("the next session", 2, |event| *event == opened)
        .await?;
    rig.permits.add_permits(window);
    let events = rig
        .floor
        .log
        .wait_for_some("the prefetch of the next session", 2, |event| {
            *event == Event::Prefetch(PREFETCH)
        })
        .await?;
    let again = events
        .iter()
        .rposition(|event| *event == opened)
        .map_or(&events[..], |at| &events[at..]);
    let opening = place(again, &Event::Prefetch(PREFETCH));
    assert_eq!(taken(&again[..opening]), 1, "{again:?}");
    assert_eq!(
        count(&again[..opening], |event| matches!(event, Event::Acked(_))),
        1
    );

    rig.permits.add_permits(CHUNKS as usize);
    worker.stop().await?;
    Ok(())
}

/// Waits until the worker has sent some more heartbeats: meanwhile it has checked many times whether it idles.
async fn some_heartbeats_later(rig: &Rig) -> Result<Vec<Event>> {
    let heartbeat = |event: &Event| matches!(event, Event::Heartbeat(_));
    let before = count(&rig.floor.log.events(), heartbeat);
    rig.floor
        .log
        .wait_for_some("heartbeats", before + 3, heartbeat)
        .await
}

#[tokio::test]
async fn targets_and_not_chunks_bound_what_is_probed_at_a_time() -> Result<()> {
    const CHUNKS: u32 = 40;
    let mut rig = Rig::gated();
    rig.settings.prefetch = NonZeroU16::new(CHUNKS as u16);
    let numbers = (0..CHUNKS).map(|chunk| chunk * 40);
    for chunk in numbers.clone() {
        rig.give_addresses(chunk, 10_000).await?;
    }
    let worker = rig.start();
    rig.permits.add_permits(1);
    rig.floor
        .log
        .wait_for("all chunks", |events| taken(events) == CHUNKS as usize)
        .await?;
    let probing = |event: &Event| matches!(event, Event::Probing(_));
    // 26 chunks have 260,000 targets, and the first one is done.
    let events = some_heartbeats_later(&rig).await?;
    assert_eq!(count(&events, probing), 27);
    rig.permits.add_permits(1);
    rig.floor
        .log
        .wait_for_some("the next chunk", 28, probing)
        .await?;
    rig.permits.add_permits(CHUNKS as usize);
    rig.acked(numbers).await?;
    worker.stop().await?;
    Ok(())
}

fn prefetches(events: &[Event]) -> Vec<u16> {
    events
        .iter()
        .filter_map(|event| match event {
            Event::Prefetch(prefetch) => Some(*prefetch),
            _ => None,
        })
        .collect()
}

#[tokio::test(start_paused = true)]
async fn an_unlimited_run_starts_with_four_and_doubles_while_the_worker_idles() -> Result<()> {
    let mut rig = Rig::gated();
    rig.settings.prefetch = None;
    for chunk in 0..CHUNKS {
        rig.give(chunk).await?;
    }
    let worker = rig.start();
    rig.permits.add_permits(1);
    // With 4, 8, 16 and the other 31 in hand nothing is left that could fill 64.
    let all = CHUNKS as usize;
    rig.floor
        .log
        .wait_for("everything in hand", |events| taken(events) == all)
        .await?;
    let events = some_heartbeats_later(&rig).await?;
    assert_eq!(prefetches(&events), [4, 8, 16, 32, 64]);
    assert!(place(&events, &Event::Acked(0)) < place(&events, &Event::Prefetch(4)));
    rig.permits.add_permits(all);
    rig.acked(0..CHUNKS).await?;
    worker.stop().await?;
    Ok(())
}

/// Resolving more names at the same time makes no name known earlier, and each chunk has only so much time for it.
#[tokio::test(start_paused = true)]
async fn an_unlimited_run_keeps_its_prefetch_while_its_names_wait_for_the_name_server() -> Result<()>
{
    let silent = UdpSocket::bind("127.0.0.1:0")?;
    let address = silent.local_addr()?;
    let mut connection = ConnectionConfig::udp();
    connection.port = address.port();
    let servers = vec![NameServerConfig::new(address.ip(), true, vec![connection])];
    let mut options = ResolverOpts::default();
    options.timeout = Duration::from_mins(1);
    let config = ResolverConfig::from_parts(None, Vec::new(), servers);
    let mut rig = Rig::gated();
    rig.settings.prefetch = None;
    rig.resolver = Resolver::with_servers(config, options);
    rig.give(0).await?;
    for chunk in 1..CHUNKS {
        let names = (0..200).map(|name| Target::Text(format!("n{chunk}-{name}.test.")));
        rig.give_targets(chunk, names.collect()).await?;
    }
    let worker = rig.start();
    rig.permits.add_permits(1);
    rig.floor
        .log
        .wait_for("the prefetch of names", |events| taken(events) == 5)
        .await?;
    let events = some_heartbeats_later(&rig).await?;
    assert_eq!(prefetches(&events), [4]);
    // After the time for resolving them they are settled, and the next ones are taken.
    rig.acked(0..5).await?;
    worker.stop().await?;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn an_unlimited_run_keeps_its_prefetch_while_the_queue_does_not_fill_it() -> Result<()> {
    let mut rig = Rig::gated();
    rig.settings.prefetch = None;
    for chunk in 0..4 {
        rig.give(chunk).await?;
    }
    let worker = rig.start();
    rig.permits.add_permits(1);
    rig.floor
        .log
        .wait_for("everything in hand", |events| taken(events) == 4)
        .await?;
    let events = some_heartbeats_later(&rig).await?;
    assert_eq!(prefetches(&events), [4]);
    rig.permits.add_permits(3);
    rig.acked(0..4).await?;
    worker.stop().await?;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_limited_run_keeps_its_prefetch_while_the_worker_idles() -> Result<()> {
    let mut rig = Rig::limited();
    rig.settings.prefetch = None;
    for chunk in 0..CHUNKS {
        rig.give(chunk).await?;
    }
    let worker = rig.start();
    rig.permits.add_permits(1);
    let window = usize::from(PREFETCH);
    rig.floor
        .log
        .wait_for("the full prefetch", |events| taken(events) > window)
        .await?;
    let events = some_heartbeats_later(&rig).await?;
    assert_eq!(prefetches(&events), [PREFETCH]);
    assert_eq!(taken(&events), window + 1);
    rig.permits.add_permits(CHUNKS as usize);
    rig.acked(0..CHUNKS).await?;
    worker.stop().await?;
    Ok(())
}
