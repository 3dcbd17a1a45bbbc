//! The map: IPv4 addresses on a Hilbert curve, as pictures of one pixel a cell. No I/O.

use std::collections::BTreeMap;

use ipnet::{IpNet, Ipv4Net};
use pingfleet_store::{RunDetail, StatusCounts};
use pingfleet_wire::StatusKind;

use crate::hilbert::{Area, area_in, prefix_of};

/// The longest prefix whose map has a pixel for each address.
const ADDRESS_PREFIX: u8 = RunDetail::ADDRESS_PREFIX as u8;

/// Prefixes of more than this are shown with a pixel for a /22, so that no picture is larger than 2048 by 2048.
const NETWORK_PREFIX: u8 = 2;

/// One map is drawn when at least one in so many of its pixels has a target, or when it has at most `SMALL_MAP` pixels.
/// Otherwise each prefix with targets has a small map of its own.
const SPARSE: usize = 32;
const SMALL_MAP: usize = 32 * 32;

/// The most small maps, and the bits of a cell in one: they are 16 by 16 pixels.
const MAX_TILES: usize = RunDetail::ADDRESS_SUBNETS;
const TILE_BITS: u8 = 8;

/// A map of one prefix.
#[derive(Debug)]
pub(crate) struct PrefixMap {
    pub(crate) prefix: Ipv4Net,
    /// Pixels.
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// Row by row, a [`Shade`] for each pixel.
    pub(crate) pixels: Vec<u8>,
    /// Its parts that have targets. None for a small map.
    pub(crate) parts: Vec<MapPart>,
}

/// A part of a map: one of some cells of equal size in which it is divided.
#[derive(Debug)]
pub(crate) struct MapPart {
    /// The smallest prefix that has all of its targets, as far as they are known.
    pub(crate) prefix: Ipv4Net,
    /// The area of this prefix in pixels of the map.
    pub(crate) area: Area,
    /// The area of the whole part.
    pub(crate) room: Area,
}

/// What is drawn of a run.
#[derive(Debug)]
pub(crate) struct Maps {
    /// The length of the prefix that a pixel stands for.
    pub(crate) cell: u8,
    /// One map, or several small ones.
    pub(crate) drawn: Vec<PrefixMap>,
    /// The statuses by prefix: of the parts of one map, or of each small map.
    pub(crate) prefixes: Vec<(Ipv4Net, StatusCounts)>,
}

/// What a pixel shows; also its index in the palette.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shade {
    /// No target with a result.
    NotProbed,
    /// Every target answered.
    Answered,
    /// Less than a tenth of a network's targets did not answer.
    FewNotUp,
    /// A tenth to a half.
    ManyNotUp,
    /// The address, or at least half of the network: its most frequent status that is not up.
    Mostly(StatusKind),
}

impl Shade {
    pub(crate) const COUNT: usize = 4 + StatusKind::ALL.len();

    pub(crate) fn index(self) -> u8 {
        match self {
            Self::NotProbed => 0,
            Self::Answered => 1,
            Self::FewNotUp => 2,
            Self::ManyNotUp => 3,
            Self::Mostly(status) => 4 + status.code(),
        }
    }

    /// Of an address, or of all targets of a network.
    pub(crate) fn of(counts: &StatusCounts) -> Self {
        let total = counts.total();
        let not_up = total - counts.answered();
        // An address that answered late is shown as such; among others it is one that answered.
        let kinds = StatusKind::ALL.into_iter();
        let most = kinds
            .filter(|status| *status != StatusKind::Up)
            .filter(|status| *status != StatusKind::Late || not_up == 0)
            .max_by_key(|status| counts[*status]);
        match most {
            _ if total == 0 => Self::NotProbed,
            Some(StatusKind::Late) if 2 * counts[StatusKind::Late] >= total => {
                Self::Mostly(StatusKind::Late)
            }
            _ if not_up == 0 => Self::Answered,
            Some(status) if 2 * not_up >= total => Self::Mostly(status),
            _ if 10 * not_up < total => Self::FewNotUp,
            _ => Self::ManyNotUp,
        }
    }
}

/// The counts of all prefixes of one length that have targets, by the first address.
type CountsByPrefix = BTreeMap<u32, StatusCounts>;

impl Maps {
    /// What is drawn of a run. None when it has no IPv4 address.
    pub(crate) fn of(detail: &RunDetail) -> Option<Self> {
        let networks = of_subnets(detail, 24);
        let first = *networks.keys().next()?;
        let last = *networks.keys().next_back()?;
        let length = ((first ^ last).leading_zeros() as u8).min(24);
        let extent = prefix_of(first, length);
        let cell = if length >= ADDRESS_PREFIX && detail.addresses.is_some() {
            32
        } else if length >= NETWORK_PREFIX {
            24
        } else {
            22
        };
        let cells = counts(detail, cell);
        let pixels = 1_usize << (cell - length);
        if pixels <= SMALL_MAP || cells.len() >= pixels / SPARSE {
            return Some(Self::one(detail, extent, cell, &cells));
        }
        let lengths = [24, 16, 8, 0].into_iter();
        let tiles = lengths.map(|length| (length, of_subnets(detail, length)));
        let (length, tiles) = tiles
            .into_iter()
            .find(|(_, tiles)| tiles.len() <= MAX_TILES)?;
        let cell = length + TILE_BITS;
        let cells = counts(detail, cell);
        if tiles.len() == 1 {
            return Some(Self::one(detail, prefix_of(first, length), cell, &cells));
        }
        let drawn = tiles
            .keys()
            .map(|first| PrefixMap::draw(prefix_of(*first, length), cell, &cells))
            .collect();
        Some(Self {
            cell,
            drawn,
            prefixes: named(tiles, length),
        })
    }

    fn one(detail: &RunDetail, extent: Ipv4Net, cell: u8, cells: &CountsByPrefix) -> Self {
        let length = extent.prefix_len();
        // Four by four parts, or four by two; only prefixes of even lengths are squares.
        let part = length + 4 - length % 2;
        let mut map = PrefixMap::draw(extent, cell, cells);
        let known = KnownAddresses::of(detail);
        let mut prefixes = Vec::new();
        for (room, counts) in named(counts(detail, part), part) {
            let prefix = known.smallest_prefix(room);
            map.parts.push(MapPart {
                prefix,
                area: area_in(prefix, extent, cell),
                room: area_in(room, extent, cell),
            });
            prefixes.push((prefix, counts));
        }
        Self {
            cell,
            drawn: vec![map],
            prefixes,
        }
    }
}

/// The targets' addresses in order, or the first ones of their /24 where the addresses are not known.
struct KnownAddresses {
    sorted: Vec<u32>,
    /// The bits that are not known.
    unknown: u32,
}

impl KnownAddresses {
    fn of(detail: &RunDetail) -> Self {
        match &detail.addresses {
            Some(addresses) => Self {
                sorted: addresses
                    .iter()
                    .map(|(address, _)| address.to_bits())
                    .collect(),
                unknown: 0,
            },
            None => Self {
                sorted: of_subnets(detail, 24).into_keys().collect(),
                unknown: 0xff,
            },
        }
    }

    /// The smallest prefix that has all targets of a part of the map.
    fn smallest_prefix(&self, part: Ipv4Net) -> Ipv4Net {
        let (start, end) = (part.network().to_bits(), part.broadcast().to_bits());
        let first = self.sorted.partition_point(|address| *address < start);
        let behind = self.sorted.partition_point(|address| *address <= end);
        let inside = &self.sorted[first..behind];
        let (Some(first), Some(last)) = (inside.first(), inside.last()) else {
            return part;
        };
        let length = (first ^ (last | self.unknown)).leading_zeros() as u8;
        prefix_of(*first, length.max(part.prefix_len()))
    }
}

impl PrefixMap {
    fn draw(prefix: Ipv4Net, cell: u8, cells: &CountsByPrefix) -> Self {
        let Area { width, height, .. } = area_in(prefix, prefix, cell);
        let mut pixels = vec![Shade::NotProbed.index(); (width * height) as usize];
        let range = prefix.network().to_bits()..=prefix.broadcast().to_bits();
        for (first, counts) in cells.range(range) {
            let Area { x, y, .. } = area_in(prefix_of(*first, cell), prefix, cell);
            pixels[(y * width + x) as usize] = Shade::of(counts).index();
        }
        Self {
            prefix,
            width,
            height,
            pixels,
            parts: Vec::new(),
        }
    }
}

/// The counts of all prefixes of this length: at most that of a /24 from the subnets, otherwise from the addresses.
fn counts(detail: &RunDetail, length: u8) -> CountsByPrefix {
    if length <= 24 {
        return of_subnets(detail, length);
    }
    let mut found = CountsByPrefix::new();
    for (address, status) in detail.addresses.iter().flatten() {
        let prefix = prefix_of(address.to_bits(), length).network().to_bits();
        found.entry(prefix).or_default().add(*status);
    }
    found
}

fn of_subnets(detail: &RunDetail, length: u8) -> CountsByPrefix {
    let mut found = CountsByPrefix::new();
    for subnet in &detail.subnets {
        let IpNet::V4(network) = subnet.subnet else {
            continue;
        };
        let first = network.network().to_bits();
        let prefix = prefix_of(first, length).network().to_bits();
        *found.entry(prefix).or_default() += subnet.counts;
    }
    found
}

fn named(counts: CountsByPrefix, length: u8) -> Vec<(Ipv4Net, StatusCounts)> {
    let named = counts
        .into_iter()
        .map(|(first, counts)| (prefix_of(first, length), counts));
    named.collect()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use pingfleet_store::SubnetStatuses;

    use super::*;
    use crate::hilbert::position;

    /// Targets at these addresses, all in small numbers.
    fn detail(targets: &[(Ipv4Addr, StatusKind)]) -> RunDetail {
        let mut subnets = CountsByPrefix::new();
        for (address, status) in targets {
            let first = prefix_of(address.to_bits(), 24).network().to_bits();
            subnets.entry(first).or_default().add(*status);
        }
        let spread = targets.iter().fold(0, |spread, (address, _)| {
            spread | (address.to_bits() ^ targets[0].0.to_bits())
        });
        let is_kept =
            spread.leading_zeros() >= RunDetail::ADDRESS_PREFIX || subnets.len() <= MAX_TILES;
        RunDetail {
            subnets: named(subnets, 24)
                .into_iter()
                .map(|(subnet, counts)| SubnetStatuses {
                    subnet: subnet.into(),
                    counts,
                })
                .collect(),
            addresses: is_kept.then(|| targets.to_vec()),
            ..RunDetail::default()
        }
    }

    fn up(addresses: impl IntoIterator<Item = u32>) -> Vec<(Ipv4Addr, StatusKind)> {
        let addresses = addresses.into_iter().map(Ipv4Addr::from_bits);
        addresses.map(|address| (address, StatusKind::Up)).collect()
    }

    #[test]
    fn a_map_is_cropped_and_has_each_address_at_its_place() {
        let down: Ipv4Addr = "10.0.5.17".parse().unwrap();
        let mut targets = up(0x0a00_0500..0x0a00_0600);
        targets[17].1 = StatusKind::Down;
        // The control: an address without a target.
        targets.remove(200);
        let maps = Maps::of(&detail(&targets)).unwrap();
        let [map] = maps.drawn.as_slice() else {
            panic!("{maps:?}")
        };
        assert_eq!((maps.cell, map.width, map.height), (32, 16, 16));
        let (x, y) = position(down);
        let pixel = ((y % 16) * 16 + x % 16) as usize;
        for (at, shade) in map.pixels.iter().enumerate() {
            let (free_x, free_y) = position("10.0.5.200".parse().unwrap());
            let expected = if at == pixel {
                Shade::Mostly(StatusKind::Down)
            } else if at == ((free_y % 16) * 16 + free_x % 16) as usize {
                Shade::NotProbed
            } else {
                Shade::Answered
            };
            assert_eq!(*shade, expected.index(), "{at}");
        }
        assert_eq!(map.parts.len(), 16);
        let rooms = map.parts.iter().map(|part| part.room);
        assert_eq!(rooms.map(|room| room.width * room.height).sum::<u32>(), 256);
    }

    #[test]
    fn a_part_is_named_by_the_smallest_prefix_that_has_its_targets() {
        let first = u32::from(Ipv4Addr::new(10, 9, 0, 0));
        let names = |targets: &[(Ipv4Addr, StatusKind)]| {
            let maps = Maps::of(&detail(targets)).unwrap();
            let [map] = maps.drawn.as_slice() else {
                panic!("{maps:?}")
            };
            for part in &map.parts {
                let (area, room) = (part.area, part.room);
                assert!(area.x >= room.x && area.x + area.width <= room.x + room.width);
                assert!(area.y >= room.y && area.y + area.height <= room.y + room.height);
            }
            let parts = map.parts.iter().map(|part| part.prefix);
            assert!(parts.eq(maps.prefixes.iter().map(|(prefix, _)| *prefix)));
            let names = map.parts.iter().map(|part| part.prefix.to_string());
            names.collect::<Vec<_>>()
        };
        // Hosts of a /24, of a /28 and of a /30, and one alone, on a map of a /22 with parts of a /26.
        let mut targets = up(first + 1..first + 255);
        targets.extend(up(first + 0x211..first + 0x21f));
        targets.extend(up([first + 0x281, first + 0x282, first + 0x3ff]));
        assert_eq!(
            names(&targets),
            [
                "10.9.0.0/26",
                "10.9.0.64/26",
                "10.9.0.128/26",
                "10.9.0.192/26",
                "10.9.2.16/28",
                "10.9.2.128/30",
                "10.9.3.255/32",
            ]
        );
        // Beyond a /12 only the /24 of a target are known.
        let mut wide = up((first..first + 0x0020_0000).step_by(64));
        wide.retain(|(address, _)| !(16..20).contains(&address.octets()[1]));
        wide.extend(up([u32::from(Ipv4Addr::new(10, 17, 5, 1))]));
        let names = names(&wide);
        assert!(names.contains(&"10.17.5.0/24".to_owned()), "{names:?}");
    }

    #[test]
    fn beyond_a_12_a_pixel_is_a_24() {
        let inside = up((0x0a00_0000..0x0a10_0000).step_by(16));
        let maps = Maps::of(&detail(&inside)).unwrap();
        assert_eq!((maps.cell, maps.drawn[0].width), (32, 1024));
        let outside = up((0x0a00_0000..0x0a20_0000).step_by(16));
        let maps = Maps::of(&detail(&outside)).unwrap();
        let map = &maps.drawn[0];
        assert_eq!((maps.cell, map.width * map.height), (24, 1 << 13));
        assert!(
            map.pixels
                .iter()
                .all(|shade| *shade == Shade::Answered.index())
        );
    }

    #[test]
    fn scattered_hosts_have_small_maps_of_the_longest_prefixes_that_are_few_enough() {
        for (step, subnets, tiles, cell) in [
            (0x0001_0100_u32, 40_u32, 40, 32),
            (0x0003_0000, 64, 64, 32),
            (0x0000_3100, 300, 58, 24),
            (0x0011_0000, 300, 20, 16),
        ] {
            let hosts = up((0..subnets).map(|at| 0x0a00_0001 + at * step));
            let maps = Maps::of(&detail(&hosts)).unwrap();
            let found = (maps.drawn.len(), maps.cell);
            assert_eq!(found, (tiles, cell), "{step:x}");
            let total: i64 = maps.prefixes.iter().map(|(_, counts)| counts.total()).sum();
            assert_eq!(total, i64::from(subnets));
            for map in &maps.drawn {
                assert_eq!((map.width, map.height), (16, 16));
                assert!(map.pixels.contains(&Shade::Answered.index()));
            }
        }
        // Over the whole of IPv4 nothing but one map of the /8 has room for them.
        let hosts = up((0..300).map(|at| at * 0x00d0_0000));
        let maps = Maps::of(&detail(&hosts)).unwrap();
        assert_eq!(
            (maps.drawn.len(), maps.cell, maps.drawn[0].width),
            (1, 8, 16)
        );
    }

    #[test]
    fn a_network_has_the_shade_of_its_share_that_is_not_up() {
        let shade = |up: i64, late: i64, unreachable: i64, down: i64| {
            Shade::of(&StatusCounts::from([up, late, unreachable, 0, 0, 0, down]))
        };
        assert_eq!(shade(0, 0, 0, 0), Shade::NotProbed);
        assert_eq!(shade(10, 1, 0, 0), Shade::Answered);
        assert_eq!(shade(0, 1, 0, 0), Shade::Mostly(StatusKind::Late));
        assert_eq!(shade(10, 0, 0, 1), Shade::FewNotUp);
        assert_eq!(shade(9, 0, 0, 1), Shade::ManyNotUp);
        assert_eq!(shade(2, 1, 2, 1), Shade::Mostly(StatusKind::Unreachable));
    }

    #[test]
    fn only_ipv6_has_no_map() {
        let only_v6 = RunDetail {
            subnets: vec![SubnetStatuses {
                subnet: "2001:db8::/64".parse().unwrap(),
                counts: StatusCounts::default(),
            }],
            ..RunDetail::default()
        };
        assert!(Maps::of(&only_v6).is_none());
    }
}
