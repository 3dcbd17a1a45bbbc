//! Entries of the error queue.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use nix::{
    libc,
    sys::{socket::ControlMessageOwned, time::TimeSpec},
};

use super::{
    super::{
        clocks::Clocks,
        message::EchoFormat,
        syscall::{Queued, SCM_TSTAMP_SND},
    },
    cursor::{Cursor, masked},
};

const IDENTIFIER: u16 = 77;
const REQUEST_ID: u32 = 5;
const SIZE: usize = 24;

/// The most control messages of an entry. The kernel sends two.
const MAX_CONTROLS: usize = 5;

/// What an entry of the error queue is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EntryKind {
    /// An ICMP error that quotes the request.
    QuotesRequest,
    /// An ICMP error that quotes something else.
    Error,
    /// When a request left.
    Stamp,
    /// Nothing that the engine uses.
    Nothing,
}

/// The first byte chooses the family, and whether the quoted message had an address; the second one how many control
/// messages the entry has, of which each takes a byte for its kind and 33 bytes. The others are a mask for the request that
/// is quoted.
///
/// An entry is an error only by an error of ICMP and its reporter, and a stamp only by a key and a time.
///
/// # Panics
/// When that does not hold.
#[must_use]
pub fn check_error_queue(bytes: &[u8]) -> EntryKind {
    let mut bytes = Cursor::new(bytes);
    let [flags, count] = bytes.take();
    let v6 = flags & 1 != 0;
    let to = address(v6, [0; 16]);
    let controls: Vec<_> = (0..usize::from(count) % (MAX_CONTROLS + 1))
        .map(|_| control(&mut bytes))
        .collect();
    let echo = EchoFormat::new(v6, flags & 4 != 0, IDENTIFIER);
    let mut request = Vec::new();
    echo.write(&mut request, REQUEST_ID, to.ip(), SIZE);
    let request = masked(request, bytes.rest());
    let length = request.len().saturating_sub(usize::from(flags >> 3));
    let request = &request[..length];
    let to = (flags & 2 == 0).then_some(to);
    match Queued::from_controls(request, to, controls.iter().cloned()) {
        Some(Queued::Error(error)) => {
            assert_eq!(error.quoted, request);
            assert_eq!(Some(error.to), to);
            let is_named = |control| {
                icmp_error(control).is_some_and(|(entry, reporter)| {
                    (entry.ee_type, entry.ee_code, reporter)
                        == (error.icmp_type, error.code, error.reporter)
                })
            };
            assert!(controls.iter().any(is_named), "{controls:?}");
            match echo.quoted(error.quoted) {
                Some(quoted) if quoted.sequence == REQUEST_ID as u16 => EntryKind::QuotesRequest,
                _ => EntryKind::Error,
            }
        }
        Some(Queued::Stamp(stamp)) => {
            let keys = controls.iter().filter_map(stamp_key);
            assert!(keys.into_iter().any(|key| key == stamp.key), "{controls:?}");
            assert!(
                times(&controls).any(|time| time == stamp.left),
                "{controls:?}"
            );
            check_clocks(stamp.left);
            EntryKind::Stamp
        }
        None => {
            let is_error = to.is_some() && controls.iter().any(|one| icmp_error(one).is_some());
            let has_key = controls.iter().any(|control| stamp_key(control).is_some());
            let is_stamp = has_key && times(&controls).next().is_some();
            // The last error counts, which may be one without a reporter.
            let has_bare = controls
                .iter()
                .any(|one| is_icmp(one) && icmp_error(one).is_none());
            assert!(!is_stamp && (!is_error || has_bare), "{controls:?}");
            EntryKind::Nothing
        }
    }
}

/// A control message that the kernel may send, and one of another kind.
fn control(bytes: &mut Cursor<'_>) -> ControlMessageOwned {
    let kind = bytes.byte();
    let entry: [u8; 16] = bytes.take();
    let from: [u8; 16] = bytes.take();
    let has_reporter = bytes.byte() & 1 == 0;
    let entry = libc::sock_extended_err {
        ee_errno: u32::from(entry[0]),
        ee_origin: entry[1],
        ee_type: entry[2],
        ee_code: entry[3],
        ee_pad: entry[4],
        ee_info: u32::from_ne_bytes([entry[5], entry[6], entry[7], entry[8]]),
        ee_data: u32::from_ne_bytes([entry[9], entry[10], entry[11], entry[12]]),
    };
    match kind % 4 {
        0 => {
            let reporter = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: 0,
                sin_addr: libc::in_addr {
                    s_addr: u32::from_ne_bytes([from[0], from[1], from[2], from[3]]),
                },
                sin_zero: [0; 8],
            };
            ControlMessageOwned::Ipv4RecvErr(entry, has_reporter.then_some(reporter))
        }
        1 => {
            let reporter = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: 0,
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: from },
                sin6_scope_id: entry.ee_info,
            };
            ControlMessageOwned::Ipv6RecvErr(entry, has_reporter.then_some(reporter))
        }
        2 => {
            let seconds = i64::from_ne_bytes(std::array::from_fn(|index| from[index]));
            // The kernel's times have less than a second of them.
            let nanos = i64::from(entry.ee_info % 1_000_000_000);
            ControlMessageOwned::ScmTimestampns(TimeSpec::new(seconds, nanos))
        }
        _ => ControlMessageOwned::Ipv4Ttl(from[0].into()),
    }
}

fn address(v6: bool, bytes: [u8; 16]) -> SocketAddr {
    let address: IpAddr = if v6 {
        bytes.into()
    } else {
        let [first, second, third, fourth, ..] = bytes;
        [first, second, third, fourth].into()
    };
    (address, 0).into()
}

fn entry_of(
    control: &ControlMessageOwned,
) -> Option<(libc::sock_extended_err, Option<SocketAddr>)> {
    match control {
        ControlMessageOwned::Ipv4RecvErr(entry, from) => {
            let from = from.map(|from| (from.sin_addr.s_addr.to_ne_bytes(), 0).into());
            Some((*entry, from))
        }
        ControlMessageOwned::Ipv6RecvErr(entry, from) => {
            let from = from.map(|from| {
                let address = std::net::Ipv6Addr::from(from.sin6_addr.s6_addr);
                std::net::SocketAddrV6::new(address, 0, 0, from.sin6_scope_id).into()
            });
            Some((*entry, from))
        }
        _ => None,
    }
}

/// Whether a control message is about an error of ICMP (`linux/errqueue.h`).
fn is_icmp(control: &ControlMessageOwned) -> bool {
    entry_of(control).is_some_and(|(entry, _)| matches!(entry.ee_origin, 2 | 3))
}

fn icmp_error(control: &ControlMessageOwned) -> Option<(libc::sock_extended_err, SocketAddr)> {
    let (entry, from) = entry_of(control).filter(|_| is_icmp(control))?;
    Some((entry, from?))
}

/// The key of a stamp that was taken when a request left.
fn stamp_key(control: &ControlMessageOwned) -> Option<u32> {
    let (entry, _) = entry_of(control)?;
    let is_departure = entry.ee_origin == 4 && entry.ee_info == SCM_TSTAMP_SND;
    is_departure.then_some(entry.ee_data)
}

fn times(controls: &[ControlMessageOwned]) -> impl Iterator<Item = Duration> {
    controls.iter().filter_map(|control| match control {
        ControlMessageOwned::ScmTimestampns(at) => Some(Duration::from(*at)),
        _ => None,
    })
}

/// A time of the kernel becomes a moment between what was known and now, or none.
fn check_clocks(time: Duration) {
    let earliest = Instant::now();
    let clocks = Clocks::read();
    let arrived = clocks.arrival(Some(time), earliest);
    assert!(arrived >= earliest && arrived <= Instant::now());
    if let Some(left) = clocks.departure(time, earliest) {
        assert!(left >= earliest && left <= Instant::now());
    }
}
