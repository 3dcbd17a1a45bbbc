//! The state of a worker, as the page shows it: who is silent is lost only if the writer received when a heartbeat was due.

use std::time::Duration;

use pingfleet_report::table::StatusText;
use pingfleet_store::{WorkerRow, WorkerState};
use pingfleet_wire::{
    StatusKind,
    timing::{HEARTBEAT_INTERVAL, WORKER_TIMEOUT},
};

/// Heartbeats wait in their queue while the database is busy. Some may have been dropped after this time.
const MAX_BUSY: Duration =
    Duration::from_secs(WORKER_TIMEOUT.as_secs() - 2 * HEARTBEAT_INTERVAL.as_secs());

/// Why the writer receives no heartbeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Silence {
    /// It waits for the database.
    Database,
    /// It has no session with the broker.
    NoSession,
    /// The broker has an alarm, so workers cannot publish. It had none at this time, in microseconds.
    Alarm(Option<i64>),
}

/// The last break: a time in which the writer received no heartbeats. All times are in microseconds since 1970-01-01 UTC.
#[derive(Debug, Default)]
pub(super) struct LastBreak {
    /// None when there was none that matters.
    found: Option<Break>,
    /// When the writer was last known to receive heartbeats.
    heard_us: Option<i64>,
    /// When the writer before this one did.
    before_us: Option<i64>,
}

#[derive(Debug)]
struct Break {
    since_us: i64,
    /// None while it goes on.
    until_us: Option<i64>,
    is_database: bool,
}

impl LastBreak {
    /// The break before the writer's start. The writer before it was last seen at `before_us`, if that is known.
    pub(super) fn new(before_us: Option<i64>) -> Self {
        Self {
            found: Some(Break {
                since_us: before_us.unwrap_or(i64::MIN),
                until_us: None,
                is_database: false,
            }),
            heard_us: None,
            before_us,
        }
    }

    /// Notes what is known at a time.
    pub(super) fn note(&mut self, silence: Option<Silence>, now_us: i64) {
        let Some(silence) = silence else {
            self.heard_us = Some(now_us);
            if let Some(found) = &mut self.found
                && found.until_us.is_none()
            {
                found.until_us = Some(now_us);
                let is_short = now_us.saturating_sub(found.since_us) < MAX_BUSY.as_micros() as i64;
                if found.is_database && is_short {
                    self.found = None;
                }
            }
            return;
        };
        let is_database = silence == Silence::Database;
        if let Some(found) = &mut self.found
            && found.is_recent(now_us)
        {
            // Two breaks with little time between them are one.
            found.until_us = None;
            found.is_database &= is_database;
            return;
        }
        let since_us = match silence {
            Silence::Alarm(clear_us) => clear_us.or(self.before_us),
            Silence::Database | Silence::NoSession => self.heard_us.or(self.before_us),
        };
        self.found = Some(Break {
            since_us: since_us.unwrap_or(i64::MIN),
            until_us: None,
            is_database,
        });
    }

    /// How long ago the last break began. None when it ended so long ago that every live worker was heard since.
    pub(super) fn age(&self, now_us: i64) -> Option<Duration> {
        let found = self
            .found
            .as_ref()
            .filter(|found| found.is_recent(now_us))?;
        let age = now_us.saturating_sub(found.since_us).max(0);
        Some(Duration::from_micros(age as u64))
    }

    /// Whether the last break still matters, and was one of the database.
    pub(super) fn is_of_database(&self, now_us: i64) -> bool {
        let found = self.found.as_ref();
        found.is_some_and(|found| found.is_database && found.is_recent(now_us))
    }

    /// Whether the writer has received long enough to know that some worker is there.
    pub(super) fn is_over(&self, now_us: i64) -> bool {
        let heartbeats = 2 * HEARTBEAT_INTERVAL.as_micros() as i64;
        self.found.as_ref().is_none_or(|found| {
            found
                .until_us
                .is_some_and(|until| now_us - until >= heartbeats)
        })
    }
}

impl Break {
    /// Whether it goes on, or ended less than [`WORKER_TIMEOUT`] ago.
    fn is_recent(&self, now_us: i64) -> bool {
        let timeout = WORKER_TIMEOUT.as_micros() as i64;
        self.until_us.is_none_or(|until| now_us - until < timeout)
    }
}

/// What was heard of the workers.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Heard {
    /// How long ago the last break began that still matters.
    pub(super) break_age: Option<Duration>,
    /// Whether the writer receives nothing now, and for so long that the last heartbeats say nothing about now.
    pub(super) is_away: bool,
}

/// What a worker does. None when it is not known: its heartbeat was due when the writer received none.
pub(super) fn state(worker: &WorkerRow, heard: Heard) -> Option<WorkerState> {
    let was_heard_until_break = heard
        .break_age
        .is_some_and(|age| worker.age < age.saturating_add(WORKER_TIMEOUT));
    let is_unsure = match worker.state {
        WorkerState::Lost => was_heard_until_break,
        _ => heard.is_away,
    };
    (!is_unsure).then_some(worker.state)
}

/// The word for a state, with the colour of a status. A lost worker whose name another process has since calls for nobody.
pub(super) fn text(state: Option<WorkerState>, is_started_again: bool) -> StatusText {
    let status = match state {
        Some(WorkerState::Lost) if is_started_again => {
            return StatusText {
                sign: WorkerState::Lost.sign(),
                word: "LOST, started again",
                ..StatusKind::Unknown.into()
            };
        }
        Some(WorkerState::Lost) => StatusKind::Down,
        Some(WorkerState::Live) => StatusKind::Up,
        Some(WorkerState::Starting) => StatusKind::Late,
        Some(WorkerState::Draining) => StatusKind::Unreachable,
        None => StatusKind::Unknown,
    };
    let plain = StatusText::from(status);
    StatusText {
        sign: state.map_or(plain.sign, WorkerState::sign),
        word: state.map_or("not heard", WorkerState::word),
        ..plain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;

    /// The age of the last break in seconds.
    fn age(last: &LastBreak, second: i64) -> Option<u64> {
        last.age(second * SECOND).map(|age| age.as_secs())
    }

    #[test]
    fn a_break_counts_until_every_worker_was_due_again() {
        let mut last = LastBreak::new(Some(1000 * SECOND));
        last.note(Some(Silence::NoSession), 1100 * SECOND);
        assert_eq!(age(&last, 1100), Some(100));
        last.note(None, 1110 * SECOND);
        assert_eq!(age(&last, 1139), Some(139));
        assert_eq!(age(&last, 1140), None);
        // The next one begins when the writer was last known to receive.
        last.note(None, 2000 * SECOND);
        last.note(Some(Silence::NoSession), 2001 * SECOND);
        last.note(None, 2003 * SECOND);
        last.note(Some(Silence::NoSession), 2010 * SECOND);
        assert_eq!(age(&last, 2050), Some(50));
    }

    #[test]
    fn a_short_wait_for_the_database_is_no_break() {
        let mut last = LastBreak::default();
        last.note(None, 0);
        last.note(Some(Silence::Database), SECOND);
        assert_eq!(age(&last, 19), Some(19));
        last.note(None, 19 * SECOND);
        assert_eq!(age(&last, 19), None);
        last.note(Some(Silence::Database), 20 * SECOND);
        last.note(None, 60 * SECOND);
        assert_eq!(age(&last, 60), Some(41));
    }

    #[test]
    fn an_alarm_is_a_break_since_there_was_none() {
        let mut last = LastBreak::default();
        last.note(None, 100 * SECOND);
        last.note(Some(Silence::Alarm(Some(90 * SECOND))), 101 * SECOND);
        assert_eq!(age(&last, 101), Some(11));
    }
}
