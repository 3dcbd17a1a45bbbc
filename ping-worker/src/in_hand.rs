//! What the worker has in hand: chunks taken and not yet settled, with the deliveries that brought them. No I/O.
//!
//! Invariant: a chunk is probed once as long as it is in hand, however many deliveries of it arrive; each delivery is
//! acked after the result's confirm, on the session that it came by, or comes again.

use std::collections::HashMap;

use pingfleet_broker::DeliveryTag;
use pingfleet_wire::ChunkKey;

/// What to do with a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// Probe it.
    New,
    /// It is being probed already; it will be acked with the other delivery.
    Again,
}

/// A chunk in hand.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// The deliveries to settle.
    pub(crate) tags: Vec<DeliveryTag>,
    /// It had been delivered to another process before, which did not settle it.
    pub(crate) returned: bool,
}

/// The chunks in hand. Bounded by the prefetch, and by twice that around a lost session.
#[derive(Debug, Default)]
pub(crate) struct InHand {
    chunks: HashMap<ChunkKey, Held>,
}

impl InHand {
    pub(crate) fn take(&mut self, key: ChunkKey, tag: DeliveryTag, redelivered: bool) -> Taken {
        let known = self.chunks.contains_key(&key);
        let held = self.chunks.entry(key).or_insert_with(|| Held {
            tags: Vec::new(),
            returned: redelivered,
        });
        held.tags.push(tag);
        if known { Taken::Again } else { Taken::New }
    }

    /// Removes a chunk that is published and confirmed, or given back.
    pub(crate) fn settle(&mut self, key: &ChunkKey) -> Held {
        self.chunks.remove(key).unwrap_or_default()
    }

    /// The session is gone, and its deliveries with it. The chunks stay in hand: their results are still wanted.
    pub(crate) fn forget_tags(&mut self) {
        for held in self.chunks.values_mut() {
            held.tags.clear();
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.chunks.len()
    }

    pub(crate) fn keys(&self) -> Vec<ChunkKey> {
        self.chunks.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_second_delivery_is_settled_with_the_first() {
        let key = ChunkKey {
            run: Uuid::nil(),
            chunk: 7,
        };
        let mut in_hand = InHand::default();
        assert_eq!(in_hand.take(key, DeliveryTag(1), false), Taken::New);
        assert_eq!(in_hand.take(key, DeliveryTag(2), true), Taken::Again);
        let held = in_hand.settle(&key);
        assert_eq!(held.tags, [DeliveryTag(1), DeliveryTag(2)]);
        assert!(!held.returned);
        assert_eq!(in_hand.len(), 0);
    }

    #[test]
    fn deliveries_of_a_lost_session_are_not_settled_on_the_next() {
        let key = ChunkKey {
            run: Uuid::nil(),
            chunk: 7,
        };
        let mut in_hand = InHand::default();
        in_hand.take(key, DeliveryTag(1), true);
        in_hand.forget_tags();
        assert_eq!(in_hand.take(key, DeliveryTag(1), true), Taken::Again);
        assert_eq!(in_hand.settle(&key).tags, [DeliveryTag(1)]);
    }
}
