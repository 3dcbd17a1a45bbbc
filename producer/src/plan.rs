//! Writes the plan: chunks in the order of probing, cut by count and by size, 100 in a transaction.

use std::{collections::VecDeque, sync::Arc};

use pingfleet_store::{
    DatabaseThread, NewChunk, NewRun, PlannedProbing, PlannedRun, StoreError, Writer, run_span,
};
use pingfleet_targets::{Order, PlannedTarget, Targets};
use pingfleet_wire::{
    ChunkKey, MAX_CHUNK_BYTES, Message as _, StatusKind, Target, Token, Version, WorkChunk,
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use uuid::Uuid;

use crate::{ProducerError, ProducerSettings};

/// Chunks in one transaction of the plan.
const CHUNKS_A_COMMIT: usize = 100;

/// The targets of an earlier run that a new one probes again.
#[derive(Debug, Clone)]
pub struct EarlierTargets {
    /// The earlier run's number.
    pub run: i64,
    /// The statuses that these targets have in it.
    pub statuses: Vec<StatusKind>,
    /// The new run's description.
    pub source: String,
}

/// The targets of a new run in the order of probing, and what the database stores of it.
pub(crate) struct NewPlan {
    queue: TargetQueue,
    source: String,
    seed: Option<u64>,
    parent_run: Option<i64>,
}

impl NewPlan {
    /// A plan of targets that the user gave.
    pub(crate) fn of_targets(targets: Targets, settings: &ProducerSettings) -> Self {
        let count = targets.count();
        Self {
            source: targets.sources().to_owned(),
            seed: settings.seed,
            parent_run: None,
            queue: TargetQueue::Given {
                order: match settings.seed {
                    Some(seed) => Order::shuffled(count, seed),
                    None => Order::as_given(count),
                },
                targets: Box::new(targets),
                next: 0,
            },
        }
    }

    /// A plan of targets of an earlier run, in its order.
    pub(crate) fn of_earlier(earlier: EarlierTargets) -> Self {
        Self {
            source: earlier.source,
            seed: None,
            parent_run: Some(earlier.run),
            queue: TargetQueue::Earlier(EarlierQueue {
                run: earlier.run,
                statuses: Arc::from(earlier.statuses),
                after: None,
                is_read: false,
                targets: VecDeque::new(),
            }),
        }
    }
}

/// Writes the plan and starts the run. Returns `None`, with nothing left behind, when `stop` came first.
pub(crate) async fn write(
    db: &DatabaseThread,
    plan: NewPlan,
    settings: &ProducerSettings,
    stop: &CancellationToken,
) -> Result<Option<PlannedRun>, ProducerError> {
    db.call_while_busy(Writer::remove_abandoned_plans).await?;
    let new = new_run(&plan, settings);
    let planned = db
        .call_while_busy(move |store| store.begin_run(&new))
        .await?;
    let run = planned.run;
    let span = run_span(run, planned.run_id);
    span.in_scope(|| match &plan.queue {
        TargetQueue::Given { targets, .. } => {
            tracing::info!(targets = targets.count(), "planning a run");
        }
        TargetQueue::Earlier(earlier) => {
            tracing::info!(parent_run = earlier.run, "planning a run");
        }
    });
    let cutter = Cutter::new(plan.queue, settings, db.database(), planned.run_id);
    let is_written = write_chunks(db, run, cutter, stop).instrument(span).await;
    if matches!(is_written, Ok(true)) {
        return Ok(Some(planned));
    }
    let removed = db
        .call_while_busy(move |store| store.remove_plan(run))
        .await;
    is_written?;
    removed?;
    Ok(None)
}

/// What the database stores of the run before its first chunk.
fn new_run(plan: &NewPlan, settings: &ProducerSettings) -> NewRun {
    let probing = &settings.probing;
    let planned = PlannedProbing {
        probing: probing.probing.clone(),
        chunk_size: probing.chunk_size,
    };
    NewRun {
        transport: settings.transport,
        source: plan.source.clone(),
        probing: planned.to_json(),
        seed: plan.seed,
        worst_chunk: probing.probing.worst_chunk(probing.chunk_size),
        parent_run: plan.parent_run,
    }
}

/// Writes all chunks and starts the run. Returns false when `stop` came first.
async fn write_chunks(
    db: &DatabaseThread,
    run: i64,
    mut cutter: Cutter,
    stop: &CancellationToken,
) -> Result<bool, ProducerError> {
    loop {
        if stop.is_cancelled() {
            return Ok(false);
        }
        if let TargetQueue::Earlier(earlier) = &mut cutter.queue {
            earlier
                .fill(db, CHUNKS_A_COMMIT * cutter.chunk_size)
                .await?;
        }
        // Encoding uses the processor and reads spooled names from a disk: not on the runtime's threads.
        let (back, chunks) = tokio::task::spawn_blocking(move || {
            let chunks = cutter.cut(CHUNKS_A_COMMIT);
            (cutter, chunks)
        })
        .await
        .map_err(|_| StoreError::Closed)?;
        cutter = back;
        let chunks = Arc::new(chunks?);
        if chunks.is_empty() {
            break;
        }
        db.call_while_busy(move |store| store.add_chunks(run, &chunks))
            .await?;
    }
    db.call_while_busy(move |store| store.start_run(run))
        .await?;
    tracing::info!(chunks = cutter.chunk, "run started");
    Ok(true)
}

/// Targets in the order of probing.
enum TargetQueue {
    /// What the user gave, in an order that is computed.
    Given {
        targets: Box<Targets>,
        order: Order,
        next: u64,
    },
    /// What an earlier run has, in the order of its plan.
    Earlier(EarlierQueue),
}

/// Targets of an earlier run that were read and not planned yet. At most as many as the chunks of one commit hold.
struct EarlierQueue {
    run: i64,
    statuses: Arc<[StatusKind]>,
    /// The place of the last target that was read.
    after: Option<(i64, i64)>,
    /// Whether the earlier run has no more.
    is_read: bool,
    targets: VecDeque<PlannedTarget>,
}

impl EarlierQueue {
    /// Reads targets until there are `wanted` of them, or no more.
    async fn fill(&mut self, db: &DatabaseThread, wanted: usize) -> Result<(), ProducerError> {
        let missing = wanted.saturating_sub(self.targets.len());
        if self.is_read || missing == 0 {
            return Ok(());
        }
        let (run, after) = (self.run, self.after);
        let statuses = Arc::clone(&self.statuses);
        let read = db
            .call(move |store| store.targets_with_status(run, &statuses, after, missing))
            .await?;
        self.is_read = read.len() < missing;
        self.after = read.last().map(|target| target.place).or(self.after);
        self.targets
            .extend(read.into_iter().map(|earlier| PlannedTarget {
                target: earlier.target,
                labels: earlier.labels,
            }));
        Ok(())
    }
}

impl TargetQueue {
    /// The next target; none at the end.
    fn next(&mut self) -> Result<Option<PlannedTarget>, ProducerError> {
        match self {
            Self::Given {
                targets,
                order,
                next,
            } => {
                if *next == targets.count() {
                    return Ok(None);
                }
                let target = targets.get(order.position(*next));
                *next += 1;
                target.map(Some).map_err(ProducerError::Spool)
            }
            Self::Earlier(earlier) => Ok(earlier.targets.pop_front()),
        }
    }
}

/// Cuts the targets into chunks, in their order.
struct Cutter {
    queue: TargetQueue,
    /// The target that the last chunk had no room for.
    waiting: Option<PlannedTarget>,
    chunk: u32,
    chunk_size: usize,
    template: WorkChunk,
}

impl Cutter {
    fn new(queue: TargetQueue, settings: &ProducerSettings, database: Uuid, run: Uuid) -> Self {
        Self {
            queue,
            waiting: None,
            chunk: 0,
            chunk_size: settings.probing.chunk_size,
            template: WorkChunk {
                version: Version,
                database,
                key: ChunkKey { run, chunk: 0 },
                token: Token(Uuid::nil()),
                probing: settings.probing.probing.clone(),
                targets: Vec::new(),
            },
        }
    }

    /// The next chunks, at most `most`; none at the end.
    fn cut(&mut self, most: usize) -> Result<Vec<NewChunk>, ProducerError> {
        let mut chunks = Vec::with_capacity(most);
        while chunks.len() < most
            && let Some(chunk) = self.cut_one()?
        {
            chunks.push(chunk);
        }
        Ok(chunks)
    }

    fn cut_one(&mut self) -> Result<Option<NewChunk>, ProducerError> {
        let mut work = self.template.clone();
        work.key.chunk = self.chunk;
        work.token = Token(Uuid::new_v4());
        let mut labels = Vec::new();
        let mut bytes = work.encoded_len() + ARRAY_HEADER;
        while work.targets.len() < self.chunk_size {
            let waiting = self.waiting.take();
            let Some(planned) = waiting.map_or_else(|| self.queue.next(), |it| Ok(Some(it)))?
            else {
                break;
            };
            bytes += encoded_length(&planned.target);
            if bytes > MAX_CHUNK_BYTES && !work.targets.is_empty() {
                self.waiting = Some(planned);
                break;
            }
            if let Some(text) = planned.labels {
                labels.push((work.targets.len() as u32, text));
            }
            work.targets.push(planned.target);
        }
        if work.targets.is_empty() {
            return Ok(None);
        }
        self.chunk = self
            .chunk
            .checked_add(1)
            .ok_or(ProducerError::TooManyChunks)?;
        Ok(Some(NewChunk {
            chunk: work.key.chunk,
            token: work.token.0,
            targets: work.targets.len() as u32,
            work: work.encode(),
            labels,
        }))
    }
}

/// The header of the array of targets grows by at most this many bytes.
const ARRAY_HEADER: usize = 4;

/// An upper bound of the bytes of an encoded target.
fn encoded_length(target: &Target) -> usize {
    match target {
        Target::Address(std::net::IpAddr::V4(_)) => 2 + 4,
        Target::Address(std::net::IpAddr::V6(_)) => 2 + 16,
        Target::Text(text) => 3 + text.len(),
    }
}
