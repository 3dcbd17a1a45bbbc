//! Which request a reply or an ICMP error belongs to. Every request of a socket has an id, which counts up and wraps
//! at 2^32; its lower 16 bits are the ICMP sequence number. Invariant: no two requests that may still be answered have both the same
//! address and the same sequence number. Pure: no I/O.
//!
//! The slots are a ring that doubles when it is half full, so a lookup is an index and costs the same with any number of
//! requests. With more than 65,536 slots a sequence number has several candidates, and the address decides between them.

/// Slots at the start; a few kilobytes.
const INITIAL_SLOTS: usize = 1024;

/// Sequence numbers of ICMP (RFC 792, page 14).
const SEQUENCE_NUMBERS: usize = 1 << 16;

/// A request that may still be answered, in time or late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InFlight {
    /// Index of the request in its target's attempt, from 0.
    pub(super) request: u16,
    /// The target, by its index.
    pub(super) target: u32,
    /// Id of the target's request before this one.
    pub(super) previous: Option<u32>,
}

/// All requests that may still be answered, by their ids.
#[derive(Debug)]
pub(super) struct SequenceMap {
    slots: Vec<Option<(u32, InFlight)>>,
    next: u32,
    used: usize,
}

impl SequenceMap {
    /// The first request gets the id `first`.
    pub(super) fn starting_at(first: u32) -> Self {
        Self {
            slots: vec![None; INITIAL_SLOTS],
            next: first,
            used: 0,
        }
    }

    /// Gives `in_flight` the next id. `None` when every sequence number is in use for its address. `same_address` says
    /// whether another target has that address.
    pub(super) fn insert(
        &mut self,
        in_flight: InFlight,
        same_address: impl Fn(u32) -> bool,
    ) -> Option<u32> {
        if self.used * 2 >= self.slots.len() {
            self.double();
        }
        let mut rejected = 0;
        while rejected < SEQUENCE_NUMBERS {
            let request_id = self.next;
            self.next = self.next.wrapping_add(1);
            let index = self.index(request_id);
            // At most half of the slots are used, so a free one is near.
            if self.slots[index].is_some() {
                continue;
            }
            if self.is_in_use(request_id, &same_address) {
                rejected += 1;
                continue;
            }
            self.slots[index] = Some((request_id, in_flight));
            self.used += 1;
            return Some(request_id);
        }
        None
    }

    /// The request with an id.
    pub(super) fn get(&self, request_id: u32) -> Option<InFlight> {
        let (used_by, in_flight) = self.slots[self.index(request_id)]?;
        (used_by == request_id).then_some(in_flight)
    }

    /// Removes a request.
    pub(super) fn remove(&mut self, request_id: u32) -> Option<InFlight> {
        let index = self.index(request_id);
        let (_, in_flight) = self.slots[index].take_if(|(used_by, _)| *used_by == request_id)?;
        self.used -= 1;
        Some(in_flight)
    }

    /// The requests that were sent with a sequence number, with their ids.
    pub(super) fn candidates(&self, sequence: u16) -> impl Iterator<Item = (u32, InFlight)> {
        let step = self.slots.len().min(SEQUENCE_NUMBERS);
        (usize::from(sequence) & (step - 1)..self.slots.len())
            .step_by(step)
            .filter_map(|index| self.slots[index])
            .filter(move |(request_id, _)| *request_id as u16 == sequence)
    }

    fn is_in_use(&self, request_id: u32, same_address: impl Fn(u32) -> bool) -> bool {
        self.candidates(request_id as u16)
            .any(|(_, in_flight)| same_address(in_flight.target))
    }

    fn index(&self, request_id: u32) -> usize {
        request_id as usize & (self.slots.len() - 1)
    }

    fn double(&mut self) {
        let doubled = vec![None; self.slots.len() * 2];
        for used in std::mem::replace(&mut self.slots, doubled)
            .into_iter()
            .flatten()
        {
            // Ids that differ in the smaller ring differ in the larger one.
            let index = self.index(used.0);
            self.slots[index] = Some(used);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn in_flight(target: u32) -> InFlight {
        InFlight {
            request: 0,
            target,
            previous: None,
        }
    }

    #[test]
    fn over_65_535_requests_are_each_found_by_sequence_and_target() {
        let mut map = SequenceMap::starting_at(u32::MAX - 1000);
        let used: Vec<_> = (0..200_000)
            .map(|target| {
                map.insert(in_flight(target), |other| other == target)
                    .unwrap()
            })
            .collect();
        let distinct: HashSet<_> = used.iter().collect();
        assert_eq!(distinct.len(), used.len());
        for (target, request_id) in (0..).zip(&used) {
            let found: Vec<_> = map
                .candidates(*request_id as u16)
                .filter(|(_, in_flight)| in_flight.target == target)
                .collect();
            assert_eq!(found, [(*request_id, in_flight(target))]);
            assert_eq!(map.get(*request_id), Some(in_flight(target)));
        }
    }

    #[test]
    fn an_address_never_has_a_sequence_twice() {
        let mut map = SequenceMap::starting_at(7);
        let mut sequences = HashSet::new();
        // All requests are to one address, and none is answered.
        for target in 0..65_536 {
            let request_id = map.insert(in_flight(target), |_| true).unwrap();
            assert!(sequences.insert(request_id as u16));
        }
        // One of them can no longer be answered: its number is free again.
        assert_eq!(map.insert(in_flight(65_536), |_| true), None);
        assert!(map.remove(7 + 1000).is_some());
        let request_id = map.insert(in_flight(65_536), |_| true).unwrap();
        assert_eq!(request_id as u16, 7 + 1000);
    }

    #[test]
    fn a_removed_request_is_not_found() {
        let mut map = SequenceMap::starting_at(0);
        let request_id = map.insert(in_flight(1), |_| false).unwrap();
        assert_eq!(map.remove(request_id), Some(in_flight(1)));
        assert_eq!(map.remove(request_id), None);
        assert_eq!(map.get(request_id), None);
        assert_eq!(map.candidates(request_id as u16).count(), 0);
        let next = map.insert(in_flight(2), |_| false).unwrap();
        assert_ne!(next as u16, request_id as u16);
    }
}
