//! What the kernel throws away of outgoing IPv6, by its own count: a full queue of an interface, a filter, a full table
//! of connections. To a datagram socket of `ICMPv6` it reports none of them, the send succeeds. Invariant: no rise is
//! missed, and each is noted at a moment after it. The count is of the whole network of the calling thread, so that
//! what others lose is noted as well.
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
const LOOK: Duration = Duration::from_millis(20);

/// Room for the whole of the kernel's counters.
const BYTES: usize = 16 << 10;

/// The count of one thread.
#[derive(Debug)]
pub(super) struct Discards {
    /// Opened once: it stays that of the network in which it was opened.
    file: Option<File>,
    count: Option<u64>,
    looked: Option<Instant>,
    rose: Option<Instant>,
}

impl Discards {
    /// Begins to count. Without the kernel's counters, as where IPv6 is switched off, nothing is noticed.
    pub(super) fn watch() -> Self {
        let file = File::open("/proc/thread-self/net/snmp6")
            .inspect_err(|error| warn!(%error, "IPv6 messages thrown away here are not noticed"));
        let mut discards = Self {
            file: file.ok(),
            count: None,
            looked: None,
            rose: None,
        };
        discards.look(Instant::now());
        discards
    }

    /// Looks at the count, if that was not done just now.
    pub(super) fn look(&mut self, now: Instant) {
        if self.looked.is_some_and(|looked| now < looked + LOOK) {
            return;
        }
        self.looked = Some(now);
        let Some(file) = &self.file else {
            return;
        };
        let mut bytes = [0; BYTES];
        match file.read_at(&mut bytes, 0) {
            Ok(length) => self.counted(&bytes[..length], now),
            Err(error) => warn!(%error, "the kernel does not tell what it threw away"),
        }
    }

    fn counted(&mut self, text: &[u8], now: Instant) {
        let count = parse(text);
        let before = std::mem::replace(&mut self.count, count);
        if before.is_some() && before != count {
            self.rose = Some(now);
        }
    }

    /// When the count was looked at.
    pub(super) fn looked(&self) -> Option<Instant> {
        self.looked
    }

    /// When it was last found to have risen.
    pub(super) fn rose(&self) -> Option<Instant> {
        self.rose
    }
}

/// The value of the line `Ip6OutDiscards  VALUE`.
fn parse(text: &[u8]) -> Option<u64> {
    let text = str::from_utf8(text).ok()?;
    let mut values = text
        .lines()
        .filter_map(|line| line.strip_prefix("Ip6OutDiscards"));
    values.next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_count_that_rose_is_a_loss_and_only_then() {
        let start = Instant::now();
        let mut discards = Discards {
            file: None,
            count: None,
            looked: None,
            rose: None,
        };
        let text =
            |count| format!("Ip6InDiscards\t9\nIp6OutDiscards   \t{count}\nIp6OutNoRoutes\t1\n");
        for (after, count, rose) in [
            (0, 7, None),
            (20, 7, None),
            (40, 8, Some(40)),
            (60, 8, Some(40)),
        ] {
            let ms = |millis| start + Duration::from_millis(millis);
            discards.counted(text(count).as_bytes(), ms(after));
            assert_eq!(discards.rose(), rose.map(ms), "{after}");
        }
    }

    #[test]
    fn this_kernel_has_the_count() {
        assert!(Discards::watch().count.is_some());
    }
}
