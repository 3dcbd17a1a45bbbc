//! The targets that a socket has in hand, of which chunk each is, and in which queue it waits to be sent. Invariant:
//! every target that is entered leaves as one finding in the slot of its chunk, or with its whole chunk. No I/O.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use pingfleet_wire::Probing;
use tokio::sync::Notify;

use crate::{
    prober::{Destination, Finding},
    schedule::pacing::Pace,
    schedule::target_state::{Schedule, TargetState},
};

/// Where the findings of one chunk are gathered, from all sockets that it needs.
#[derive(Debug)]
pub(super) struct ChunkFindings {
    findings: RefCell<Vec<Option<Finding>>>,
    missing: Cell<usize>,
    complete: Notify,
}

impl ChunkFindings {
    /// For a chunk of `targets`.
    pub(super) fn new(targets: usize) -> Rc<Self> {
        Rc::new(Self {
            findings: RefCell::new(vec![None; targets]),
            missing: Cell::new(targets),
            complete: Notify::new(),
        })
    }

    /// The finding of target `number`. Comes once for each.
    pub(super) fn put(&self, number: u32, finding: Finding) {
        let before = self.findings.borrow_mut()[number as usize].replace(finding);
        debug_assert!(before.is_none(), "a target is settled once");
        self.missing.set(self.missing.get() - 1);
        if self.is_complete() {
            self.complete.notify_one();
        }
    }

    /// Whether every finding is there.
    pub(super) fn is_complete(&self) -> bool {
        self.missing.get() == 0
    }

    /// Waits until every finding is there. Cancel-safe.
    pub(super) async fn complete(&self) -> Vec<Finding> {
        while !self.is_complete() {
            self.complete.notified().await;
        }
        self.findings.take().into_iter().flatten().collect()
    }
}

/// A part of a chunk that leaves by one socket.
#[derive(Debug)]
pub(super) struct ChunkPart {
    pub(super) findings: Rc<ChunkFindings>,
    pub(super) schedule: Arc<Schedule>,
    pub(super) size: usize,
    pub(super) timeout: Duration,
    queue: usize,
    unsettled: usize,
}

/// A target on its way.
#[derive(Debug)]
pub(super) struct ProbedTarget {
    pub(super) to: Destination,
    pub(super) state: TargetState,
    pub(super) part: usize,
    /// Its number in the chunk.
    pub(super) number: u32,
    /// Passes of probing, with this one.
    pub(super) attempts: u8,
    /// Whether it waits in a queue.
    pub(super) queued: bool,
    /// Id of its newest request.
    pub(super) newest_request: Option<u32>,
}

/// Names a target for as long as it is in hand: an index is used again.
#[derive(Debug, Clone, Copy)]
struct TargetKey {
    index: u32,
    generation: u32,
}

/// Targets of one run whose next request is due, in the order in which it became so.
#[derive(Debug)]
struct SendQueue {
    pace: Pace,
    parts: usize,
    first: VecDeque<TargetKey>,
    repeats: VecDeque<TargetKey>,
}

/// Whether a target may be sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NextSend {
    /// Now; it has left its queue.
    Target(u32),
    /// None before this moment.
    NotBefore(Instant),
    /// None waits.
    Nothing,
}

/// All that one socket has in hand.
#[derive(Debug, Default)]
pub(super) struct TargetTable {
    targets: Vec<(u32, Option<ProbedTarget>)>,
    free: Vec<u32>,
    parts: Vec<Option<ChunkPart>>,
    queues: Vec<Option<SendQueue>>,
    in_hand: usize,
    /// The queue that is looked at first.
    first_queue: usize,
}

impl TargetTable {
    /// Enters a part of a chunk.
    pub(super) fn enter_part(
        &mut self,
        findings: &Rc<ChunkFindings>,
        schedule: &Arc<Schedule>,
        probing: &Probing,
        pace: &Pace,
    ) -> usize {
        let known = self.queues.iter().position(|queue| {
            queue
                .as_ref()
                .is_some_and(|queue| queue.pace.is_of_same_run(pace))
        });
        let queue = known.unwrap_or_else(|| {
            let queue = SendQueue {
                pace: pace.clone(),
                parts: 0,
                first: VecDeque::new(),
                repeats: VecDeque::new(),
            };
            put(&mut self.queues, queue)
        });
        if let Some(queue) = &mut self.queues[queue] {
            queue.parts += 1;
        }
        let part = ChunkPart {
            findings: Rc::clone(findings),
            schedule: Arc::clone(schedule),
            size: usize::from(probing.size),
            timeout: probing.timeout,
            queue,
            unsettled: 0,
        };
        put(&mut self.parts, part)
    }

    /// Enters one target of a part, at the end of its queue.
    pub(super) fn enter(&mut self, part: usize, to: Destination, number: u32) {
        let schedule = {
            let part = self.part_mut(part);
            part.unsettled += 1;
            Arc::clone(&part.schedule)
        };
        let target = ProbedTarget {
            to,
            state: TargetState::new(schedule),
            part,
            number,
            attempts: 1,
            queued: false,
            newest_request: None,
        };
        let index = if let Some(index) = self.free.pop() {
            self.targets[index as usize].1 = Some(target);
            index
        } else {
            self.targets.push((0, Some(target)));
            self.targets.len() as u32 - 1
        };
        self.in_hand += 1;
        self.push_back(index);
    }

    /// Targets in hand.
    pub(super) fn in_hand(&self) -> usize {
        self.in_hand
    }

    /// A target in hand.
    pub(super) fn target(&self, index: u32) -> &ProbedTarget {
        let target = self.targets[index as usize].1.as_ref();
        target.expect("only targets in hand are asked for")
    }

    /// A target in hand.
    pub(super) fn target_mut(&mut self, index: u32) -> &mut ProbedTarget {
        let target = self.targets[index as usize].1.as_mut();
        target.expect("only targets in hand are asked for")
    }

    /// The part of a target in hand.
    pub(super) fn part_of(&self, index: u32) -> &ChunkPart {
        let part = self.parts[self.target(index).part].as_ref();
        part.expect("a part stays as long as its targets")
    }

    /// The pace of a target in hand.
    pub(super) fn pace_of(&self, index: u32) -> &Pace {
        let queue = self.queues[self.part_of(index).queue].as_ref();
        &queue.expect("a queue stays as long as its parts").pace
    }

    fn part_mut(&mut self, part: usize) -> &mut ChunkPart {
        let part = self.parts[part].as_mut();
        part.expect("a part stays as long as its targets")
    }

    /// Puts a target at the end of its queue, if it is not in it.
    pub(super) fn push_back(&mut self, index: u32) {
        self.enqueue(index, VecDeque::push_back);
    }

    /// Puts a target that could not be sent to at the head of its queue.
    pub(super) fn push_front(&mut self, index: u32) {
        self.enqueue(index, VecDeque::push_front);
    }

    fn enqueue(&mut self, index: u32, push: impl FnOnce(&mut VecDeque<TargetKey>, TargetKey)) {
        let (generation, target) = &mut self.targets[index as usize];
        let key = TargetKey {
            index,
            generation: *generation,
        };
        let Some(target) = target.as_mut().filter(|target| !target.queued) else {
            return;
        };
        target.queued = true;
        let repeats = target.attempts > 1;
        let queue = self.parts[target.part].as_ref().map(|part| part.queue);
        if let Some(Some(queue)) = queue.map(|queue| &mut self.queues[queue]) {
            push(
                if repeats {
                    &mut queue.repeats
                } else {
                    &mut queue.first
                },
                key,
            );
        }
    }

    /// Takes the next target out of its queue, if its pace permits it now.
    pub(super) fn next_send(&mut self, now: Instant) -> NextSend {
        let mut open_at: Option<Instant> = None;
        for offset in 0..self.queues.len() {
            let slot = (self.first_queue + offset) % self.queues.len();
            let Some(queue) = &mut self.queues[slot] else {
                continue;
            };
            for repeats in [true, false] {
                let keys = if repeats {
                    &mut queue.repeats
                } else {
                    &mut queue.first
                };
                while keys
                    .front()
                    .is_some_and(|key| self.targets[key.index as usize].0 != key.generation)
                {
                    keys.pop_front();
                }
                let Some(key) = keys.front().copied() else {
                    continue;
                };
                let taken = if repeats {
                    queue.pace.take_for_repeat(now)
                } else {
                    queue.pace.take(now)
                };
                if let Err(at) = taken {
                    open_at = Some(open_at.map_or(at, |earlier| earlier.min(at)));
                    continue;
                }
                keys.pop_front();
                if let Some(target) = &mut self.targets[key.index as usize].1 {
                    target.queued = false;
                }
                self.first_queue = slot + 1;
                return NextSend::Target(key.index);
            }
        }
        open_at.map_or(NextSend::Nothing, NextSend::NotBefore)
    }

    /// A target is settled: it leaves with its finding.
    pub(super) fn settle(&mut self, index: u32, finding: Finding) {
        let Some(target) = self.leave(index) else {
            return;
        };
        let part = self.part_mut(target.part);
        part.findings.put(target.number, finding);
        part.unsettled -= 1;
        if part.unsettled == 0 {
            self.close(target.part);
        }
    }

    /// The targets of a chunk.
    pub(super) fn of(&self, findings: &Rc<ChunkFindings>) -> Vec<u32> {
        (0..)
            .zip(&self.targets)
            .filter(|(_, (_, target))| {
                let part = target
                    .as_ref()
                    .and_then(|target| self.parts[target.part].as_ref());
                part.is_some_and(|part| Rc::ptr_eq(&part.findings, findings))
            })
            .map(|(index, _)| index)
            .collect()
    }

    /// A target is given up: nobody wants its finding.
    pub(super) fn give_up(&mut self, index: u32) {
        let Some(target) = self.leave(index) else {
            return;
        };
        let part = self.part_mut(target.part);
        part.unsettled -= 1;
        if part.unsettled == 0 {
            self.close(target.part);
        }
    }

    fn leave(&mut self, index: u32) -> Option<ProbedTarget> {
        let (generation, target) = &mut self.targets[index as usize];
        let target = target.take()?;
        *generation = generation.wrapping_add(1);
        self.free.push(index);
        self.in_hand -= 1;
        Some(target)
    }

    fn close(&mut self, part: usize) {
        let queue = self.parts[part].take().map(|part| part.queue);
        if let Some(slot) = queue.map(|queue| &mut self.queues[queue])
            && let Some(queue) = slot
        {
            queue.parts -= 1;
            // A queue that is kept would keep its run's bucket.
            if queue.parts == 0 {
                *slot = None;
            }
        }
    }
}

/// Puts an entry where there is none, or at the end.
fn put<T>(all: &mut Vec<Option<T>>, entry: T) -> usize {
    if let Some(slot) = all.iter().position(Option::is_none) {
        all[slot] = Some(entry);
        slot
    } else {
        all.push(Some(entry));
        all.len() - 1
    }
}
