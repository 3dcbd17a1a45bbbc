//! Counters of the kernel for messages that it threw away without a report to the socket. Invariant: no rise is missed, and
//! each has a time after it happened. Each counter covers at least the whole network namespace of the calling thread, so it
//! also rises by what other programs lose.

use std::{
    fs::File,
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

use tracing::{debug, warn};

/// The shortest time between two readings. For each the kernel adds up the counters of all CPUs, which takes about 25 µs.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// Room for the text of all counters.
const MAX_BYTES: usize = 16 << 10;

/// What a counter counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counted {
    /// Outgoing IPv6 messages that were discarded: by a full queue of an interface, by a filter, or by a full connection
    /// table. The send of an `ICMPv6` datagram socket succeeds all the same. Sends that were refused with an error are
    /// counted there as well, and a second time as `ICMPv6` errors. Only the difference was reported to nobody.
    ///
    /// Source: Linux `net/ipv6/ping.c` (`ping_v6_sendmsg` gives the length, whatever became of the message), RFC 4293
    /// (`ipSystemStatsOutDiscards`).
    Ipv6Discards,
    /// Incoming IPv4 messages from a source to which there is no route by the interface on which they came (RFC 3704).
    ///
    /// Source: Linux `net/ipv4/ip_input.c`, `LINUX_MIB_IPRPFILTER`.
    ReversePathDrops,
    /// Outgoing messages that waited for a link address, IPv4 or IPv6, and for which the queue had no room. The counter
    /// covers all network namespaces, and only the first one shows it.
    ///
    /// Source: Linux `net/core/neighbour.c`, `neigh_stat_seq_show`.
    UnresolvedDiscards { v6: bool },
}

impl Counted {
    fn path(self) -> &'static str {
        match self {
            Self::Ipv6Discards => "/proc/thread-self/net/snmp6",
            Self::ReversePathDrops => "/proc/thread-self/net/netstat",
            Self::UnresolvedDiscards { v6: false } => "/proc/thread-self/net/stat/arp_cache",
            Self::UnresolvedDiscards { v6: true } => "/proc/thread-self/net/stat/ndisc_cache",
        }
    }

    /// The counter's value in the text of its file.
    fn parse(self, text: &[u8]) -> Option<i64> {
        let text = str::from_utf8(text).ok()?;
        match self {
            Self::Ipv6Discards => {
                let value = |name| {
                    let mut values = text.lines().filter_map(|line| line.strip_prefix(name));
                    values.next()?.trim().parse::<i64>().ok()
                };
                Some(value("Ip6OutDiscards")? - value("Icmp6OutErrors")?)
            }
            Self::ReversePathDrops => {
                let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
                let (names, values) = (lines.next()?, lines.next()?);
                let column = names
                    .split(' ')
                    .position(|name| name == "IPReversePathFilter")?;
                values.split(' ').nth(column)?.parse().ok()
            }
            Self::UnresolvedDiscards { .. } => {
                let mut lines = text.lines();
                let mut names = lines.next()?.split_ascii_whitespace();
                let column = names.position(|name| name == "unresolved_discards")?;
                // A line for each CPU.
                let counts = lines.map(|line| {
                    let count = line.split_ascii_whitespace().nth(column)?;
                    i64::from_str_radix(count, 16).ok()
                });
                counts.sum()
            }
        }
    }
}

/// One counter, as one thread reads it.
#[derive(Debug)]
pub(super) struct KernelCounter {
    counted: Counted,
    /// Opened once. It stays that of the network namespace in which it was opened.
    file: Option<File>,
    /// The last two readings, the latest one first. The kernel does not add up all counters of a file at the same moment, so
    /// one reading of a difference may be too small.
    counts: [Option<i64>; 2],
    checked: Option<Instant>,
    rose: Option<Instant>,
    total: u64,
}

impl KernelCounter {
    /// Takes the first reading. Without the file no rise is ever found.
    pub(super) fn watch(counted: Counted) -> Self {
        let file = File::open(counted.path()).inspect_err(|error| not_readable(counted, error));
        let mut counter = Self::of(counted, file.ok());
        counter.check(Instant::now());
        counter
    }

    fn of(counted: Counted, file: Option<File>) -> Self {
        Self {
            counted,
            file,
            counts: [None; 2],
            checked: None,
            rose: None,
            total: 0,
        }
    }

    /// Reads the counter, unless it was read just before. Returns the moment up to which every rise is known.
    pub(super) fn check(&mut self, now: Instant) -> Instant {
        if let Some(checked) = self.checked
            && now < checked + CHECK_INTERVAL
        {
            return checked;
        }
        self.checked = Some(now);
        let Some(file) = &self.file else {
            return now;
        };
        let mut bytes = [0; MAX_BYTES];
        match file.read_at(&mut bytes, 0) {
            Ok(length) => self.take_count(&bytes[..length], now),
            Err(error) => {
                let path = self.counted.path();
                warn!(%error, path, "cannot read a counter of the kernel");
            }
        }
        now
    }

    fn take_count(&mut self, text: &[u8], now: Instant) {
        let count = self.counted.parse(text);
        let before = self.counts.into_iter().flatten().max();
        if let (Some(before), Some(count)) = (before, count)
            && count > before
        {
            self.rose = Some(now);
            self.total += (count - before) as u64;
        }
        self.counts = [count, self.counts[0]];
    }

    /// How much it has risen since the first reading.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// When a rise was last found.
    pub(super) fn last_rise(&self) -> Option<Instant> {
        self.rose
    }
}

/// Logs that a counter cannot be read. Where IPv6 is switched off, and in most network namespaces, some do not exist.
fn not_readable(counted: Counted, error: &io::Error) {
    let path = counted.path();
    if error.kind() == ErrorKind::NotFound {
        debug!(path, "a counter of the kernel does not exist here");
    } else {
        warn!(%error, path, "a counter of the kernel is not readable: such losses are not detected");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_rise_of_unreported_discards_is_a_loss() {
        let start = Instant::now();
        let mut discards = KernelCounter::of(Counted::Ipv6Discards, None);
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
    fn columns_are_found_by_their_names() {
        let netstat = "TcpExt: SyncookiesSent IPReversePathFilter TCPTimeWaitOverflow\n\
             TcpExt: 1 7 2\nIpExt: InNoRoutes\nIpExt: 3\n";
        let read = Counted::ReversePathDrops.parse(netstat.as_bytes());
        assert_eq!(read, Some(7));
        let table = "entries  allocs unresolved_discards table_fulls\n\
             00000002 00001e88 0000000a 00000000\n00000002 00000000 00000011 00000000\n";
        let counted = Counted::UnresolvedDiscards { v6: true };
        assert_eq!(counted.parse(table.as_bytes()), Some(10 + 17));
        assert_eq!(counted.parse(netstat.as_bytes()), None);
    }

    #[test]
    fn this_kernel_has_the_counters() {
        for counted in [Counted::Ipv6Discards, Counted::ReversePathDrops] {
            assert!(
                KernelCounter::watch(counted).counts[0].is_some(),
                "{counted:?}"
            );
        }
    }
}
