//! The targets that a socket has in hand, of which chunk each is, and in which line it waits to be sent. Invariant:
//! every target that is entered leaves as one finding in the place of its chunk, or with its whole chunk. No I/O.

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
    course::{Course, Schedule},
    pacing::Pace,
    prober::{Destination, Finding},
};

/// Where the findings of one chunk are gathered, from all sockets that it needs.
#[derive(Debug)]
pub(super) struct Sink {
    findings: RefCell<Vec<Option<Finding>>>,
    missing: Cell<usize>,
    complete: Notify,
}

impl Sink {
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
pub(super) struct Part {
    pub(super) sink: Rc<Sink>,
    pub(super) schedule: Arc<Schedule>,
    pub(super) size: usize,
    pub(super) timeout: Duration,
    line: usize,
    unsettled: usize,
}

/// A target on its way.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) to: Destination,
    pub(super) course: Course,
    pub(super) part: usize,
    /// Its number in the chunk.
    pub(super) number: u32,
    /// Passes of probing, with this one.
    pub(super) attempts: u8,
    /// Whether it waits in a line.
    pub(super) queued: bool,
    /// The place of its newest request.
    pub(super) newest: Option<u32>,
}

/// Names a target for as long as it is in hand: an index is used again.
#[derive(Debug, Clone, Copy)]
struct Ticket {
    index: u32,
    generation: u32,
}

/// Targets of one run whose next request is due, in the order in which it became so.
#[derive(Debug)]
struct Line {
    pace: Pace,
    parts: usize,
    first: VecDeque<Ticket>,
    again: VecDeque<Ticket>,
}

/// Whether a target may be sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Now; it has left its line.
    Of(u32),
    /// None before this moment.
    NotBefore(Instant),
    /// None waits.
    Nobody,
}

/// All that one socket has in hand.
#[derive(Debug, Default)]
pub(super) struct Book {
    targets: Vec<(u32, Option<Target>)>,
    free: Vec<u32>,
    parts: Vec<Option<Part>>,
    lines: Vec<Option<Line>>,
    in_hand: usize,
    /// The line that is looked at first.
    turn: usize,
}

impl Book {
    /// Enters a part of a chunk.
    pub(super) fn enter_part(
        &mut self,
        sink: &Rc<Sink>,
        schedule: &Arc<Schedule>,
        probing: &Probing,
        pace: &Pace,
    ) -> usize {
        let known = self.lines.iter().position(|line| {
            line.as_ref()
                .is_some_and(|line| line.pace.is_of_same_run(pace))
        });
        let line = known.unwrap_or_else(|| {
            let line = Line {
                pace: pace.clone(),
                parts: 0,
                first: VecDeque::new(),
                again: VecDeque::new(),
            };
            put(&mut self.lines, line)
        });
        if let Some(line) = &mut self.lines[line] {
            line.parts += 1;
        }
        let part = Part {
            sink: Rc::clone(sink),
            schedule: Arc::clone(schedule),
            size: usize::from(probing.size),
            timeout: probing.timeout,
            line,
            unsettled: 0,
        };
        put(&mut self.parts, part)
    }

    /// Enters one target of a part, at the end of its line.
    pub(super) fn enter(&mut self, part: usize, to: Destination, number: u32) {
        let schedule = {
            let part = self.part_mut(part);
            part.unsettled += 1;
            Arc::clone(&part.schedule)
        };
        let target = Target {
            to,
            course: Course::new(schedule),
            part,
            number,
            attempts: 1,
            queued: false,
            newest: None,
        };
        let index = if let Some(index) = self.free.pop() {
            self.targets[index as usize].1 = Some(target);
            index
        } else {
            self.targets.push((0, Some(target)));
            self.targets.len() as u32 - 1
        };
        self.in_hand += 1;
        self.queue(index);
    }

    /// Targets in hand.
    pub(super) fn in_hand(&self) -> usize {
        self.in_hand
    }

    /// A target in hand.
    pub(super) fn target(&self, index: u32) -> &Target {
        let target = self.targets[index as usize].1.as_ref();
        target.expect("only targets in hand are asked for")
    }

    /// A target in hand.
    pub(super) fn target_mut(&mut self, index: u32) -> &mut Target {
        let target = self.targets[index as usize].1.as_mut();
        target.expect("only targets in hand are asked for")
    }

    /// The part of a target in hand.
    pub(super) fn part_of(&self, index: u32) -> &Part {
        let part = self.parts[self.target(index).part].as_ref();
        part.expect("a part stays as long as its targets")
    }

    /// The pace of a target in hand.
    pub(super) fn pace_of(&self, index: u32) -> &Pace {
        let line = self.lines[self.part_of(index).line].as_ref();
        &line.expect("a line stays as long as its parts").pace
    }

    fn part_mut(&mut self, part: usize) -> &mut Part {
        let part = self.parts[part].as_mut();
        part.expect("a part stays as long as its targets")
    }

    /// Puts a target at the end of its line, if it is not in it.
    pub(super) fn queue(&mut self, index: u32) {
        self.stand(index, VecDeque::push_back);
    }

    /// Puts a target that could not be sent to at the head of its line.
    pub(super) fn put_back(&mut self, index: u32) {
        self.stand(index, VecDeque::push_front);
    }

    fn stand(&mut self, index: u32, push: impl FnOnce(&mut VecDeque<Ticket>, Ticket)) {
        let (generation, target) = &mut self.targets[index as usize];
        let ticket = Ticket {
            index,
            generation: *generation,
        };
        let Some(target) = target.as_mut().filter(|target| !target.queued) else {
            return;
        };
        target.queued = true;
        let again = target.attempts > 1;
        let line = self.parts[target.part].as_ref().map(|part| part.line);
        if let Some(Some(line)) = line.map(|line| &mut self.lines[line]) {
            push(
                if again {
                    &mut line.again
                } else {
                    &mut line.first
                },
                ticket,
            );
        }
    }

    /// Takes the next target out of its line, if its pace permits it now.
    pub(super) fn turn(&mut self, now: Instant) -> Turn {
        let mut open_at: Option<Instant> = None;
        for offset in 0..self.lines.len() {
            let place = (self.turn + offset) % self.lines.len();
            let Some(line) = &mut self.lines[place] else {
                continue;
            };
            for again in [true, false] {
                let tickets = if again {
                    &mut line.again
                } else {
                    &mut line.first
                };
                while tickets.front().is_some_and(|ticket| {
                    self.targets[ticket.index as usize].0 != ticket.generation
                }) {
                    tickets.pop_front();
                }
                let Some(ticket) = tickets.front().copied() else {
                    continue;
                };
                let taken = if again {
                    line.pace.take_again(now)
                } else {
                    line.pace.take(now)
                };
                if let Err(at) = taken {
                    open_at = Some(open_at.map_or(at, |earlier| earlier.min(at)));
                    continue;
                }
                tickets.pop_front();
                if let Some(target) = &mut self.targets[ticket.index as usize].1 {
                    target.queued = false;
                }
                self.turn = place + 1;
                return Turn::Of(ticket.index);
            }
        }
        open_at.map_or(Turn::Nobody, Turn::NotBefore)
    }

    /// A target is settled: it leaves with its finding.
    pub(super) fn settle(&mut self, index: u32, finding: Finding) {
        let Some(target) = self.leave(index) else {
            return;
        };
        let part = self.part_mut(target.part);
        part.sink.put(target.number, finding);
        part.unsettled -= 1;
        if part.unsettled == 0 {
            self.close(target.part);
        }
    }

    /// The targets of a chunk.
    pub(super) fn of(&self, sink: &Rc<Sink>) -> Vec<u32> {
        (0..)
            .zip(&self.targets)
            .filter(|(_, (_, target))| {
                let part = target
                    .as_ref()
                    .and_then(|target| self.parts[target.part].as_ref());
                part.is_some_and(|part| Rc::ptr_eq(&part.sink, sink))
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

    fn leave(&mut self, index: u32) -> Option<Target> {
        let (generation, target) = &mut self.targets[index as usize];
        let target = target.take()?;
        *generation = generation.wrapping_add(1);
        self.free.push(index);
        self.in_hand -= 1;
        Some(target)
    }

    fn close(&mut self, part: usize) {
        let line = self.parts[part].take().map(|part| part.line);
        if let Some(place) = line.map(|line| &mut self.lines[line])
            && let Some(line) = place
        {
            line.parts -= 1;
            // A line that is kept would keep its run's bucket.
            if line.parts == 0 {
                *place = None;
            }
        }
    }
}

/// Puts an entry where there is none, or at the end.
fn put<T>(all: &mut Vec<Option<T>>, entry: T) -> usize {
    if let Some(place) = all.iter().position(Option::is_none) {
        all[place] = Some(entry);
        place
    } else {
        all.push(Some(entry));
        all.len() - 1
    }
}
