//! How many chunks a worker takes ahead (DESIGN section 8). No I/O.

use std::num::NonZeroU32;

use pingfleet_settings::Rate;
use pingfleet_wire::{Probing, WorkChunk};

/// The most chunks in hand.
pub(crate) const MOST: u16 = 256;

/// The first window of an unlimited run; it doubles while the worker idles.
pub(crate) const UNLIMITED_START: u16 = 4;

/// The last chunk of the window is settled within this many seconds, half of the broker's consumer timeout.
const SETTLED_WITHIN_S: f64 = 900.0;

/// The window that keeps the run's rate busy while chunks wait for their last answers.
pub(crate) fn window(chunk: &WorkChunk, box_rate: Rate) -> u16 {
    let Some(rate) = lower(chunk.probing.rate, box_rate) else {
        return UNLIMITED_START;
    };
    for_rate(&chunk.probing, chunk.targets.len(), rate)
}

fn for_rate(probing: &Probing, targets: usize, rate: NonZeroU32) -> u16 {
    let rate = f64::from(rate.get());
    let targets = targets.max(1) as f64;
    let worst = probing.worst_target().as_secs_f64();
    let busy = (rate * worst / targets).ceil() + 2.0;
    let sending = targets * f64::from(probing.most_requests()) / rate;
    let in_time = ((SETTLED_WITHIN_S - worst) / sending).floor();
    // Out of range casts saturate.
    busy.min(in_time).clamp(1.0, f64::from(MOST)) as u16
}

/// The lower of two rates.
fn lower(one: Rate, other: Rate) -> Rate {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(rate: u32) -> NonZeroU32 {
        NonZeroU32::new(rate).unwrap()
    }

    #[test]
    fn window_of_the_defaults() {
        // 1,000 requests a second x 4.75 s / 250 targets = 19, and two more.
        assert_eq!(for_rate(&Probing::default(), 250, rate(1000)), 21);
    }

    #[test]
    fn last_chunk_of_a_slow_run_is_settled_in_time() {
        let slow = for_rate(&Probing::default(), 200, rate(10));
        let sending = f64::from(slow) * 200.0 * 3.0 / 10.0;
        assert!(sending <= SETTLED_WITHIN_S, "{slow}");
    }

    #[test]
    fn window_is_bounded() {
        assert_eq!(for_rate(&Probing::default(), 1, rate(1_000_000)), MOST);
        assert_eq!(for_rate(&Probing::default(), 10_000, rate(1)), 1);
    }
}
