//! The targets that a socket has in hand, the chunk that each belongs to, and the queue in which it waits to be sent to.
//! Invariant: every target that enters leaves with one finding at its position in the chunk, or is given up with the whole
//! chunk. No I/O.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use pingfleet_wire::{LocalLoss, Probing};
use slab::Slab;

use super::chunk_findings::ChunkFindings;
use crate::{
    linux::local_loss::Refused,
    prober::{Destination, Finding},
    schedule::{
        pacing::Pace,
        target_state::{Schedule, TargetState},
    },
};

/// The part of a chunk that leaves by one socket.
#[derive(Debug)]
struct ChunkPart {
    findings: Rc<ChunkFindings>,
    schedule: Arc<Schedule>,
    payload_size: usize,
    timeout: Duration,
    queue: usize,
    unsettled: usize,
}

/// A target in hand.
#[derive(Debug)]
pub(super) struct ProbedTarget {
    pub(super) to: Destination,
    pub(super) state: TargetState,
    /// Number of the current attempt, from 1.
    pub(super) attempts: u8,
    /// Id of its newest request.
    pub(super) newest_request: Option<u32>,
    /// Set while this machine's own path refuses its request.
    pub(super) refused: Option<Refused>,
    /// What this machine is known to have done to a request of the current attempt.
    pub(super) lost: LocalLoss,
    /// Distinguishes it from earlier and later targets with the same index.
    serial: u32,
    part: usize,
    /// Its position in the chunk.
    position: u32,
    is_queued: bool,
}

/// Names a target also after it has left, when its index may be in use again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct TargetKey {
    index: u32,
    serial: u32,
}

/// Targets of one run whose next request is due, in the order in which it became due.
#[derive(Debug)]
struct SendQueue {
    pace: Pace,
    /// Parts of chunks that use this queue.
    parts: usize,
    /// Targets in their first attempt.
    first_attempts: VecDeque<TargetKey>,
    /// Targets in a later attempt, which are paced separately.
    repeats: VecDeque<TargetKey>,
    /// Targets that were refused, with the time of their next try. Of equal times the first one refused comes first.
    refused: BinaryHeap<Reverse<(Instant, TargetKey)>>,
}

/// The waiting targets of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    Refused,
    Repeat,
    FirstAttempt,
}

/// Which target may be sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NextSend {
    /// This one, now. It has left its queue.
    Target(u32),
    /// None before this moment.
    NotBefore(Instant),
    /// No target waits.
    Nothing,
}

/// Everything that one socket has in hand. A target's index stays the same as long as it is in hand.
#[derive(Debug, Default)]
pub(super) struct TargetTable {
    targets: Slab<ProbedTarget>,
    parts: Slab<ChunkPart>,
    queues: Slab<SendQueue>,
    /// The queue that is looked at first.
    first_queue: usize,
    next_serial: u32,
}

impl TargetTable {
    /// Enters a part of a chunk. Chunks of one run share a queue.
    pub(super) fn enter_part(
        &mut self,
        findings: &Rc<ChunkFindings>,
        schedule: &Arc<Schedule>,
        probing: &Probing,
        pace: &Pace,
    ) -> usize {
        let mut queues = self.queues.iter();
        let known = queues.find(|(_, queue)| queue.pace.is_of_same_run(pace));
        let queue = if let Some((queue, _)) = known {
            queue
        } else {
            self.queues.insert(SendQueue {
                pace: pace.clone(),
                parts: 0,
                first_attempts: VecDeque::new(),
                repeats: VecDeque::new(),
                refused: BinaryHeap::new(),
            })
        };
        self.queues[queue].parts += 1;
        self.parts.insert(ChunkPart {
            findings: Rc::clone(findings),
            schedule: Arc::clone(schedule),
            payload_size: usize::from(probing.size),
            timeout: probing.timeout,
            queue,
            unsettled: 0,
        })
    }

    /// Enters one target of a part, and queues it.
    pub(super) fn enter(&mut self, part: usize, to: Destination, position: u32) {
        let of = &mut self.parts[part];
        of.unsettled += 1;
        self.next_serial = self.next_serial.wrapping_add(1);
        let index = self.targets.insert(ProbedTarget {
            to,
            state: TargetState::new(Arc::clone(&of.schedule)),
            attempts: 1,
            newest_request: None,
            refused: None,
            lost: LocalLoss::default(),
            serial: self.next_serial,
            part,
            position,
            is_queued: false,
        });
        self.push_back(index as u32);
    }

    /// Targets in hand.
    pub(super) fn in_hand(&self) -> usize {
        self.targets.len()
    }

    /// A target in hand.
    pub(super) fn target(&self, index: u32) -> &ProbedTarget {
        &self.targets[index as usize]
    }

    /// A target in hand.
    pub(super) fn target_mut(&mut self, index: u32) -> &mut ProbedTarget {
        &mut self.targets[index as usize]
    }

    /// Bytes of payload of a target's requests.
    pub(super) fn payload_size(&self, index: u32) -> usize {
        self.part_of(index).payload_size
    }

    /// The timeout of a target's first request.
    pub(super) fn timeout(&self, index: u32) -> Duration {
        self.part_of(index).timeout
    }

    /// The pace of a target.
    pub(super) fn pace(&self, index: u32) -> &Pace {
        &self.queues[self.part_of(index).queue].pace
    }

    /// The request that was to be sent to this target did not leave, and gives its token back.
    pub(super) fn give_back_token(&self, index: u32) {
        self.pace(index).give_back(self.target(index).attempts > 1);
    }

    fn part_of(&self, index: u32) -> &ChunkPart {
        &self.parts[self.target(index).part]
    }

    /// Puts a target at the end of its queue, unless it is queued already.
    pub(super) fn push_back(&mut self, index: u32) {
        self.enqueue(index, VecDeque::push_back);
    }

    /// Puts a target back at the head of its queue, because the kernel did not accept its request.
    pub(super) fn push_front(&mut self, index: u32) {
        self.enqueue(index, VecDeque::push_front);
    }

    /// The path of this machine refused a target: it is tried again at `at`.
    pub(super) fn retry_at(&mut self, index: u32, at: Instant) {
        let target = &mut self.targets[index as usize];
        target.is_queued = true;
        let key = TargetKey {
            index,
            serial: target.serial,
        };
        let queue = self.parts[target.part].queue;
        self.queues[queue].refused.push(Reverse((at, key)));
    }

    fn enqueue(&mut self, index: u32, push: impl FnOnce(&mut VecDeque<TargetKey>, TargetKey)) {
        let target = &mut self.targets[index as usize];
        if std::mem::replace(&mut target.is_queued, true) {
            return;
        }
        let key = TargetKey {
            index,
            serial: target.serial,
        };
        let queue = &mut self.queues[self.parts[target.part].queue];
        let keys = if target.attempts > 1 {
            &mut queue.repeats
        } else {
            &mut queue.first_attempts
        };
        push(keys, key);
    }

    /// Takes the next target out of its queue, if its pace permits that now. Runs take turns. Refused targets come first, or
    /// last if the path is refused: then others are tried.
    pub(super) fn next_send(&mut self, path_is_refused: bool, now: Instant) -> NextSend {
        let mut open_at: Option<Instant> = None;
        let slots = self
            .queues
            .iter()
            .next_back()
            .map_or(0, |(last, _)| last + 1);
        let mut order = [Waiting::Refused, Waiting::Repeat, Waiting::FirstAttempt];
        if path_is_refused {
            order.rotate_left(1);
        }
        for offset in 0..slots {
            let slot = (self.first_queue + offset) % slots;
            for waiting in order {
                let next = match self.first_of(slot, waiting, now) {
                    Some(Ok(key)) => self.take(slot, waiting, key, now),
                    Some(Err(at)) => Err(at),
                    None => continue,
                };
                match next {
                    Ok(index) => return NextSend::Target(index),
                    Err(at) => open_at = Some(open_at.map_or(at, |earlier| earlier.min(at))),
                }
            }
        }
        open_at.map_or(NextSend::Nothing, NextSend::NotBefore)
    }

    /// The first target that waits in a queue, or when a refused one is tried again. Targets that have left are removed.
    fn first_of(
        &mut self,
        slot: usize,
        waiting: Waiting,
        now: Instant,
    ) -> Option<Result<TargetKey, Instant>> {
        let Self {
            targets, queues, ..
        } = self;
        let queue = queues.get_mut(slot)?;
        let has_left = |key: TargetKey| {
            let target = targets.get(key.index as usize);
            target.is_none_or(|target| target.serial != key.serial)
        };
        let keys = match waiting {
            Waiting::Refused => {
                let first = loop {
                    let Reverse(first) = *queue.refused.peek()?;
                    if !has_left(first.1) {
                        break first;
                    }
                    queue.refused.pop();
                };
                let (at, key) = first;
                return Some(if at <= now { Ok(key) } else { Err(at) });
            }
            Waiting::Repeat => &mut queue.repeats,
            Waiting::FirstAttempt => &mut queue.first_attempts,
        };
        while keys.front().is_some_and(|key| has_left(*key)) {
            keys.pop_front();
        }
        keys.front().copied().map(Ok)
    }

    /// Takes the first target out of a queue, or returns when its pace permits that.
    fn take(
        &mut self,
        slot: usize,
        waiting: Waiting,
        key: TargetKey,
        now: Instant,
    ) -> Result<u32, Instant> {
        let queue = &mut self.queues[slot];
        let target = &mut self.targets[key.index as usize];
        if target.attempts > 1 {
            queue.pace.take_for_repeat(now)?;
        } else {
            queue.pace.take(now)?;
        }
        match waiting {
            Waiting::Refused => drop(queue.refused.pop()),
            Waiting::Repeat => drop(queue.repeats.pop_front()),
            Waiting::FirstAttempt => drop(queue.first_attempts.pop_front()),
        }
        target.is_queued = false;
        self.first_queue = slot + 1;
        Ok(key.index)
    }

    /// A target is settled: it leaves with its finding.
    pub(super) fn settle(&mut self, index: u32, finding: Finding) {
        let target = self.targets.remove(index as usize);
        self.parts[target.part]
            .findings
            .put(target.position, finding);
        self.target_has_left(target.part);
    }

    /// A target is given up: it leaves without a finding.
    pub(super) fn give_up(&mut self, index: u32) {
        let target = self.targets.remove(index as usize);
        self.target_has_left(target.part);
    }

    /// The targets of a chunk.
    pub(super) fn of_chunk(&self, findings: &Rc<ChunkFindings>) -> Vec<u32> {
        self.targets
            .iter()
            .filter(|(_, target)| Rc::ptr_eq(&self.parts[target.part].findings, findings))
            .map(|(index, _)| index as u32)
            .collect()
    }

    /// Removes a part without targets, and a queue without parts, which would keep its run's bucket.
    fn target_has_left(&mut self, part: usize) {
        let of = &mut self.parts[part];
        of.unsettled -= 1;
        if of.unsettled > 0 {
            return;
        }
        let queue = of.queue;
        self.parts.remove(part);
        self.queues[queue].parts -= 1;
        if self.queues[queue].parts == 0 {
            self.queues.remove(queue);
        }
    }
}
