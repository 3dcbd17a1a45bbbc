//! Checks the times of a result, by the clock of the master. No I/O.
//!
//! A sweep in one process has one clock for everything, so its results are not checked: when that clock is set, no run is
//! lost. A worker with a clock that is too early takes no chunk (`ping-worker/src/clock.rs`).

use pingfleet_report::words::Clock;
use pingfleet_store::Refusal;
use pingfleet_wire::{ResultChunk, timing::CLOCK_ALLOWANCE};

/// Why a result cannot have the times that it has, if it cannot. `now_us` is when it was delivered.
pub(crate) fn impossible_times(message: &ResultChunk, now_us: u64) -> Option<Refusal> {
    let allowance = CLOCK_ALLOWANCE.as_micros() as u64;
    let began = message.started_at_us;
    let after = message.outcomes.iter();
    let last = after.map(|outcome| outcome.probed_after_us).max();
    let ended = began.saturating_add(last.unwrap_or(0));
    let planned = message.key.planned_at_us().unwrap_or(0);
    let utc = |micros: u64| Clock::utc(micros.min(i64::MAX as u64) as i64);
    let worker = &message.worker;
    if planned.saturating_sub(began) > allowance {
        let (began, planned) = (utc(began), utc(planned));
        Some(Refusal::new(
            "probed before its run was planned",
            format!(
                "at {began} by the clock of worker {worker}, and planned at {planned} by that of the producer: set the wrong one"
            ),
        ))
    } else if ended.saturating_sub(now_us) > allowance {
        let (ended, now) = (utc(ended), utc(now_us));
        Some(Refusal::new(
            "probed after it was delivered",
            format!(
                "at {ended} by the clock of worker {worker}, and delivered at {now} by that of the writer: set the wrong one"
            ),
        ))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use pingfleet_wire::{ChunkKey, Outcome, Status, Token, Version};
    use uuid::Uuid;

    use super::*;

    const HOUR: u64 = 3_600_000_000;

    /// 2026-01-01 00:00 UTC, as the time of a run.
    const PLANNED: u64 = 1_767_225_600_000_000;

    fn result(started_at_us: u64, probed_after_us: u64) -> ResultChunk {
        let planned = uuid::Timestamp::from_unix(uuid::NoContext, PLANNED / 1_000_000, 0);
        ResultChunk {
            version: Version,
            database: Uuid::nil(),
            key: ChunkKey {
                run: Uuid::new_v7(planned),
                chunk: 0,
            },
            token: Token(Uuid::nil()),
            worker: "w".to_owned(),
            redelivered: false,
            started_at_us,
            outcomes: vec![Outcome {
                status: Status::DOWN,
                address: None,
                sent: 1,
                received: 0,
                rtt: None,
                attempts: 1,
                probed_after_us,
            }],
        }
    }

    #[test]
    fn a_result_was_probed_in_its_run_but_for_the_difference_of_clocks() {
        let delivered = PLANNED + 48 * HOUR;
        for (started, after) in [
            (PLANNED, 0),
            (PLANNED - 24 * HOUR, 0),
            (delivered + 24 * HOUR, 0),
            (delivered, 24 * HOUR),
        ] {
            let times = impossible_times(&result(started, after), delivered);
            assert_eq!(times, None, "{started} {after}");
        }
        let (early, late) = (
            "probed before its run was planned",
            "probed after it was delivered",
        );
        for (started, after, reason, clocks) in [
            (
                0,
                0,
                early,
                ["1970-01-01T00:00:00Z", "2026-01-01T00:00:00Z"],
            ),
            (
                PLANNED - 24 * HOUR - 1,
                0,
                early,
                ["2025-12-30T23:59:59Z", "2026-01-01T00:00:00Z"],
            ),
            (
                delivered + 24 * HOUR + 1,
                0,
                late,
                ["2026-01-04T00:00:00Z", "2026-01-03T00:00:00Z"],
            ),
            (
                delivered,
                24 * HOUR + 1,
                late,
                ["2026-01-04T00:00:00Z", "2026-01-03T00:00:00Z"],
            ),
            (
                253_402_300_799_999_999,
                0,
                late,
                ["unknown time", "2026-01-03T00:00:00Z"],
            ),
        ] {
            let refusal = impossible_times(&result(started, after), delivered).unwrap();
            let detail = &refusal.detail;
            assert_eq!(refusal.reason, reason, "{detail}");
            let named = [clocks[0], clocks[1], "worker w"];
            assert!(named.iter().all(|name| detail.contains(name)), "{detail}");
        }
    }
}
