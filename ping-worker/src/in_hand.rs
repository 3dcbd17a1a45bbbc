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

/// The chunks in hand. Bounded by the prefetch, and by twice that around a lost session.
#[derive(Debug, Default)]
pub(crate) struct InHand {
    chunks: HashMap<ChunkKey, Vec<DeliveryTag>>,
}

impl InHand {
    pub(crate) fn take(&mut self, key: ChunkKey, tag: DeliveryTag) -> Taken {
        let known = self.chunks.contains_key(&key);
        self.chunks.entry(key).or_default().push(tag);
        if known { Taken::Again } else { Taken::New }
    }

    /// Removes a chunk that is published and confirmed, or given back; returns the deliveries to settle.
    pub(crate) fn settle(&mut self, key: &ChunkKey) -> Vec<DeliveryTag> {
        self.chunks.remove(key).unwrap_or_default()
    }

    /// The session is gone, and its deliveries with it. The chunks stay in hand: their results are still wanted.
    pub(crate) fn forget_tags(&mut self) {
        for tags in self.chunks.values_mut() {
            tags.clear();
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

    const fn tag(tag: u64) -> DeliveryTag {
        DeliveryTag { channel: 0, tag }
    }

    #[test]
    fn a_second_delivery_is_settled_with_the_first() {
        let key = ChunkKey {
            run: Uuid::nil(),
            chunk: 7,
        };
        let mut in_hand = InHand::default();
        assert_eq!(in_hand.take(key, tag(1)), Taken::New);
        assert_eq!(in_hand.take(key, tag(2)), Taken::Again);
        assert_eq!(in_hand.settle(&key), [tag(1), tag(2)]);
        assert_eq!(in_hand.len(), 0);
    }

    #[test]
    fn deliveries_of_a_lost_session_are_not_settled_on_the_next() {
        let key = ChunkKey {
            run: Uuid::nil(),
            chunk: 7,
        };
        let mut in_hand = InHand::default();
        in_hand.take(key, tag(1));
        in_hand.forget_tags();
        assert_eq!(in_hand.take(key, tag(1)), Taken::Again);
        assert_eq!(in_hand.settle(&key), [tag(1)]);
    }
}
