//! The rule against a small model of the queues, the workers and the writer, with random schedules.

use std::collections::{BTreeSet, VecDeque};

use fastrand::Rng;
use uuid::Uuid;

use super::*;

/// Milliseconds of a step of the model.
const STEP: u64 = 500;

/// Milliseconds between two looks of the producer, and between two heartbeats of a worker.
const LOOK: u64 = 2000;
const HEARTBEAT: u64 = 5000;

/// Milliseconds after which a chunk is past its age; doubled with each publish.
const AGE: u64 = 10_000;

/// How long the broker keeps the deliveries of a machine that lost its power, in milliseconds.
const POWER_LOSS: u64 = 30_000;

/// Published and unsettled chunks of the run.
const WINDOW: usize = 24;

fn key(instance: Uuid) -> WorkerKey {
    WorkerKey {
        login: "worker".to_owned(),
        instance,
    }
}

/// The rule under test, and a broken one as a control.
trait Rule {
    fn observe(&mut self, now: Duration, facts: &OvertakingFacts) -> Vec<u32>;
    fn needs_round(&self) -> bool;
    fn round_began(&mut self, round: i64);
}

impl Rule for Overtaking {
    fn observe(&mut self, now: Duration, facts: &OvertakingFacts) -> Vec<u32> {
        Overtaking::observe(self, now, facts)
    }

    fn needs_round(&self) -> bool {
        Overtaking::needs_round(self)
    }

    fn round_began(&mut self, round: i64) {
        Overtaking::round_began(self, round);
    }
}

/// The control: one lap instead of two.
#[derive(Default)]
struct OneLap {
    candidates: BTreeMap<u32, Option<i64>>,
}

impl Rule for OneLap {
    fn observe(&mut self, _now: Duration, facts: &OvertakingFacts) -> Vec<u32> {
        let listed = |chunk: &u32| facts.in_hand.iter().any(|(_, listed)| listed == chunk);
        self.candidates
            .retain(|chunk, _| facts.past_age.contains(chunk) && !listed(chunk));
        for chunk in facts.past_age.iter().filter(|chunk| !listed(chunk)) {
            self.candidates.entry(*chunk).or_insert(None);
        }
        let lost = |(_, round): &(&u32, &Option<i64>)| {
            round.is_some_and(|round| facts.settled_round >= round)
        };
        let lost: Vec<u32> = self
            .candidates
            .iter()
            .filter(lost)
            .map(|(chunk, _)| *chunk)
            .collect();
        self.candidates.retain(|chunk, _| !lost.contains(chunk));
        lost
    }

    fn needs_round(&self) -> bool {
        self.candidates.values().any(Option::is_none)
    }

    fn round_began(&mut self, began: i64) {
        for round in self.candidates.values_mut() {
            round.get_or_insert(began);
        }
    }
}

/// What the database knows of a chunk.
#[derive(Debug, Clone)]
struct Row {
    published: u64,
    publishes: u32,
    round: i64,
    is_settled: bool,
    /// When its last message was lost; no part of the database.
    lost: Option<u64>,
}

#[derive(Debug)]
struct Worker {
    instance: Uuid,
    prefetch: usize,
    in_hand: Vec<(u32, u64)>,
    next_heartbeat: u64,
    /// How long its chunks take at most.
    slowness: u64,
}

/// The chunks that the broker keeps for a machine without power, and until when.
type Unreturned = (u64, Vec<u32>);

struct Model<R> {
    rng: Rng,
    rule: R,
    now: u64,
    rows: Vec<Row>,
    /// The unsettled ones.
    open: BTreeSet<u32>,
    publish_round: i64,
    settled_round: i64,
    writer_seen: u64,
    writer_stalled_until: u64,
    work: VecDeque<u32>,
    results: VecDeque<u32>,
    heartbeats: VecDeque<(Uuid, Vec<u32>)>,
    workers: Vec<Worker>,
    unreturned: Vec<Unreturned>,
    starting: Vec<u64>,
    worker_rows: HashMap<Uuid, u64>,
    in_hand_rows: HashMap<Uuid, Vec<u32>>,
    next_instance: u128,
    /// How many chunks were found to be lost, and which of them wrongly.
    found: usize,
    wrongly_found: Vec<u32>,
}

impl<R: Rule> Model<R> {
    fn new(seed: u64, rule: R) -> Self {
        let mut model = Self {
            rng: Rng::with_seed(seed),
            rule,
            now: 0,
            rows: Vec::new(),
            open: BTreeSet::new(),
            publish_round: 0,
            settled_round: 0,
            writer_seen: 1,
            writer_stalled_until: 0,
            work: VecDeque::new(),
            results: VecDeque::new(),
            heartbeats: VecDeque::new(),
            workers: Vec::new(),
            unreturned: Vec::new(),
            starting: Vec::new(),
            worker_rows: HashMap::new(),
            in_hand_rows: HashMap::new(),
            next_instance: 1,
            found: 0,
            wrongly_found: Vec::new(),
        };
        for _ in 0..model.rng.usize(1..4) {
            model.start_worker();
        }
        model
    }

    /// Runs for so many steps, with faults or without.
    fn run(&mut self, steps: u64, faults: bool) {
        for _ in 0..steps {
            self.now += STEP;
            if faults {
                self.fault();
            }
            self.broker_and_workers();
            self.writer();
            self.publish();
            if self.now.is_multiple_of(LOOK) {
                self.look();
            }
        }
    }

    fn start_worker(&mut self) {
        self.workers.push(Worker {
            instance: Uuid::from_u128(self.next_instance),
            prefetch: self.rng.usize(1..6),
            in_hand: Vec::new(),
            next_heartbeat: self.now,
            slowness: self.rng.u64(1..30),
        });
        self.next_instance += 1;
    }

    fn fault(&mut self) {
        match self.rng.u32(0..400) {
            // A worker dies; its connections close.
            0..4 if !self.workers.is_empty() => {
                let dead = self
                    .workers
                    .swap_remove(self.rng.usize(..self.workers.len()));
                self.give_back(dead.in_hand.into_iter().map(|(chunk, _)| chunk).collect());
                self.starting.push(self.now + self.rng.u64(0..20_000));
            }
            // A machine loses its power.
            4 if !self.workers.is_empty() => {
                let dead = self
                    .workers
                    .swap_remove(self.rng.usize(..self.workers.len()));
                let chunks = dead.in_hand.into_iter().map(|(chunk, _)| chunk).collect();
                self.unreturned.push((self.now + POWER_LOSS, chunks));
                self.starting.push(self.now + self.rng.u64(0..40_000));
            }
            // The writer is slow, or away.
            5..9 => self.writer_stalled_until = self.now + self.rng.u64(0..40_000),
            // A queue is purged, or loses a message.
            9 => {
                for chunk in std::mem::take(&mut self.work) {
                    self.rows[chunk as usize].lost = Some(self.now);
                }
            }
            10 => {
                for chunk in std::mem::take(&mut self.results) {
                    self.rows[chunk as usize].lost = Some(self.now);
                }
            }
            11..16 if !self.work.is_empty() => {
                let place = self.rng.usize(..self.work.len());
                if let Some(chunk) = self.work.remove(place) {
                    self.rows[chunk as usize].lost = Some(self.now);
                }
            }
            _ => {}
        }
    }

    /// Returned messages go to the front, in their order.
    fn give_back(&mut self, chunks: Vec<u32>) {
        for chunk in chunks.into_iter().rev() {
            self.work.push_front(chunk);
        }
    }

    fn broker_and_workers(&mut self) {
        let now = self.now;
        let (due, later): (Vec<Unreturned>, _) = std::mem::take(&mut self.unreturned)
            .into_iter()
            .partition(|(until, _)| *until <= now);
        self.unreturned = later;
        for (_, chunks) in due {
            self.give_back(chunks);
        }
        let starting = self.starting.len();
        self.starting.retain(|at| *at > now);
        for _ in self.starting.len()..starting {
            self.start_worker();
        }
        for worker in &mut self.workers {
            while worker.in_hand.len() < worker.prefetch
                && let Some(chunk) = self.work.pop_front()
            {
                let seconds = self.rng.u64(0..=worker.slowness);
                worker.in_hand.push((chunk, now + 1000 * seconds));
            }
            if worker.next_heartbeat <= now {
                worker.next_heartbeat = now + HEARTBEAT;
                let chunks = worker.in_hand.iter().map(|(chunk, _)| *chunk).collect();
                self.heartbeats.push_back((worker.instance, chunks));
            }
            let (done, rest): (Vec<_>, _) = std::mem::take(&mut worker.in_hand)
                .into_iter()
                .partition(|(_, done)| *done <= now);
            worker.in_hand = rest;
            self.results
                .extend(done.into_iter().map(|(chunk, _)| chunk));
        }
    }

    fn writer(&mut self) {
        if self.now < self.writer_stalled_until {
            return;
        }
        self.writer_seen = self.now;
        for (instance, chunks) in std::mem::take(&mut self.heartbeats) {
            self.worker_rows.insert(instance, self.now);
            self.in_hand_rows.insert(instance, chunks);
        }
        for _ in 0..self.rng.usize(0..8) {
            let Some(chunk) = self.results.pop_front() else {
                break;
            };
            let row = &mut self.rows[chunk as usize];
            if !row.is_settled && row.publishes == 1 {
                self.settled_round = self.settled_round.max(row.round);
            }
            row.is_settled = true;
            row.lost = None;
            self.open.remove(&chunk);
        }
    }

    fn publish(&mut self) {
        // A lost chunk does not stop the others: another run keeps the queues busy.
        let is_outstanding = |chunk: &&u32| self.rows[**chunk as usize].lost.is_none();
        let outstanding = self.open.iter().filter(is_outstanding).count();
        for _ in outstanding..WINDOW {
            let chunk = self.rows.len() as u32;
            self.work.push_back(chunk);
            self.open.insert(chunk);
            self.rows.push(Row {
                published: self.now,
                publishes: 1,
                round: self.publish_round,
                is_settled: false,
                lost: None,
            });
        }
    }

    fn facts(&self) -> OvertakingFacts {
        let is_past_age = |chunk: &u32| {
            let row = &self.rows[*chunk as usize];
            self.now >= row.published + (AGE << (row.publishes - 1))
        };
        OvertakingFacts {
            writer_seen_us: Some(self.writer_seen as i64),
            settled_round: self.settled_round,
            past_age: self.open.iter().copied().filter(is_past_age).collect(),
            workers: self
                .worker_rows
                .iter()
                .map(|(instance, seen)| (key(*instance), *seen as i64))
                .collect(),
            in_hand: self
                .in_hand_rows
                .iter()
                .flat_map(|(instance, chunks)| chunks.iter().map(|chunk| (key(*instance), *chunk)))
                .collect(),
        }
    }

    fn look(&mut self) {
        let now = Duration::from_millis(self.now);
        for chunk in self.rule.observe(now, &self.facts()) {
            self.found += 1;
            if self.messages().contains(&chunk) {
                self.wrongly_found.push(chunk);
            }
            let row = &mut self.rows[chunk as usize];
            row.publishes += 1;
            row.published = self.now;
            row.lost = None;
            self.work.push_back(chunk);
        }
        if self.rule.needs_round() {
            self.publish_round += 1;
            self.rule.round_began(self.publish_round);
        }
    }

    /// The chunks of which a message is in a queue, in a hand, or kept for a dead machine.
    fn messages(&self) -> BTreeSet<u32> {
        let in_hand = self.workers.iter().flat_map(|worker| &worker.in_hand);
        let unreturned = self.unreturned.iter().flat_map(|(_, chunks)| chunks);
        self.work
            .iter()
            .chain(&self.results)
            .chain(unreturned)
            .copied()
            .chain(in_hand.map(|(chunk, _)| *chunk))
            .collect()
    }
}

/// How many schedules are tried.
const SCHEDULES: u64 = 200;

#[test]
fn a_chunk_whose_message_exists_is_never_found_and_a_lost_one_always() {
    let mut found = 0;
    for seed in 0..SCHEDULES {
        let mut model = Model::new(seed, Overtaking::default());
        model.run(2400, true);
        // Without faults, and with workers that are not slow, each lost chunk is found. One that was published again and
        // lost again waits longer.
        for _ in model.workers.len()..2 {
            model.start_worker();
        }
        for worker in &mut model.workers {
            worker.prefetch = 4;
            worker.slowness = 4;
        }
        model.writer_stalled_until = 0;
        model.run(1000, false);
        assert!(
            model.wrongly_found.is_empty(),
            "schedule {seed}: {:?}",
            model.wrongly_found
        );
        let messages = model.messages();
        for chunk in model.open.difference(&messages) {
            let row = &model.rows[*chunk as usize];
            let waits = AGE << (row.publishes - 1);
            assert!(
                model.now < row.published + waits + 300_000,
                "schedule {seed}: chunk {chunk} is still lost: {row:?}"
            );
        }
        found += model.found;
    }
    assert!(found > SCHEDULES as usize, "{found}");
}

/// The control: with one lap, a chunk in a hand that has not listed it yet is found.
#[test]
fn one_lap_alone_finds_chunks_whose_message_exists() {
    let wrong: usize = (0..SCHEDULES / 4)
        .map(|seed| {
            let mut model = Model::new(seed, OneLap::default());
            model.run(2400, true);
            model.wrongly_found.len()
        })
        .sum();
    assert!(wrong > 0, "one lap is enough in this model");
}

/// What the database shows of one chunk that is past its age, with a live writer and no worker.
fn facts(seconds: u64, settled_round: i64) -> OvertakingFacts {
    OvertakingFacts {
        writer_seen_us: Some(seconds as i64 * 1_000_000),
        settled_round,
        past_age: vec![7],
        workers: Vec::new(),
        in_hand: Vec::new(),
    }
}

/// Observes once a second, begins a round whenever one is needed, and lets every round be settled at once. Returns when
/// chunk 7 is found.
fn found_at(change: impl Fn(u64, &mut OvertakingFacts)) -> Option<u64> {
    let mut rule = Overtaking::default();
    let mut round = 0;
    for seconds in 0..200 {
        let mut facts = facts(seconds, round);
        change(seconds, &mut facts);
        if rule.observe(Duration::from_secs(seconds), &facts) == [7] {
            return Some(seconds);
        }
        if rule.needs_round() {
            round += 1;
            rule.round_began(round);
        }
    }
    None
}

#[test]
fn a_lost_chunk_is_found_when_both_laps_are_over() {
    let found = found_at(|_, _| {});
    assert!(found.is_some_and(|at| at < 45), "{found:?}");
}

#[test]
fn nothing_is_found_while_no_later_chunk_is_settled() {
    assert_eq!(found_at(|_, facts| facts.settled_round = 0), None);
}

#[test]
fn nothing_is_found_while_the_writer_is_away() {
    assert_eq!(found_at(|_, facts| facts.writer_seen_us = None), None);
    assert_eq!(found_at(|_, facts| facts.writer_seen_us = Some(1)), None);
}

#[test]
fn a_chunk_that_a_live_worker_lists_is_not_found_and_one_that_a_dead_worker_lists_is() {
    let worker = key(Uuid::from_u128(1));
    let found = |alive_until: u64| {
        found_at(|seconds, facts| {
            let seen = seconds.min(alive_until) as i64;
            facts.workers = vec![(worker.clone(), seen * 1_000_000)];
            facts.in_hand = vec![(worker.clone(), 7)];
        })
    };
    assert_eq!(found(u64::MAX), None);
    assert!(found(0).is_some_and(|at| at > 60));
}

#[test]
fn a_wall_clock_that_is_set_back_delays_and_does_not_find() {
    // The writer's stamps go back by an hour at second 20. They still change, and that is what counts.
    let found = found_at(|seconds, facts| {
        let back = if seconds >= 20 { 3600 } else { 0 };
        facts.writer_seen_us = Some((seconds as i64 - back) * 1_000_000);
    });
    assert!(found.is_some());
    // The chunk is no longer past its age for a while: it starts again.
    let later = found_at(|seconds, facts| {
        if (20..60).contains(&seconds) {
            facts.past_age.clear();
        }
    });
    assert!(later > found.map(|at| at + 30), "{later:?} {found:?}");
}

#[test]
fn workers_that_are_lost_again_and_again_do_not_keep_a_chunk_lost() {
    let mut rule = Overtaking::default();
    let mut round = 0;
    let found = (0..4000).find(|seconds| {
        let mut facts = facts(*seconds, round);
        // A new worker every 40 s, which gives one heartbeat.
        facts.workers = (0..=*seconds / 40)
            .map(|number| {
                let instance = Uuid::from_u128(u128::from(number) + 1);
                (key(instance), (number as i64 * 40 + 1) * 1_000_000)
            })
            .collect();
        let is_found = rule.observe(Duration::from_secs(*seconds), &facts) == [7];
        if rule.needs_round() {
            round += 1;
            rule.round_began(round);
        }
        is_found
    });
    assert!(found.is_some());
}
