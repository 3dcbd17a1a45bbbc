//! The targets of a run by network: a bounded number of cells, each a prefix with a count of each status. No I/O.
//!
//! Invariant: the cells are sorted, each has a target, and all have the longest common length at which there are not more
//! than the limit. So they do not depend on the order in which the targets came.

use std::{fmt::Debug, hash::Hash};

use hashbrown::HashMap;
use pingfleet_wire::StatusKind;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_bytes::ByteBuf;

use crate::StatusCounts;

/// Bits of a digit of a number in [`write_number`]; the bit behind them says that another digit follows.
const DIGIT_BITS: u32 = 7;

/// The bit behind those of the statuses: the cell is the next one of this length.
const IS_NEXT: u8 = 1 << StatusKind::ALL.len();

/// An address as a number.
pub(super) trait AddressBits: Copy + Ord + Hash + Debug {
    /// Bits of an address.
    const BITS: u8;
    /// By how much the prefixes become shorter when there are too many cells.
    const STEP: u8;

    /// The first address of the prefix of this length.
    fn first_of(self, length: u8) -> Self;
    fn to_u128(self) -> u128;
    /// None when it is larger than an address.
    fn from_u128(number: u128) -> Option<Self>;
}

impl AddressBits for u32 {
    const BITS: u8 = 32;
    const STEP: u8 = 2;

    fn first_of(self, length: u8) -> Self {
        self & Self::MAX.checked_shl(u32::from(32 - length)).unwrap_or(0)
    }

    fn to_u128(self) -> u128 {
        self.into()
    }

    fn from_u128(number: u128) -> Option<Self> {
        number.try_into().ok()
    }
}

impl AddressBits for u128 {
    const BITS: u8 = 128;
    const STEP: u8 = 8;

    fn first_of(self, length: u8) -> Self {
        self & Self::MAX.checked_shl(u32::from(128 - length)).unwrap_or(0)
    }

    fn to_u128(self) -> u128 {
        self
    }

    fn from_u128(number: u128) -> Option<Self> {
        Some(number)
    }
}

/// The targets of one prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cell<A> {
    /// The first address of the prefix.
    pub(super) first: A,
    /// Targets with each status, in order of precedence.
    pub(super) counts: [u32; StatusKind::ALL.len()],
}

impl<A> Cell<A> {
    fn add_all(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count = count.saturating_add(more);
        }
    }

    pub(super) fn counts(&self) -> StatusCounts {
        self.counts.map(i64::from).into()
    }
}

/// The cells of one address family.
#[derive(Debug, Clone)]
pub(super) struct Cells<A> {
    /// The length of their prefixes.
    pub(super) length: u8,
    pub(super) sorted: Vec<Cell<A>>,
    /// Where each cell is; empty when that is not known.
    places: HashMap<A, u32>,
}

impl<A: PartialEq> PartialEq for Cells<A> {
    fn eq(&self, other: &Self) -> bool {
        self.length == other.length && self.sorted == other.sorted
    }
}

impl<A: Eq> Eq for Cells<A> {}

impl<A: AddressBits> Default for Cells<A> {
    fn default() -> Self {
        Self {
            length: A::BITS,
            sorted: Vec::new(),
            places: HashMap::new(),
        }
    }
}

impl<A: AddressBits> Cells<A> {
    /// Counts targets: address, and status. There are at most `max_cells` cells afterwards. Linear in the number of targets,
    /// and in that of the cells when some are new.
    pub(super) fn add(&mut self, targets: &[(A, StatusKind)], max_cells: usize) {
        if self.places.len() != self.sorted.len() {
            self.note_places();
        }
        let before = self.sorted.len();
        for (address, status) in targets {
            let first = address.first_of(self.length);
            let next = self.sorted.len() as u32;
            let place = *self.places.entry(first).or_insert(next);
            if place == next {
                self.sorted.push(Cell {
                    first,
                    counts: [0; StatusKind::ALL.len()],
                });
            }
            let count = &mut self.sorted[place as usize].counts[usize::from(status.code())];
            *count = count.saturating_add(1);
        }
        if self.sorted.len() > before {
            self.sorted.sort_unstable_by_key(|cell| cell.first);
            self.places.clear();
        }
        while self.sorted.len() > max_cells && self.length > 0 {
            self.shorten();
        }
    }

    fn note_places(&mut self) {
        let places = (0..).zip(&self.sorted);
        self.places = places.map(|(place, cell)| (cell.first, place)).collect();
    }

    /// Merges the cells into those of shorter prefixes.
    fn shorten(&mut self) {
        self.length = self.length.saturating_sub(A::STEP);
        for cell in &mut self.sorted {
            cell.first = cell.first.first_of(self.length);
        }
        self.sorted.dedup_by(|next, cell| {
            let is_same = next.first == cell.first;
            if is_same {
                cell.add_all(next);
            }
            is_same
        });
    }

    /// The number of targets with each status.
    pub(super) fn total(&self) -> StatusCounts {
        let mut total = StatusCounts::default();
        for cell in &self.sorted {
            total += cell.counts();
        }
        total
    }

    /// The length, and for each cell: which of the statuses it has and whether it follows the one before at once, otherwise
    /// its distance from that, and the counts.
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(1 + 5 * self.sorted.len());
        bytes.push(self.length);
        let shift = u32::from(A::BITS - self.length);
        let mut before = 0;
        for cell in &self.sorted {
            let number = cell.first.to_u128().checked_shr(shift).unwrap_or(0);
            let distance = number - before;
            before = number;
            let present = cell.counts.iter().enumerate();
            let present = present.fold(0, |bits, (at, count)| bits | u8::from(*count > 0) << at);
            if distance == 1 {
                bytes.push(present | IS_NEXT);
            } else {
                bytes.push(present);
                if A::BITS > 64 {
                    write_number(&mut bytes, (distance >> 64) as u64);
                }
                write_number(&mut bytes, distance as u64);
            }
            for count in cell.counts.iter().filter(|count| **count > 0) {
                write_number(&mut bytes, u64::from(*count));
            }
        }
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (&length, mut rest) = bytes.split_first()?;
        let shift = u32::from(A::BITS.checked_sub(length)?);
        let mut cells: Vec<Cell<A>> = Vec::with_capacity(bytes.len() / 3);
        let mut number = 0_u128;
        while let Some((&bits, after)) = rest.split_first() {
            rest = after;
            let mut distance = 1;
            if bits & IS_NEXT == 0 {
                let high = if A::BITS > 64 {
                    read_number(&mut rest)?
                } else {
                    0
                };
                distance = u128::from(high) << 64 | u128::from(read_number(&mut rest)?);
            }
            number = number.checked_add(distance)?;
            let first = number.checked_shl(shift).unwrap_or(0);
            if first.checked_shr(shift).unwrap_or(0) != number {
                return None;
            }
            let first = A::from_u128(first)?;
            let mut counts = [0; StatusKind::ALL.len()];
            for (at, count) in counts.iter_mut().enumerate() {
                if bits >> at & 1 == 1 {
                    *count = read_number(&mut rest)?.try_into().ok()?;
                }
            }
            if cells.last().is_some_and(|before| before.first >= first) {
                return None;
            }
            cells.push(Cell { first, counts });
        }
        Some(Self {
            length,
            sorted: cells,
            places: HashMap::new(),
        })
    }
}

impl<A: AddressBits> Serialize for Cells<A> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.to_bytes())
    }
}

impl<'de, A: AddressBits> Deserialize<'de> for Cells<A> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = ByteBuf::deserialize(deserializer)?;
        Self::from_bytes(&bytes).ok_or_else(|| de::Error::custom("its networks are malformed"))
    }
}

/// Appends a number, the low digits first (LEB128). Most take one byte.
fn write_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >> DIGIT_BITS > 0 {
        bytes.push(number as u8 | 1 << DIGIT_BITS);
        number >>= DIGIT_BITS;
    }
    bytes.push(number as u8);
}

fn read_number(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for at in 0.. {
        let (&digit, after) = rest.split_first()?;
        *rest = after;
        let value = u64::from(digit & !(1 << DIGIT_BITS));
        let shifted = value.checked_shl(at * DIGIT_BITS)?;
        if shifted >> (at * DIGIT_BITS) != value {
            return None;
        }
        number |= shifted;
        if digit >> DIGIT_BITS == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// The cells, counted in another way: at each length from the longest on.
    fn counted<A: AddressBits>(targets: &[(A, StatusKind)], max_cells: usize) -> Cells<A> {
        let mut length = A::BITS;
        loop {
            let mut counts: BTreeMap<A, [u32; 7]> = BTreeMap::new();
            for (address, status) in targets {
                let cell = counts.entry(address.first_of(length)).or_default();
                cell[usize::from(status.code())] += 1;
            }
            if counts.len() <= max_cells {
                let cell = |(first, counts)| Cell { first, counts };
                let cells = counts.into_iter().map(cell).collect();
                return Cells {
                    length,
                    sorted: cells,
                    ..Cells::default()
                };
            }
            length -= A::STEP;
        }
    }

    fn assert_counted<A: AddressBits>(targets: &[(A, StatusKind)], batch: usize) {
        for max_cells in [1, 3, 20] {
            let mut cells = Cells::default();
            for batch in targets.chunks(batch) {
                cells.add(batch, max_cells);
                let stored = Cells::from_bytes(&cells.to_bytes());
                assert_eq!(stored.as_ref(), Some(&cells));
            }
            assert_eq!(cells, counted(targets, max_cells));
            assert_eq!(cells.total().total(), targets.len() as i64);
        }
    }

    fn assert_read_again<A: AddressBits>(bytes: &[u8]) {
        if let Some(cells) = Cells::<A>::from_bytes(bytes) {
            assert_eq!(Cells::from_bytes(&cells.to_bytes()), Some(cells));
        }
    }

    /// Addresses near each other, and some anywhere.
    fn targets() -> impl Strategy<Value = Vec<(u128, StatusKind)>> {
        let address = prop_oneof![
            4 => (0..300_u128).prop_map(|number| u128::from(0x0a00_0000_u32) + number),
            1 => any::<u128>(),
        ];
        vec(
            (address, prop::sample::select(StatusKind::ALL.to_vec())),
            0..100,
        )
    }

    proptest! {
        #[test]
        fn any_batches_in_any_order_give_the_longest_prefixes_that_fit(targets in targets(), batch in 1..50_usize) {
            assert_counted(&targets, batch);
            let v4: Vec<_> = targets
                .iter()
                .map(|(address, status)| (*address as u32, *status))
                .collect();
            assert_counted(&v4, batch);
        }

        #[test]
        fn what_is_read_of_any_bytes_is_written_so_that_it_is_read_again(bytes in vec(any::<u8>(), 0..60)) {
            assert_read_again::<u32>(&bytes);
            assert_read_again::<u128>(&bytes);
        }
    }
}
