//! The queues of the in-process broker: what is where, and when it moves. Pure state, no waiting and no I/O.
//!
//! Invariant: what a queue holds, ready, unsettled or on its way to the dead letters, never passes its capacity.

use std::collections::VecDeque;

use crate::Queue;

/// How often a message of [`Queue::Work`] may come back before it is a dead letter. Like
/// RabbitMQ's `x-delivery-limit` it counts returns: the first delivery is not one.
const WORK_DELIVERY_LIMIT: u32 = 20;

/// A message and its past.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) body: Vec<u8>,
    /// How often it was delivered and came back.
    pub(super) returns: u32,
    pub(super) death: Option<String>,
}

impl Message {
    pub(super) fn new(body: &[u8]) -> Self {
        Self {
            body: body.to_vec(),
            returns: 0,
            death: None,
        }
    }
}

/// Names a consumer of the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ConsumerId(u64);

/// One queue.
#[derive(Debug, Default)]
struct State {
    ready: VecDeque<Message>,
    /// How many messages the consumers hold.
    unsettled: usize,
    /// Dead letters that wait for room; they keep their place here until then.
    dying: VecDeque<Message>,
    /// In the order in which they came.
    consumers: Vec<ConsumerId>,
}

impl State {
    fn held(&self) -> usize {
        self.ready.len() + self.unsettled + self.dying.len()
    }
}

/// All queues of one broker.
#[derive(Debug)]
pub(super) struct Queues {
    capacity: usize,
    states: [State; Queue::ALL.len()],
    next_consumer: u64,
}

impl Queues {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            states: Default::default(),
            next_consumer: 0,
        }
    }

    /// Enqueues the message, or hands it back where there is no room.
    pub(super) fn offer(&mut self, queue: Queue, message: Message) -> Result<(), Message> {
        let capacity = self.capacity;
        let state = self.state(queue);
        if state.held() >= capacity {
            // Only signs of life are worth less than the newest of their kind. Where all of them are in a consumer's
            // hands the newest is the one that goes.
            if queue != Queue::Heartbeats {
                return Err(message);
            }
            if state.ready.pop_front().is_none() {
                return Ok(());
            }
        }
        state.ready.push_back(message);
        Ok(())
    }

    pub(super) fn add_consumer(&mut self, queue: Queue) -> ConsumerId {
        let id = ConsumerId(self.next_consumer);
        self.next_consumer += 1;
        self.state(queue).consumers.push(id);
        id
    }

    pub(super) fn remove_consumer(&mut self, queue: Queue, id: ConsumerId) {
        self.state(queue).consumers.retain(|other| *other != id);
    }

    /// The next message for this consumer, which now has it unsettled.
    pub(super) fn take(&mut self, queue: Queue, id: ConsumerId) -> Option<Message> {
        let state = self.state(queue);
        if queue == Queue::Results && state.consumers.first() != Some(&id) {
            return None;
        }
        let message = state.ready.pop_front()?;
        state.unsettled += 1;
        Some(message)
    }

    /// Forgets `count` messages that were acked.
    pub(super) fn acked(&mut self, queue: Queue, count: usize) {
        self.state(queue).unsettled -= count;
        self.bury();
    }

    /// Takes back unsettled messages, the oldest first, to the front of the queue; those over the delivery limit
    /// become dead letters.
    pub(super) fn returned(&mut self, queue: Queue, messages: Vec<Message>) {
        let state = self.state(queue);
        for mut message in messages.into_iter().rev() {
            state.unsettled -= 1;
            message.returns += 1;
            if queue == Queue::Work && message.returns > WORK_DELIVERY_LIMIT {
                state.dying.push_back(message);
            } else {
                state.ready.push_front(message);
            }
        }
        self.bury();
    }

    /// Drops what is ready, and says how much that was.
    pub(super) fn purge(&mut self, queue: Queue) -> usize {
        let purged = std::mem::take(&mut self.state(queue).ready).len();
        self.bury();
        purged
    }

    pub(super) fn ready(&self, queue: Queue) -> usize {
        self.states[queue as usize].ready.len()
    }

    pub(super) fn consumers(&self, queue: Queue) -> usize {
        self.states[queue as usize].consumers.len()
    }

    /// Moves dead letters to where there is room for them.
    fn bury(&mut self) {
        while self.state(Queue::Dead).held() < self.capacity {
            let Some(message) = self.state(Queue::Work).dying.pop_front() else {
                return;
            };
            self.state(Queue::Dead).ready.push_back(Message {
                body: message.body,
                returns: 0,
                death: Some("delivery_limit".to_owned()),
            });
        }
    }

    fn state(&mut self, queue: Queue) -> &mut State {
        &mut self.states[queue as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_letters_without_room_keep_their_place_in_work() {
        let mut queues = Queues::new(1);
        let consumer = queues.add_consumer(Queue::Work);
        queues.offer(Queue::Dead, Message::new(b"older")).unwrap();
        queues.offer(Queue::Work, Message::new(b"killer")).unwrap();
        for _ in 0..=WORK_DELIVERY_LIMIT {
            let message = queues.take(Queue::Work, consumer).unwrap();
            queues.returned(Queue::Work, vec![message]);
        }
        assert!(queues.take(Queue::Work, consumer).is_none());
        assert!(queues.offer(Queue::Work, Message::new(b"next")).is_err());

        let reader = queues.add_consumer(Queue::Dead);
        assert_eq!(queues.take(Queue::Dead, reader).unwrap().body, b"older");
        queues.acked(Queue::Dead, 1);
        let dead = queues.take(Queue::Dead, reader).unwrap();
        assert_eq!(dead.body, b"killer");
        assert_eq!(dead.death.as_deref(), Some("delivery_limit"));
        assert!(queues.offer(Queue::Work, Message::new(b"next")).is_ok());
    }

    #[test]
    fn full_heartbeats_drop_the_oldest() {
        let mut queues = Queues::new(2);
        for body in [b"1", b"2", b"3"] {
            queues.offer(Queue::Heartbeats, Message::new(body)).unwrap();
        }
        let consumer = queues.add_consumer(Queue::Heartbeats);
        let bodies: Vec<_> = std::iter::from_fn(|| queues.take(Queue::Heartbeats, consumer))
            .map(|message| message.body)
            .collect();
        assert_eq!(bodies, [b"2", b"3"]);
        queues.offer(Queue::Heartbeats, Message::new(b"4")).unwrap();
        assert_eq!(queues.ready(Queue::Heartbeats), 0);
    }
}
