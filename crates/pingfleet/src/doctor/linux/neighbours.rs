//! Whether the kernel's neighbour table has room for the targets of the largest network on a link of this box. Where it
//! is full, requests to all on-link targets are refused, gateways included.
//!
//! Source: Linux `arp(7)`, `proc_pid_net(5)` (`route`, `ipv6_route`), `neigh_forced_gc` of the kernel's
//! `net/core/neighbour.c`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{DEFAULT_RATE, Finding, Reading, grouped, set};

/// Entries that a sweep at the default rate can have in use, however large the network is: the kernel drops none before
/// it is 5 s old, and four probing threads ask for up to 256 dead neighbours at once each.
const MOST_HELD: u64 = (5 * DEFAULT_RATE + 4 * 256).next_power_of_two();

/// Addresses of a network that a sweep takes without being asked twice. Of a larger one, such as every IPv6 network,
/// somebody lists the few that there are.
const MOST_SWEPT: u64 = 1 << 24;

/// `RTF_GATEWAY`, `RTF_REJECT`, `RTF_ANYCAST` and `RTF_LOCAL` (`linux/route.h`, `linux/ipv6_route.h`): no neighbours.
const NOT_ON_LINK: u32 = 0x2 | 0x200 | 0x10_0000 | 0x8000_0000;

/// `IFF_LOOPBACK`, `IFF_POINTOPOINT` and `IFF_NOARP` (linux/if.h): an interface that asks for no link addresses.
const NO_NEIGHBOURS: u32 = 0x8 | 0x10 | 0x80;

/// A network whose addresses are reached without a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Network {
    first: IpAddr,
    length: u32,
    interface: String,
}

/// The table and what it is for, as read.
struct Table {
    limit: Reading,
    statistics: Reading,
    routes: Reading,
}

pub(super) fn check(v6: bool) -> Finding {
    let table = |family: &str, statistics: &str, routes: &str| Table {
        limit: Reading::setting(&format!("net.{family}.neigh.default.gc_thresh3")),
        statistics: Reading::file(&format!("/proc/net/stat/{statistics}")),
        routes: Reading::file(&format!("/proc/net/{routes}")),
    };
    let table = if v6 {
        table("ipv6", "ndisc_cache", "ipv6_route")
    } else {
        table("ipv4", "arp_cache", "route")
    };
    judge(&table, if v6 { parse_v6 } else { parse_v4 }, |interface| {
        let flags = Reading::file(&format!("/sys/class/net/{interface}/flags"));
        has_neighbours(&flags)
    })
}

fn judge(
    table: &Table,
    parse: fn(&str) -> Option<Network>,
    has_neighbours: impl Fn(&str) -> bool,
) -> Finding {
    let (limit, held) = match (table.limit.number(), table.statistics.parsed(parse_entries)) {
        (Ok(limit), Ok(held)) => (limit, held),
        (Err(silent), _) | (_, Err(silent)) => return silent.into(),
    };
    let largest = table.routes.parsed(|text| {
        Some(
            text.lines()
                .filter_map(parse)
                .filter(|network| has_neighbours(&network.interface))
                // Of equal ones the first.
                .min_by_key(|network| network.length),
        )
    });
    let table_holds = format!("{} fit, {} in use", grouped(limit), grouped(held));
    let network = match largest {
        Ok(Some(network)) => network,
        Ok(None) => return Finding::Good(format!("{table_holds}; no network is on-link")),
        Err(silent) => return silent.into(),
    };
    let targets = network.targets();
    let needed = held + targets.min(MOST_HELD);
    let Network {
        first,
        length,
        interface,
    } = network;
    let named = format!("{first}/{length} on {interface}");
    if needed <= limit || targets > MOST_SWEPT {
        return Finding::Good(format!("{table_holds}; largest: {named}"));
    }
    Finding::Poor {
        found: format!("{table_holds}; {named} needs more"),
        mend: set(&table.limit.name, needed.next_power_of_two()),
    }
}

impl Network {
    /// Addresses that can be targets.
    fn targets(&self) -> u64 {
        let (bits, reserved) = match self.first {
            IpAddr::V4(_) if self.length < 31 => (32, 2),
            IpAddr::V4(_) => (32, 0),
            IpAddr::V6(_) => (128, 0),
        };
        let all = 1_u64.checked_shl(bits - self.length).unwrap_or(u64::MAX);
        all - reserved
    }
}

fn has_neighbours(flags: &Reading) -> bool {
    let flags = flags.parsed(|text| u32::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok());
    // Of an interface about which nothing is known the network counts: too much room does no harm.
    flags.map_or(true, |flags| flags & NO_NEIGHBOURS == 0)
}

/// The number of entries: the first field, in hexadecimal, of each line below the heading.
fn parse_entries(statistics: &str) -> Option<u64> {
    let mut lines = statistics.lines();
    let heading = lines.next()?.split_ascii_whitespace().next()?;
    let entries = lines.next()?.split_ascii_whitespace().next()?;
    (heading == "entries").then_some(())?;
    u32::from_str_radix(entries, 16).ok().map(u64::from)
}

/// `Iface Destination Gateway Flags RefCnt Use Metric Mask ...`: addresses are hexadecimal as they lie in memory.
fn parse_v4(line: &str) -> Option<Network> {
    let fields: Vec<_> = line.split_ascii_whitespace().collect();
    let address = |text: &str| {
        let raw = u32::from_str_radix(text, 16).ok()?;
        Some(Ipv4Addr::from(raw.to_ne_bytes()))
    };
    let flags = u32::from_str_radix(fields.get(3)?, 16).ok()?;
    let mask = address(fields.get(7)?)?.to_bits();
    let is_prefix = mask.count_ones() == mask.leading_ones();
    (is_prefix && flags & NOT_ON_LINK == 0).then_some(())?;
    Some(Network {
        first: address(fields.get(1)?)?.into(),
        length: mask.count_ones(),
        interface: (*fields.first()?).to_owned(),
    })
}

/// `destination length source length next-hop metric refcount use flags interface`, without link-local and multicast
/// networks, which are on every link and hold no targets that a user lists.
fn parse_v6(line: &str) -> Option<Network> {
    let fields: Vec<_> = line.split_ascii_whitespace().collect();
    let first = Ipv6Addr::from_bits(u128::from_str_radix(fields.first()?, 16).ok()?);
    let length = u32::from_str_radix(fields.get(1)?, 16).ok()?;
    let flags = u32::from_str_radix(fields.get(8)?, 16).ok()?;
    let is_listed = !first.is_multicast() && !first.is_unicast_link_local();
    (is_listed && length <= 128 && flags & NOT_ON_LINK == 0).then_some(())?;
    Some(Network {
        first: first.into(),
        length,
        interface: (*fields.get(9)?).to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    const LIMIT: &str = "net.ipv4.neigh.default.gc_thresh3";
    const HEADING: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\n";

    fn table(limit: &str, entries: &str, routes: &str) -> Table {
        let statistics = format!("entries  allocs\n{entries} 0000126f\n{entries} 00018f90\n");
        Table {
            limit: Reading::of(LIMIT, limit),
            statistics: Reading::of("/proc/net/stat/arp_cache", &statistics),
            routes: Reading::of("/proc/net/route", routes),
        }
    }

    /// A line of `/proc/net/route`.
    fn route(interface: &str, network: [u8; 4], length: u32, flags: u32) -> String {
        let raw = u32::from_ne_bytes;
        let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
        format!(
            "{interface}\t{:08X}\t00000000\t{flags:04X}\t0\t0\t0\t{:08X}\t0\t0\t0   \n",
            raw(network),
            raw(mask.to_be_bytes())
        )
    }

    fn judge_v4(table: &Table) -> Finding {
        judge(table, parse_v4, |interface| interface != "tun0")
    }

    #[test]
    fn the_largest_on_link_network_is_what_the_table_must_hold() {
        let routes = [
            HEADING,
            // By way of a gateway; refused; on an interface without neighbours.
            &route("eth0", [0, 0, 0, 0], 0, 3),
            &route("*", [10, 0, 0, 0], 8, 0x201),
            &route("tun0", [10, 8, 0, 0], 16, 1),
            &route("eth0", [192, 0, 2, 0], 24, 1),
            &route("eth1", [172, 16, 0, 0], 22, 1),
        ]
        .concat();
        // 1,022 targets and 3 entries are one more than fit.
        assert_eq!(
            judge_v4(&table("1024\n", "00000003", &routes)),
            Finding::Poor {
                found: "1,024 fit, 3 in use; 172.16.0.0/22 on eth1 needs more".to_owned(),
                mend: format!("sudo sysctl -w {LIMIT}=2048"),
            }
        );
        assert_eq!(
            judge_v4(&table("1024\n", "00000002", &routes)),
            Finding::Good("1,024 fit, 2 in use; largest: 172.16.0.0/22 on eth1".to_owned())
        );
        assert!(matches!(
            judge_v4(&table("2048\n", "0000001F", &routes)),
            Finding::Good(found) if found.starts_with("2,048 fit, 31 in use")
        ));
    }

    #[test]
    fn a_network_beyond_what_a_sweep_holds_at_once_needs_no_more_than_that() {
        for length in [8, 12, 16] {
            let routes = route("eth0", [10, 0, 0, 0], length, 1);
            assert!(matches!(
                judge_v4(&table("8192", "0", &routes)),
                Finding::Good(_)
            ));
            assert!(matches!(
                judge_v4(&table("8191", "0", &routes)),
                Finding::Poor { mend, .. } if mend.ends_with("=8192")
            ));
        }
        let targets = |length| {
            Network {
                first: Ipv4Addr::UNSPECIFIED.into(),
                length,
                interface: String::new(),
            }
            .targets()
        };
        assert_eq!([32, 31, 30, 24].map(targets), [1, 2, 2, 254]);
    }

    #[test]
    fn v6_networks_count_without_those_that_every_link_has() {
        let line = |network: &str, length: &str, flags: &str, interface: &str| {
            let zero = "0".repeat(32);
            format!(
                "{network} {length} {zero} 00 {zero} 00000100 00000001 00000000 {flags} {interface}\n"
            )
        };
        let own = "fd000000000000000000000000000002";
        let every_link = [
            line(&format!("fe80{}", "0".repeat(28)), "40", "00000001", "eth0"),
            line(&format!("ff{}", "0".repeat(30)), "08", "00000001", "eth0"),
            line(own, "80", "80200001", "eth0"),
            line(&"0".repeat(32), "00", "00000003", "eth0"),
            line(&"0".repeat(32), "00", "00200200", "lo"),
        ]
        .concat();
        let judge_v6 = |routes: &str| judge(&table("1024", "6", routes), parse_v6, |_| true);
        assert_eq!(
            judge_v6(&every_link),
            Finding::Good("1,024 fit, 6 in use; no network is on-link".to_owned())
        );
        let network = |length| line(&format!("fd{}", "0".repeat(30)), length, "00000001", "eth0");
        assert!(matches!(
            judge_v6(&(every_link + &network("70"))),
            Finding::Poor { found, .. } if found.ends_with("fd00::/112 on eth0 needs more")
        ));
        for length in ["67", "40", "00"] {
            assert!(
                matches!(judge_v6(&network(length)), Finding::Good(_)),
                "{length}"
            );
        }
    }

    #[test]
    fn what_is_not_shown_is_not_guessed() {
        let whole = || table("1024", "3", HEADING);
        assert!(matches!(judge_v4(&whole()), Finding::Good(_)));
        let missing = |name: &str| Reading::failed(name, io::ErrorKind::NotFound);
        for part in [
            Table {
                limit: missing("part"),
                ..whole()
            },
            Table {
                statistics: missing("part"),
                ..whole()
            },
            Table {
                routes: missing("part"),
                ..whole()
            },
        ] {
            let told = Finding::Untold("part is not there".to_owned());
            assert_eq!(judge_v4(&part), told);
        }
        for entries in ["-1", "1ffffffff", "x"] {
            let finding = judge_v4(&table("1024", entries, HEADING));
            assert!(matches!(finding, Finding::Untold(_)), "{finding:?}");
        }
        for text in ["", "entries\n", "entries\n\n", "allocs\n00000003\n"] {
            assert_eq!(parse_entries(text), None, "{text:?}");
        }
    }

    #[test]
    fn hostile_routes_are_no_networks() {
        for line in [
            "",
            "eth0",
            "eth0 000200C0 0 0001",
            "eth0 000200C0 0 0001 0 0 0 FF00FFFF",
            "eth0 1000200C0 0 0001 0 0 0 00FFFFFF",
            "eth0 zz 0 0001 0 0 0 00FFFFFF",
            "eth0 000200C0 0 x 0 0 0 00FFFFFF",
        ] {
            assert_eq!(parse_v4(line), None, "{line:?}");
        }
        for line in [
            "",
            "fd00 40",
            "fd00 81 0 0 0 0 0 0 1 eth0",
            "fd00 40 0 0 0 0 0 0 1",
            "fd00 40 0 0 0 0 0 0 - eth0",
            "1fd000000000000000000000000000000 40 0 0 0 0 0 0 1 eth0",
        ] {
            assert_eq!(parse_v6(line), None, "{line:?}");
        }
    }

    #[test]
    fn an_interface_has_neighbours_unless_its_flags_say_otherwise() {
        for (flags, expected) in [
            ("0x1003\n", true),
            ("0x9\n", false),
            ("0x10d1\n", false),
            ("0x82\n", false),
            ("", true),
            ("1003\n", true),
        ] {
            assert_eq!(has_neighbours(&Reading::of("flags", flags)), expected);
        }
        assert!(has_neighbours(&Reading::failed(
            "flags",
            io::ErrorKind::NotFound
        )));
    }
}
