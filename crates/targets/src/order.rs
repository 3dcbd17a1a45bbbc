//! The order of probing: a permutation of the targets' indices that is computed, never stored. No I/O.
//!
//! Invariant: [`Order::position`] is a bijection on `0..count`. The shuffle is a Feistel network over the smallest
//! power of four that holds the count, with cycle walking (Black and Rogaway, "Ciphers with Arbitrary Finite Domains",
//! 2002): a position outside the count is sent through the network again, at most four times on average. The same
//! count and seed give the same order in every later version, so that a run can be repeated by its seed.

/// Rounds of the network. Four make it a good permutation (Luby and Rackoff); two more for very small halves.
const ROUNDS: u64 = 6;

/// In which order the targets of a plan are probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    count: u64,
    shuffle: Option<Shuffle>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shuffle {
    seed: u64,
    /// Bits of each half of an index.
    half_bits: u32,
}

impl Order {
    /// A shuffle across all targets, so that no subnet is probed in one burst.
    #[must_use]
    pub fn shuffled(count: u64, seed: u64) -> Self {
        let bits = u64::BITS - count.saturating_sub(1).leading_zeros();
        Self {
            count,
            shuffle: Some(Shuffle {
                seed,
                half_bits: bits.div_ceil(2),
            }),
        }
    }

    /// The order in which the targets were given.
    #[must_use]
    pub fn as_given(count: u64) -> Self {
        Self {
            count,
            shuffle: None,
        }
    }

    /// The index of the target that is probed as number `n`, from 0.
    ///
    /// # Panics
    /// When `n` is not below the count.
    #[must_use]
    pub fn position(&self, n: u64) -> u64 {
        assert!(n < self.count, "number {n} of {} targets", self.count);
        let Some(shuffle) = self.shuffle else {
            return n;
        };
        let mut position = shuffle.permute(n);
        while position >= self.count {
            position = shuffle.permute(position);
        }
        position
    }
}

impl Shuffle {
    fn permute(&self, index: u64) -> u64 {
        // Halves of no bits hold the single index 0.
        let mask = (1_u64 << self.half_bits) - 1;
        let (mut left, mut right) = (index >> self.half_bits, index & mask);
        for round in 0..ROUNDS {
            let mixed = mix(self.seed ^ mix(right.wrapping_add(round << 32)));
            (left, right) = (right, (left ^ mixed) & mask);
        }
        (left << self.half_bits) | right
    }
}

/// Mixes every bit into every other: the finaliser of `SplitMix64` (Steele, Lea and Flood, 2014).
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn order_is_a_bijection(count in 0_u64..5_000, seed: u64) {
            let order = Order::shuffled(count, seed);
            let positions: HashSet<_> = (0..count).map(|n| order.position(n)).collect();
            prop_assert_eq!(positions.len() as u64, count);
            prop_assert!(positions.iter().all(|position| *position < count));
        }

        #[test]
        fn order_stays_within_large_counts(count in 1_u64..=1 << 28, seed: u64, part in 0.0..1.0) {
            let n = (count as f64 * part) as u64;
            prop_assert!(Order::shuffled(count, seed).position(n) < count);
        }
    }

    #[test]
    fn every_size_around_a_power_of_two_is_a_bijection() {
        for bits in 0..14 {
            for count in [(1_u64 << bits) - 1, 1 << bits, (1 << bits) + 1] {
                let order = Order::shuffled(count, 7);
                let positions: HashSet<_> = (0..count).map(|n| order.position(n)).collect();
                assert_eq!(positions.len() as u64, count, "{count}");
            }
        }
    }

    #[test]
    fn two_seeds_give_two_orders() {
        let orders = [1, 2].map(|seed| {
            let order = Order::shuffled(1000, seed);
            (0..1000).map(|n| order.position(n)).collect::<Vec<_>>()
        });
        let same = (0..1000).filter(|n| orders[0][*n] == orders[1][*n]).count();
        // One fixed point is expected of two independent permutations.
        assert!(same < 10, "{same}");
    }

    #[test]
    fn neighbours_are_spread_over_subnets() {
        let order = Order::shuffled(65_536, 42);
        let subnets: Vec<_> = (0..65_536).map(|n| order.position(n) >> 8).collect();
        for window in subnets.windows(256) {
            let distinct: HashSet<_> = window.iter().collect();
            // 256 independent draws of 256 subnets meet 162 of them on average, with a standard deviation of 6.
            assert!(distinct.len() > 120, "{}", distinct.len());
        }
        let next_door = subnets.windows(2).filter(|pair| pair[0] == pair[1]).count();
        assert!(next_door < 400, "{next_door} of 256 expected");
    }

    /// A run is repeated by its seed, also by a later version.
    #[test]
    fn order_of_a_seed_stays_for_ever() {
        let order = Order::shuffled(10, 1);
        let positions: Vec<_> = (0..10).map(|n| order.position(n)).collect();
        assert_eq!(positions, [8, 7, 9, 5, 0, 6, 1, 4, 3, 2]);
        assert_eq!(Order::shuffled(1 << 24, 42).position(12_345), 198_177);
    }

    #[test]
    fn given_order_is_kept() {
        let order = Order::as_given(5);
        assert_eq!(
            (0..5).map(|n| order.position(n)).collect::<Vec<_>>(),
            [0, 1, 2, 3, 4]
        );
    }

    #[test]
    #[should_panic(expected = "number 5 of 5 targets")]
    fn a_number_past_the_end_is_a_bug() {
        let _position = Order::shuffled(5, 1).position(5);
    }
}
