//! Checks the times of a result, by the clock of this machine. No I/O.
//!
//! The id of a run is a UUIDv7, which has the time at which the run was planned (RFC 9562, section 5.7).

use std::time::Duration;

use pingfleet_wire::ResultChunk;

/// How much the clock of a worker may differ from that of the master. The times only label rows, so the limit is
/// generous: it refuses a clock that was never set, not one in another time zone.
const CLOCK_ALLOWANCE: Duration = Duration::from_hours(24);

/// Why a result cannot have the times that it has, if it cannot. `now_us` is when it was delivered.
pub(crate) fn impossible_times(message: &ResultChunk, now_us: u64) -> Option<String> {
    let allowance = CLOCK_ALLOWANCE.as_micros() as u64;
    let after = message.outcomes.iter();
    let last = after.map(|outcome| outcome.probed_after_us).max();
    let ended = message.started_at_us.saturating_add(last.unwrap_or(0));
    let planned = message
        .key
        .run
        .get_timestamp()
        .map(|time| {
            let (seconds, nanos) = time.to_unix();
            seconds.saturating_mul(1_000_000) + u64::from(nanos / 1000)
        })
        .unwrap_or(0);
    let early = planned.saturating_sub(message.started_at_us);
    let late = ended.saturating_sub(now_us);
    let hours = |micros: u64| micros / 3_600_000_000;
    if early > allowance {
        Some(format!(
            "probed {} hours before its run was planned: set the clock of worker {}",
            hours(early),
            message.worker
        ))
    } else if late > allowance {
        Some(format!(
            "probed {} hours after it was delivered: set the clock of worker {}",
            hours(late),
            message.worker
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
        for (started, after, reason) in [
            (0, 0, "hours before its run"),
            (PLANNED - 24 * HOUR - 1, 0, "24 hours before its run"),
            (
                delivered + 24 * HOUR + 1,
                0,
                "24 hours after it was delivered",
            ),
            (delivered, 24 * HOUR + 1, "24 hours after it was delivered"),
            (253_402_300_799_999_999, 0, "hours after it was delivered"),
        ] {
            let times = impossible_times(&result(started, after), delivered).unwrap();
            assert!(
                times.contains(reason) && times.contains("worker w"),
                "{times}"
            );
        }
    }
}
