//! The chunks that the worker has in hand: taken and not yet settled, with their deliveries. No I/O.
//!
//! Invariant: a chunk in hand is probed once, however many deliveries of it arrive. Each delivery is acked after the
//! result's confirm on the session that delivered it, or it is delivered again.

use std::collections::HashMap;

use pingfleet_broker::DeliveryTag;
use pingfleet_wire::ChunkKey;
use tokio::time::Instant;

/// What a delivery is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Receipt {
    /// The chunk is to be probed.
    New,
    /// The chunk is in hand already. This delivery is acked together with the other one.
    Duplicate,
}

/// A chunk in hand.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unacked {
    /// When it was taken.
    pub(crate) taken: Instant,
    /// The deliveries to settle.
    pub(crate) tags: Vec<DeliveryTag>,
    /// Its first delivery here was marked as redelivered: another process had it and did not settle it.
    pub(crate) redelivered: bool,
}

/// The chunks in hand. Bounded by the prefetch, and by twice the prefetch after a lost session.
#[derive(Debug, Default)]
pub(crate) struct InHand {
    chunks: HashMap<ChunkKey, Unacked>,
}

impl InHand {
    pub(crate) fn take(&mut self, key: ChunkKey, tag: DeliveryTag, redelivered: bool) -> Receipt {
        let known = self.chunks.contains_key(&key);
        let unacked = self.chunks.entry(key).or_insert_with(|| Unacked {
            taken: Instant::now(),
            tags: Vec::new(),
            redelivered,
        });
        unacked.tags.push(tag);
        if known {
            Receipt::Duplicate
        } else {
            Receipt::New
        }
    }

    /// Removes a chunk whose result is confirmed, or that is returned to the queue.
    pub(crate) fn settle(&mut self, key: &ChunkKey) -> Option<Unacked> {
        self.chunks.remove(key)
    }

    /// Forgets the deliveries of a lost session. The chunks stay in hand: their results are still published.
    pub(crate) fn forget_tags(&mut self) {
        for unacked in self.chunks.values_mut() {
            unacked.tags.clear();
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.chunks.len()
    }

    /// How many deliveries of this session are to be settled.
    pub(crate) fn deliveries(&self) -> usize {
        self.chunks.values().map(|unacked| unacked.tags.len()).sum()
    }

    /// The chunks, each with the time when it was taken.
    pub(crate) fn taken(&self) -> Vec<(ChunkKey, Instant)> {
        let taken = self.chunks.iter();
        taken.map(|(key, unacked)| (*key, unacked.taken)).collect()
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
        assert_eq!(in_hand.take(key, DeliveryTag(1), false), Receipt::New);
        assert_eq!(in_hand.take(key, DeliveryTag(2), true), Receipt::Duplicate);
        let unacked = in_hand.settle(&key).unwrap();
        assert_eq!(unacked.tags, [DeliveryTag(1), DeliveryTag(2)]);
        assert!(!unacked.redelivered);
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
        assert_eq!(in_hand.take(key, DeliveryTag(1), true), Receipt::Duplicate);
        assert_eq!(in_hand.settle(&key).unwrap().tags, [DeliveryTag(1)]);
    }
}
