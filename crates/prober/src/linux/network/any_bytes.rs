//! What holds for any bytes of the kernel's reports: of links, addresses and neighbours by netlink, and of routes as text.
//! Compiled for the tests and for the fuzz targets in `fuzz`.

use super::{
    gateways::read_entry,
    links::LinkEvents,
    neighbours::read_answer,
    netlink::Messages,
    route_files::{Line, TABLES},
    routes::Gateway,
};

/// Bytes of the header of a netlink message.
const HEADER: usize = 16;

/// What bytes are as a report of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NetworkKind {
    /// States of links.
    Link,
    /// Changes of addresses.
    Address,
    /// A neighbour.
    Neighbour,
    /// An error as an answer.
    Error,
    /// A route.
    Route,
    /// A route that refuses.
    Refusing,
    /// None of these.
    Nothing,
}

/// The first byte says what the others are: what one call received on a netlink socket, or a line of the routing table of
/// IPv4 or of IPv6.
///
/// No message is read past its end, and no more is kept than there are messages; a line is a route of its family.
///
/// # Panics
/// When that does not hold.
#[must_use]
pub fn check_network(bytes: &[u8]) -> NetworkKind {
    match bytes.split_first() {
        Some((0, reports)) => check_netlink(reports),
        Some((table, line)) => check_line(usize::from(table % 2), line),
        None => NetworkKind::Nothing,
    }
}

fn check_netlink(bytes: &[u8]) -> NetworkKind {
    let mut messages = Messages::new(bytes);
    let (mut count, mut read, mut neighbours) = (0, 0, 0);
    for (_, payload) in &mut messages {
        count += 1;
        read += HEADER + payload.len();
        neighbours += usize::from(read_entry(payload).is_some());
    }
    assert!(read <= bytes.len(), "{read} of {} bytes", bytes.len());
    let mut events = LinkEvents::default();
    events.take(Messages::new(bytes));
    let addresses = events.lost_address.len() + events.got_address.len();
    let links = events.links.len() + events.removed.len();
    assert!(addresses + links <= count, "{events:?}");
    assert!(events.addresses_changed || addresses == 0, "{events:?}");
    assert_eq!(events.overrun, messages.is_cut_short());
    let names = events.links.iter().map(|link| &link.name);
    // What is not UTF-8 becomes a character of three bytes.
    let kept: usize = names.chain(&events.removed).map(String::len).sum();
    assert!(kept <= 3 * bytes.len(), "{kept} bytes of names");
    let answer = read_answer(Messages::new(bytes));
    match answer {
        Ok(Some(_)) => NetworkKind::Neighbour,
        _ if links > 0 => NetworkKind::Link,
        _ if addresses > 0 => NetworkKind::Address,
        _ if neighbours > 0 => NetworkKind::Neighbour,
        Err(nix::errno::Errno::EBADMSG) | Ok(None) => NetworkKind::Nothing,
        Err(_) => NetworkKind::Error,
    }
}

fn check_line(table: usize, line: &[u8]) -> NetworkKind {
    let is_v4 = table == 0;
    let text = String::from_utf8_lossy(line);
    match TABLES[table].parse(&text) {
        Some(Line::Route(route)) => {
            assert!(!is_v4 || is_mapped(route.prefix), "{route:?}");
            assert!(
                !route.interface.contains(|c: char| c.is_ascii_whitespace()),
                "{route:?}"
            );
            match route.gateway {
                Gateway::Address(gateway) => assert_eq!(gateway.is_ipv4(), is_v4, "{route:?}"),
                Gateway::None => {}
                Gateway::Unknown => panic!("{route:?}"),
            }
            NetworkKind::Route
        }
        Some(Line::Refusing(prefix)) => {
            assert!(!is_v4 || is_mapped(prefix), "{prefix}");
            NetworkKind::Refusing
        }
        None => NetworkKind::Nothing,
    }
}

/// Whether a prefix is one of IPv4: `::ffff:0:0/96`, or within it.
fn is_mapped(prefix: ipnet::Ipv6Net) -> bool {
    prefix.prefix_len() >= 96 && prefix.addr().to_ipv4_mapped().is_some()
}
