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
    DeadChunkList, NewestChange, QuarantineList, Reader, ReportRow, RttBin, RunState, RunSummary,
    StoreError, Transport, WorkerRow, WriterLiveness, now_us,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{PageSources, queues::Queues, rates::Rates};
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
    /// Targets per second in the last seconds, if it is running.
    pub(super) settled_per_s: Option<f64>,
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
    pub(super) workers: Vec<WorkerRow>,
    pub(super) rates: Rates,
    /// For how long the writer has received heartbeats without a break.
    pub(super) listening: Duration,
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
    connected_since: Option<Instant>,
    slow_at: Option<Instant>,
    /// When how many targets of a run were settled.
    settled: Option<(i64, Instant, i64)>,
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
            connected_since: None,
            slow_at: None,
            settled: None,
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

    fn try_read_workers(&mut self) -> Result<(), StoreError> {
        self.note_connected();
        let reader = self.reader()?;
        let workers = reader.workers()?;
        let now = self.began.elapsed().as_secs_f64();
        self.facts.rates.take(&workers, now);
        self.facts.workers = workers;
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
        self.facts.writer = *self.summary.borrow();
        self.facts.queues = self.queues.borrow().clone();
        Ok(())
    }

    fn read_slow(&mut self, reader: &Reader) -> Result<(), PageError> {
        let mut runs = reader.summaries()?;
        runs.reverse();
        let in_progress =
            |run: &&RunSummary| matches!(run.state, RunState::Planning | RunState::Running);
        let current = runs.iter().find(in_progress).or(runs.first()).cloned();
        if let Some(run) = &current {
            self.note_settled(run);
            let found = match reader.progress(run.run) {
                // The writer removes them with its next commit, and `verify` names them.
                Err(StoreError::BadProgress { .. }) => None,
                found => found?,
            };
            let settled_per_s = self.facts.run.settled_per_s;
            self.facts.run = match found {
                Some(found) => RunFacts {
                    parts: run_parts(&found.detail)?,
                    rtt: found.detail.rtt,
                    last_not_up: found.last_not_up,
                    settled_per_s,
                },
                None => RunFacts::default(),
            };
        }
        let facts = &mut self.facts;
        facts.current = current;
        facts.runs = runs;
        facts.changes = reader.newest_changes(MAX_CHANGES)?;
        facts.quarantine = reader.quarantine()?;
        facts.dead = reader.dead_chunks()?;
        let transport = facts.transport;
        let mut writers = reader.writers()?.into_iter();
        let ours = writers.find(|(carried, _)| Some(*carried) == transport);
        facts.liveness = ours.map(|(_, liveness)| liveness);
        Ok(())
    }

    /// Notes how many targets of the current run are settled, and the rate since about five seconds ago.
    fn note_settled(&mut self, run: &RunSummary) {
        let now = Instant::now();
        let settled = run.settled();
        match self.settled {
            Some((of, at, before)) if of == run.run => {
                let passed = now.duration_since(at);
                if passed >= SLOW_INTERVAL {
                    let rate = (settled - before) as f64 / passed.as_secs_f64();
                    self.facts.run.settled_per_s = Some(rate.max(0.0));
                    self.settled = Some((run.run, now, settled));
                }
            }
            _ => {
                self.settled = Some((run.run, now, settled));
                self.facts.run.settled_per_s = None;
            }
        }
    }

    /// Notes since when the writer receives heartbeats.
    fn note_connected(&mut self) {
        let is_connected = self.summary.borrow().state == WriterState::Connected;
        self.connected_since = match self.connected_since {
            Some(since) if is_connected => Some(since),
            _ => is_connected.then(Instant::now),
        };
        self.facts.listening = self
            .connected_since
            .map_or(Duration::ZERO, |since| since.elapsed());
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
