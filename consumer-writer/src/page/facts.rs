//! What is read for one snapshot. Its cost does not grow with the runs: their counters are kept by the writer.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use pingfleet_report::{
    PageError,
    parts::{RunParts, run_parts},
};
use pingfleet_store::{
    DeadChunkList, Fleet, NewestChange, QuarantineList, Reader, ReportRow, RttBin, RunState,
    RunSummary, StoreError, Transport, WorkerRow, WorkerState, WriterLiveness, now_us,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    PageSources, missing_chunks,
    queues::{self, Alarm, Queues},
    rates::{Pace, Rates, SettledPoints},
    snapshot::Look,
    workers::{self, Heard, LastBreak, Silence},
};
use crate::{WriterState, WriterSummary};

/// How often charts, the map, lists and the older runs are read.
const SLOW_INTERVAL: Duration = Duration::from_secs(5);

/// The most workers that the page lists. The terminal lists all.
const MAX_LISTED: usize = 500;

/// The newest changes that are shown.
const MAX_CHANGES: usize = 50;

/// What is shown of a run beyond its summary.
#[derive(Debug, Default)]
pub(super) struct RunFacts {
    pub(super) parts: RunParts,
    pub(super) rtt: Vec<RttBin>,
    pub(super) last_not_up: Vec<ReportRow>,
}

/// Everything that one snapshot shows.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) now_us: i64,
    /// All runs, the newest first.
    pub(super) runs: Vec<RunSummary>,
    /// The newest run that is in progress, or else the one that ended last: an older run that was resumed stays in view.
    /// Of a run that never ended, its start counts.
    pub(super) current: Option<RunSummary>,
    pub(super) run: RunFacts,
    /// How fast the targets of the current run are settled.
    pub(super) pace: Option<Pace>,
    pub(super) workers: Vec<WorkerRow>,
    /// The workers as the page lists them, with their states: those of the last whole reading, or of the last one at which
    /// a state changed. The ages of all rows change with each reading, and would be most of what a tab gets.
    pub(super) listed: Vec<(WorkerRow, Option<WorkerState>)>,
    pub(super) rates: Rates,
    /// What was heard of the workers.
    pub(super) heard: Heard,
    /// Whether the writer has received heartbeats for long enough to know which workers there are.
    pub(super) is_fleet_known: bool,
    pub(super) changes: Vec<NewestChange>,
    pub(super) quarantine: QuarantineList,
    pub(super) dead: DeadChunkList,
    pub(super) liveness: Option<WriterLiveness>,
    pub(super) writer: WriterSummary,
    /// Why the writer has ended, if it failed.
    pub(super) failure: Option<String>,
    pub(super) queues: Queues,
    pub(super) database: PathBuf,
    pub(super) transport: Option<Transport>,
    /// Whether the database is locked, or was a moment ago, so that no producer could say that it is alive.
    pub(super) is_database_stuck: bool,
    /// How many chunks of the current run are in no queue and in no worker's hand.
    pub(super) unclaimed: i64,
    /// For how long there have been such chunks.
    pub(super) unclaimed_for: Option<Duration>,
    pub(super) flags: String,
    /// Why the database cannot be read.
    pub(super) error: Option<String>,
}

/// Reads the facts again and again.
pub(super) struct Source {
    reader: Option<Arc<Reader>>,
    stop: CancellationToken,
    summary: watch::Receiver<WriterSummary>,
    failure: Arc<OnceLock<String>>,
    queues: watch::Receiver<Queues>,
    began: Instant,
    began_us: i64,
    /// None before the first reading.
    last_break: Option<LastBreak>,
    /// When the broker was last known to have no alarm.
    clear_us: Option<i64>,
    slow_at: Option<Instant>,
    /// Since when there have been chunks in no queue and in no worker's hand.
    unclaimed_since: Option<Instant>,
    settled: SettledPoints,
    listed_states: Vec<(Uuid, Option<WorkerState>)>,
    pub(super) facts: Facts,
}

impl Source {
    pub(super) fn new(
        sources: &PageSources,
        queues: watch::Receiver<Queues>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            reader: None,
            stop,
            summary: sources.summary.clone(),
            failure: Arc::clone(&sources.failure),
            queues,
            began: Instant::now(),
            began_us: now_us(),
            last_break: None,
            clear_us: None,
            slow_at: None,
            unclaimed_since: None,
            settled: SettledPoints::default(),
            listed_states: Vec::new(),
            facts: Facts {
                database: sources.database.clone(),
                transport: Some(sources.transport),
                flags: sources.flags.clone(),
                ..Facts::default()
            },
        }
    }

    /// The next reading is a whole one.
    pub(super) fn expect_changes(&mut self) {
        self.slow_at = None;
    }

    /// Waits a moment for what the broker says now.
    pub(super) async fn wait_for_queues(&self, look: &Look) {
        queues::wait_until_current(self.queues.clone(), look).await;
    }

    /// Reads everything that is shown. Blocks.
    pub(super) fn read(&mut self) {
        let read = self.try_read();
        self.facts.error = read.err().map(|error| error.to_string());
    }

    /// Reads the workers only, for the history of their rates. Blocks.
    pub(super) fn read_workers(&mut self) {
        let read = self.try_read_workers();
        self.facts.error = read.err().map(|error| error.to_string());
    }

    /// Reads what the metrics show. Blocks.
    pub(super) fn read_for_metrics(&mut self) {
        let read = self.try_read_for_metrics();
        self.facts.error = read.err().map(|error| error.to_string());
    }

    fn try_read_for_metrics(&mut self) -> Result<(), StoreError> {
        self.try_read_workers()?;
        let reader = self.reader()?;
        self.read_runs(&reader)?;
        // What else a page shows may be that of another run now.
        self.slow_at = None;
        Ok(())
    }

    fn try_read_workers(&mut self) -> Result<(), StoreError> {
        self.note_pipeline();
        let reader = self.reader()?;
        if self.last_break.is_none() {
            let before = reader.writers()?.into_iter();
            let before = before.filter(|(carried, _)| Some(*carried) == self.facts.transport);
            let before = before.map(|(_, writer)| writer.seen_us);
            // A newer time is that of this writer.
            let before = before.filter(|seen| *seen < self.began_us).max();
            self.last_break = Some(LastBreak::new(before));
        }
        let fleet = reader.fleet()?;
        let now_us = now_us();
        self.note_heard(&fleet, now_us);
        self.facts.workers = workers_now(fleet, now_us);
        let now = self.began.elapsed().as_secs_f64();
        self.facts.rates.take(&self.facts.workers, now);
        self.facts.unclaimed = missing_chunks::count(&self.facts, &reader)?;
        self.unclaimed_since =
            (self.facts.unclaimed > 0).then(|| self.unclaimed_since.unwrap_or_else(Instant::now));
        self.facts.unclaimed_for = self.unclaimed_since.map(|since| since.elapsed());
        Ok(())
    }

    fn try_read(&mut self) -> Result<(), PageError> {
        let is_due = self.slow_at.is_none_or(|at| at.elapsed() >= SLOW_INTERVAL);
        self.try_read_workers()?;
        self.list_workers(is_due);
        let reader = self.reader()?;
        let known = self.facts.current.as_ref();
        let now = match known {
            Some(run) if !is_due => Some(reader.summary(run.run)?),
            _ => None,
        };
        let newest = match reader.find_run("latest") {
            Ok(run) => Some(run),
            Err(StoreError::NoSuchRun { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let is_changed = newest != self.facts.runs.first().map(|run| run.run)
            || known.map(|run| run.state) != now.as_ref().map(|run| run.state);
        if is_due || is_changed {
            self.slow_at = Some(Instant::now());
            self.read_slow(&reader)?;
        } else if let Some(now) = now {
            self.note_settled(&now);
            self.facts.current = Some(now);
        }
        self.facts.now_us = now_us();
        Ok(())
    }

    /// Lists the workers anew when that is due, or the state of one is another.
    fn list_workers(&mut self, is_due: bool) {
        let heard = self.facts.heard;
        let states = self.facts.workers.iter();
        let states = states.map(|row| (row.instance, workers::state(row, heard)));
        let states: Vec<_> = states.collect();
        if is_due || states != self.listed_states {
            self.facts.listed = listed(&self.facts.workers, &states);
            self.listed_states = states;
        }
    }

    fn read_slow(&mut self, reader: &Reader) -> Result<(), PageError> {
        self.read_runs(reader)?;
        if let Some(run) = self.facts.current.clone() {
            self.note_settled(&run);
            let found = match reader.progress(run.run) {
                // The writer removes them with its next commit, and `verify` names them.
                Err(StoreError::BadProgress { .. }) => None,
                found => found?,
            };
            self.facts.run = match found {
                Some(found) => RunFacts {
                    parts: run_parts(&found.detail)?,
                    rtt: found.detail.rtt,
                    last_not_up: found.last_not_up,
                },
                None => RunFacts::default(),
            };
        }
        self.facts.changes = reader.newest_changes(MAX_CHANGES)?;
        Ok(())
    }

    /// Reads the summaries of all runs, and what was not applied.
    fn read_runs(&mut self, reader: &Reader) -> Result<(), StoreError> {
        let mut runs = reader.summaries()?;
        runs.reverse();
        let in_progress =
            |run: &&RunSummary| matches!(run.state, RunState::Planning | RunState::Running);
        let facts = &mut self.facts;
        // RFC 3339 in UTC, so the order of the texts is that of the times.
        let ended = |run: &&RunSummary| run.finished_at.clone().unwrap_or(run.started_at.clone());
        let current = runs.iter().find(in_progress);
        let current = current.or_else(|| runs.iter().rev().max_by_key(ended));
        facts.current = current.cloned();
        facts.runs = runs;
        facts.quarantine = reader.quarantine()?;
        facts.dead = reader.dead_chunks()?;
        let transport = facts.transport;
        let mut writers = reader.writers()?.into_iter();
        let ours = writers.find(|(carried, _)| Some(*carried) == transport);
        facts.liveness = ours.map(|(_, liveness)| liveness);
        Ok(())
    }

    /// Notes how many targets of the current run are settled.
    fn note_settled(&mut self, run: &RunSummary) {
        let now = self.began.elapsed();
        self.settled.take(run.run, run.settled(), now);
        self.facts.pace = self.settled.pace();
    }

    /// Takes what is known without the database.
    fn note_pipeline(&mut self) {
        self.facts.writer = *self.summary.borrow();
        self.facts.failure = self.failure.get().cloned();
        let queues = self.queues.borrow();
        self.facts.queues = if queues.is_current() {
            queues.clone()
        } else {
            Queues::default()
        };
    }

    /// Notes whether the writer receives heartbeats now.
    fn note_heard(&mut self, fleet: &Fleet, now_us: i64) {
        let queues = &self.facts.queues;
        if let Alarm::Clear(at_us) = queues.alarm {
            self.clear_us = Some(at_us);
        }
        let silence = match self.facts.writer.state {
            WriterState::NoBroker | WriterState::WaitingForOtherWriter => Some(Silence::NoSession),
            WriterState::WaitingForDatabase => Some(Silence::Database),
            WriterState::Connected => {
                let is_blocked = queues.alarm.reason().is_some();
                is_blocked.then_some(Silence::Alarm(self.clear_us))
            }
        };
        let last_break = self.last_break.get_or_insert_default();
        last_break.note(silence, now_us);
        let break_age = last_break.age(now_us);
        self.facts.is_database_stuck = last_break.is_of_database(now_us);
        self.facts.heard = Heard {
            break_age,
            is_away: fleet.writer_away.is_some(),
        };
        self.facts.is_fleet_known = last_break.is_over(now_us);
    }

    /// The reader. It holds no connection between two calls.
    fn reader(&mut self) -> Result<Arc<Reader>, StoreError> {
        if let Some(reader) = &self.reader {
            return Ok(Arc::clone(reader));
        }
        let reader = Reader::open(&self.facts.database)?.interrupted_by(self.stop.clone());
        let reader = Arc::new(reader);
        self.reader = Some(Arc::clone(&reader));
        Ok(reader)
    }
}

/// The workers that the page lists: if there are too many, those that are not lost first, and then those that were heard
/// last.
fn listed(
    workers: &[WorkerRow],
    states: &[(Uuid, Option<WorkerState>)],
) -> Vec<(WorkerRow, Option<WorkerState>)> {
    let all = workers
        .iter()
        .zip(states.iter().map(|(_, state)| *state))
        .enumerate();
    let mut chosen: Vec<_> = all.collect();
    chosen.sort_by_key(|(_, (row, state))| (*state == Some(WorkerState::Lost), row.age));
    chosen.truncate(MAX_LISTED);
    chosen.sort_by_key(|(position, _)| *position);
    let chosen = chosen.into_iter();
    chosen
        .map(|(_, (row, state))| (row.clone(), state))
        .collect()
}

/// The workers with their ages now. While the writer is away, their last rates say nothing about now.
fn workers_now(fleet: Fleet, now_us: i64) -> Vec<WorkerRow> {
    let mut workers = fleet.workers;
    if fleet.writer_away.is_some() {
        let gap = Duration::from_micros((now_us - fleet.as_of_us).max(0) as u64);
        for worker in &mut workers {
            worker.age += gap;
            worker.oldest_in_hand = worker.oldest_in_hand.map(|age| age + gap);
            worker.requests_per_s = None;
        }
    }
    workers
}

#[cfg(test)]
mod tests {
    use pingfleet_broker::MemoryBroker;
    use pingfleet_wire::timing::{HEARTBEAT_INTERVAL, WORKER_TIMEOUT};

    use super::{super::alerts::tests::lost, *};

    /// A source, with what is known of the writer and the queues.
    struct Noted {
        source: Source,
        now_us: i64,
    }

    impl Noted {
        fn new() -> Self {
            let sources = PageSources {
                database: PathBuf::from("/nonexistent"),
                broker: Arc::new(MemoryBroker::new(1)),
                transport: Transport::Broker,
                summary: watch::channel(WriterSummary::default()).1,
                failure: Arc::default(),
                flags: String::new(),
            };
            let queues = watch::channel(Queues::default()).1;
            let mut source = Source::new(&sources, queues, CancellationToken::new());
            source.last_break = Some(LastBreak::default());
            Self {
                source,
                now_us: 1_000_000_000_000_000,
            }
        }

        /// Some time later the writer is in a state, and the broker has an alarm or not.
        fn after(&mut self, time: Duration, state: WriterState, alarm: Alarm) -> (Heard, bool) {
            self.now_us += time.as_micros() as i64;
            self.source.facts.writer.state = state;
            self.source.facts.queues.alarm = alarm;
            let fleet = Fleet {
                as_of_us: self.now_us,
                writer_away: None,
                is_writer_running: None,
                workers: Vec::new(),
            };
            self.source.note_heard(&fleet, self.now_us);
            (self.source.facts.heard, self.source.facts.is_fleet_known)
        }

        fn clear(&self) -> Alarm {
            Alarm::Clear(self.now_us)
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn of_many_workers_the_live_ones_and_those_heard_last_are_listed_in_their_order() {
        let worker = |number: usize| {
            let mut row = lost(&number.to_string(), SECOND * (2000 - number) as u32);
            // The first ones were heard longest ago, and two of them are live.
            let is_live = [3, 1].contains(&number);
            if is_live {
                row.state = WorkerState::Live;
            }
            row
        };
        let workers: Vec<_> = (0..MAX_LISTED + 100).map(worker).collect();
        let states = workers.iter().map(|row| (row.instance, Some(row.state)));
        let states: Vec<_> = states.collect();
        let found = listed(&workers, &states);
        let names = found.iter().map(|(row, _)| row.worker.as_str());
        let names: Vec<_> = names.collect();
        assert_eq!(
            (names.len(), &names[..3]),
            (MAX_LISTED, &["1", "3", "102"][..])
        );
        assert_eq!(names.last(), Some(&"599"));
        // The control: all are listed if they are few.
        assert_eq!(listed(&workers[..50], &states[..50]).len(), 50);
    }

    #[test]
    fn a_writer_that_receives_knows_the_fleet() {
        let mut noted = Noted::new();
        for _ in 0..3 {
            let clear = noted.clear();
            let (heard, is_known) = noted.after(SECOND, WriterState::Connected, clear);
            assert_eq!((heard.break_age, is_known), (None, true));
        }
    }

    #[test]
    fn a_writer_without_a_session_or_a_database_hears_nobody_until_heartbeats_were_due_again() {
        for state in [
            WriterState::NoBroker,
            WriterState::WaitingForOtherWriter,
            WriterState::WaitingForDatabase,
        ] {
            let mut noted = Noted::new();
            noted.after(SECOND, WriterState::Connected, Alarm::default());
            let (heard, is_known) = noted.after(WORKER_TIMEOUT, state, Alarm::default());
            // Since it was last known to receive.
            assert_eq!(heard.break_age, Some(WORKER_TIMEOUT), "{state:?}");
            assert!(!is_known, "{state:?}");
            let back = noted.after(SECOND, WriterState::Connected, Alarm::default());
            assert_eq!(
                (back.0.break_age, back.1),
                (Some(WORKER_TIMEOUT + SECOND), false)
            );
            let two = 2 * HEARTBEAT_INTERVAL;
            let known = noted.after(two, WriterState::Connected, Alarm::default());
            assert!(known.0.break_age.is_some() && known.1, "{state:?}");
            let (heard, _) = noted.after(WORKER_TIMEOUT, WriterState::Connected, Alarm::default());
            assert_eq!(heard.break_age, None, "{state:?}");
        }
    }

    #[test]
    fn an_alarm_counts_since_the_broker_was_known_to_have_none() {
        let raised = || Alarm::Raised("low on disk".to_owned());
        let mut noted = Noted::new();
        let clear = noted.clear();
        noted.after(Duration::ZERO, WriterState::Connected, clear);
        // It is asked every 15 s only, so the alarm may be older than the last reading.
        noted.after(9 * SECOND, WriterState::Connected, Alarm::NotKnown(None));
        let (heard, is_known) = noted.after(SECOND, WriterState::Connected, raised());
        assert_eq!((heard.break_age, is_known), (Some(10 * SECOND), false));
        // The control: an alarm that is not known is none.
        let mut noted = Noted::new();
        noted.after(SECOND, WriterState::Connected, Alarm::default());
        let (heard, is_known) = noted.after(SECOND, WriterState::Connected, Alarm::NotKnown(None));
        assert_eq!((heard.break_age, is_known), (None, true));
    }

    #[test]
    fn the_list_of_workers_is_that_of_the_last_whole_reading_or_of_a_new_state() {
        let mut noted = Noted::new();
        let source = &mut noted.source;
        let listed = |source: &Source| source.facts.listed.first().map(|row| row.0.age);
        source.facts.workers = vec![WorkerRow {
            state: WorkerState::Live,
            ..lost("berlin-2", SECOND)
        }];
        source.list_workers(false);
        assert_eq!(listed(source), Some(SECOND), "a new worker");
        source.facts.workers[0].age = 2 * SECOND;
        source.list_workers(false);
        assert_eq!(listed(source), Some(SECOND), "only its age is another");
        source.list_workers(true);
        assert_eq!(listed(source), Some(2 * SECOND), "it is due");
        source.facts.workers[0].age = WORKER_TIMEOUT;
        source.facts.workers[0].state = WorkerState::Lost;
        source.list_workers(false);
        assert_eq!(listed(source), Some(WORKER_TIMEOUT), "another state");
        source.facts.workers.clear();
        source.list_workers(false);
        assert_eq!(listed(source), None);
    }

    #[test]
    fn the_fleet_of_a_writer_that_is_away_is_not_of_now() {
        let mut noted = Noted::new();
        let fleet = |writer_away| Fleet {
            as_of_us: 0,
            writer_away,
            is_writer_running: None,
            workers: Vec::new(),
        };
        noted.source.note_heard(&fleet(Some(SECOND)), noted.now_us);
        assert!(noted.source.facts.heard.is_away);
        noted.source.note_heard(&fleet(None), noted.now_us);
        assert!(!noted.source.facts.heard.is_away);
    }
}
