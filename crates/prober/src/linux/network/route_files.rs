//! The main routing tables of the kernel, as text in /proc.
//!
//! Source: Linux `proc_pid_net(5)` (`route`, `ipv6_route`).

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::Ipv6Net;

use super::routes::{Gateway, host};

/// Bytes that are read at once.
const READ_BYTES: usize = 64 << 10;

/// A route by way of a gateway (`linux/route.h`).
const RTF_GATEWAY: u32 = 0x2;

/// A route that refuses what is sent (`linux/route.h`).
const RTF_REJECT: u32 = 0x200;

/// The tables, that of IPv4 first.
pub(super) const TABLES: [TableFormat; 2] = [IPV4_TABLE, IPV6_TABLE];

/// Stands for the interface of an IPv4 route that has none, such as a blackhole route.
const NO_INTERFACE: &str = "*";

/// One line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    Route(RouteLine<'a>),
    /// This prefix refuses what is sent.
    Refusing(Ipv6Net),
}

/// A route.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RouteLine<'a> {
    pub(super) prefix: Ipv6Net,
    pub(super) interface: &'a str,
    pub(super) gateway: Gateway,
}

/// Where the columns of a routing table in /proc are, and how it writes addresses.
#[derive(Debug)]
pub(super) struct TableFormat {
    file: &'static str,
    destination: usize,
    length: usize,
    gateway: usize,
    flags: usize,
    interface: usize,
    address: fn(&str) -> Option<IpAddr>,
    /// From the text of the prefix's length, or of its mask.
    prefix_length: fn(&str) -> Option<u8>,
}

/// `Iface Destination Gateway Flags RefCnt Use Metric Mask ...`.
const IPV4_TABLE: TableFormat = TableFormat {
    file: "route",
    destination: 1,
    length: 7,
    gateway: 2,
    flags: 3,
    interface: 0,
    address: |text| Some(ipv4(text)?.into()),
    prefix_length: |mask| Some(96 + ipv4(mask)?.to_bits().leading_ones() as u8),
};

/// `destination length source length next-hop metric refcount use flags interface`.
const IPV6_TABLE: TableFormat = TableFormat {
    file: "ipv6_route",
    destination: 0,
    length: 1,
    gateway: 4,
    flags: 8,
    interface: 9,
    address: |text| {
        let bits = u128::from_str_radix(text, 16).ok()?;
        Some(Ipv6Addr::from_bits(bits).into())
    },
    prefix_length: |text| u8::from_str_radix(text, 16).ok(),
};

/// An IPv4 address: hexadecimal, in the order of its bytes in memory.
fn ipv4(text: &str) -> Option<Ipv4Addr> {
    let raw = u32::from_str_radix(text, 16).ok()?;
    Some(raw.to_ne_bytes().into())
}

impl TableFormat {
    /// Hands each route of the table to `take`, in the order of the kernel, until it returns false. A family that the kernel
    /// does not have has no routes.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub(super) fn read(&self, mut take: impl FnMut(Line<'_>) -> bool) -> io::Result<()> {
        // Of the thread, not of the process: the two may be in different network namespaces.
        let file = match File::open(format!("/proc/thread-self/net/{}", self.file)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file?,
        };
        let mut lines = BufReader::with_capacity(READ_BYTES, file);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line)? > 0 {
            // The name of an interface may have any bytes.
            let text = String::from_utf8_lossy(&line);
            if let Some(route) = self.parse(&text)
                && !take(route)
            {
                return Ok(());
            }
            line.clear();
        }
        Ok(())
    }

    /// Reads a line. `None` for the heading.
    pub(super) fn parse<'a>(&self, line: &'a str) -> Option<Line<'a>> {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        let flags = u32::from_str_radix(fields.get(self.flags)?, 16).ok()?;
        let (network, _) = host((self.address)(fields.get(self.destination)?)?);
        let length = (self.prefix_length)(fields.get(self.length)?)?;
        let prefix = Ipv6Net::new(network.addr(), length).ok()?;
        let interface = *fields.get(self.interface)?;
        if flags & RTF_REJECT != 0 || interface == NO_INTERFACE {
            return Some(Line::Refusing(prefix));
        }
        Some(Line::Route(RouteLine {
            prefix,
            interface,
            gateway: if flags & RTF_GATEWAY == 0 {
                Gateway::None
            } else {
                Gateway::Address((self.address)(fields.get(self.gateway)?)?)
            },
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel_are_parsed() {
        let heading = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask";
        assert_eq!(IPV4_TABLE.parse(heading), None);
        let line = |interface, network: [u8; 4], gateway: [u8; 4], mask: [u8; 4], flags: u32| {
            let [network, gateway, mask] = [network, gateway, mask].map(u32::from_ne_bytes);
            format!(
                "{interface}\t{network:08X}\t{gateway:08X}\t{flags:04X}\t0\t0\t0\t{mask:08X}\t0\t0\t0\n"
            )
        };
        let default = line("eth0", [0; 4], [192, 168, 0, 1], [0; 4], 3);
        let expected = RouteLine {
            prefix: "::ffff:0:0/96".parse().unwrap(),
            interface: "eth0",
            gateway: Gateway::Address([192, 168, 0, 1].into()),
        };
        assert_eq!(IPV4_TABLE.parse(&default), Some(Line::Route(expected)));
        let on_link = line("eth0", [10, 1, 2, 0], [0; 4], [255, 255, 254, 0], 1);
        let expected = RouteLine {
            prefix: "::ffff:10.1.2.0/119".parse().unwrap(),
            interface: "eth0",
            gateway: Gateway::None,
        };
        assert_eq!(IPV4_TABLE.parse(&on_link), Some(Line::Route(expected)));
        // An unreachable route, and a blackhole.
        for (interface, flags) in [("eth0", 0x201), ("*", 1)] {
            let line = line(interface, [10, 1, 2, 0], [0; 4], [255; 4], flags);
            let prefix = "::ffff:10.1.2.0/128".parse().unwrap();
            assert_eq!(IPV4_TABLE.parse(&line), Some(Line::Refusing(prefix)));
        }
        let v6 = IPV6_TABLE.parse(
            "fd000002000000000000000000000000 40 00000000000000000000000000000000 00 \
             00000000000000000000000000000000 00000100 00000001 00000000 00000001     dead",
        );
        let expected = RouteLine {
            prefix: "fd00:2::/64".parse().unwrap(),
            interface: "dead",
            gateway: Gateway::None,
        };
        assert_eq!(v6, Some(Line::Route(expected)));
    }
}
