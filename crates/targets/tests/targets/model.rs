//! The list of targets against a naive model that walks through every address.

use std::{
    collections::{HashMap, HashSet},
    fmt::Write,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use pingfleet_targets::Order;
use proptest::prelude::*;

use super::{listed, texts};

/// The network in which the IPv6 addresses of the model lie.
const V6: u128 = 0x2001_0db8 << 96;

/// One line of a CSV file: its target, and the value of its only label.
#[derive(Debug, Clone)]
struct Mention {
    word: String,
    /// What it stands for: identity and text of each target.
    targets: Vec<(String, String)>,
    site: Option<&'static str>,
}

fn v4(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, last)
}

fn v6(last: u8) -> Ipv6Addr {
    Ipv6Addr::from_bits(V6 + u128::from(last))
}

/// A word that stands for itself.
fn one(word: String, identity: &str) -> (String, Vec<(String, String)>) {
    (word.clone(), vec![(identity.to_owned(), word)])
}

/// A word that stands for addresses.
fn many(word: String, addresses: impl Iterator<Item = IpAddr>) -> (String, Vec<(String, String)>) {
    let targets = addresses.map(|address| (address.to_string(), address.to_string()));
    (word, targets.collect())
}

fn network(address: u8, bits: u32, ends: bool) -> std::ops::RangeInclusive<u8> {
    let hosts = (1_u16 << bits) - 1;
    let first = address & !(hosts as u8);
    let last = first + hosts as u8;
    if ends || bits < 2 {
        first..=last
    } else {
        first + 1..=last - 1
    }
}

fn word(ends: bool) -> impl Strategy<Value = (String, Vec<(String, String)>)> {
    let name = prop::sample::select(vec!["a", "A", "b", "B.", "b."]);
    prop_oneof![
        (0_u8..64).prop_map(|n| one(v4(n).to_string(), &v4(n).to_string())),
        (0_u8..64).prop_map(|n| many(format!("::ffff:{}", v4(n)), [v4(n).into()].into_iter())),
        (0_u8..64, 0_u32..6).prop_map(move |(n, bits)| many(
            format!("::ffff:{}/{}", v4(n), 128 - bits),
            network(n, bits, ends).map(|n| v4(n).into())
        )),
        (0_u8..64, 0_u8..20).prop_map(|(n, more)| many(
            format!("::ffff:{}-::ffff:{}", v4(n), v4(n + more)),
            (n..=n + more).map(|n| v4(n).into())
        )),
        (0_u8..32).prop_map(|n| one(v6(n).to_string(), &v6(n).to_string())),
        (0_u8..32).prop_map(|n| one(format!("2001:0DB8::{n:x}"), &v6(n).to_string())),
        (1_u8..4, 0..2).prop_map(|(n, zone)| one(
            format!("fe80::{n}%eth{zone}"),
            &format!("fe80::{n}%eth{zone}")
        )),
        name.prop_map(|name| one(name.to_owned(), &name.to_ascii_lowercase())),
        (0_u8..64, 0_u32..6).prop_map(move |(n, bits)| many(
            format!("{}/{}", v4(n), 32 - bits),
            network(n, bits, ends).map(|n| v4(n).into())
        )),
        (0_u8..32, 0_u32..5).prop_map(|(n, bits)| many(
            format!("{}/{}", v6(n), 128 - bits),
            network(n, bits, true).map(|n| v6(n).into())
        )),
        (0_u8..64, 0_u8..20).prop_map(|(n, more)| many(
            format!("{}-{}", v4(n), v4(n + more)),
            (n..=n + more).map(|n| v4(n).into())
        )),
    ]
}

fn mention() -> impl Strategy<Value = Mention> {
    let site = prop::sample::select(vec![None, None, Some("x"), Some("y")]);
    (word(false), site).prop_map(|((word, targets), site)| Mention {
        word,
        targets,
        site,
    })
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Expected {
    targets: Vec<(String, Option<String>)>,
    duplicates: u64,
    excluded: u64,
}

/// The model: first mention counts, first labels count, excluded is excluded.
fn expected(mentions: &[Mention], excludes: &HashSet<String>) -> Expected {
    let mut expected = Expected::default();
    let mut places: HashMap<&str, Option<usize>> = HashMap::new();
    for mention in mentions {
        let labels = mention.site.map(|site| format!("{{\"site\":\"{site}\"}}"));
        for (identity, text) in &mention.targets {
            // An address that is excluded is excluded in every zone.
            let address = identity
                .split_once('%')
                .map_or(&**identity, |(address, _)| address);
            if let Some(place) = places.get(identity.as_str()) {
                expected.duplicates += 1;
                if let Some(place) = place
                    && expected.targets[*place].1.is_none()
                {
                    expected.targets[*place].1.clone_from(&labels);
                }
            } else if excludes.contains(identity) || excludes.contains(address) {
                expected.excluded += 1;
                places.insert(identity, None);
            } else {
                places.insert(identity, Some(expected.targets.len()));
                expected.targets.push((text.clone(), labels.clone()));
            }
        }
    }
    expected
}

proptest! {
    #[test]
    fn every_wanted_target_is_in_the_list_once_in_its_place(
        mentions in prop::collection::vec(mention(), 1..40),
        excludes in prop::collection::vec(word(true), 0..4),
        seed: u64,
    ) {
        let mut table = "target,site\n".to_owned();
        for mention in &mentions {
            writeln!(table, "{},{}", mention.word, mention.site.unwrap_or_default()).unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.csv");
        fs::write(&path, table).unwrap();
        let mut words = vec!["-f", path.to_str().unwrap()];
        for (word, _) in &excludes {
            words.extend(["--exclude", word]);
        }
        let excludes = excludes
            .iter()
            .flat_map(|(_, targets)| targets.iter().map(|(identity, _)| identity.clone()))
            .collect();
        let expected = expected(&mentions, &excludes);

        // There is no empty list: nothing to probe is an error.
        let targets = match listed(words.iter().copied()) {
            Ok(targets) => targets,
            Err(error) => {
                prop_assert!(expected.targets.is_empty(), "{}", error);
                return Ok(());
            }
        };
        let found = Expected {
            targets: texts(&targets),
            duplicates: targets.duplicates(),
            excluded: targets.excluded(),
        };
        prop_assert_eq!(&found, &expected);

        let order = Order::shuffled(targets.count(), seed);
        let mut shuffled: Vec<_> = (0..targets.count())
            .map(|n| {
                let planned = targets.get(order.position(n)).unwrap();
                (planned.target.to_string(), planned.labels)
            })
            .collect();
        let mut given = expected.targets;
        shuffled.sort();
        given.sort();
        prop_assert_eq!(shuffled, given);
    }
}
