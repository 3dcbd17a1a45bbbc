//! How many chunks the worker has in hand: one until the first is settled, in every session, then the window.

use std::{num::NonZeroU32, time::Duration};

use anyhow::Result;
use tokio::sync::Semaphore;

use crate::rig::{Event, Rig, count, place};

/// 20,000 requests a second x 0.19 s / 250 targets = 15.2, so 16, and two more.
const WINDOW: u16 = 18;

const CHUNKS: u32 = 60;

fn taken(events: &[Event]) -> usize {
    count(events, |event| matches!(event, Event::Taken(_)))
}

#[tokio::test]
async fn every_session_takes_one_chunk_until_that_is_settled_and_then_the_window() -> Result<()> {
    let mut rig = Rig::gated();
    rig.settings.prefetch = None;
    rig.probing.rate = NonZeroU32::new(20_000);
    // With two retries at 1.5 times the last wait: 40 + 60 + 90 ms.
    rig.probing.timeout = Duration::from_millis(40);
    for chunk in 0..CHUNKS {
        rig.give(chunk).await?;
    }
    let worker = rig.start();
    rig.permits.add_permits(1);
    let window = usize::from(WINDOW);
    rig.floor
        .log
        .wait_for("the full window", |events| taken(events) > window)
        .await?;
    rig.permits.add_permits(1);
    let events = rig
        .floor
        .log
        .wait_for("a place in the window", |events| taken(events) > window + 1)
        .await?;
    let opened = Event::Opened(Some(1));
    assert_eq!(count(&events, |event| *event == opened), 1);
    let opening = place(&events, &Event::Prefetch(WINDOW));
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
        .wait_for_some("the window of the next session", 2, |event| {
            *event == Event::Prefetch(WINDOW)
        })
        .await?;
    let again = events
        .iter()
        .rposition(|event| *event == opened)
        .map_or(&events[..], |at| &events[at..]);
    let opening = place(again, &Event::Prefetch(WINDOW));
    assert_eq!(taken(&again[..opening]), 1, "{again:?}");
    assert_eq!(
        count(&again[..opening], |event| matches!(event, Event::Acked(_))),
        1
    );

    let rest = Semaphore::MAX_PERMITS / 2;
    rig.permits.add_permits(rest);
    worker.stop().await?;
    Ok(())
}

#[tokio::test]
async fn an_unlimited_run_starts_with_four_and_doubles_while_the_worker_idles() -> Result<()> {
    let mut rig = Rig::new();
    rig.settings.prefetch = None;
    for chunk in 0..CHUNKS {
        rig.give(chunk).await?;
    }
    let worker = rig.start();
    let events = rig.acked(0..CHUNKS).await?;
    worker.stop().await?;
    let windows: Vec<u16> = events
        .iter()
        .filter_map(|event| match event {
            Event::Prefetch(prefetch) => Some(*prefetch),
            _ => None,
        })
        .collect();
    assert!(windows.starts_with(&[4, 8]), "{windows:?}");
    assert!(
        windows
            .windows(2)
            .all(|pair| pair[1] == (2 * pair[0]).min(256)),
        "{windows:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_busy_worker_does_not_take_more_than_its_first_window() -> Result<()> {
    let mut rig = Rig::gated();
    rig.settings.prefetch = None;
    for chunk in 0..CHUNKS {
        rig.give(chunk).await?;
    }
    let worker = rig.start();
    rig.permits.add_permits(1);
    rig.floor
        .log
        .wait_for("the full window", |events| taken(events) == 5)
        .await?;
    // One of four is settled: three are still to be probed, more than there are threads.
    rig.permits.add_permits(1);
    let events = rig
        .floor
        .log
        .wait_for("a place in the window", |events| taken(events) == 6)
        .await?;
    let windows = count(&events, |event| matches!(event, Event::Prefetch(_)));
    assert_eq!(windows, 1, "{events:?}");
    rig.permits.add_permits(Semaphore::MAX_PERMITS / 2);
    worker.stop().await?;
    Ok(())
}
