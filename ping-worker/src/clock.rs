//! Whether the clock of this machine can label the results of a run. A clock that was never set is before the time at which
//! the run was planned, and the writer refuses such results: so the worker takes no chunk until the clock is set.
//!
//! A clock that is too late is not seen here, because a chunk may wait in its queue for days. The writer refuses its results.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pingfleet_wire::{ChunkKey, MAX_STARTED_AT_US, timing::CLOCK_ALLOWANCE};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often the clock is read while it is too early.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How often the error repeats.
const ERROR_INTERVAL: Duration = Duration::from_mins(1);

/// Whether the clock of this machine is before the run of a chunk was planned, by more than clocks may differ.
pub(crate) fn is_too_early(key: ChunkKey) -> bool {
    is_before_run(key, SystemTime::now())
}

fn is_before_run(key: ChunkKey, now: SystemTime) -> bool {
    key.planned_at_us().is_some_and(|planned_at_us| {
        let earliest = time(planned_at_us).checked_sub(CLOCK_ALLOWANCE);
        earliest.is_some_and(|earliest| now < earliest)
    })
}

/// Waits until the clock is late enough for the run of a chunk. Returns false when `stop` came first.
pub(crate) async fn wait_until_set(key: ChunkKey, stop: &CancellationToken) -> bool {
    let mut reported: Option<Instant> = None;
    while is_too_early(key) {
        if reported.is_none_or(|at| at.elapsed() >= ERROR_INTERVAL) {
            reported = Some(Instant::now());
            let planned = key.planned_at_us().unwrap_or(0);
            tracing::error!(
                run_id = %key.run,
                clock = %humantime::format_rfc3339_seconds(SystemTime::now()),
                planned_at = %humantime::format_rfc3339_seconds(time(planned)),
                "the clock of this machine is before the run was planned by the clock of its producer, so no chunks are taken: \
                 set the wrong clock (`timedatectl`); if it was that of the producer, cancel the run and purge the queue of work"
            );
        }
        tokio::select! {
            () = stop.cancelled() => return false,
            () = tokio::time::sleep(CHECK_INTERVAL) => {}
        }
    }
    tracing::info!(run_id = %key.run, "the clock is set, chunks are taken again");
    true
}

/// A time that can be shown.
fn time(micros: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(micros.min(MAX_STARTED_AT_US))
}

#[cfg(test)]
mod tests {
    use uuid::{NoContext, Timestamp, Uuid};

    use super::*;

    #[test]
    fn a_clock_may_be_a_day_before_the_run() {
        let key = |run| ChunkKey { run, chunk: 0 };
        let planned = 1_767_225_600;
        let run = key(Uuid::new_v7(Timestamp::from_unix(NoContext, planned, 0)));
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert!(!is_before_run(run, at(planned)));
        assert!(!is_before_run(run, at(planned - 86_400)));
        assert!(is_before_run(run, at(planned - 86_401)));
        assert!(is_before_run(run, UNIX_EPOCH));
        // A run long ago says nothing, and neither does an id without a time.
        assert!(!is_before_run(run, at(planned * 2)));
        assert!(!is_before_run(key(Uuid::from_u128(7)), UNIX_EPOCH));
        // The last time of a UUIDv7 can be shown.
        let last = Uuid::from_u128(0xffff_ffff_ffff_7000_8000_0000_0000_0000);
        assert!(is_before_run(key(last), at(planned)));
        let shown = time(key(last).planned_at_us().unwrap());
        assert_eq!(
            humantime::format_rfc3339_seconds(shown).to_string(),
            "9999-12-30T23:59:59Z"
        );
    }
}
