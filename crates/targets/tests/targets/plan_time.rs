//! What a plan can say of its targets before it is probed.

use std::net::IpAddr;

use super::listed;

#[test]
fn link_local_addresses_without_a_zone_are_counted_once() {
    let found = |words: &[&str]| {
        let targets = listed(words.iter().copied()).unwrap();
        let found = targets.link_local_without_zone();
        found.map(|found| (found.first.to_string(), found.count))
    };
    let some = |first: &str, count| Some((first.to_owned(), count));
    assert_eq!(found(&["fe80::1"]), some("fe80::1", 1));
    assert_eq!(
        found(&["10.0.0.1", "FE80:0::2", "fe80::2", "fe80::8/126"]),
        some("fe80::2", 5)
    );
    assert_eq!(
        found(&["febf::1-febf::3", "--exclude", "febf::1"]),
        some("febf::2", 2)
    );
    for words in [
        &["fe80::1%eth0", "2001:db8::1", "10.0.0.1", "name"],
        &["fec0::1", "fe7f::1", "--exclude", "fe80::1"],
        &["fe80::1", "10.0.0.1", "--exclude", "fe80::/10"],
    ] {
        assert_eq!(found(words), None, "{words:?}");
    }
}

#[test]
fn a_sample_has_both_ends_of_every_piece_and_no_names() {
    let targets = listed([
        "10.0.0.0/24",
        "192.0.2.1",
        "name",
        "2001:DB8:0::1",
        "2001:db8::10-2001:db8::12",
    ])
    .unwrap();
    let expected: Vec<IpAddr> = [
        "10.0.0.1",
        "10.0.0.254",
        "192.0.2.1",
        "2001:db8::1",
        "2001:db8::10",
        "2001:db8::12",
    ]
    .map(|text| text.parse().unwrap())
    .to_vec();
    assert_eq!(targets.sample(1000).unwrap(), expected);
}

#[test]
fn a_sample_of_many_pieces_is_spread_over_all_of_them() {
    let words: Vec<_> = (0..100).map(|piece| format!("10.0.{piece}.1")).collect();
    let targets = listed(words.iter().map(String::as_str)).unwrap();
    let sample = targets.sample(10).unwrap();
    let expected: Vec<_> = (0..10)
        .map(|piece| IpAddr::from([10, 0, 10 * piece, 1]))
        .collect();
    assert_eq!(sample, expected);
}
