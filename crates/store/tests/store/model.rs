//! Applying against a naive model: any deliveries in any batches, between retries, publishing and cancelling.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use pingfleet_store::{
    Applied, ClosedRun, Contradiction, DeadChunks, DecodedDelivery, RawMessage, Refusal,
    RttHistogram, RunState, StoreError, Transport, Writer,
};
use pingfleet_wire::{DnsFailure, LocalLoss, ResultChunk, Status, WorkChunk};
use proptest::{collection::vec, prelude::*, sample::select, test_runner::Config};
use tempfile::TempDir;
use uuid::Uuid;

use crate::sample::{dead_letter, delivery, options, outcome, reader, result, sent, start};
use crate::settling::sender;

/// What arrives for one chunk.
#[derive(Debug, Clone)]
enum Kind {
    Result {
        statuses: Vec<Status>,
        worker: u8,
        redelivered: [bool; 2],
    },
    Dead,
    WrongToken,
    DeadWithWrongToken,
    TooMany,
    TooFew,
    UnknownChunk,
    UnknownRun,
    OtherDatabase,
    Unreadable,
}

#[derive(Debug, Clone)]
enum Step {
    Batch(Vec<(usize, Kind)>),
    Publish(Vec<u32>),
    Retry,
    Cancel,
}

fn status() -> impl Strategy<Value = Status> {
    select(vec![
        Status::Up,
        Status::Late,
        Status::Unreachable {
            icmp_type: 3,
            code: 3,
            reporter: [10, 0, 0, 1].into(),
        },
        Status::DnsFailed(DnsFailure::Timeout),
        Status::SendFailed { errno: 1 },
        Status::Unknown(LocalLoss::STALLED),
        Status::DOWN,
    ])
}

fn kind() -> impl Strategy<Value = Kind> {
    let good = (vec(status(), 1..4), 0..3_u8, any::<[bool; 2]>()).prop_map(
        |(statuses, worker, redelivered)| Kind::Result {
            statuses,
            worker,
            redelivered,
        },
    );
    prop_oneof![
        8 => good,
        4 => Just(Kind::Dead),
        1 => Just(Kind::WrongToken),
        1 => Just(Kind::DeadWithWrongToken),
        1 => Just(Kind::TooMany),
        1 => Just(Kind::TooFew),
        1 => Just(Kind::UnknownChunk),
        1 => Just(Kind::UnknownRun),
        1 => Just(Kind::OtherDatabase),
        1 => Just(Kind::Unreadable),
    ]
}

fn step(chunks: usize) -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => vec((0..chunks, kind()), 0..6).prop_map(Step::Batch),
        3 => vec(0..chunks as u32, 0..4).prop_map(Step::Publish),
        3 => Just(Step::Retry),
        1 => Just(Step::Cancel),
    ]
}

fn scenario() -> impl Strategy<Value = (Vec<usize>, Vec<Step>)> {
    vec(1..4_usize, 1..6).prop_flat_map(|sizes| {
        let steps = vec(step(sizes.len()), 1..25);
        (Just(sizes), steps)
    })
}

/// The message of a delivery.
fn message(work: &WorkChunk, kind: &Kind) -> DecodedDelivery {
    let good = || result(work, &[Status::Up]);
    let changed = |change: fn(&mut ResultChunk)| {
        let mut message = good();
        change(&mut message);
        delivery(message)
    };
    match kind {
        Kind::Result {
            statuses,
            worker,
            redelivered: [of_work, of_result],
        } => {
            let mut message = result(work, statuses);
            message.worker = format!("worker-{worker}");
            message.redelivered = *of_work;
            let mut incoming = delivery(message);
            if let DecodedDelivery::Result { redelivered, .. } = &mut incoming {
                *redelivered = *of_result;
            }
            incoming
        }
        Kind::Dead => dead_letter(work),
        Kind::WrongToken => changed(|message| message.token.0 = Uuid::new_v4()),
        Kind::DeadWithWrongToken => {
            let mut work = work.clone();
            work.token.0 = Uuid::new_v4();
            dead_letter(&work)
        }
        Kind::TooMany => changed(|message| message.outcomes.push(outcome(Status::Up))),
        Kind::TooFew => changed(|message| {
            message.outcomes.pop();
        }),
        Kind::UnknownChunk => changed(|message| message.key.chunk = 1000),
        Kind::UnknownRun => changed(|message| message.key.run = Uuid::now_v7()),
        Kind::OtherDatabase => changed(|message| message.database = Uuid::new_v4()),
        Kind::Unreadable => DecodedDelivery::Refused {
            raw: RawMessage::new("results", vec![1, 2, 3]),
            refusal: Refusal::new("malformed", ""),
        },
    }
}

/// A row, as far as the model knows it: target, status, worker.
type Row = (String, &'static str, String);

#[derive(Debug, Clone, PartialEq)]
enum Chunk {
    Open { published: bool },
    Dead,
    Retrying { published: bool },
    Done(Vec<Row>),
}

/// Counts the targets of a chunk.
fn count_targets<'a>(wanted: &mut Applied, statuses: impl Iterator<Item = &'a Status>) {
    for status in statuses {
        wanted.statuses.add(status.kind());
        if let Some(rtt) = outcome(*status).rtt {
            let bounds = RttHistogram::BOUNDS_NS.iter();
            let bucket = bounds.filter(|bound| rtt.avg_ns as i64 >= **bound).count();
            wanted.round_trip_times.counts[bucket] += 1;
            wanted.round_trip_times.sum_ns += rtt.avg_ns;
        }
    }
}

/// One run, in memory.
struct Model {
    works: Vec<WorkChunk>,
    chunks: Vec<Chunk>,
    state: RunState,
    duplicates: i64,
    redelivered: i64,
    contradictions: i64,
    /// How often each chunk was published, since it was retried.
    publishes: Vec<u32>,
    republished: i64,
    totals: [i64; 3],
}

impl Model {
    fn is_settled(&self) -> bool {
        self.chunks
            .iter()
            .all(|chunk| matches!(chunk, Chunk::Done(_) | Chunk::Dead))
    }

    fn dead(&self) -> usize {
        self.chunks
            .iter()
            .filter(|chunk| **chunk == Chunk::Dead)
            .count()
    }

    fn batch(&mut self, run: i64, batch: &[(usize, Kind)]) -> Applied {
        let mut wanted = Applied::default();
        let mut settled = false;
        let mut newly_dead = 0;
        let run_id = self.works[0].key.run;
        for (number, kind) in batch {
            match kind {
                Kind::Result {
                    statuses,
                    worker,
                    redelivered,
                } => {
                    self.redelivered += i64::from(redelivered.contains(&true));
                    if let Chunk::Done(rows) = &self.chunks[*number] {
                        wanted.duplicates += 1;
                        let later = statuses.iter().cycle().map(Status::name);
                        if !rows.iter().zip(later).all(|(row, later)| row.1 == later) {
                            let found = Contradiction {
                                run,
                                stored_from: sender(&rows[0].2),
                                later_from: sender(&format!("worker-{worker}")),
                            };
                            *wanted.contradictions.entry(found).or_default() += 1;
                            self.contradictions += 1;
                        }
                        continue;
                    }
                    let targets = &self.works[*number].targets;
                    let rows: Vec<_> = targets
                        .iter()
                        .zip(statuses.iter().cycle())
                        .map(|(target, status)| {
                            (
                                target.to_string(),
                                status.name(),
                                format!("worker-{worker}"),
                            )
                        })
                        .collect();
                    let settled_as = statuses.iter().cycle().take(targets.len());
                    count_targets(&mut wanted, settled_as);
                    wanted.applied += 1;
                    wanted.done += 1;
                    wanted.rows += rows.len() as u64;
                    self.chunks[*number] = Chunk::Done(rows);
                    settled = true;
                }
                Kind::Dead => match self.chunks[*number] {
                    Chunk::Done(_) | Chunk::Dead => wanted.duplicates += 1,
                    Chunk::Open { .. } | Chunk::Retrying { .. } => {
                        self.chunks[*number] = Chunk::Dead;
                        wanted.applied += 1;
                        newly_dead += 1;
                        settled = true;
                    }
                },
                _ => wanted.quarantined += 1,
            }
        }
        if newly_dead > 0 {
            wanted.dead.push(DeadChunks {
                run,
                run_id,
                chunks: newly_dead,
            });
        }
        self.duplicates += wanted.duplicates as i64;
        let counts = [wanted.applied, wanted.duplicates, wanted.quarantined];
        for (total, count) in self.totals.iter_mut().zip(counts) {
            *total += count as i64;
        }
        if settled && self.is_settled() && self.state != RunState::Cancelled {
            let complete = self.dead() == 0;
            self.state = if complete {
                RunState::Complete
            } else {
                RunState::Incomplete
            };
            wanted.closed.push(ClosedRun {
                run,
                run_id,
                complete,
            });
        }
        wanted
    }

    fn step(&mut self, store: &mut Writer, run: i64, step: &Step) -> Result<()> {
        match step {
            Step::Batch(batch) => {
                let messages: Vec<_> = batch
                    .iter()
                    .map(|(number, kind)| message(&self.works[*number], kind))
                    .collect();
                let wanted = self.batch(run, batch);
                let mut applied = store.apply(Transport::Broker, &messages)?;
                let refused: u64 = std::mem::take(&mut applied.reasons).values().sum();
                ensure!(refused == applied.quarantined, "{refused} reasons");
                ensure!(applied == wanted, "{applied:?} instead of {wanted:?}");
            }
            Step::Publish(numbers) => {
                store.mark_published(run, &sent(numbers))?;
                for number in numbers {
                    let publishes = &mut self.publishes[*number as usize];
                    self.republished += i64::from(*publishes > 0);
                    if !matches!(self.chunks[*number as usize], Chunk::Done(_)) {
                        *publishes += 1;
                    }
                    if let Chunk::Open { published } | Chunk::Retrying { published } =
                        &mut self.chunks[*number as usize]
                    {
                        *published = true;
                    }
                }
            }
            Step::Retry => {
                if self.state == RunState::Cancelled {
                    ensure!(store.retry_dead(run)? == 0);
                    return Ok(());
                }
                let wanted = self.dead();
                ensure!(store.retry_dead(run)? == wanted);
                for (chunk, publishes) in self.chunks.iter_mut().zip(&mut self.publishes) {
                    if *chunk == Chunk::Dead {
                        *chunk = Chunk::Retrying { published: false };
                        *publishes = 0;
                    }
                }
                if wanted > 0 {
                    self.state = RunState::Running;
                }
            }
            Step::Cancel => {
                let open = matches!(self.state, RunState::Running | RunState::Incomplete);
                ensure!(store.cancel_run(run)? == open);
                if open {
                    self.state = RunState::Cancelled;
                }
            }
        }
        Ok(())
    }

    fn compare(&self, store: &mut Writer, run: i64) -> Result<()> {
        // The state must not turn because the machine was slow.
        store.renew_lease(run, None)?;
        let done: Vec<u32> = (0..)
            .zip(&self.chunks)
            .filter(|(_, chunk)| matches!(chunk, Chunk::Done(_)))
            .map(|(number, _)| number)
            .collect();
        let rows: Vec<_> = self
            .chunks
            .iter()
            .filter_map(|chunk| match chunk {
                Chunk::Done(rows) => Some(rows.clone()),
                _ => None,
            })
            .flatten()
            .collect();
        let planned: usize = self.works.iter().map(|work| work.targets.len()).sum();

        let summary = store.summary(run)?;
        ensure!(summary.state == self.state, "{summary:?}");
        ensure!(summary.chunks_done == done.len() as i64);
        ensure!(summary.chunks_dead == self.dead() as i64);
        ensure!(summary.duplicates == self.duplicates);
        ensure!(summary.redelivered == self.redelivered);
        ensure!(summary.contradictions == self.contradictions);
        ensure!(summary.republished == self.republished);
        for (status, count) in summary.counts.iter() {
            let name = status.name();
            let wanted = rows.iter().filter(|row| row.1 == name).count();
            ensure!(count == wanted as i64, "{count} are {name}");
        }
        ensure!(store.done_chunks(run, 0)? == done);
        let mut stored = Vec::new();
        for row in crate::reader::report(store, run)? {
            stored.push((row.target, row.status, row.worker));
        }
        let wanted: Vec<_> = rows
            .into_iter()
            .map(|(target, status, worker)| (target, status.to_owned(), Some(worker)))
            .collect();
        ensure!(stored == wanted, "{stored:?} instead of {wanted:?}");

        let outgoing: BTreeSet<u32> = store
            .unpublished_chunks(run, None, 100)?
            .into_iter()
            .map(|outgoing| outgoing.chunk)
            .collect();
        let wanted: BTreeSet<u32> = (0..)
            .zip(&self.chunks)
            .filter(|(_, chunk)| {
                self.state == RunState::Running
                    && matches!(
                        chunk,
                        Chunk::Open { published: false } | Chunk::Retrying { published: false }
                    )
            })
            .map(|(number, _)| number)
            .collect();
        ensure!(outgoing == wanted, "{outgoing:?} instead of {wanted:?}");

        let sign = store
            .writer_liveness(Transport::Broker)?
            .ok_or(StoreError::Closed)?;
        ensure!([sign.applied, sign.duplicates, sign.quarantined] == self.totals);
        ensure!(sign.taken == self.totals.iter().sum::<i64>());

        let proof = reader(store)?.verify(run)?;
        ensure!(proof.is_consistent(), "{:?}", proof.findings);
        ensure!(proof.planned_targets == planned as i64);
        ensure!(proof.proven_targets == stored.len() as i64);
        ensure!(proof.dead_count == self.dead() as i64);
        ensure!(proof.is_complete() == (done.len() == self.chunks.len()));
        Ok(())
    }
}

fn follow(sizes: &[usize], steps: &[Step]) -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = options(&folder.path().join("fleet.db")).open()?;
    store.note_writer_alive(Transport::Broker, "test")?;
    let (planned, works) = start(&mut store, Transport::Broker, sizes)?;
    let mut model = Model {
        chunks: vec![Chunk::Open { published: false }; works.len()],
        publishes: vec![0; works.len()],
        works,
        state: RunState::Running,
        duplicates: 0,
        redelivered: 0,
        contradictions: 0,
        republished: 0,
        totals: [0; 3],
    };
    for step in steps {
        model.step(&mut store, planned.run, step)?;
        model.compare(&mut store, planned.run)?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(Config { cases: 150, failure_persistence: None, ..Config::default() })]

    #[test]
    fn every_delivery_does_what_the_model_says((sizes, steps) in scenario()) {
        if let Err(error) = follow(&sizes, &steps) {
            return Err(TestCaseError::fail(format!("{error:#}")));
        }
    }
}
