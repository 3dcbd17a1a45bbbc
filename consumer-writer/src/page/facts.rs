//! What is read for one snapshot. Its cost does not grow with the runs: their counters are kept by the writer.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use pingfleet_report::{
    PageError,
    parts::{RunParts, run_parts},
};
use pingfleet_store::{
    DeadChunkList, Fleet, NewestChange, QuarantineList, Reader, ReportRow, RttBin, RunState,
    RunSummary, StoreError, Transport, WorkerRow, WriterLiveness, now_us,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    PageSources,
    queues::{Alarm, Queues},
    rates::{Pace, Rates, SettledPoints},
    workers::{Heard, LastBreak, Silence},
};
use crate::{WriterState, WriterSummary};

/// How often charts, the map, lists and the older runs are read.
const SLOW_INTERVAL: Duration = Duration::from_secs(5);

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
    /// The newest run that is in progress, or the newest one.
    pub(super) current: Option<RunSummary>,
    pub(super) run: RunFacts,
    /// How fast the targets of the current run are settled.
    pub(super) pace: Option<Pace>,
    pub(super) workers: Vec<WorkerRow>,
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
    pub(super) queues: Queues,
    pub(super) database: PathBuf,
    pub(super) transport: Option<Transport>,
    pub(super) flags: String,
    /// Why the database cannot be read.
    pub(super) error: Option<String>,
}

/// Reads the facts again and again.
pub(super) struct Source {
    reader: Option<Arc<Reader>>,
    stop: CancellationToken,
    summary: watch::Receiver<WriterSummary>,
    queues: watch::Receiver<Queues>,
    began: Instant,
    began_us: i64,
    /// None before the first reading.
    last_break: Option<LastBreak>,
    /// When the broker was last known to have no alarm.
    clear_us: Option<i64>,
    slow_at: Option<Instant>,
    settled: SettledPoints,
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
            queues,
            began: Instant::now(),
            began_us: now_us(),
            last_break: None,
            clear_us: None,
            slow_at: None,
            settled: SettledPoints::default(),
            facts: Facts {
                database: sources.database.clone(),
                transport: Some(sources.transport),
                flags: sources.flags.clone(),
                ..Facts::default()
            },
        }
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
        Ok(())
    }

    fn try_read(&mut self) -> Result<(), PageError> {
        self.try_read_workers()?;
        let reader = self.reader()?;
        let is_due = self.slow_at.is_none_or(|at| at.elapsed() >= SLOW_INTERVAL);
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
        facts.current = runs.iter().find(in_progress).or(runs.first()).cloned();
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
        self.facts.queues = self.queues.borrow().clone();
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
