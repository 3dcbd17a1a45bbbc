//! The kernel's neighbour tables: whether a machine on a link has answered ARP or neighbour discovery. Nothing here waits.
//!
//! Only a confirmation after a given moment counts. An entry that is stale, or that is to be confirmed (`NUD_DELAY`,
//! `NUD_PROBE`), may be of a machine that has left long ago.
//!
//! Source: Linux `rtnetlink(7)`, `linux/neighbour.h`, `neigh_get` of `net/core/neighbour.c` (Linux 5.0: one entry is asked
//! for, whatever the size of the table).

use std::{
    io,
    net::IpAddr,
    time::{Duration, Instant},
};

use netlink_packet_core::{Emitable, NlasIterator};
use netlink_packet_route::{
    AddressFamily as RouteFamily, RouteNetlinkMessage,
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourCacheInfo, NeighbourHeader,
        NeighbourMessage, NeighbourState as EntryState,
    },
};
use nix::{errno::Errno, libc};
use pingfleet_wire::LinkAddress;

use super::netlink::{self, Messages, NetlinkSocket};

/// The unit of the ages in an entry: `USER_HZ`, 100 a second (`times(2)`). They are rounded down.
const AGE_UNIT: Duration = Duration::from_millis(10);

/// The kernel takes ages by its timer interrupt, which comes 100 times a second or more often.
const MAX_TIMER_INTERVAL: Duration = Duration::from_millis(10);

/// What the kernel knows of a neighbour since a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::linux) enum NeighbourState {
    /// It has answered ARP or neighbour discovery, with this link address.
    Answered(LinkAddress),
    /// The kernel sends to the link address of an older entry, and will ask whether it is still right: five seconds after
    /// it began to (`net.ipv4.neigh.default.delay_first_probe_time`).
    ToBeConfirmed,
    /// It has not answered, or nothing is known.
    Unknown,
}

/// Asks for entries of the neighbour tables.
#[derive(Debug)]
pub(super) struct NeighbourTables(NetlinkSocket);

/// A neighbour with a link address, as the kernel knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Neighbour {
    address: IpAddr,
    link_address: LinkAddress,
    /// Whether the kernel is about to ask whether it can be reached.
    is_to_be_confirmed: bool,
    /// Time since the kernel last knew that it can be reached.
    confirmed_before: Duration,
}

impl NeighbourTables {
    /// For the tables of the network namespace of the calling thread.
    pub(super) fn open() -> io::Result<Self> {
        NetlinkSocket::open(0).map(Self)
    }

    /// What is known of a neighbour on interface `interface_index` since `since`. An answer of up to 30 ms before may be
    /// taken for a later one: the kernel's times are not more exact.
    ///
    /// # Errors
    /// When the kernel does not answer the question.
    pub(super) fn state_since(
        &self,
        address: IpAddr,
        interface_index: u32,
        since: Instant,
    ) -> io::Result<NeighbourState> {
        let entry = self.entry(address, interface_index)?;
        let Some(neighbour) = entry.filter(|entry| entry.address == address) else {
            return Ok(NeighbourState::Unknown);
        };
        let confirmed = Instant::now().checked_sub(neighbour.confirmed_before);
        Ok(
            if confirmed.is_some_and(|at| at + MAX_TIMER_INTERVAL >= since) {
                NeighbourState::Answered(neighbour.link_address)
            } else if neighbour.is_to_be_confirmed {
                NeighbourState::ToBeConfirmed
            } else {
                NeighbourState::Unknown
            },
        )
    }

    /// The entry of an address; `None` without one that has a link address.
    fn entry(&self, address: IpAddr, interface_index: u32) -> io::Result<Option<Neighbour>> {
        self.0.ask(&question(address, interface_index))?;
        let mut answer = Err(Errno::EBADMSG);
        // One message.
        self.0.receive(|messages| answer = read_answer(messages))?;
        match answer {
            // There is no such entry, or no such interface any more.
            Err(Errno::ENOENT | Errno::ENODEV) => Ok(None),
            answer => Ok(answer?),
        }
    }
}

/// The question for one entry.
pub(super) fn question(address: IpAddr, interface_index: u32) -> Vec<u8> {
    let mut neighbour = NeighbourMessage::default();
    let (family, address) = match address {
        IpAddr::V4(v4) => (RouteFamily::Inet, NeighbourAddress::Inet(v4)),
        IpAddr::V6(v6) => (RouteFamily::Inet6, NeighbourAddress::Inet6(v6)),
    };
    neighbour.header.family = family;
    neighbour.header.ifindex = interface_index;
    neighbour.attributes = vec![NeighbourAttribute::Destination(address)];
    netlink::question(RouteNetlinkMessage::GetNeighbour(neighbour), 0)
}

/// Reads the kernel's answer: an entry, or an error.
pub(super) fn read_answer(mut messages: Messages<'_>) -> Result<Option<Neighbour>, Errno> {
    let (kind, payload) = messages.next().ok_or(Errno::EBADMSG)?;
    if kind == libc::RTM_NEWNEIGH {
        return Ok(read_neighbour(payload));
    }
    // An error begins with the negative errno (`netlink(7)`, `nlmsgerr`).
    let code = payload.first_chunk().map(|code| i32::from_ne_bytes(*code));
    let errno = code.and_then(i32::checked_neg);
    Err(errno.map_or(Errno::EBADMSG, Errno::from_raw))
}

/// Reads an entry. `None` when the kernel has no link address that a neighbour itself has given.
fn read_neighbour(payload: &[u8]) -> Option<Neighbour> {
    let header = NeighbourHeader::parse(payload).ok()?;
    let was_given = matches!(
        header.state,
        EntryState::Reachable | EntryState::Stale | EntryState::Delay | EntryState::Probe
    );
    let (mut address, mut link_address, mut confirmed) = (None, None, None);
    let attributes = payload.get(header.buffer_len()..)?;
    for attribute in NlasIterator::new(attributes).map_while(Result::ok) {
        let value = attribute.value();
        match attribute.kind() {
            libc::NDA_DST => address = ip_address(value),
            libc::NDA_LLADDR => link_address = LinkAddress::new(value),
            libc::NDA_CACHEINFO => {
                let info = NeighbourCacheInfo::parse(value).ok();
                confirmed = info.map(|info| AGE_UNIT * info.confirmed);
            }
            _ => {}
        }
    }
    Some(Neighbour {
        address: address?,
        link_address: link_address.filter(|_| was_given)?,
        is_to_be_confirmed: matches!(header.state, EntryState::Delay | EntryState::Probe),
        confirmed_before: confirmed?,
    })
}

fn ip_address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let v6 = <[u8; 16]>::try_from(bytes).map(IpAddr::from);
    v4.or(v6).ok()
}

#[cfg(test)]
mod tests {
    use super::{super::netlink::tests::report, *};

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn answer(state: EntryState) -> Vec<u8> {
        let mut neighbour = NeighbourMessage::default();
        neighbour.header.family = RouteFamily::Inet;
        neighbour.header.state = state;
        let numbers = [150, 0, 0, 0_u32].map(u32::to_ne_bytes);
        let info = NeighbourCacheInfo::parse(numbers.as_flattened()).unwrap();
        neighbour.attributes = vec![
            NeighbourAttribute::Destination(ADDRESS.into()),
            NeighbourAttribute::LinkLayerAddress(MAC.to_vec()),
            NeighbourAttribute::CacheInfo(info),
        ];
        report(RouteNetlinkMessage::NewNeighbour(neighbour))
    }

    #[test]
    fn only_a_link_address_that_the_neighbour_gave_is_read() {
        for (state, is_to_be_confirmed) in [
            (EntryState::Reachable, false),
            (EntryState::Stale, false),
            (EntryState::Delay, true),
            (EntryState::Probe, true),
        ] {
            let expected = Neighbour {
                address: ADDRESS,
                link_address: LinkAddress::new(&MAC).unwrap(),
                is_to_be_confirmed,
                confirmed_before: Duration::from_millis(1500),
            };
            assert_eq!(
                read_answer(Messages::new(&answer(state))),
                Ok(Some(expected)),
                "{state:?}"
            );
        }
        for state in [
            EntryState::Incomplete,
            EntryState::Failed,
            EntryState::Noarp,
            EntryState::Permanent,
            EntryState::None,
        ] {
            assert_eq!(
                read_answer(Messages::new(&answer(state))),
                Ok(None),
                "{state:?}"
            );
        }
    }

    #[test]
    fn no_answer_is_read_past_its_end() {
        let whole = answer(EntryState::Reachable);
        for length in 0..whole.len() {
            let read = read_answer(Messages::new(&whole[..length]));
            assert!(!matches!(read, Ok(Some(_))), "{length}");
        }
    }

    #[test]
    fn an_answer_may_be_an_error() {
        let error = |code: i32| {
            let head = [20_u32, u32::from(libc::NLMSG_ERROR as u16), 0, 0].map(u32::to_ne_bytes);
            [head.as_flattened(), &code.to_ne_bytes()].concat()
        };
        let read = |code| read_answer(Messages::new(&error(code)));
        assert_eq!(read(-libc::ENOENT), Err(Errno::ENOENT));
        // It has no positive counterpart.
        assert_eq!(read(i32::MIN), Err(Errno::EBADMSG));
    }

    #[test]
    fn an_address_without_an_entry_is_unknown() {
        let tables = NeighbourTables::open().unwrap();
        // 1 is the loopback interface, which has no neighbours.
        let state = tables.state_since(ADDRESS, 1, Instant::now());
        assert_eq!(state.unwrap(), NeighbourState::Unknown);
        let no_interface = tables.state_since(ADDRESS, u32::MAX >> 1, Instant::now());
        assert_eq!(no_interface.unwrap(), NeighbourState::Unknown);
    }
}
