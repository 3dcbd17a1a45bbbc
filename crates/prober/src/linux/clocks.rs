//! Both clocks at one moment: the kernel stamps messages by the wall clock, and everything here is measured by the monotonic
//! one.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Two readings are taken for one moment if they are this close. Reading a clock takes less than 0.1 us.
const CLOSE: Duration = Duration::from_micros(1);

/// How often the clocks are read until two readings are close.
const MAX_READINGS: usize = 4;

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clocks {
    wall: Duration,
    now: Instant,
}

impl Clocks {
    /// Reads the clocks.
    pub(super) fn read() -> Self {
        let wall = || SystemTime::now().duration_since(UNIX_EPOCH);
        Self::read_by(Instant::now, || wall().unwrap_or_default())
    }

    /// The thread may lose its processor between two readings, so the closest ones count. The wall clock is read after
    /// `now`: what they are apart makes a moment earlier than it was.
    fn read_by(mut now: impl FnMut() -> Instant, mut wall: impl FnMut() -> Duration) -> Self {
        let mut closest: Option<(Duration, Self)> = None;
        for _ in 0..MAX_READINGS {
            let clocks = Self {
                now: now(),
                wall: wall(),
            };
            let apart = now().saturating_duration_since(clocks.now);
            if closest.is_none_or(|(least, _)| apart < least) {
                closest = Some((apart, clocks));
            }
            if apart <= CLOSE {
                break;
            }
        }
        closest.expect("the clocks are read at least once").1
    }

    /// When a message arrived, by its timestamp of the wall clock. It is not before `earliest`, up to which all earlier
    /// messages were read, so a step of the wall clock does little harm.
    pub(super) fn arrival(&self, timestamp: Option<Duration>, earliest: Instant) -> Instant {
        let age = timestamp.map_or(Duration::ZERO, |at| self.wall.saturating_sub(at));
        self.now
            .checked_sub(age)
            .map_or(earliest, |at| at.max(earliest))
    }

    /// When a message left, by its timestamp of the wall clock. `None` if that was not between `earliest` and now: then the
    /// wall clock was set in between, or the timestamp is of an earlier message.
    pub(super) fn departure(&self, timestamp: Duration, earliest: Instant) -> Option<Instant> {
        let age = self.wall.checked_sub(timestamp)?;
        let left = self.now.checked_sub(age)?;
        (left + CLOSE >= earliest).then(|| left.max(earliest))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const WALL: Duration = Duration::from_hours(500_000);
    const STALL: Duration = Duration::from_millis(30);

    #[test]
    fn a_thread_that_loses_its_processor_between_the_clocks_reads_them_again() {
        // The thread is stopped before this reading; each reading of a clock takes 20 ns.
        for stopped_before in 0..4 {
            let start = Instant::now();
            let (readings, passed) = (Cell::new(0), Cell::new(Duration::ZERO));
            let read = || {
                let stall = Duration::from_nanos(20)
                    + STALL * u32::from(readings.replace(readings.get() + 1) == stopped_before);
                passed.set(passed.get() + stall);
                passed.get()
            };
            let clocks = Clocks::read_by(|| start + read(), || WALL + read());
            let apart = clocks.wall.abs_diff(WALL + (clocks.now - start));
            assert!(apart <= CLOSE, "{stopped_before}: {apart:?}");
        }
    }

    const fn us(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    /// Both clocks 100 us after `start`, when the wall clock was `WALL`.
    fn after_100_us(start: Instant) -> Clocks {
        Clocks {
            wall: WALL + us(100),
            now: start + us(100),
        }
    }

    #[test]
    fn a_departure_is_known_unless_the_wall_clock_was_set() {
        let start = Instant::now();
        let clocks = after_100_us(start);
        let departure = |after| clocks.departure(WALL + us(after), start + us(50));
        assert_eq!(departure(80), Some(start + us(80)));
        assert_eq!(departure(100), Some(start + us(100)));
        // The clocks are not read at exactly the same moment.
        assert_eq!(departure(49), Some(start + us(50)));
        assert_eq!(departure(40), None);
        assert_eq!(departure(110), None);
    }

    #[test]
    fn an_arrival_is_not_before_what_was_read_already() {
        let start = Instant::now();
        let clocks = after_100_us(start);
        let arrival = |after| clocks.arrival(Some(WALL + us(after)), start + us(50));
        assert_eq!(arrival(80), start + us(80));
        assert_eq!(arrival(30), start + us(50));
        assert_eq!(arrival(170), start + us(100));
        assert_eq!(clocks.arrival(None, start), start + us(100));
    }
}
