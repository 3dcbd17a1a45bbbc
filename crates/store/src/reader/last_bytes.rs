//! The addresses of a /24 as bits, to find the prefixes in it of which no address is an exception. No I/O.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// Some addresses of a /24, by their last bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LastBytes([u64; 4]);

impl LastBytes {
    /// Whether the address was not there before.
    pub(crate) fn add(&mut self, address: Ipv4Addr) -> bool {
        let [.., last] = address.octets();
        let (word, bit) = (&mut self.0[usize::from(last / 64)], 1 << (last % 64));
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    /// How many of them are in a prefix of the /24.
    pub(crate) fn count_in(&self, prefix: Ipv4Net) -> u32 {
        let [.., first] = prefix.network().octets();
        let [.., last] = prefix.broadcast().octets();
        let words = (0_u8..).zip(self.0);
        words
            .map(|(word, bits)| {
                // The part of this word that is in the prefix.
                let (start, end) = (word * 64, word * 64 + 63);
                if last < start || first > end {
                    return 0;
                }
                let (from, to) = (first.max(start) - start, last.min(end) - start);
                let inside = (u64::MAX << from) & (u64::MAX >> (63 - to));
                (bits & inside).count_ones()
            })
            .sum()
    }

    /// The largest prefixes of `network`, a /24, that have at least `min` of these addresses and none of `others`.
    pub(crate) fn prefixes_without(
        &self,
        others: &Self,
        network: Ipv4Net,
        min: u32,
    ) -> Vec<Ipv4Net> {
        let mut found = Vec::new();
        self.find(others, network, min, &mut found);
        found
    }

    fn find(&self, others: &Self, prefix: Ipv4Net, min: u32, found: &mut Vec<Ipv4Net>) {
        if self.count_in(prefix) < min.max(1) {
            return;
        }
        if others.count_in(prefix) == 0 {
            found.push(prefix);
        } else if let Ok(halves) = prefix.subnets(prefix.prefix_len() + 1) {
            halves.for_each(|half| self.find(others, half, min, found));
        }
    }
}

/// All of both.
impl std::ops::BitOr for LastBytes {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] | other.0[word]))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(bytes: impl IntoIterator<Item = u8>) -> LastBytes {
        let mut set = LastBytes::default();
        for byte in bytes {
            set.add(Ipv4Addr::new(10, 9, 3, byte));
        }
        set
    }

    fn found(members: &LastBytes, others: &LastBytes) -> Vec<String> {
        let network = Ipv4Net::new_assert(Ipv4Addr::new(10, 9, 3, 0), 24);
        let found = members.prefixes_without(others, network, 8);
        found.iter().map(Ipv4Net::to_string).collect()
    }

    #[test]
    fn the_largest_prefixes_without_an_exception_are_found() {
        let upper = set(128..255);
        assert_eq!(found(&upper, &set(1..128)), ["10.9.3.128/25"]);
        assert_eq!(found(&upper, &set([])), ["10.9.3.0/24"]);
        assert_eq!(
            found(&upper, &set([1, 200])),
            [
                "10.9.3.128/26",
                "10.9.3.192/29",
                "10.9.3.208/28",
                "10.9.3.224/27"
            ]
        );
        // Fewer are nothing that is said of a prefix.
        assert!(found(&set(1..8), &set([])).is_empty());
    }

    proptest! {
        #[test]
        fn no_exception_is_inside_and_none_is_missing(
            members in prop::collection::btree_set(any::<u8>(), 0..200),
            others in prop::collection::btree_set(any::<u8>(), 0..6),
        ) {
            let prefixes = found(&set(members.clone()), &set(others.clone()));
            let prefixes: Vec<Ipv4Net> = prefixes.iter().map(|text| text.parse().unwrap()).collect();
            let inside = |prefix: &Ipv4Net, bytes: &std::collections::BTreeSet<u8>| {
                let bytes = bytes.iter().map(|byte| Ipv4Addr::new(10, 9, 3, *byte));
                bytes.filter(|address| prefix.contains(address)).count()
            };
            for prefix in &prefixes {
                prop_assert!(inside(prefix, &members) >= 8 && inside(prefix, &others) == 0);
            }
            // Each prefix of at least a /29 without an exception is in one of them.
            for length in 24..=29 {
                let all = Ipv4Net::new_assert(Ipv4Addr::new(10, 9, 3, 0), 24);
                for prefix in all.subnets(length).unwrap() {
                    let is_whole = inside(&prefix, &members) >= 8 && inside(&prefix, &others) == 0;
                    let is_found = prefixes.iter().any(|found| found.contains(&prefix));
                    prop_assert_eq!(is_whole, is_whole && is_found, "{}", prefix);
                }
            }
        }
    }
}
