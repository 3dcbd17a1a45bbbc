//! Writing the plan: chunks in the order of probing, cut by count and by size, 100 to a transaction.

use pingfleet_store::{DatabaseThread, NewChunk, NewRun, PlannedRun, StoreError, Writer};
use pingfleet_wire::{
    ChunkKey, MAX_CHUNK_BYTES, Message as _, Probing, Target, Token, Version, WorkChunk,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use pingfleet_targets::{Order, Targets};

use crate::{ProducerError, Settings};

/// Chunks in one transaction of the planning.
const CHUNKS_A_COMMIT: usize = 100;

/// Writes the plan of all targets and starts the run. Returns `None`, with nothing left behind, when `stop` came
/// first.
pub(crate) async fn write(
    db: &DatabaseThread,
    targets: Targets,
    settings: &Settings,
    stop: &CancellationToken,
) -> Result<Option<PlannedRun>, ProducerError> {
    for run in db.call_while_busy(Writer::remove_abandoned_plans).await? {
        tracing::info!(run, "plan of a producer that is gone removed");
    }
    let new = NewRun {
        transport: settings.via,
        source: targets.sources().to_owned(),
        probing: describe(&settings.probing.probing, settings.probing.chunk_size),
        seed: settings.seed,
        worst_chunk: settings
            .probing
            .probing
            .worst_chunk(settings.probing.chunk_size),
    };
    let planned = db
        .call_while_busy(move |store| store.begin_run(&new))
        .await?;
    let run = planned.run;
    let count = targets.count();
    let order = match settings.seed {
        Some(seed) => Order::shuffled(count, seed),
        None => Order::as_given(count),
    };
    let mut cutter = Cutter {
        targets,
        order,
        next: 0,
        chunk: 0,
        chunk_size: settings.probing.chunk_size,
        template: WorkChunk {
            version: Version,
            database: db.database(),
            key: ChunkKey {
                run: planned.run_id,
                chunk: 0,
            },
            token: Token(Uuid::nil()),
            probing: settings.probing.probing.clone(),
            targets: Vec::new(),
        },
    };
    let written = async {
        loop {
            if stop.is_cancelled() {
                return Ok(false);
            }
            // Encoding is work for a processor and reads the spool from a disk: not for the runtime's threads.
            let (back, chunks) = tokio::task::spawn_blocking(move || {
                let chunks = cutter.cut(CHUNKS_A_COMMIT);
                (cutter, chunks)
            })
            .await
            .map_err(|_| StoreError::Closed)?;
            cutter = back;
            let chunks = std::sync::Arc::new(chunks?);
            if chunks.is_empty() {
                break;
            }
            db.call_while_busy(move |store| store.add_chunks(run, &chunks))
                .await?;
        }
        db.call_while_busy(move |store| store.start_run(run))
            .await?;
        Ok::<_, ProducerError>(true)
    }
    .await;
    if matches!(written, Ok(true)) {
        return Ok(Some(planned));
    }
    let removed = db
        .call_while_busy(move |store| store.remove_plan(run))
        .await;
    written?;
    removed?;
    Ok(None)
}

/// The probing settings as JSON, for people who read the table `runs`.
fn describe(probing: &Probing, chunk_size: usize) -> String {
    serde_json::json!({
        "count": probing.count,
        "interval_ms": probing.interval.as_millis() as u64,
        "timeout_ms": probing.timeout.as_millis() as u64,
        "retries": probing.retries,
        "backoff": f64::from(probing.backoff_permille) / 1000.0,
        "late_window_ms": probing.late_window.as_millis() as u64,
        "size": probing.size,
        "ttl": probing.ttl,
        "source": probing.source,
        "interface": probing.interface,
        "rate": probing.rate,
        "chunk_size": chunk_size,
    })
    .to_string()
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
        let mut bytes = work.encode().len() + ARRAY_HEADER;
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

/// What the header of the array of targets may grow by.
const ARRAY_HEADER: usize = 4;

/// The most bytes of an encoded target.
fn encoded_length(target: &Target) -> usize {
    match target {
        Target::Address(std::net::IpAddr::V4(_)) => 2 + 4,
        Target::Address(std::net::IpAddr::V6(_)) => 2 + 16,
        Target::Text(text) => 3 + text.len(),
    }
}
