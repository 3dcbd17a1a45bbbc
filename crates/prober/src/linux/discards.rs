//! What the kernel throws away of outgoing IPv6, by its own count: a full queue of an interface, a filter, a full table
//! of connections. To a datagram socket of `ICMPv6` it reports none of them, the send succeeds. Invariant: no rise is
//! missed, and each is noted at a moment after it. The count is of the whole network of the calling thread, so that
//! what others lose is noted as well.
//!
//! What a send was refused for, such as the error of another target that waited on the socket, is counted in the same
//! place, and once more as an error of `ICMPv6`: only the difference is what nobody was told of.
//!
//! Source: Linux `net/ipv6/ping.c` (`ping_v6_sendmsg` gives the length, whatever became of the message), RFC 4293
//! (`ipSystemStatsOutDiscards`).

use std::{
    fs::File,
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

use tracing::warn;

/// The count is not read more often than this: the kernel adds up those of all CPUs each time, in about 25 µs.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// Room for the whole of the kernel's counters.
const BYTES: usize = 16 << 10;

/// The count of one thread.
#[derive(Debug)]
pub(super) struct Discards {
    /// Opened once: it stays that of the network in which it was opened.
    file: Option<File>,
    /// At the last two looks, the latest one first. The kernel's sums are not of one moment: a refusal that falls
    /// between them makes one count too small.
    counts: [Option<i64>; 2],
    checked: Option<Instant>,
    rose: Option<Instant>,
}

impl Discards {
    /// Begins to count. Without the kernel's counters, as where IPv6 is switched off, nothing is noticed.
    pub(super) fn watch() -> Self {
        let file = File::open("/proc/thread-self/net/snmp6")
            .inspect_err(|error| warn!(%error, "IPv6 messages thrown away here are not noticed"));
        let mut discards = Self {
            file: file.ok(),
            counts: [None; 2],
            checked: None,
            rose: None,
        };
        discards.check(Instant::now());
        discards
    }

    /// Looks at the count, if that was not done just now.
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
        let mut bytes = [0; BYTES];
        match file.read_at(&mut bytes, 0) {
            Ok(length) => self.take_count(&bytes[..length], now),
            Err(error) => warn!(%error, "the kernel does not tell what it threw away"),
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

    /// When it was last found to have risen.
    pub(super) fn last_rise(&self) -> Option<Instant> {
        self.rose
    }
}

/// The difference between two lines of the form `NAME  VALUE`.
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
    fn only_what_nobody_was_told_of_is_a_loss_and_only_when_it_rose() {
        let start = Instant::now();
        let mut discards = Discards {
            file: None,
            counts: [None; 2],
            checked: None,
            rose: None,
        };
        let ms = |millis| start + Duration::from_millis(millis);
        for (after, thrown_away, errors, rose) in [
            (0, 7, 3, None),
            (20, 7, 3, None),
            (40, 9, 3, Some(40)),
            (60, 9, 3, Some(40)),
            // Refusals, the last of them between the two sums.
            (80, 12, 6, Some(40)),
            (100, 12, 7, Some(40)),
            (120, 13, 7, Some(40)),
            // Both at once.
            (140, 15, 8, Some(140)),
        ] {
            let text = format!(
                "Ip6OutRequests\t9\nIp6OutDiscards   \t{thrown_away}\nIp6OutNoRoutes\t1\nIcmp6OutErrors \t{errors}\n"
            );
            discards.take_count(text.as_bytes(), ms(after));
            assert_eq!(discards.last_rise(), rose.map(ms), "{after}");
        }
    }

    #[test]
    fn this_kernel_has_the_count() {
        assert!(Discards::watch().counts[0].is_some());
    }
}
