//! Writes the plan: chunks in the order of probing, cut by count and by size, 100 in a transaction.

use std::sync::Arc;

use pingfleet_store::{
    DatabaseThread, NewChunk, NewRun, PlannedProbing, PlannedRun, StoreError, Writer, run_span,
};
use pingfleet_targets::{Order, Targets};
use pingfleet_wire::{ChunkKey, MAX_CHUNK_BYTES, Message as _, Target, Token, Version, WorkChunk};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use uuid::Uuid;

use crate::{ProducerError, ProducerSettings};

/// Chunks in one transaction of the plan.
const CHUNKS_A_COMMIT: usize = 100;

/// Writes the plan of all targets and starts the run. Returns `None`, with nothing left behind, when `stop` came
/// first.
pub(crate) async fn write(
    db: &DatabaseThread,
    targets: Targets,
    settings: &ProducerSettings,
    stop: &CancellationToken,
) -> Result<Option<PlannedRun>, ProducerError> {
    db.call_while_busy(Writer::remove_abandoned_plans).await?;
    let new = new_run(&targets, settings);
    let planned = db
        .call_while_busy(move |store| store.begin_run(&new))
        .await?;
    let run = planned.run;
    let cutter = Cutter::new(targets, settings, db.database(), planned.run_id);
    let span = run_span(run, planned.run_id);
    span.in_scope(|| tracing::info!(targets = cutter.targets.count(), "planning a run"));
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
fn new_run(targets: &Targets, settings: &ProducerSettings) -> NewRun {
    let probing = &settings.probing;
    let planned = PlannedProbing {
        probing: probing.probing.clone(),
        chunk_size: probing.chunk_size,
    };
    NewRun {
        transport: settings.transport,
        source: targets.sources().to_owned(),
        probing: planned.to_json(),
        seed: settings.seed,
        worst_chunk: probing.probing.worst_chunk(probing.chunk_size),
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

/// Cuts the targets into chunks, in their order.
struct Cutter {
    targets: Targets,
    order: Order,
    next: u64,
    chunk: u32,
    chunk_size: usize,
    template: WorkChunk,
}

impl Cutter {
    fn new(targets: Targets, settings: &ProducerSettings, database: Uuid, run: Uuid) -> Self {
        let count = targets.count();
        Self {
            targets,
            order: match settings.seed {
                Some(seed) => Order::shuffled(count, seed),
                None => Order::as_given(count),
            },
            next: 0,
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
        while chunks.len() < most && self.next < self.targets.count() {
            chunks.push(self.cut_one()?);
        }
        Ok(chunks)
    }

    fn cut_one(&mut self) -> Result<NewChunk, ProducerError> {
        let mut work = self.template.clone();
        work.key.chunk = self.chunk;
        work.token = Token(Uuid::new_v4());
        let mut labels = Vec::new();
        let mut bytes = work.encoded_len() + ARRAY_HEADER;
        while work.targets.len() < self.chunk_size && self.next < self.targets.count() {
            let planned = self
                .targets
                .get(self.order.position(self.next))
                .map_err(ProducerError::Spool)?;
            bytes += encoded_length(&planned.target);
            if bytes > MAX_CHUNK_BYTES && !work.targets.is_empty() {
                break;
            }
            if let Some(text) = planned.labels {
                labels.push((work.targets.len() as u32, text));
            }
            work.targets.push(planned.target);
            self.next += 1;
        }
        self.chunk = self
            .chunk
            .checked_add(1)
            .ok_or(ProducerError::TooManyChunks)?;
        Ok(NewChunk {
            chunk: work.key.chunk,
            token: work.token.0,
            targets: work.targets.len() as u32,
            work: work.encode(),
            labels,
        })
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
