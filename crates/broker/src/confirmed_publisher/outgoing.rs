//! What a publisher has in hand, over all sessions. No I/O.

use std::{collections::BTreeMap, time::SystemTime};

use tokio::sync::{mpsc, watch};

use super::{ConfirmedMessage, KeyedMessage, MessageKey};
use crate::QueueName;

/// Messages of which only the newest matters.
#[derive(Debug)]
pub(super) struct Latest {
    pub(super) queue: QueueName,
    pub(super) bodies: watch::Receiver<Option<Vec<u8>>>,
}

/// What is to be published, over all sessions.
pub(super) struct Outgoing<K> {
    pub(super) queue: QueueName,
    pub(super) max_unconfirmed: usize,
    pub(super) messages: mpsc::Receiver<KeyedMessage<K>>,
    /// Whether more messages may come.
    pub(super) is_open: bool,
    pub(super) confirmed: mpsc::Sender<ConfirmedMessage<K>>,
    /// Who takes the refused ones. Without it they are published again.
    pub(super) refused: Option<mpsc::Sender<KeyedMessage<K>>>,
    /// By the order in which they came.
    pub(super) unconfirmed: BTreeMap<u64, Unconfirmed<K>>,
    pub(super) next_number: u64,
    pub(super) latest: Option<Latest>,
}

/// A message that was sent, or is about to be.
pub(super) struct Unconfirmed<K> {
    pub(super) message: KeyedMessage<K>,
    pub(super) last_sent: SystemTime,
    pub(super) sendings: u32,
}

impl<K: Copy> Unconfirmed<K> {
    /// Notes that it is sent now, and returns it.
    pub(super) fn sending(&mut self) -> &KeyedMessage<K> {
        self.last_sent = SystemTime::now();
        self.sendings += 1;
        &self.message
    }

    pub(super) fn confirmed(&self) -> ConfirmedMessage<K> {
        ConfirmedMessage {
            key: self.message.key,
            last_sent: self.last_sent,
            sendings: self.sendings,
        }
    }
}

impl<K> Outgoing<K> {
    pub(super) fn new(
        queue: QueueName,
        max_unconfirmed: usize,
        messages: mpsc::Receiver<KeyedMessage<K>>,
        confirmed: mpsc::Sender<ConfirmedMessage<K>>,
    ) -> Self {
        Self {
            queue,
            max_unconfirmed,
            messages,
            is_open: true,
            confirmed,
            refused: None,
            unconfirmed: BTreeMap::new(),
            next_number: 0,
            latest: None,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        !self.is_open && self.unconfirmed.is_empty() && self.latest.is_none()
    }

    pub(super) fn has_room(&self) -> bool {
        self.is_open && self.unconfirmed.len() < self.max_unconfirmed
    }

    pub(super) fn add(&mut self, message: KeyedMessage<K>) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        let unconfirmed = Unconfirmed {
            message,
            last_sent: SystemTime::now(),
            sendings: 0,
        };
        self.unconfirmed.insert(number, unconfirmed);
        number
    }

    /// Gives a refused message back to the caller.
    pub(super) async fn return_refused(&mut self, number: u64)
    where
        K: MessageKey,
    {
        let Some(refused) = self.unconfirmed.remove(&number) else {
            return;
        };
        let span = refused.message.key.span();
        if let Some(caller) = &self.refused
            && caller.send(refused.message).await.is_err()
        {
            span.in_scope(|| tracing::debug!("nobody waits for a refused message"));
        }
    }

    /// Waits until there is something to publish, or until no more can come. Cancel-safe.
    pub(super) async fn wait(&mut self) {
        while self.unconfirmed.is_empty() && !self.is_done() {
            tokio::select! {
                biased;
                newest = next_latest(self.latest.as_mut()) => {
                    if newest.is_none() {
                        self.latest = None;
                    } else if let Some(latest) = &mut self.latest {
                        // The session takes it.
                        latest.bodies.mark_changed();
                        return;
                    }
                }
                message = self.messages.recv(), if self.is_open => match message {
                    Some(message) => {
                        self.add(message);
                    }
                    None => self.is_open = false,
                },
            }
        }
    }
}

/// The next message of which only the newest matters. `None` when there are no more. Cancel-safe.
pub(super) async fn next_latest(latest: Option<&mut Latest>) -> Option<(QueueName, Vec<u8>)> {
    let Some(latest) = latest else {
        return std::future::pending().await;
    };
    loop {
        latest.bodies.changed().await.ok()?;
        if let Some(body) = latest.bodies.borrow_and_update().clone() {
            return Some((latest.queue, body));
        }
    }
}
