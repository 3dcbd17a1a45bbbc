//! Which request a sequence number stands for. Every request of a socket gets a place: a number that never restarts
//! and whose lower 16 bits are its sequence number. Invariant: no two requests that are listened for share address and
//! sequence number. Pure: no I/O.
//!
//! A ring that doubles, so that a look-up is an index and costs the same however many requests are out. More than
//! 65,536 places means that a sequence number has several candidates, one for each 65,536; the address tells them apart.

/// Places at the start; a few kilobytes.
const FIRST: usize = 1024;

/// Sequence numbers of ICMP (RFC 792, page 14).
const SEQUENCES: usize = 1 << 16;

/// A request on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    /// Number of the request in the course of its target, from 0.
    pub(super) request: u16,
    /// The target, by its index.
    pub(super) target: u32,
    /// The target's request before this one.
    pub(super) previous: Option<u32>,
}

/// All requests that are listened for.
#[derive(Debug)]
pub(super) struct Places {
    ring: Vec<Option<(u32, Entry)>>,
    next: u32,
    taken: usize,
}

impl Places {
    /// Begins with the place `first`.
    pub(super) fn starting_at(first: u32) -> Self {
        Self {
            ring: vec![None; FIRST],
            next: first,
            taken: 0,
        }
    }

    /// Takes the next place for `entry`; none while all sequence numbers of its address are listened for. `same_address`
    /// tells whether another target has the same address.
    pub(super) fn take(&mut self, entry: Entry, same_address: impl Fn(u32) -> bool) -> Option<u32> {
        if self.taken * 2 >= self.ring.len() {
            self.double();
        }
        let mut rejected = 0;
        while rejected < SEQUENCES {
            let place = self.next;
            self.next = self.next.wrapping_add(1);
            let index = self.index(place);
            // At most half of the ring is taken, so a free place is never far.
            if self.ring[index].is_some() {
                continue;
            }
            if self.is_listened_for(place, &same_address) {
                rejected += 1;
                continue;
            }
            self.ring[index] = Some((place, entry));
            self.taken += 1;
            return Some(place);
        }
        None
    }

    /// Gives a place back; returns what was there.
    pub(super) fn free(&mut self, place: u32) -> Option<Entry> {
        let index = self.index(place);
        let (_, entry) = self.ring[index].take_if(|(taken, _)| *taken == place)?;
        self.taken -= 1;
        Some(entry)
    }

    /// The requests that were sent with a sequence number.
    pub(super) fn candidates(&self, sequence: u16) -> impl Iterator<Item = (u32, Entry)> {
        let step = self.ring.len().min(SEQUENCES);
        (usize::from(sequence) & (step - 1)..self.ring.len())
            .step_by(step)
            .filter_map(|index| self.ring[index])
            .filter(move |(place, _)| *place as u16 == sequence)
    }

    fn is_listened_for(&self, place: u32, same_address: impl Fn(u32) -> bool) -> bool {
        self.candidates(place as u16)
            .any(|(_, entry)| same_address(entry.target))
    }

    fn index(&self, place: u32) -> usize {
        place as usize & (self.ring.len() - 1)
    }

    fn double(&mut self) {
        let doubled = vec![None; self.ring.len() * 2];
        for taken in std::mem::replace(&mut self.ring, doubled)
            .into_iter()
            .flatten()
        {
            // Places that differ in the smaller ring differ in the larger one.
            let index = self.index(taken.0);
            self.ring[index] = Some(taken);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn entry(target: u32) -> Entry {
        Entry {
            request: 0,
            target,
            previous: None,
        }
    }

    #[test]
    fn over_65_535_requests_are_each_found_by_sequence_and_target() {
        let mut places = Places::starting_at(u32::MAX - 1000);
        let taken: Vec<_> = (0..200_000)
            .map(|target| places.take(entry(target), |other| other == target).unwrap())
            .collect();
        let distinct: HashSet<_> = taken.iter().collect();
        assert_eq!(distinct.len(), taken.len());
        for (target, place) in (0..).zip(&taken) {
            let found: Vec<_> = places
                .candidates(*place as u16)
                .filter(|(_, entry)| entry.target == target)
                .collect();
            assert_eq!(found, [(*place, entry(target))]);
        }
    }

    #[test]
    fn an_address_never_has_a_sequence_twice() {
        let mut places = Places::starting_at(7);
        let mut sequences = HashSet::new();
        // Every request is to one address, and stays out.
        for target in 0..65_536 {
            let place = places.take(entry(target), |_| true).unwrap();
            assert!(sequences.insert(place as u16));
        }
        // Until one of them is listened for no longer.
        assert_eq!(places.take(entry(65_536), |_| true), None);
        assert!(places.free(7 + 1000).is_some());
        let place = places.take(entry(65_536), |_| true).unwrap();
        assert_eq!(place as u16, 7 + 1000);
    }

    #[test]
    fn a_place_that_was_given_back_is_not_found() {
        let mut places = Places::starting_at(0);
        let place = places.take(entry(1), |_| false).unwrap();
        assert_eq!(places.free(place), Some(entry(1)));
        assert_eq!(places.free(place), None);
        assert_eq!(places.candidates(place as u16).count(), 0);
        let next = places.take(entry(2), |_| false).unwrap();
        assert_ne!(next as u16, place as u16);
    }
}
