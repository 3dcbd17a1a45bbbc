//! The Hilbert curve of IPv4: where an address and a prefix are on the map of all addresses. No I/O.
//!
//! The curve is that of the census maps of the Internet (<https://xkcd.com/195/>,
//! <https://github.com/measurement-factory/ipv4-heatmap>):
//! 0.0.0.0/8 is at the top left, 64.0.0.0/2 at the bottom left, 128.0.0.0/2 at the bottom right, and 224.0.0.0/3 at the top
//! right. A part of it is never turned, so that each prefix looks the same on every map.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// A rectangle of cells; the origin is the top left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Area {
    pub(crate) x: u32,
    pub(crate) y: u32,
    pub(crate) width: u32,
    pub(crate) height: u32,
}

/// The prefix of this length that has an address.
pub(crate) fn prefix_of(address: u32, length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::from_bits(address), length).trunc()
}

/// The area of a prefix on the map of another one that has it, in pixels of prefixes of the length `cell`, which is even.
pub(crate) fn area_in(prefix: Ipv4Net, map: Ipv4Net, cell: u8) -> Area {
    let side = 1 << ((32 - cell) / 2);
    let inner = area(prefix);
    let outer = area(map);
    Area {
        x: (inner.x - outer.x) / side,
        y: (inner.y - outer.y) / side,
        width: (inner.width / side).max(1),
        height: (inner.height / side).max(1),
    }
}

/// The area of a prefix on the map of all addresses, in pixels of one address.
fn area(prefix: Ipv4Net) -> Area {
    let length = prefix.prefix_len();
    if length % 2 == 1 {
        // Two squares beside or below one another.
        let halves = [prefix.network(), prefix.broadcast()];
        let [one, other] = halves.map(|address| area(prefix_of(address.to_bits(), length + 1)));
        let side = one.width;
        return Area {
            x: one.x.min(other.x),
            y: one.y.min(other.y),
            width: one.x.abs_diff(other.x) + side,
            height: one.y.abs_diff(other.y) + side,
        };
    }
    let side = 1_u32 << ((32 - length) / 2);
    let (x, y) = position(prefix.network());
    Area {
        x: x & !(side - 1),
        y: y & !(side - 1),
        width: side,
        height: side,
    }
}

/// The column and the row of an address on the map of all addresses.
pub(crate) fn position(address: Ipv4Addr) -> (u32, u32) {
    let (x, y) = fast_hilbert::h2xy::<u16>(address.to_bits(), 16);
    (x.into(), y.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quarter(text: &str) -> (bool, bool) {
        let (x, y) = position(text.parse().unwrap());
        (x >= 1 << 15, y >= 1 << 15)
    }

    #[test]
    fn the_map_lies_as_the_census_maps_do() {
        let left_top = (false, false);
        assert_eq!(position(Ipv4Addr::UNSPECIFIED), (0, 0));
        assert_eq!(quarter("10.0.0.0"), left_top);
        assert_eq!(quarter("100.0.0.0"), (false, true));
        assert_eq!(quarter("172.16.0.0"), (true, true));
        assert_eq!(quarter("192.168.0.0"), (true, false));
        assert_eq!(position(Ipv4Addr::BROADCAST), (u16::MAX.into(), 0));
        // The first row of the maps that show each /8 as a square begins with 0, 1, 14, 15, 16, 19.
        for (column, network) in [
            0, 1, 14, 15, 16, 19, 20, 21, 234, 235, 236, 239, 240, 241, 254, 255,
        ]
        .into_iter()
        .enumerate()
        {
            let square = area(Ipv4Net::new_assert(Ipv4Addr::new(network, 0, 0, 0), 8));
            assert_eq!((square.x >> 12, square.y), (column as u32, 0), "{network}");
        }
    }

    #[test]
    fn neighbours_on_the_map_are_neighbours_in_number() {
        for first in [0_u32, 0x0a00_0000, 0x7f00_00ff, 0xc0a8_0fff] {
            for number in first..first + 1000 {
                let (x, y) = position(Ipv4Addr::from_bits(number));
                let (next_x, next_y) = position(Ipv4Addr::from_bits(number + 1));
                assert_eq!(x.abs_diff(next_x) + y.abs_diff(next_y), 1);
            }
        }
    }

    #[test]
    fn a_prefix_of_an_odd_length_is_two_squares() {
        for (prefix, half) in [("10.0.0.0/9", 10), ("10.128.0.0/23", 24), ("0.0.0.0/1", 2)] {
            let prefix: Ipv4Net = prefix.parse().unwrap();
            let whole = area(prefix);
            let side = 1 << ((32 - half) / 2);
            let sides = [whole.width, whole.height];
            assert_eq!(sides.iter().sum::<u32>(), 3 * side, "{prefix}: {whole:?}");
            for address in [prefix.network(), prefix.broadcast()] {
                let (x, y) = position(address);
                assert!((whole.x..whole.x + whole.width).contains(&x));
                assert!((whole.y..whole.y + whole.height).contains(&y));
            }
        }
    }
}
