//! A plan, and the messages that answer it.

use std::{net::Ipv4Addr, path::Path, time::Duration};

use anyhow::Result;
use pingfleet_store::{
    DecodedDelivery, Durability, FileMode, NewChunk, NewRun, OpenOptions, PlannedRun,
    PublishedChunk, RawMessage, Reader, Transport, Writer, now_us,
};
use pingfleet_wire::{
    ChunkKey, Message as _, Outcome, Probing, ResultChunk, Rtt, Status, Target, Token, Version,
    WorkChunk,
};
use uuid::Uuid;

/// The worst case of a chunk of these plans: a chunk is overdue 12 s after its first publish.
pub(crate) const WORST_CHUNK: Duration = Duration::from_secs(1);

/// The moment at which every result began, in microseconds since 1970-01-01 UTC.
pub(crate) const STARTED_AT_US: u64 = 1_700_000_000_123_456;

/// How the tests open a database. No test cuts the power.
pub(crate) fn options(path: &Path) -> OpenOptions {
    OpenOptions {
        path: path.to_owned(),
        durability: Durability::Off,
        create: true,
        mode: FileMode::User,
        check: false,
    }
}

/// Chunks that are sent now, in no publish round.
pub(crate) fn sent(chunks: &[u32]) -> Vec<PublishedChunk> {
    sent_in_round(0, chunks)
}

/// Chunks that are sent now, in a publish round.
pub(crate) fn sent_in_round(round: i64, chunks: &[u32]) -> Vec<PublishedChunk> {
    chunks
        .iter()
        .map(|chunk| PublishedChunk {
            chunk: *chunk,
            sent_at_us: now_us(),
            round,
        })
        .collect()
}

/// A plan of one chunk for each of the sizes, still in `planning`. The targets are numbered through.
pub(crate) fn plan(
    store: &mut Writer,
    transport: Transport,
    sizes: &[usize],
) -> Result<(PlannedRun, Vec<WorkChunk>)> {
    let mut numbers = 0..;
    let chunks = sizes
        .iter()
        .map(|size| numbers.by_ref().take(*size).map(target).collect())
        .collect();
    plan_of(store, transport, chunks)
}

/// A plan of these targets, chunk by chunk, still in `planning`.
pub(crate) fn plan_of(
    store: &mut Writer,
    transport: Transport,
    chunks: Vec<Vec<Target>>,
) -> Result<(PlannedRun, Vec<WorkChunk>)> {
    let planned = store.begin_run(&NewRun {
        transport,
        source: "10.0.0.0/16".to_owned(),
        probing: "{}".to_owned(),
        seed: Some(u64::MAX),
        worst_chunk: WORST_CHUNK,
        parent_run: None,
    })?;
    let works: Vec<_> = (0..)
        .zip(chunks)
        .map(|(chunk, targets)| WorkChunk {
            version: Version,
            database: store.database(),
            key: ChunkKey {
                run: planned.run_id,
                chunk,
            },
            token: Token(Uuid::new_v4()),
            probing: Probing::default(),
            targets,
        })
        .collect();
    let chunks: Vec<_> = works.iter().map(new_chunk).collect();
    store.add_chunks(planned.run, &chunks)?;
    Ok((planned, works))
}

/// The same for a started run.
pub(crate) fn start(
    store: &mut Writer,
    transport: Transport,
    sizes: &[usize],
) -> Result<(PlannedRun, Vec<WorkChunk>)> {
    let (planned, works) = plan(store, transport, sizes)?;
    store.start_run(planned.run)?;
    Ok((planned, works))
}

fn new_chunk(work: &WorkChunk) -> NewChunk {
    NewChunk {
        chunk: work.key.chunk,
        token: work.token.0,
        targets: work.targets.len() as u32,
        work: work.encode(),
        labels: vec![(0, format!(r#"{{"rack":"{}"}}"#, work.key.chunk))],
    }
}

/// The n-th target: an address, or for every third a name.
pub(crate) fn target(number: u32) -> Target {
    if number % 3 == 2 {
        Target::Text(format!("host-{number}.example"))
    } else {
        Target::Address(Ipv4Addr::from_bits(0x0a00_0000 + number).into())
    }
}

/// The outcome of one target, its facts such as the status demands.
pub(crate) fn outcome(status: Status) -> Outcome {
    let (sent, received) = match status {
        Status::Up | Status::Late => (3, 2),
        Status::DnsFailed(_) | Status::SendFailed { .. } => (0, 0),
        Status::Unreachable { .. } | Status::Unknown(_) | Status::Down(_) => (3, 0),
    };
    Outcome {
        status,
        address: None,
        sent,
        received,
        rtt: (received > 0).then_some(Rtt {
            min_ns: 1_000_000,
            avg_ns: 1_500_000,
            max_ns: 2_000_000,
            stddev_ns: 500_000,
        }),
        attempts: 1,
        probed_after_us: 0,
    }
}

/// The outcome of a target. A name that answered has an address.
fn outcome_of(target: &Target, status: Status) -> Outcome {
    let outcome = outcome(status);
    let has_address = matches!(target, Target::Text(_)) && outcome.received > 0;
    Outcome {
        address: has_address.then_some(Ipv4Addr::new(192, 0, 2, 1).into()),
        ..outcome
    }
}

/// The result of a chunk: its targets have these statuses, over and over.
pub(crate) fn result(work: &WorkChunk, statuses: &[Status]) -> ResultChunk {
    ResultChunk {
        version: Version,
        database: work.database,
        key: work.key,
        token: work.token,
        worker: "worker-1".to_owned(),
        redelivered: false,
        started_at_us: STARTED_AT_US,
        outcomes: work
            .targets
            .iter()
            .zip(statuses.iter().cycle())
            .map(|(target, status)| outcome_of(target, *status))
            .collect(),
    }
}

/// A result as the writer takes it from its queue, without a login.
pub(crate) fn delivery(message: ResultChunk) -> DecodedDelivery {
    DecodedDelivery::Result {
        raw: raw(message.encode()),
        message: Box::new(message),
        redelivered: false,
    }
}

/// A chunk that the broker dead-lettered.
pub(crate) fn dead_letter(work: &WorkChunk) -> DecodedDelivery {
    dead_letter_for(work, "delivery_limit")
}

/// The same for another reason of `x-death`.
pub(crate) fn dead_letter_for(work: &WorkChunk, reason: &str) -> DecodedDelivery {
    DecodedDelivery::Dead {
        raw: raw(work.encode()),
        message: Box::new(work.clone()),
        reason: reason.to_owned(),
    }
}

fn raw(body: Vec<u8>) -> RawMessage {
    RawMessage::new("results", body)
}

/// A reader of the same file.
pub(crate) fn reader(store: &Writer) -> Result<Reader> {
    Ok(Reader::open(store.path())?)
}
