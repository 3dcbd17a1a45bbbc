//! Changes to the bytes of a message, as a strategy.

use proptest::{collection::vec, prelude::*, sample::Index};

/// A change to the bytes of a message.
#[derive(Debug, Clone)]
pub(crate) enum Mutation {
    Flip(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Repeat(Index, usize),
}

impl Mutation {
    pub(crate) fn any() -> impl Strategy<Value = Self> {
        prop_oneof![
            4 => (any::<Index>(), 1..=u8::MAX).prop_map(|(place, bits)| Self::Flip(place, bits)),
            1 => (any::<Index>(), vec(any::<u8>(), 1..9)).prop_map(|(place, new)| Self::Insert(place, new)),
            1 => (any::<Index>(), 1..9_usize).prop_map(|(place, count)| Self::Remove(place, count)),
            1 => (any::<Index>(), 1..40_usize).prop_map(|(place, count)| Self::Repeat(place, count)),
        ]
    }

    pub(crate) fn apply(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        match self {
            Self::Flip(place, bits) => {
                let place = place.index(bytes.len());
                bytes[place] ^= bits;
            }
            Self::Insert(place, new) => {
                let place = place.index(bytes.len());
                bytes.splice(place..place, new.iter().copied());
            }
            Self::Remove(place, count) => {
                let place = place.index(bytes.len());
                bytes.drain(place..bytes.len().min(place + count));
            }
            Self::Repeat(place, count) => {
                let place = place.index(bytes.len());
                let end = bytes.len().min(place + count);
                bytes.extend_from_within(place..end);
            }
        }
    }
}
