//! The kernel's counter of outgoing IPv6 messages that it discarded: by a full queue of an interface, by a filter, or by a
//! full connection table. It reports none of them to an `ICMPv6` datagram socket; the send succeeds. Invariant: no rise
//! is missed, and each has a time after it happened. The counter covers the whole network namespace of the calling thread,
//! so it also rises by what other programs lose.
//!
//! Sends that were refused with an error are counted there as well, and a second time as `ICMPv6` errors. Only the
//! difference was reported to nobody.
//!
//! Source: Linux `net/ipv6/ping.c` (`ping_v6_sendmsg` gives the length, whatever became of the message), RFC 4293
//! (`ipSystemStatsOutDiscards`).

use std::{
    fs::File,
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

use tracing::warn;

/// The shortest time between two readings. For each the kernel adds up the counters of all CPUs, which takes about 25 µs.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// Room for the text of all counters.
const MAX_BYTES: usize = 16 << 10;

/// The counter, as one thread reads it.
#[derive(Debug)]
pub(super) struct Discards {
    /// Opened once. It stays that of the network namespace in which it was opened.
    file: Option<File>,
    /// The last two readings, the latest one first. The kernel does not add up both counters at the same moment: a refusal
    /// in between makes one reading too small.
    counts: [Option<i64>; 2],
    checked: Option<Instant>,
    rose: Option<Instant>,
}

impl Discards {
    /// Takes the first reading. Without the counters, for example where IPv6 is switched off, no rise is ever found.
    pub(super) fn watch() -> Self {
        let file = File::open("/proc/thread-self/net/snmp6")
            .inspect_err(|error| warn!(%error, "the counter of discarded IPv6 messages is not readable: such losses are not detected"));
        let mut discards = Self {
            file: file.ok(),
            counts: [None; 2],
            checked: None,
            rose: None,
        };
        discards.check(Instant::now());
        discards
    }

    /// Reads the counter, unless it was read just before.
    pub(super) fn check(&mut self, now: Instant) {
        if self
            .checked
            .is_some_and(|checked| now < checked + CHECK_INTERVAL)
        {
            return;
        }
        self.checked = Some(now);
        let Some(file) = &self.file else {
            return;
        };
        let mut bytes = [0; MAX_BYTES];
        match file.read_at(&mut bytes, 0) {
            Ok(length) => self.take_count(&bytes[..length], now),
            Err(error) => warn!(%error, "cannot read the counter of discarded IPv6 messages"),
        }
    }

    fn take_count(&mut self, text: &[u8], now: Instant) {
        let count = parse(text);
        let before = self.counts.into_iter().flatten().max();
        if before.is_some_and(|before| count.is_some_and(|count| count > before)) {
            self.rose = Some(now);
        }
        self.counts = [count, self.counts[0]];
    }

    /// When the count was checked at.
    pub(super) fn last_checked(&self) -> Option<Instant> {
        self.checked
    }

    /// When a rise was last found.
    pub(super) fn last_rise(&self) -> Option<Instant> {
        self.rose
    }
}

/// Discards minus errors, from lines of the form `NAME  VALUE`.
fn parse(text: &[u8]) -> Option<i64> {
    let text = str::from_utf8(text).ok()?;
    let value = |name| {
        let mut values = text.lines().filter_map(|line| line.strip_prefix(name));
        values.next()?.trim().parse::<i64>().ok()
    };
    Some(value("Ip6OutDiscards")? - value("Icmp6OutErrors")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_rise_of_unreported_discards_is_a_loss() {
        let start = Instant::now();
        let mut discards = Discards {
            file: None,
            counts: [None; 2],
            checked: None,
            rose: None,
        };
        let ms = |millis| start + Duration::from_millis(millis);
        for (after, discarded, errors, rose) in [
            (0, 7, 3, None),
            (20, 7, 3, None),
            (40, 9, 3, Some(40)),
            (60, 9, 3, Some(40)),
            // Refusals; the last one happens between the two sums.
            (80, 12, 6, Some(40)),
            (100, 12, 7, Some(40)),
            (120, 13, 7, Some(40)),
            // A refusal and a discard at once.
            (140, 15, 8, Some(140)),
        ] {
            let text = format!(
                "Ip6OutRequests\t9\nIp6OutDiscards   \t{discarded}\nIp6OutNoRoutes\t1\nIcmp6OutErrors \t{errors}\n"
            );
            discards.take_count(text.as_bytes(), ms(after));
            assert_eq!(discards.last_rise(), rose.map(ms), "{after}");
        }
    }

    #[test]
    fn this_kernel_has_the_counter() {
        assert!(Discards::watch().counts[0].is_some());
    }
}
