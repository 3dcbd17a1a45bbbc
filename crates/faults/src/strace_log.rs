//! Counts the syncs of the write-ahead log and the acks in an `strace` log of a writer. No I/O.
//!
//! The lines are those of `strace -f -y -xx`: descriptors with their paths, and all bytes in hexadecimal.

use std::collections::{HashMap, HashSet};

/// AMQP 0-9-1: a method frame (type 1, channel, length 13), class `basic` (60), method `ack` (80).
const ACK: &str = r"\x00\x00\x00\x0d\x00\x3c\x00\x50";

/// The acks and syncs of a log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SyncCounts {
    /// Acks on the connection that has the most of them, which is the consumer of `results`.
    pub(crate) acks: usize,
    /// Successful syncs of the write-ahead log.
    pub(crate) syncs: usize,
    /// Acks without a successful sync since the previous ack. A sync that has not returned yet does not count.
    pub(crate) unsynced: usize,
}

enum Event<'a> {
    /// A sync returned 0.
    Synced,
    /// This many acks on this descriptor.
    Acked(&'a str, usize),
}

/// Reads a log.
pub(crate) fn read(trace: &str) -> SyncCounts {
    let mut syncing = HashSet::new();
    let events: Vec<Event<'_>> = trace
        .lines()
        .filter_map(|line| event(line, &mut syncing))
        .collect();
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for event in &events {
        if let Event::Acked(connection, acks) = event {
            *counts.entry(connection).or_default() += acks;
        }
    }
    let results = counts.iter().max_by_key(|(_, acks)| **acks);
    let Some((results, _)) = results else {
        return SyncCounts::default();
    };
    let mut seen = SyncCounts::default();
    let mut synced = false;
    for event in &events {
        match event {
            Event::Synced => {
                seen.syncs += 1;
                synced = true;
            }
            Event::Acked(connection, acks) if connection == results => {
                seen.acks += acks;
                seen.unsynced += usize::from(!synced);
                // Several acks in one write share one sync.
                synced = false;
            }
            Event::Acked(..) => {}
        }
    }
    seen
}

/// Parses a line. `syncing` holds the threads that began a sync of the write-ahead log in an earlier line, which has not
/// returned yet.
fn event<'a>(line: &'a str, syncing: &mut HashSet<&'a str>) -> Option<Event<'a>> {
    let (thread, rest) = line.split_once(char::is_whitespace)?;
    let rest = rest.trim_start();
    if let Some(resumed) = rest.strip_prefix("<... ") {
        let is_sync = resumed.starts_with("fsync ") || resumed.starts_with("fdatasync ");
        return (is_sync && syncing.remove(thread) && returned_0(line)).then_some(Event::Synced);
    }
    let (call, rest) = rest.split_once('(')?;
    // `7</path>`; `-xx` prints the path in hexadecimal as well.
    let descriptor = rest.split_once('>')?.0;
    if call == "fsync" || call == "fdatasync" {
        if is_log(descriptor) && line.ends_with("<unfinished ...>") {
            syncing.insert(thread);
        }
        return (is_log(descriptor) && returned_0(line)).then_some(Event::Synced);
    }
    let acks = rest.matches(ACK).count();
    (acks > 0).then_some(Event::Acked(descriptor, acks))
}

fn returned_0(line: &str) -> bool {
    line.trim_end().ends_with(" = 0")
}

/// Whether a path, plain or in hexadecimal, ends with `-wal`.
fn is_log(descriptor: &str) -> bool {
    descriptor.ends_with("-wal") || descriptor.ends_with(r"\x2d\x77\x61\x6c")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(connection: &str) -> String {
        format!(
            r#"12 sendto({connection}<socket:[1]>, "\x01\x00\x01{ACK}\x00\x00\x00\x00\x00\x00\x00\x01\x01\xce", 21, 0, NULL, 0) = 21"#
        )
    }

    const SYNC: &str = r"13 fsync(7</tmp/pingfleet.db-wal>) = 0";

    #[test]
    fn an_ack_without_a_sync_since_the_last_one_is_seen() {
        let trace = [
            SYNC,
            &ack("9"),
            &ack("9"),
            "13 fsync(8</tmp/other>) = 0",
            SYNC,
            &ack("9"),
        ]
        .join("\n");
        let expected = SyncCounts {
            acks: 3,
            syncs: 2,
            unsynced: 1,
        };
        assert_eq!(read(&trace), expected);
    }

    #[test]
    fn a_sync_that_is_under_way_or_failed_is_none() {
        let began = r"13 fdatasync(7</tmp/pingfleet.db-wal> <unfinished ...>";
        let under_way = [
            began,
            &ack("9"),
            "13 <... fdatasync resumed>) = 0",
            &ack("9"),
        ];
        let expected = SyncCounts {
            acks: 2,
            syncs: 1,
            unsynced: 1,
        };
        assert_eq!(read(&under_way.join("\n")), expected);
        let others = [began, "14 <... fdatasync resumed>) = 0", &ack("9")];
        let failed = [
            began,
            "13 <... fdatasync resumed>) = -1 EIO (Input/output error)",
            &ack("9"),
        ];
        let at_once = [
            r"13 fsync(7</tmp/pingfleet.db-wal>) = -1 EIO (Input/output error)",
            &ack("9"),
        ];
        for trace in [&others[..], &failed, &at_once] {
            let seen = read(&trace.join("\n"));
            assert_eq!((seen.syncs, seen.unsynced), (0, 1), "{trace:?}");
        }
    }

    #[test]
    fn acks_of_other_connections_do_not_count() {
        let trace = [SYNC, &ack("9"), &ack("10"), SYNC, &ack("9")].join("\n");
        let seen = read(&trace);
        assert_eq!((seen.acks, seen.unsynced), (2, 0));
    }
}
