//! What the workers of each name did, for the metrics. No I/O.
//!
//! A name stands for all processes that used it: one that was killed and the one that was started after it. Names come
//! from the network, so how many are listed is bounded. A name that was heard of in the last day stays listed, so that
//! others cannot displace it while the alert for a lost worker is about it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use pingfleet_store::{WorkerRow, WorkerState};
use pingfleet_wire::LocalLossCounts;
use uuid::Uuid;

use super::workers::{self, Heard};

/// The most names that are listed. Each has over 20 series.
const MAX_NAMES: usize = 500;

/// For how long a name of which nothing is heard keeps its place when others need it: as long as the alert for a lost worker.
const KEPT: Duration = Duration::from_hours(24);

/// What workers did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) requests: u64,
    pub(super) replies: u64,
    pub(super) chunks: u64,
    pub(super) targets: u64,
    /// In the order of [`LocalLossCounts::named`].
    pub(super) local_losses: [u64; LocalLossCounts::CAUSES],
}

impl Counts {
    fn of(row: &WorkerRow) -> Self {
        let count = |stored: i64| stored.max(0) as u64;
        Self {
            requests: count(row.requests_sent),
            replies: count(row.replies),
            chunks: count(row.chunks_done),
            targets: count(row.targets_done),
            local_losses: row.local_losses.by_cause(),
        }
    }

    /// Combines each count with that of `other`.
    fn zip(mut self, other: &Self, combine: fn(u64, u64) -> u64) -> Self {
        self.requests = combine(self.requests, other.requests);
        self.replies = combine(self.replies, other.replies);
        self.chunks = combine(self.chunks, other.chunks);
        self.targets = combine(self.targets, other.targets);
        for (count, other) in self.local_losses.iter_mut().zip(other.local_losses) {
            *count = combine(*count, other);
        }
        self
    }
}

/// What the metrics show of the workers of one name.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct WorkerSample {
    pub(super) name: String,
    pub(super) group: String,
    pub(super) version: String,
    /// False when all processes of this name are lost.
    pub(super) is_up: bool,
    /// Of the processes that are not lost; of the last one if all are.
    pub(super) in_hand: i64,
    pub(super) prefetch: i64,
    /// In microseconds since 1970-01-01 UTC, by the clock of the master.
    pub(super) last_seen_us: i64,
    pub(super) counts: Counts,
}

/// The counts of all names since the first look at the database. They never go down.
///
/// What was there at the first look counts nothing: the database forgets processes that ended, so a total of those that it
/// still knows would be lower than that of an earlier writer, and read as more work (a counter that begins anew).
#[derive(Debug, Default)]
pub(super) struct WorkerTotals {
    has_looked: bool,
    /// The largest counts of each process that the database knows.
    processes: HashMap<(Option<String>, Uuid), Counts>,
    names: BTreeMap<String, Counts>,
}

impl WorkerTotals {
    /// Takes what the database says now.
    pub(super) fn take(&mut self, rows: &[WorkerRow]) {
        self.list_names(rows);
        let mut known = std::mem::take(&mut self.processes);
        for row in rows {
            let Some(total) = self.names.get_mut(&row.worker) else {
                continue;
            };
            let counts = Counts::of(row);
            let process = (row.login.clone(), row.instance);
            let before = known.remove(&process);
            let before = before.unwrap_or(if self.has_looked {
                Counts::default()
            } else {
                counts
            });
            // A heartbeat with smaller counts than the one before counts nothing.
            let now = before.zip(&counts, u64::max);
            let more = now.zip(&before, u64::saturating_sub);
            *total = total.zip(&more, u64::saturating_add);
            self.processes.insert(process, now);
        }
        self.has_looked = true;
    }

    /// Gives names a place, first those of workers that are not lost.
    fn list_names(&mut self, rows: &[WorkerRow]) {
        let new = rows
            .iter()
            .filter(|row| !self.names.contains_key(&row.worker));
        if self.names.len() + new.count() > MAX_NAMES {
            let kept = rows.iter().filter(|row| row.age < KEPT);
            let kept: HashSet<_> = kept.map(|row| &row.worker).collect();
            self.names.retain(|name, _| kept.contains(name));
        }
        let (lost, others): (Vec<_>, Vec<_>) =
            rows.iter().partition(|row| row.state == WorkerState::Lost);
        for row in others.into_iter().chain(lost) {
            if self.names.len() < MAX_NAMES && !self.names.contains_key(&row.worker) {
                self.names.insert(row.worker.clone(), Counts::default());
            }
        }
    }

    /// The listed names of these rows, and how many names are not listed.
    pub(super) fn samples(&self, rows: &[WorkerRow], heard: Heard) -> (Vec<WorkerSample>, usize) {
        let mut by_name: BTreeMap<&str, Vec<&WorkerRow>> = BTreeMap::new();
        for row in rows {
            by_name.entry(&row.worker).or_default().push(row);
        }
        let all = by_name.len();
        let listed: Vec<_> = by_name
            .into_iter()
            .filter_map(|(name, rows)| sample(name, &rows, heard, *self.names.get(name)?))
            .collect();
        let not_listed = all - listed.len();
        (listed, not_listed)
    }
}

fn sample(name: &str, rows: &[&WorkerRow], heard: Heard, counts: Counts) -> Option<WorkerSample> {
    let newest = rows.iter().max_by_key(|row| row.last_seen_us)?;
    let is_lost = |row: &&&WorkerRow| workers::state(row, heard) == Some(WorkerState::Lost);
    let up: Vec<_> = rows.iter().filter(|row| !is_lost(row)).collect();
    let shown = if up.is_empty() {
        vec![newest]
    } else {
        up.clone()
    };
    Some(WorkerSample {
        name: name.to_owned(),
        group: newest.group.clone(),
        version: newest.version.clone(),
        is_up: !up.is_empty(),
        in_hand: shown.iter().map(|row| row.in_hand).sum(),
        prefetch: shown.iter().map(|row| row.prefetch).sum(),
        last_seen_us: newest.last_seen_us,
        counts,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn row(name: &str, instance: u128, state: WorkerState, requests: i64) -> WorkerRow {
        WorkerRow {
            instance: Uuid::from_u128(instance),
            state,
            is_started_again: false,
            worker: name.to_owned(),
            login: None,
            pid: 1,
            version: "1".to_owned(),
            group: "default".to_owned(),
            threads: 1,
            prefetch: 4,
            rate: None,
            draining: false,
            last_seen_us: instance as i64,
            age: Duration::from_mins(2),
            in_hand: 3,
            oldest_in_hand: None,
            chunks_done: requests / 10,
            targets_done: requests,
            requests_per_s: None,
            requests_sent: requests,
            replies: requests,
            local_losses: LocalLossCounts {
                socket_drops: requests as u64 / 2,
                ..LocalLossCounts::default()
            },
        }
    }

    /// The sample of the name `w`, after these rows were taken.
    fn taken(totals: &mut WorkerTotals, rows: &[WorkerRow]) -> WorkerSample {
        totals.take(rows);
        let (samples, not_listed) = totals.samples(rows, Heard::default());
        assert_eq!(not_listed, 0);
        let mut samples = samples.into_iter();
        samples.find(|sample| sample.name == "w").unwrap()
    }

    #[test]
    fn the_counts_of_a_name_never_go_down() {
        use WorkerState::{Live, Lost};
        let mut totals = WorkerTotals::default();
        taken(&mut totals, &[row("w", 1, Live, 0)]);
        let first = taken(&mut totals, &[row("w", 1, Live, 100)]);
        assert_eq!(first.counts.requests, 100);
        assert_eq!(first.counts.local_losses[0], 50);
        // A hostile worker, or a heartbeat that was overtaken, says less than before, and then the same again.
        assert_eq!(
            taken(&mut totals, &[row("w", 1, Live, 60)]).counts,
            first.counts
        );
        assert_eq!(
            taken(&mut totals, &[row("w", 1, Live, 100)]).counts,
            first.counts
        );
        // It is killed, and another process of the same name starts with 0.
        let rows = [row("w", 1, Lost, 100), row("w", 2, Live, 0)];
        assert_eq!(taken(&mut totals, &rows).counts, first.counts);
        let rows = [row("w", 1, Lost, 100), row("w", 2, Live, 30)];
        assert_eq!(taken(&mut totals, &rows).counts.requests, 130);
        // The database forgets the first one.
        let only = taken(&mut totals, &[row("w", 2, Live, 40)]);
        assert_eq!((only.counts.requests, only.counts.targets), (140, 140));
    }

    #[test]
    fn another_writer_counts_from_0_so_that_no_work_is_counted_twice() {
        let mut totals = WorkerTotals::default();
        let first = taken(&mut totals, &[row("w", 2, WorkerState::Live, 40)]);
        assert_eq!(first.counts, Counts::default());
        let next = taken(&mut totals, &[row("w", 2, WorkerState::Live, 45)]);
        assert_eq!(next.counts.requests, 5);
        // A process that it has not seen before counts wholly.
        let rows = [
            row("w", 2, WorkerState::Live, 45),
            row("w", 3, WorkerState::Live, 7),
        ];
        assert_eq!(taken(&mut totals, &rows).counts.requests, 12);
    }

    #[test]
    fn live_names_have_a_place_before_lost_ones_and_take_those_of_old_ones() {
        let lost = |number: u32, age| {
            let mut row = row(
                &format!("lost-{number}"),
                10 + u128::from(number),
                WorkerState::Lost,
                1,
            );
            row.age = age;
            row
        };
        let listed = |totals: &WorkerTotals, rows: &[WorkerRow]| {
            let (samples, not_listed) = totals.samples(rows, Heard::default());
            let is_listed = samples.iter().any(|sample| sample.name == "w");
            (samples.len(), not_listed, is_listed)
        };
        let live = row("w", 1, WorkerState::Live, 7);
        let recent = |number| lost(number, Duration::from_hours(1));
        let mut rows: Vec<_> = (0..600).map(recent).collect();
        rows.push(live.clone());
        let mut totals = WorkerTotals::default();
        totals.take(&rows);
        assert_eq!(listed(&totals, &rows), (MAX_NAMES, 101, true));
        // One that comes later finds all places taken by workers that were lost in the last day, and then by older ones.
        for (age, expected) in [
            (KEPT / 2, (MAX_NAMES, 101, false)),
            (KEPT, (MAX_NAMES, 101, true)),
        ] {
            let mut rows: Vec<_> = (0..600).map(|number| lost(number, age)).collect();
            let mut totals = WorkerTotals::default();
            totals.take(&rows);
            rows.push(live.clone());
            totals.take(&rows);
            assert_eq!(listed(&totals, &rows), expected, "{age:?}");
        }
    }

    #[test]
    fn a_name_is_down_only_when_all_its_processes_are_lost() {
        use WorkerState::{Live, Lost};
        let mut totals = WorkerTotals::default();
        let rows = [row("w", 1, Lost, 0), row("w", 2, Live, 0)];
        let one = taken(&mut totals, &rows);
        assert_eq!((one.is_up, one.in_hand, one.last_seen_us), (true, 3, 2));
        let rows = [row("w", 1, Lost, 0), row("w", 2, Lost, 0)];
        let none = taken(&mut totals, &rows);
        assert_eq!((none.is_up, none.in_hand, none.last_seen_us), (false, 3, 2));
        // While the writer hears nothing, silence says nothing.
        let heard = Heard {
            break_age: Some(Duration::from_mins(2)),
            is_away: false,
        };
        assert!(totals.samples(&rows, heard).0[0].is_up);
    }

    #[test]
    fn how_many_names_are_listed_is_bounded_and_a_flood_displaces_none() {
        let mut totals = WorkerTotals::default();
        let own = row("w", 1, WorkerState::Lost, 7);
        taken(&mut totals, &[row("w", 1, WorkerState::Live, 0)]);
        let first = taken(&mut totals, std::slice::from_ref(&own));
        assert_eq!(first.counts.requests, 7);
        for flood in 0..3_u32 {
            let names = (0..2000_u32).map(|number| {
                let instance = 10 + u128::from(flood * 2000 + number);
                row(
                    &format!("a{flood}-{number}"),
                    instance,
                    WorkerState::Live,
                    1,
                )
            });
            let rows: Vec<_> = names.chain([own.clone()]).collect();
            totals.take(&rows);
            let (samples, not_listed) = totals.samples(&rows, Heard::default());
            assert_eq!((samples.len(), not_listed), (MAX_NAMES, 1501));
            let own = samples.iter().find(|sample| sample.name == "w").unwrap();
            assert_eq!((own.is_up, own.counts.requests), (false, 7));
            assert!(totals.names.len() <= MAX_NAMES);
            // Processes of names that are not listed take no memory.
            assert_eq!(totals.processes.len(), MAX_NAMES);
        }
    }
}
