//! The queues of the in-process broker as plain state. No waiting and no I/O.
//!
//! Invariant: ready, unsettled and dead-lettered messages of a queue together never exceed its capacity.

use std::collections::{BTreeMap, VecDeque};

use crate::{QueueKind, QueueName, WORK_DELIVERY_LIMIT};

/// A message and its history.
#[derive(Debug)]
pub(super) struct QueuedMessage {
    pub(super) body: Vec<u8>,
    /// How often it was delivered and returned.
    pub(super) returns: u32,
    pub(super) dead_letter_reason: Option<String>,
    pub(super) original_login: Option<String>,
}

impl QueuedMessage {
    pub(super) fn new(body: &[u8]) -> Self {
        Self {
            body: body.to_vec(),
            returns: 0,
            dead_letter_reason: None,
            original_login: None,
        }
    }
}

/// Identifies a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ConsumerId(u64);

/// One queue.
#[derive(Debug, Default)]
struct QueueState {
    ready: VecDeque<QueuedMessage>,
    /// How many messages are unsettled.
    unsettled: usize,
    /// Dead letters that wait until `dead` has room. They count towards the capacity here.
    dead_letters: VecDeque<QueuedMessage>,
    /// In the order in which they were added.
    consumers: Vec<ConsumerId>,
}

impl QueueState {
    fn len(&self) -> usize {
        self.ready.len() + self.unsettled + self.dead_letters.len()
    }
}

/// All queues of one broker.
#[derive(Debug)]
pub(super) struct Queues {
    capacity: usize,
    states: BTreeMap<QueueName, QueueState>,
    next_consumer: u64,
}

impl Queues {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            states: BTreeMap::new(),
            next_consumer: 0,
        }
    }

    /// Enqueues the message, or returns it when there is no room.
    pub(super) fn offer(
        &mut self,
        queue: QueueName,
        message: QueuedMessage,
    ) -> Result<(), QueuedMessage> {
        let capacity = self.capacity;
        let state = self.state(queue);
        if state.len() >= capacity {
            // A new heartbeat replaces the oldest ready one. When all are unsettled, the new one is dropped.
            if queue.kind != QueueKind::Heartbeats {
                return Err(message);
            }
            if state.ready.pop_front().is_none() {
                return Ok(());
            }
        }
        state.ready.push_back(message);
        Ok(())
    }

    pub(super) fn add_consumer(&mut self, queue: QueueName) -> ConsumerId {
        let id = ConsumerId(self.next_consumer);
        self.next_consumer += 1;
        self.state(queue).consumers.push(id);
        id
    }

    pub(super) fn remove_consumer(&mut self, queue: QueueName, id: ConsumerId) {
        self.state(queue).consumers.retain(|other| *other != id);
    }

    /// Takes the next message for this consumer. It is unsettled from now on.
    pub(super) fn take(&mut self, queue: QueueName, id: ConsumerId) -> Option<QueuedMessage> {
        let state = self.state(queue);
        if queue.kind == QueueKind::Results && state.consumers.first() != Some(&id) {
            return None;
        }
        let message = state.ready.pop_front()?;
        state.unsettled += 1;
        Some(message)
    }

    /// Removes `count` acked messages.
    pub(super) fn acked(&mut self, queue: QueueName, count: usize) {
        self.state(queue).unsettled -= count;
        self.move_dead_letters();
    }

    /// Returns unsettled messages (the oldest first) to the front of the queue. Those over the delivery limit become
    /// dead letters.
    pub(super) fn returned(&mut self, queue: QueueName, messages: Vec<QueuedMessage>) {
        let state = self.state(queue);
        for mut message in messages.into_iter().rev() {
            state.unsettled -= 1;
            message.returns += 1;
            if queue.kind == QueueKind::Work && message.returns > WORK_DELIVERY_LIMIT {
                state.dead_letters.push_back(message);
            } else {
                state.ready.push_front(message);
            }
        }
        self.move_dead_letters();
    }

    /// Drops the ready messages and returns their number.
    pub(super) fn purge(&mut self, queue: QueueName) -> usize {
        let purged = std::mem::take(&mut self.state(queue).ready).len();
        self.move_dead_letters();
        purged
    }

    pub(super) fn ready(&self, queue: QueueName) -> usize {
        self.states.get(&queue).map_or(0, |state| state.ready.len())
    }

    pub(super) fn consumers(&self, queue: QueueName) -> usize {
        self.states
            .get(&queue)
            .map_or(0, |state| state.consumers.len())
    }

    /// Moves dead letters to `dead` as long as it has room.
    fn move_dead_letters(&mut self) {
        while self.state(QueueName::DEAD).len() < self.capacity {
            let mut states = self.states.values_mut();
            let Some(message) = states.find_map(|state| state.dead_letters.pop_front()) else {
                return;
            };
            self.state(QueueName::DEAD).ready.push_back(QueuedMessage {
                body: message.body,
                returns: 0,
                dead_letter_reason: Some("delivery_limit".to_owned()),
                original_login: None,
            });
        }
    }

    fn state(&mut self, queue: QueueName) -> &mut QueueState {
        self.states.entry(queue).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_letters_count_in_work_until_dead_has_room() {
        let mut queues = Queues::new(1);
        let consumer = queues.add_consumer(QueueName::WORK);
        queues
            .offer(QueueName::DEAD, QueuedMessage::new(b"older"))
            .unwrap();
        queues
            .offer(QueueName::WORK, QueuedMessage::new(b"killer"))
            .unwrap();
        for _ in 0..=WORK_DELIVERY_LIMIT {
            let message = queues.take(QueueName::WORK, consumer).unwrap();
            queues.returned(QueueName::WORK, vec![message]);
        }
        assert!(queues.take(QueueName::WORK, consumer).is_none());
        assert!(
            queues
                .offer(QueueName::WORK, QueuedMessage::new(b"next"))
                .is_err()
        );

        let reader = queues.add_consumer(QueueName::DEAD);
        assert_eq!(queues.take(QueueName::DEAD, reader).unwrap().body, b"older");
        queues.acked(QueueName::DEAD, 1);
        let dead = queues.take(QueueName::DEAD, reader).unwrap();
        assert_eq!(dead.body, b"killer");
        assert_eq!(dead.dead_letter_reason.as_deref(), Some("delivery_limit"));
        assert!(
            queues
                .offer(QueueName::WORK, QueuedMessage::new(b"next"))
                .is_ok()
        );
    }

    #[test]
    fn full_heartbeats_drop_the_oldest() {
        let mut queues = Queues::new(2);
        for body in [b"1", b"2", b"3"] {
            queues
                .offer(QueueName::HEARTBEATS, QueuedMessage::new(body))
                .unwrap();
        }
        let consumer = queues.add_consumer(QueueName::HEARTBEATS);
        let bodies: Vec<_> = std::iter::from_fn(|| queues.take(QueueName::HEARTBEATS, consumer))
            .map(|message| message.body)
            .collect();
        assert_eq!(bodies, [b"2", b"3"]);
        queues
            .offer(QueueName::HEARTBEATS, QueuedMessage::new(b"4"))
            .unwrap();
        assert_eq!(queues.ready(QueueName::HEARTBEATS), 0);
    }
}
