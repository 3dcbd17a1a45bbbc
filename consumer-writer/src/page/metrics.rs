//! The metrics of the writer and of its fleet, for Prometheus. docs/metrics.md describes each series.
//!
//! A scrape reads what a snapshot of the page reads, without what only a browser draws, and counters that the writer keeps.
//! The number of series is bounded, and no series is that of a target.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use pingfleet_http::exposition::{self, SECONDS, Samples};
use pingfleet_store::{RttHistogram, RunState, RunSummary, Transport, WorkerState};
use pingfleet_wire::LocalLossCounts;
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, registry::Registry};
use tokio::sync::watch;

use super::{
    facts::Facts,
    queues::{Alarm, Queues},
    worker_totals::{WorkerSample, WorkerTotals},
    workers,
};
use crate::{CommitTimes, WriterState, WriterSummary};

/// The states of a run, each a series.
const RUN_STATES: [RunState; 5] = [
    RunState::Planning,
    RunState::Running,
    RunState::Complete,
    RunState::Incomplete,
    RunState::Cancelled,
];

/// The states of workers, each a series; None when the writer heard nothing.
const WORKER_STATES: [(Option<WorkerState>, &str); 5] = [
    (Some(WorkerState::Starting), "starting"),
    (Some(WorkerState::Live), "live"),
    (Some(WorkerState::Draining), "draining"),
    (Some(WorkerState::Lost), "lost"),
    (None, "not_heard"),
];

/// What one scrape shows.
#[derive(Debug, Clone)]
pub(super) struct MetricsSnapshot {
    writer: WriterSummary,
    queues: Queues,
    /// The newest run that is in progress, or the one that ended last.
    run: Option<RunSummary>,
    workers_by_state: Vec<(&'static str, usize)>,
    workers: Vec<WorkerSample>,
    names_not_listed: usize,
    quarantined: i64,
    dead_chunks: i64,
    is_database_read: bool,
    pub(super) taken: Instant,
}

impl MetricsSnapshot {
    pub(super) fn new(facts: &Facts, totals: &WorkerTotals) -> Self {
        // One that was started again is not missed.
        let states = facts.workers.iter().filter(|row| !row.is_started_again);
        let states: Vec<_> = states.map(|row| workers::state(row, facts.heard)).collect();
        let count = |wanted: Option<WorkerState>| {
            let found = states.iter().filter(|state| **state == wanted);
            found.count()
        };
        let (workers, names_not_listed) = totals.samples(&facts.workers, facts.heard);
        Self {
            writer: facts.writer,
            queues: facts.queues.clone(),
            run: facts.current.clone(),
            workers_by_state: WORKER_STATES
                .map(|(state, name)| (name, count(state)))
                .to_vec(),
            workers,
            names_not_listed,
            quarantined: facts.quarantine.total,
            dead_chunks: facts.dead.total,
            is_database_read: facts.error.is_none(),
            taken: Instant::now(),
        }
    }

    /// The same when the database does not answer, with what the writer says now.
    pub(super) fn unreadable(&self, writer: &WriterSummary) -> Self {
        Self {
            writer: *writer,
            is_database_read: false,
            ..self.clone()
        }
    }
}

/// All metrics of a writer: those of the last snapshot that was published.
pub(super) fn registry(
    transport: Transport,
    snapshots: watch::Receiver<Option<Arc<MetricsSnapshot>>>,
) -> Registry {
    let program = match transport {
        Transport::Broker => "consumer-writer",
        Transport::Sweep => "pingfleet",
    };
    let mut registry = exposition::registry(program, env!("CARGO_PKG_VERSION"));
    registry.register_collector(Box::new(WriterMetrics(snapshots)));
    registry
}

#[derive(Debug)]
struct WriterMetrics(watch::Receiver<Option<Arc<MetricsSnapshot>>>);

impl Collector for WriterMetrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(snapshot) = self.0.borrow().clone() else {
            return Ok(());
        };
        let mut samples = Samples::new(encoder);
        stored(&mut samples, &snapshot.writer)?;
        writer(&mut samples, &snapshot)?;
        queues(&mut samples, &snapshot.queues)?;
        run(&mut samples, snapshot.run.as_ref())?;
        workers_by_state(&mut samples, &snapshot)?;
        workers_by_name(&mut samples, &snapshot.workers)
    }
}

/// What the writer stored since its start.
fn stored(samples: &mut Samples<'_>, writer: &WriterSummary) -> fmt::Result {
    let statuses = writer.statuses.iter();
    samples.counters(
        "targets",
        "Targets whose result was stored since the start of the writer, by status.",
        statuses.map(|(status, count)| ([("status", status.name())], count.max(0) as u64)),
    )?;
    let outcomes = [
        ("done", writer.done),
        ("dead", writer.dead),
        ("duplicate", writer.duplicates),
        ("quarantined", writer.quarantined),
    ];
    samples.counters(
        "chunks",
        "Chunks that became done or dead since the start of the writer, and messages that were duplicates or were quarantined.",
        outcomes.map(|(outcome, count)| ([("outcome", outcome)], count)),
    )?;
    let times = &writer.round_trip_times;
    let bounds = RttHistogram::BOUNDS_NS.map(|bound| seconds(Duration::from_nanos(bound as u64)));
    samples.times(
        "target_rtt",
        "Mean round-trip times of the targets that answered, of the results stored since the start of the writer.",
        seconds(Duration::from_nanos(times.sum_ns)),
        &buckets(&bounds, &times.counts),
    )?;
    let commits = &writer.commit_times;
    let bounds = CommitTimes::BOUNDS.map(seconds);
    samples.times(
        "writer_commit_duration",
        "Times of the writer's transactions, with their wait for the lock of another program.",
        seconds(commits.sum),
        &buckets(&bounds, &commits.counts),
    )
}

/// What the writer does now, and what is left of what went wrong.
fn writer(samples: &mut Samples<'_>, snapshot: &MetricsSnapshot) -> fmt::Result {
    let now = tokio::time::Instant::now();
    samples.gauge(
        "writer_lag",
        SECONDS,
        "How long the oldest delivery of the commit in progress, or of the last one within a minute, waited in the writer.",
        Some(seconds(snapshot.writer.lag(now))),
    )?;
    let state = snapshot.writer.state;
    samples.gauges(
        "writer_state",
        None,
        "1 for the state of the writer, 0 for the others.",
        WriterState::ALL.map(|other| ([("state", other.name())], i64::from(other == state))),
    )?;
    samples.gauge(
        "database_up",
        None,
        "Whether the database could be read for this scrape; if not, what comes from it is older.",
        Some(i64::from(snapshot.is_database_read)),
    )?;
    samples.gauge(
        "quarantine_messages",
        None,
        "Messages in quarantine, at most 10000.",
        Some(snapshot.quarantined),
    )?;
    samples.gauge(
        "dead_chunks",
        None,
        "Dead chunks of the runs that are not finished, and of the last run.",
        Some(snapshot.dead_chunks),
    )
}

fn queues(samples: &mut Samples<'_>, queues: &Queues) -> fmt::Result {
    let depths = || {
        let depths = queues.depths.iter();
        depths.map(|(kind, depth)| ([("queue", kind.name())], depth))
    };
    samples.gauges(
        "queue_messages_ready",
        None,
        "Messages that no consumer has yet.",
        depths().map(|(queue, depth)| (queue, depth.ready)),
    )?;
    samples.gauges(
        "queue_consumers",
        None,
        "Consumers of the queue.",
        depths().map(|(queue, depth)| (queue, depth.consumers)),
    )?;
    let is_asked = !queues.depths.is_empty() || !queues.missing.is_empty();
    let is_up = match &queues.problem {
        Some(_) => Some(0),
        None => is_asked.then_some(1_i64),
    };
    samples.gauge(
        "broker_up",
        None,
        "Whether the broker answered, and the queues could be read.",
        is_up,
    )?;
    let alarm = match queues.alarm {
        Alarm::NotKnown(_) => None,
        Alarm::Clear(_) => Some(0_i64),
        Alarm::Raised(_) => Some(1),
    };
    samples.gauge(
        "broker_alarm",
        None,
        "Whether the broker takes no messages, because it has an alarm (memory, disk).",
        alarm,
    )
}

/// The newest run that is in progress, or the one that ended last.
fn run(samples: &mut Samples<'_>, run: Option<&RunSummary>) -> fmt::Result {
    samples.gauge(
        "run_number",
        None,
        "The number of the run that the other series of a run are about: the newest one in progress, or the one that ended last.",
        run.map(|run| run.run),
    )?;
    let states = run.into_iter().flat_map(|run| {
        RUN_STATES.map(|state| ([("state", state.name())], i64::from(state == run.state)))
    });
    samples.gauges(
        "run_state",
        None,
        "1 for the state of the run, 0 for the others.",
        states,
    )?;
    samples.gauge(
        "run_targets",
        None,
        "Targets of the run.",
        run.map(|run| run.targets),
    )?;
    let settled = run.into_iter().flat_map(|run| run.counts.iter());
    samples.gauges(
        "run_targets_settled",
        None,
        "Targets of the run with a stored result, by status.",
        settled.map(|(status, count)| ([("status", status.name())], count)),
    )?;
    let chunks = run.into_iter().flat_map(|run| {
        [
            ("done", run.chunks_done),
            ("dead", run.chunks_dead),
            ("outstanding", run.outstanding()),
        ]
    });
    samples.gauges(
        "run_chunks",
        None,
        "Chunks of the run, by state.",
        chunks.map(|(state, count)| ([("state", state)], count)),
    )
}

fn workers_by_state(samples: &mut Samples<'_>, snapshot: &MetricsSnapshot) -> fmt::Result {
    let states = snapshot.workers_by_state.iter();
    samples.gauges(
        "workers",
        None,
        "Workers that were seen in the last 7 days and did not stop in order, by state.",
        states.map(|(state, count)| ([("state", *state)], *count)),
    )?;
    samples.gauge(
        "worker_names_not_listed",
        None,
        "Names of workers that have no series of their own, because 500 others have.",
        Some(snapshot.names_not_listed),
    )
}

fn workers_by_name(samples: &mut Samples<'_>, workers: &[WorkerSample]) -> fmt::Result {
    samples.gauges(
        "worker_up",
        None,
        "0 when the worker is lost: nothing was heard of it for 30 s.",
        workers
            .iter()
            .map(|worker| (named(worker), i64::from(worker.is_up))),
    )?;
    let info = workers.iter().map(|worker| {
        let (name, group) = (worker.name.as_str(), worker.group.as_str());
        [
            ("worker", name),
            ("group", group),
            ("version", worker.version.as_str()),
        ]
    });
    samples.infos("worker", "The group and the version of the worker.", info)?;
    samples.gauges(
        "worker_last_heartbeat_timestamp",
        SECONDS,
        "When the worker was last seen, by the clock of the master.",
        workers
            .iter()
            .map(|worker| (named(worker), worker.last_seen_us as f64 / 1e6)),
    )?;
    samples.gauges(
        "worker_chunks_in_hand",
        None,
        "Chunks that the worker took and has not settled, as of its last heartbeat.",
        workers.iter().map(|worker| (named(worker), worker.in_hand)),
    )?;
    samples.gauges(
        "worker_prefetch_chunks",
        None,
        "How many chunks the worker may have in hand.",
        workers
            .iter()
            .map(|worker| (named(worker), worker.prefetch)),
    )?;
    worker_counters(samples, workers)
}

fn worker_counters(samples: &mut Samples<'_>, workers: &[WorkerSample]) -> fmt::Result {
    samples.counters(
        "worker_requests",
        "Echo requests that the worker sent.",
        workers
            .iter()
            .map(|worker| (named(worker), worker.counts.requests)),
    )?;
    samples.counters(
        "worker_replies",
        "Replies to requests of settled targets.",
        workers
            .iter()
            .map(|worker| (named(worker), worker.counts.replies)),
    )?;
    samples.counters(
        "worker_targets",
        "Targets that the worker settled.",
        workers
            .iter()
            .map(|worker| (named(worker), worker.counts.targets)),
    )?;
    samples.counters(
        "worker_chunks",
        "Chunks that the worker settled.",
        workers
            .iter()
            .map(|worker| (named(worker), worker.counts.chunks)),
    )?;
    let none = LocalLossCounts::default();
    let causes: Vec<_> = none.named().map(|(cause, _)| cause).collect();
    let losses = workers.iter().flat_map(|worker| {
        let name = worker.name.as_str();
        let counts = causes.iter().zip(worker.counts.local_losses);
        counts.map(move |(cause, count)| ([("worker", name), ("cause", *cause)], count))
    });
    samples.counters(
        "worker_local_losses",
        "Attempts at targets that the worker's machine may have lost itself, by cause.",
        losses,
    )
}

fn named(worker: &WorkerSample) -> [(&'static str, &str); 1] {
    [("worker", worker.name.as_str())]
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

/// The buckets of a histogram, of which the last one has no bound.
fn buckets(bounds: &[f64], counts: &[u64]) -> Vec<(f64, u64)> {
    let bounds = bounds.iter().copied().chain([f64::INFINITY]);
    bounds.zip(counts.iter().copied()).collect()
}
