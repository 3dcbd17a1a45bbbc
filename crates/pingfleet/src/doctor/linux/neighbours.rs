//! Whether the kernel's neighbour table (ARP and NDP) has room for the largest network that is directly connected to
//! this machine. If the table is full, the kernel refuses requests to all on-link targets, gateways included.
//!
//! Source: Linux `arp(7)`, `proc_pid_net(5)` (`route`, `ipv6_route`), `neigh_forced_gc` of the kernel's
//! `net/core/neighbour.c`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{CheckResult, DEFAULT_RATE, KernelFile, grouped, sysctl_command};

/// Most entries that a sweep at the default rate can use at once, for a network of any size: the kernel keeps each
/// entry for at least 5 s, and four probing threads ask for up to 256 dead neighbours each.
const MAX_HELD: u64 = (5 * DEFAULT_RATE + 4 * 256).next_power_of_two();

/// Most addresses of a network that a sweep accepts without `--yes`. Nobody sweeps a larger network as a whole: of an
/// IPv6 network, users list the few addresses that exist.
const MAX_SWEPT: u64 = 1 << 24;

/// `RTF_GATEWAY`, `RTF_REJECT`, `RTF_ANYCAST` and `RTF_LOCAL` (`linux/route.h`, `linux/ipv6_route.h`): routes without neighbours.
const NOT_ON_LINK: u32 = 0x2 | 0x200 | 0x10_0000 | 0x8000_0000;

/// `IFF_LOOPBACK`, `IFF_POINTOPOINT` and `IFF_NOARP` (linux/if.h): interfaces that need no link addresses.
const NO_NEIGHBOURS: u32 = 0x8 | 0x10 | 0x80;

/// A network that is reached without a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ConnectedNetwork {
    first: IpAddr,
    length: u32,
    interface: String,
}

/// The files that describe the neighbour table and the routes.
struct TableFiles {
    limit: KernelFile,
    statistics: KernelFile,
    routes: KernelFile,
}

pub(super) fn check(v6: bool) -> CheckResult {
    let table = |family: &str, statistics: &str, routes: &str| TableFiles {
        limit: KernelFile::sysctl(&format!("net.{family}.neigh.default.gc_thresh3")),
        statistics: KernelFile::file(&format!("/proc/net/stat/{statistics}")),
        routes: KernelFile::file(&format!("/proc/net/{routes}")),
    };
    let table = if v6 {
        table("ipv6", "ndisc_cache", "ipv6_route")
    } else {
        table("ipv4", "arp_cache", "route")
    };
    judge(&table, if v6 { parse_v6 } else { parse_v4 }, |interface| {
        let flags = KernelFile::file(&format!("/sys/class/net/{interface}/flags"));
        has_neighbours(&flags)
    })
}

fn judge(
    table: &TableFiles,
    parse: fn(&str) -> Option<ConnectedNetwork>,
    has_neighbours: impl Fn(&str) -> bool,
) -> CheckResult {
    let (limit, held) = match (table.limit.number(), table.statistics.parsed(parse_entries)) {
        (Ok(limit), Ok(held)) => (limit, held),
        (Err(unavailable), _) | (_, Err(unavailable)) => return unavailable.into(),
    };
    let largest = table.routes.parsed(|text| {
        Some(
            text.lines()
                .filter_map(parse)
                .filter(|network| has_neighbours(&network.interface))
                .min_by_key(|network| network.length),
        )
    });
    let usage = format!("{} fit, {} in use", grouped(limit), grouped(held));
    let network = match largest {
        Ok(Some(network)) => network,
        Ok(None) => return CheckResult::Good(format!("{usage}; no network is on-link")),
        Err(unavailable) => return unavailable.into(),
    };
    let targets = network.targets();
    let needed = held + targets.min(MAX_HELD);
    let ConnectedNetwork {
        first,
        length,
        interface,
    } = network;
    let named = format!("{first}/{length} on {interface}");
    if needed <= limit || targets > MAX_SWEPT {
        return CheckResult::Good(format!("{usage}; largest: {named}"));
    }
    CheckResult::Poor {
        found: format!("{usage}; {named} needs more"),
        fix: sysctl_command(&table.limit.name, needed.next_power_of_two()),
    }
}

impl ConnectedNetwork {
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

fn has_neighbours(flags: &KernelFile) -> bool {
    let flags = flags.parsed(|text| u32::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok());
    // If the flags are unknown, the network counts: a table that is too large does no harm.
    flags.map_or(true, |flags| flags & NO_NEIGHBOURS == 0)
}

/// The number of entries: the first field of each line below the header, in hexadecimal.
fn parse_entries(statistics: &str) -> Option<u64> {
    let mut lines = statistics.lines();
    let header = lines.next()?.split_ascii_whitespace().next()?;
    let entries = lines.next()?.split_ascii_whitespace().next()?;
    (header == "entries").then_some(())?;
    u32::from_str_radix(entries, 16).ok().map(u64::from)
}

/// `Iface Destination Gateway Flags RefCnt Use Metric Mask ...`. Addresses are hexadecimal, in memory byte order.
fn parse_v4(line: &str) -> Option<ConnectedNetwork> {
    let fields: Vec<_> = line.split_ascii_whitespace().collect();
    let address = |text: &str| {
        let raw = u32::from_str_radix(text, 16).ok()?;
        Some(Ipv4Addr::from(raw.to_ne_bytes()))
    };
    let flags = u32::from_str_radix(fields.get(3)?, 16).ok()?;
    let mask = address(fields.get(7)?)?.to_bits();
    let is_prefix = mask.count_ones() == mask.leading_ones();
    (is_prefix && flags & NOT_ON_LINK == 0).then_some(())?;
    Some(ConnectedNetwork {
        first: address(fields.get(1)?)?.into(),
        length: mask.count_ones(),
        interface: (*fields.first()?).to_owned(),
    })
}

/// `destination length source length next-hop metric refcount use flags interface`. Link-local and multicast networks
/// are skipped: every link has them, and users do not list their addresses.
fn parse_v6(line: &str) -> Option<ConnectedNetwork> {
    let fields: Vec<_> = line.split_ascii_whitespace().collect();
    let first = Ipv6Addr::from_bits(u128::from_str_radix(fields.first()?, 16).ok()?);
    let length = u32::from_str_radix(fields.get(1)?, 16).ok()?;
    let flags = u32::from_str_radix(fields.get(8)?, 16).ok()?;
    let is_listed = !first.is_multicast() && !first.is_unicast_link_local();
    (is_listed && length <= 128 && flags & NOT_ON_LINK == 0).then_some(())?;
    Some(ConnectedNetwork {
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
    const HEADER: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\n";

    fn table(limit: &str, entries: &str, routes: &str) -> TableFiles {
        let statistics = format!("entries  allocs\n{entries} 0000126f\n{entries} 00018f90\n");
        TableFiles {
            limit: KernelFile::of(LIMIT, limit),
            statistics: KernelFile::of("/proc/net/stat/arp_cache", &statistics),
            routes: KernelFile::of("/proc/net/route", routes),
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

    fn judge_v4(table: &TableFiles) -> CheckResult {
        judge(table, parse_v4, |interface| interface != "tun0")
    }

    #[test]
    fn the_table_must_have_room_for_the_largest_on_link_network() {
        let routes = [
            HEADER,
            // Routes with a gateway, with a rejection, and on an interface without neighbours do not count.
            &route("eth0", [0, 0, 0, 0], 0, 3),
            &route("*", [10, 0, 0, 0], 8, 0x201),
            &route("tun0", [10, 8, 0, 0], 16, 1),
            &route("eth0", [192, 0, 2, 0], 24, 1),
            &route("eth1", [172, 16, 0, 0], 22, 1),
        ]
        .concat();
        // 1,022 targets and 3 entries are one entry too many.
        assert_eq!(
            judge_v4(&table("1024\n", "00000003", &routes)),
            CheckResult::Poor {
                found: "1,024 fit, 3 in use; 172.16.0.0/22 on eth1 needs more".to_owned(),
                fix: format!("sudo sysctl -w {LIMIT}=2048"),
            }
        );
        assert_eq!(
            judge_v4(&table("1024\n", "00000002", &routes)),
            CheckResult::Good("1,024 fit, 2 in use; largest: 172.16.0.0/22 on eth1".to_owned())
        );
        assert!(matches!(
            judge_v4(&table("2048\n", "0000001F", &routes)),
            CheckResult::Good(found) if found.starts_with("2,048 fit, 31 in use")
        ));
    }

    #[test]
    fn a_large_network_needs_only_the_entries_that_a_sweep_uses_at_once() {
        for length in [8, 12, 16] {
            let routes = route("eth0", [10, 0, 0, 0], length, 1);
            assert!(matches!(
                judge_v4(&table("8192", "0", &routes)),
                CheckResult::Good(_)
            ));
            assert!(matches!(
                judge_v4(&table("8191", "0", &routes)),
                CheckResult::Poor { fix, .. } if fix.ends_with("=8192")
            ));
        }
        let targets = |length| {
            ConnectedNetwork {
                first: Ipv4Addr::UNSPECIFIED.into(),
                length,
                interface: String::new(),
            }
            .targets()
        };
        assert_eq!([32, 31, 30, 24].map(targets), [1, 2, 2, 254]);
    }

    #[test]
    fn v6_networks_that_every_link_has_do_not_count() {
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
            CheckResult::Good("1,024 fit, 6 in use; no network is on-link".to_owned())
        );
        let network = |length| line(&format!("fd{}", "0".repeat(30)), length, "00000001", "eth0");
        assert!(matches!(
            judge_v6(&(every_link + &network("70"))),
            CheckResult::Poor { found, .. } if found.ends_with("fd00::/112 on eth0 needs more")
        ));
        for length in ["67", "40", "00"] {
            assert!(
                matches!(judge_v6(&network(length)), CheckResult::Good(_)),
                "{length}"
            );
        }
    }

    #[test]
    fn missing_files_are_reported_and_nothing_is_guessed() {
        let whole = || table("1024", "3", HEADER);
        assert!(matches!(judge_v4(&whole()), CheckResult::Good(_)));
        let missing = |name: &str| KernelFile::failed(name, io::ErrorKind::NotFound);
        for part in [
            TableFiles {
                limit: missing("part"),
                ..whole()
            },
            TableFiles {
                statistics: missing("part"),
                ..whole()
            },
            TableFiles {
                routes: missing("part"),
                ..whole()
            },
        ] {
            let result = CheckResult::NotShown("part does not exist".to_owned());
            assert_eq!(judge_v4(&part), result);
        }
        for entries in ["-1", "1ffffffff", "x"] {
            let result = judge_v4(&table("1024", entries, HEADER));
            assert!(matches!(result, CheckResult::NotShown(_)), "{result:?}");
        }
        for text in ["", "entries\n", "entries\n\n", "allocs\n00000003\n"] {
            assert_eq!(parse_entries(text), None, "{text:?}");
        }
    }

    #[test]
    fn malformed_routes_are_ignored() {
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
            assert_eq!(has_neighbours(&KernelFile::of("flags", flags)), expected);
        }
        assert!(has_neighbours(&KernelFile::failed(
            "flags",
            io::ErrorKind::NotFound
        )));
    }
}
