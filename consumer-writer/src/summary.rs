//! What a writer did and does now, for whoever watches it in this process. No I/O.

use std::time::Duration;

use pingfleet_store::{Applied, RttHistogram, StatusCounts};
use tokio::time::Instant;

/// The lag of the last commit counts for this long as that of now.
const LAG_COUNTS_FOR: Duration = Duration::from_mins(1);

/// What a writer did, published by [`run`](crate::run) after each commit and each change of its state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WriterSummary {
    /// What it does now.
    pub state: WriterState,
    /// Transactions committed with deliveries in them.
    pub batches: u64,
    /// Rows stored.
    pub rows: u64,
    /// Deliveries applied.
    pub applied: u64,
    /// Deliveries for chunks that were stored before.
    pub duplicates: u64,
    /// Deliveries put into quarantine.
    pub quarantined: u64,
    /// Deliveries for other databases that were set aside.
    pub foreign: u64,
    /// Chunks that became done.
    pub done: u64,
    /// Chunks that became dead.
    pub dead: u64,
    /// The targets of [`Self::rows`], by status.
    pub statuses: StatusCounts,
    /// Those that answered, by their mean round-trip time.
    pub round_trip_times: RttHistogram,
    /// Since when the oldest delivery of the commit in progress has waited, if there is one.
    pub waiting_since: Option<Instant>,
    /// The last of [`Self::batches`] that had results or dead chunks.
    pub last_commit: LastCommit,
    /// The times of all commits.
    pub commit_times: CommitTimes,
}

/// The last commit of a writer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LastCommit {
    /// Rows stored.
    pub rows: u64,
    /// From the first statement to the end of the commit, with what it waited for another program's lock.
    pub duration: Duration,
    /// How long the oldest delivery of the batch had waited at the end of the commit since the writer received it.
    pub lag: Duration,
    /// When it ended. None before the first one.
    pub at: Option<Instant>,
}

impl WriterSummary {
    /// How far the writer is behind: how long the oldest delivery of the commit in progress has waited since the writer
    /// received it, or that of the last commit had waited, the longer one. The last commit counts for a minute.
    #[must_use]
    pub fn lag(&self, now: Instant) -> Duration {
        let since = |at: Instant| now.saturating_duration_since(at);
        let waiting = self.waiting_since.map_or(Duration::ZERO, since);
        let is_recent = self
            .last_commit
            .at
            .is_some_and(|at| since(at) < LAG_COUNTS_FOR);
        let last = if is_recent {
            self.last_commit.lag
        } else {
            Duration::ZERO
        };
        waiting.max(last)
    }

    /// Notes a commit.
    pub(crate) fn add(&mut self, applied: &Applied, commit: LastCommit) {
        self.waiting_since = None;
        // Heartbeats come every few seconds, and would hide what results need.
        if applied.applied + applied.duplicates + applied.quarantined > 0 {
            self.last_commit = commit;
        }
        self.commit_times.add(commit.duration);
        self.batches += 1;
        self.rows += applied.rows;
        self.applied += applied.applied;
        self.duplicates += applied.duplicates;
        self.quarantined += applied.quarantined;
        self.done += applied.done;
        self.dead += applied.dead.iter().map(|dead| dead.chunks).sum::<u64>();
        self.statuses += applied.statuses;
        self.round_trip_times += applied.round_trip_times;
    }
}

/// A histogram of the times of commits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CommitTimes {
    /// How many commits took at most each of [`Self::BOUNDS`] and longer than the one before, and at the end those that took
    /// longer than all.
    pub counts: [u64; Self::BOUNDS.len() + 1],
    /// The sum of their times.
    pub sum: Duration,
}

impl CommitTimes {
    /// The bounds of the histogram.
    pub const BOUNDS: [Duration; 10] = [
        Duration::from_millis(1),
        Duration::from_micros(2500),
        Duration::from_millis(5),
        Duration::from_millis(10),
        Duration::from_millis(25),
        Duration::from_millis(50),
        Duration::from_millis(100),
        Duration::from_millis(250),
        Duration::from_secs(1),
        Duration::from_secs(10),
    ];

    fn add(&mut self, duration: Duration) {
        self.counts[Self::BOUNDS.partition_point(|bound| *bound < duration)] += 1;
        self.sum += duration;
    }
}

/// What a writer does now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WriterState {
    /// It has no session with the broker, and tries to get one.
    #[default]
    NoBroker,
    /// Another writer consumes the results queue.
    WaitingForOtherWriter,
    /// The database has taken over a second: another program has its lock, the disk is slow, or a large run is closed.
    WaitingForDatabase,
    /// It receives and commits.
    Connected,
}

impl WriterState {
    /// All states.
    pub const ALL: [Self; 4] = [
        Self::NoBroker,
        Self::WaitingForOtherWriter,
        Self::WaitingForDatabase,
        Self::Connected,
    ];

    /// One word, for programs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NoBroker => "no_broker",
            Self::WaitingForOtherWriter => "waiting_for_other_writer",
            Self::WaitingForDatabase => "waiting_for_database",
            Self::Connected => "connected",
        }
    }

    /// In words.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::NoBroker => "no broker",
            Self::WaitingForOtherWriter => "waiting for the other writer",
            Self::WaitingForDatabase => "waiting for the database",
            Self::Connected => "connected",
        }
    }
}

#[cfg(test)]
mod tests {
    use pingfleet_store::DeadChunks;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn the_lag_is_that_of_a_stuck_commit_or_of_the_last_one_for_a_minute() {
        let second = Duration::from_secs;
        let start = Instant::now();
        let mut summary = WriterSummary::default();
        assert_eq!(summary.lag(start), Duration::ZERO);
        summary.waiting_since = Some(start);
        assert_eq!(summary.lag(start + second(40)), second(40));
        let commit = LastCommit {
            lag: second(41),
            at: Some(start + second(41)),
            ..LastCommit::default()
        };
        let applied = Applied {
            applied: 1,
            ..Applied::default()
        };
        summary.add(&applied, commit);
        assert_eq!(summary.lag(start + second(41)), second(41));
        assert_eq!(summary.lag(start + second(100)), second(41));
        // Nothing waits any more.
        assert_eq!(summary.lag(start + second(101)), Duration::ZERO);
        assert_eq!((summary.applied, summary.batches), (1, 1));
        // A heartbeat alone is no result.
        summary.waiting_since = Some(start + second(200));
        summary.add(&Applied::default(), LastCommit::default());
        assert_eq!(summary.lag(start + second(200)), Duration::ZERO);
        assert_eq!(summary.last_commit, commit);
    }

    #[test]
    fn the_counts_of_commits_are_added() {
        let mut applied = Applied {
            rows: 5,
            done: 2,
            duplicates: 3,
            quarantined: 4,
            statuses: [3, 0, 0, 0, 0, 0, 2].into(),
            ..Applied::default()
        };
        applied.round_trip_times.counts[2] = 3;
        applied.round_trip_times.sum_ns = 70_000;
        applied.dead = [1, 6]
            .map(|chunks| DeadChunks {
                run: 1,
                run_id: Uuid::nil(),
                chunks,
            })
            .into();
        let mut summary = WriterSummary::default();
        summary.add(&applied, LastCommit::default());
        summary.add(&applied, LastCommit::default());
        assert_eq!((summary.rows, summary.done, summary.dead), (10, 4, 14));
        assert_eq!((summary.duplicates, summary.quarantined), (6, 8));
        assert_eq!(summary.statuses, [6, 0, 0, 0, 0, 0, 4].into());
        assert_eq!(summary.round_trip_times.counts[2], 6);
        assert_eq!(summary.round_trip_times.sum_ns, 140_000);
    }
}
