//! Finds lost chunks while the queues are busy, by overtaking. Pure.
//!
//! # The rule
//!
//! A published chunk that is past its age and that no live worker lists as in hand is a candidate. It is lost when later
//! chunks have overtaken it in two laps:
//!
//! 1. A *round* begins: every chunk that is sent from now on, by any producer of this database, carries at least its
//!    number. The first lap is over when such a chunk is settled.
//! 2. The producer waits for [`LISTING_DELAY`].
//! 3. Another round begins. The second lap is over when a chunk of that round is settled, and not before
//!    [`LOSS_DELAY`] has passed since the first lap was over.
//!
//! A candidate starts again when a worker is lost. It is forgotten when it is settled or listed, while the writer is not
//! fresh, and when the producer did not look for [`MAX_OBSERVATION_GAP`].
//!
//! # Why it never finds a chunk whose message still exists
//!
//! Both queues are FIFO queues with one exception: a message that a consumer returns goes to the front. So a chunk that
//! is sent later is never delivered before one that waits already.
//!
//! - *In the work queue?* A chunk X of the first round was sent after the round began, and it was settled, so it was
//!   delivered. If the candidate waited in the work queue when the round began, it was delivered before X. So at the end of
//!   the first lap it is in a worker's hand, or that worker has published its result, or that worker died and the candidate
//!   is back at the front of the queue.
//! - *In a worker's hand?* A live worker lists it in a heartbeat, and the writer stores that, within [`LISTING_DELAY`]. Then
//!   it is no candidate. So when the second round begins, it is not in the hand that took it in the first lap.
//! - *In the results queue?* A chunk Y of the second round was sent after that round began. Its result was published later
//!   than the candidate's and was applied, so the candidate's was applied before. Then it is settled.
//! - *Returned by a worker that died before its heartbeat listed the candidate?* That worker's heartbeats stop, which shows
//!   within [`LOSS_DELAY`]. So the candidate starts again before it could be found. A machine that lost its power holds
//!   its deliveries until the broker misses its heartbeats, so candidates wait for [`LOST_WORKER_PAUSE`] after a worker was
//!   lost. The broker gives a chunk up after 21 deliveries, so a candidate
//!   starts again at most [`MAX_RESTARTS`] times: workers that die again and again cannot keep lost chunks lost.
//!
//! A chunk counts for a lap only if exactly one message of it was ever sent. Otherwise an older message may have settled
//! it, which shows nothing about the queue after the round began.
//!
//! Rounds are numbers in the database, and all durations are measured by the monotonic clock of one producer. The wall
//! clock decides only whether a chunk is past its age, which the argument does not use. So a wall clock that is set back
//! delays a finding and never causes a false one.
//!
//! The state is one entry for each candidate, at most as many as the producer asks the database for.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use pingfleet_broker::WORK_DELIVERY_LIMIT;
use pingfleet_store::{OvertakingFacts, WorkerKey};
use pingfleet_wire::timing::{HEARTBEAT_INTERVAL, WORKER_TIMEOUT};

/// A live worker has listed a chunk that it took, and the writer has stored it, after this time: an interval of heartbeats,
/// and what a fresh writer may lag behind.
const LISTING_DELAY: Duration = HEARTBEAT_INTERVAL.saturating_mul(3);

/// A worker that died is seen to be lost after this time: its last heartbeat may be stored one [`LISTING_DELAY`] late, and
/// its absence is noticed one more after that; 5 s are spare.
const LOSS_DELAY: Duration = Duration::from_secs(35);

/// The database is observed this often, or all candidates start again.
const MAX_OBSERVATION_GAP: Duration = Duration::from_secs(6);

/// A writer is fresh when its row in the database changed within this time. It updates it every 3 s.
const WRITER_FRESH: Duration = Duration::from_secs(8);

/// After a worker is lost no candidate makes progress for this time: until the broker has noticed it, too.
const LOST_WORKER_PAUSE: Duration = Duration::from_secs(45);

/// How often a candidate starts again because a worker was lost: the limit of deliveries.
const MAX_RESTARTS: u8 = WORK_DELIVERY_LIMIT as u8 + 1;

/// A worker whose last heartbeat is this much older than the writer's last update was lost long ago.
const LOST_LONG_AGO: Duration = Duration::from_mins(5);

/// The candidates of one run.
#[derive(Debug, Default)]
pub(crate) struct Overtaking {
    observed: Option<Duration>,
    writer: Option<Changing>,
    workers: HashMap<WorkerKey, Heartbeats>,
    /// Until when candidates wait because a worker was lost.
    paused_until: Option<Duration>,
    candidates: BTreeMap<u32, Candidate>,
}

/// A value of the database, and when it was last seen to change.
#[derive(Debug, Clone, Copy)]
struct Changing {
    value: i64,
    changed: Duration,
}

#[derive(Debug)]
struct Heartbeats {
    last: Changing,
    is_lost: bool,
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    stage: Stage,
    restarts: u8,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    /// A worker was lost.
    Paused {
        until: Duration,
    },
    /// The next round is the first lap.
    BeforeFirstLap,
    FirstLap {
        round: i64,
    },
    /// Workers list what they took during the first lap.
    Listing {
        since: Duration,
    },
    /// The next round is the second lap.
    BeforeSecondLap {
        not_before: Duration,
    },
    SecondLap {
        round: i64,
        not_before: Duration,
    },
}

impl Overtaking {
    /// Compares the candidates with what the database shows at `now`, a time of the monotonic clock. Returns the chunks
    /// that are lost.
    pub(crate) fn observe(&mut self, now: Duration, facts: &OvertakingFacts) -> Vec<u32> {
        let writer_is_fresh = self.observe_writer(now, facts.writer_seen_us);
        let is_worker_lost = self.observe_workers(now, facts);
        let is_gap = self
            .observed
            .replace(now)
            .is_some_and(|before| now.saturating_sub(before) > MAX_OBSERVATION_GAP);
        if is_gap || !writer_is_fresh {
            self.candidates.clear();
        }
        if !writer_is_fresh {
            return Vec::new();
        }
        let listed: Vec<u32> = facts
            .in_hand
            .iter()
            .filter(|(worker, _)| {
                self.workers.get(worker).is_some_and(|heartbeats| {
                    now.saturating_sub(heartbeats.last.changed) < WORKER_TIMEOUT
                })
            })
            .map(|(_, chunk)| *chunk)
            .collect();
        let unlisted: Vec<u32> = facts
            .past_age
            .iter()
            .copied()
            .filter(|chunk| !listed.contains(chunk))
            .collect();
        self.candidates
            .retain(|chunk, _| unlisted.binary_search(chunk).is_ok());
        if is_worker_lost {
            self.restart(now);
        }
        for chunk in unlisted {
            let stage = match self.paused_until {
                Some(until) if until > now => Stage::Paused { until },
                _ => Stage::BeforeFirstLap,
            };
            self.candidates
                .entry(chunk)
                .or_insert(Candidate { stage, restarts: 0 });
        }
        self.advance(now, facts.settled_round)
    }

    /// Whether a candidate waits for a round to begin.
    pub(crate) fn needs_round(&self) -> bool {
        self.candidates.values().any(|candidate| {
            matches!(
                candidate.stage,
                Stage::BeforeFirstLap | Stage::BeforeSecondLap { .. }
            )
        })
    }

    /// A round began after the last observation.
    pub(crate) fn round_began(&mut self, round: i64) {
        for candidate in self.candidates.values_mut() {
            match candidate.stage {
                Stage::BeforeFirstLap => candidate.stage = Stage::FirstLap { round },
                Stage::BeforeSecondLap { not_before } => {
                    candidate.stage = Stage::SecondLap { round, not_before };
                }
                _ => {}
            }
        }
    }

    fn observe_writer(&mut self, now: Duration, seen_us: Option<i64>) -> bool {
        let Some(value) = seen_us else {
            self.writer = None;
            return false;
        };
        match &mut self.writer {
            Some(writer) if writer.value == value => {
                now.saturating_sub(writer.changed) < WRITER_FRESH
            }
            writer => {
                // The first value may be an old one: only a change shows that a writer is alive.
                let is_first = writer.is_none();
                *writer = Some(Changing {
                    value,
                    changed: if is_first {
                        now.saturating_sub(WRITER_FRESH)
                    } else {
                        now
                    },
                });
                !is_first
            }
        }
    }

    /// Returns whether a worker was lost since the last observation.
    fn observe_workers(&mut self, now: Duration, facts: &OvertakingFacts) -> bool {
        let writer_seen = facts.writer_seen_us.unwrap_or(0);
        let long_ago = LOST_LONG_AGO.as_micros() as i64;
        // A worker that took its leave has no row any more.
        self.workers
            .retain(|worker, _| facts.workers.iter().any(|(known, _)| known == worker));
        let mut is_any_lost = false;
        for (worker, seen_us) in &facts.workers {
            let heartbeats = self.workers.entry(worker.clone()).or_insert(Heartbeats {
                last: Changing {
                    value: *seen_us,
                    changed: now,
                },
                is_lost: *seen_us < writer_seen - long_ago,
            });
            if heartbeats.last.value != *seen_us {
                heartbeats.last = Changing {
                    value: *seen_us,
                    changed: now,
                };
                heartbeats.is_lost = false;
            } else if !heartbeats.is_lost
                && now.saturating_sub(heartbeats.last.changed) >= LISTING_DELAY
            {
                heartbeats.is_lost = true;
                is_any_lost = true;
            }
        }
        if is_any_lost {
            self.paused_until = Some(now + LOST_WORKER_PAUSE);
        }
        is_any_lost
    }

    fn restart(&mut self, now: Duration) {
        for candidate in self.candidates.values_mut() {
            if candidate.restarts < MAX_RESTARTS {
                candidate.restarts += 1;
                candidate.stage = Stage::Paused {
                    until: now + LOST_WORKER_PAUSE,
                };
            }
        }
    }

    fn advance(&mut self, now: Duration, settled_round: i64) -> Vec<u32> {
        let mut lost = Vec::new();
        for (chunk, candidate) in &mut self.candidates {
            match candidate.stage {
                Stage::Paused { until } if now >= until => {
                    candidate.stage = Stage::BeforeFirstLap;
                }
                Stage::FirstLap { round } if settled_round >= round => {
                    candidate.stage = Stage::Listing { since: now };
                }
                Stage::Listing { since } if now.saturating_sub(since) >= LISTING_DELAY => {
                    candidate.stage = Stage::BeforeSecondLap {
                        not_before: since + LOSS_DELAY,
                    };
                }
                Stage::SecondLap { round, not_before }
                    if settled_round >= round && now >= not_before =>
                {
                    lost.push(*chunk);
                }
                _ => {}
            }
        }
        self.candidates.retain(|chunk, _| !lost.contains(chunk));
        lost
    }
}

#[cfg(test)]
mod tests;
