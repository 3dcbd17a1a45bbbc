//! How targets are written, and what is wrong with bad ones.

use std::{fmt::Write, io};

use clap::Parser;
use pingfleet_targets::{TargetsError, read};
use pingfleet_wire::{Family, Target};

use super::{CommandLine, arguments, listed, names};

#[test]
fn good_words_are_parsed() {
    let long_name = format!("{}.example", ["a23456789"; 24].join("."));
    assert_eq!(long_name.len(), 247);
    let label = "x".repeat(63);
    let cases: &[(&str, &[&str])] = &[
        ("10.0.0.1", &["10.0.0.1"]),
        ("2001:db8::1", &["2001:db8::1"]),
        ("2001:DB8:0::1", &["2001:DB8:0::1"]),
        ("::ffff:10.0.0.1", &["10.0.0.1"]),
        ("::FFFF:A00:1", &["10.0.0.1"]),
        ("::ffff:10.0.0.0/126", &["10.0.0.1", "10.0.0.2"]),
        ("::ffff:10.0.0.7/126", &["10.0.0.5", "10.0.0.6"]),
        ("::ffff:10.0.0.4/128", &["10.0.0.4"]),
        ("::ffff:10.0.0.1-::ffff:10.0.0.2", &["10.0.0.1", "10.0.0.2"]),
        ("::ffff:10.0.0.1-10.0.0.2", &["10.0.0.1", "10.0.0.2"]),
        ("::1", &["::1"]),
        ("fe80::1%eth0", &["fe80::1%eth0"]),
        ("FE80::1%br-12.3", &["FE80::1%br-12.3"]),
        ("fe80::1", &["fe80::1"]),
        ("router", &["router"]),
        ("Router_1.Example.COM.", &["Router_1.Example.COM."]),
        ("3com.example", &["3com.example"]),
        ("a-b", &["a-b"]),
        ("10-0-0-1.example", &["10-0-0-1.example"]),
        ("10.0.0.1-static.example", &["10.0.0.1-static.example"]),
        ("xn--mller-kva.de", &["xn--mller-kva.de"]),
        (&long_name, &[&long_name]),
        (&label, &[&label]),
        ("10.0.0.0/30", &["10.0.0.1", "10.0.0.2"]),
        ("10.0.0.7/30", &["10.0.0.5", "10.0.0.6"]),
        ("10.0.0.4/31", &["10.0.0.4", "10.0.0.5"]),
        ("10.0.0.4/32", &["10.0.0.4"]),
        ("2001:db8::/127", &["2001:db8::", "2001:db8::1"]),
        ("2001:DB8::5/127", &["2001:db8::4", "2001:db8::5"]),
        (
            "10.0.0.254-10.0.1.1",
            &["10.0.0.254", "10.0.0.255", "10.0.1.0", "10.0.1.1"],
        ),
        ("10.0.0.9-10.0.0.9", &["10.0.0.9"]),
        (
            "2001:db8::ffff-2001:db8::1:0",
            &["2001:db8::ffff", "2001:db8::1:0"],
        ),
    ];
    for (word, expected) in cases {
        let targets = listed([*word]).unwrap_or_else(|error| panic!("{word}: {error}"));
        assert_eq!(names(&targets), *expected, "{word}");
    }
}

#[test]
fn bad_words_are_refused_with_the_reason_and_the_fix() {
    let long_name = format!("{}.example.com", ["a23456789"; 25].join("."));
    let long_label = format!("{}.example", "x".repeat(64));
    let cases: &[(&str, &str)] = &[
        ("", "empty"),
        ("010.0.0.1", "write 10.0.0.1"),
        ("10.0.0.08", "write 10.0.0.8"),
        ("10.0.0.1.", "write 10.0.0.1"),
        ("10.0.0", "four octets, not 3"),
        ("1234", "four octets, not 1"),
        ("0x7f000001", "last label"),
        ("0X7F.0.0.1", "last label"),
        ("host.0x7f", "last label"),
        ("10.0.0.1.5", "four octets, not 5"),
        ("10.0.0.256", "at most 255, not 256"),
        ("10.0.0.99999999999999999999", "at most 255"),
        ("host.123", "last label"),
        ("10.0.0.1-99", "write 10.0.0.1-10.0.0.99"),
        ("10.0.0.1-300", "300 is not an address"),
        ("10.0.0.1-", "(empty) is not an address"),
        ("10.0.0.1-\u{1b}:", "\\u{1b}: is not an address"),
        ("10.0.0-255.1", "10.0.0 is not an address"),
        ("10.0.0.9-10.0.0.1", "write 10.0.0.1-10.0.0.9"),
        ("2001:db8::9-2001:db8::1", "write 2001:db8::1-2001:db8::9"),
        ("10.0.0.1-2001:db8::1", "different address families"),
        ("2001:db8::1-10.0.0.1", "different address families"),
        ("fe80::1-fe80::2%eth0", "no zone"),
        ("fe80::1%eth0-fe80::2%eth0", "no zone"),
        ("10.0.0.0/33", "from 0 to 32"),
        ("10.0.0.0/", "from 0 to 32"),
        ("10.0.0.0/+8", "from 0 to 32"),
        ("10.0.0.0/08", "from 0 to 32"),
        ("10.0.0.0/x", "from 0 to 32"),
        ("2001:db8::/129", "from 0 to 128"),
        ("10.0.0.0/255.255.255.0", "write 10.0.0.0/24"),
        ("010.0.0.0/8", "write 10.0.0.0"),
        ("10.0.0/24", "four octets"),
        ("fe80::%eth0/64", "no zone"),
        ("fe80::1%", "1 to 15 characters"),
        ("fe80::1%a-very-long-name", "1 to 15 characters"),
        ("2001:db8::1%eth0", "write 2001:db8::1"),
        ("10.0.0.1%eth0", "write 10.0.0.1"),
        ("host%eth0", "'%' cannot stand in a name"),
        ("2001:db8:::1", "not an IPv6 address"),
        ("12345::1", "not an IPv6 address"),
        ("[2001:db8::1]", "write 2001:db8::1"),
        ("[2001:db8::1]:80", "write 2001:db8::1"),
        ("10.0.0.1:80", "write 10.0.0.1"),
        ("host:443", "write host"),
        ("https://example.com/", "write its host alone"),
        ("a..b", "empty label"),
        (".example", "empty label"),
        (".", "empty label"),
        ("a..", "empty label"),
        (&long_label, "label of 64 characters"),
        (&long_name, "name of 261 characters"),
        ("müller.de", "punycode"),
        ("a b", "one target a line"),
        ("10.0.0.1 - 10.0.0.9", "one target a line"),
        ("a\u{7}b", "cannot stand in a name"),
        ("web*", "'*' cannot stand in a name"),
        ("a.-b", "begins with a hyphen"),
        ("0.0.0.0", "no host's address"),
        ("::", "no host's address"),
        ("224.0.0.1", "multicast"),
        ("239.255.255.255", "multicast"),
        ("255.255.255.255", "broadcast"),
        ("ff02::1", "multicast"),
        ("::ffff:224.0.0.1", "multicast"),
        ("::ffff:0.0.0.0", "no host's address"),
        ("223.255.255.255-224.0.0.5", "224.0.0.0 is a multicast"),
        ("0.0.0.0/0", "multicast"),
        ("0.0.0.0-0.0.0.5", "no host's address"),
        ("255.255.255.254/31", "broadcast"),
        ("::/120", "no host's address"),
        ("::/0", "no host's address"),
        ("feff::-ff00::", "ff00:: is a multicast"),
        ("::ffff:0:0/96", "multicast"),
        ("::ffff:0:0/95", "(0.0.0.0)"),
        ("::fffe:ffff:ffff-::ffff:10.0.0.9", "(0.0.0.0)"),
        ("::ffff:10.0.0.9-::ffff:10.0.0.1", "write 10.0.0.1-10.0.0.9"),
        ("::ffff:10.0.0.1%eth0", "write 10.0.0.1"),
        ("::fffe:ffff:ffff-::1:0:0:0", "(0.0.0.0)"),
        ("no/such/file", "no such file"),
        (".\\hosts", "no such file"),
        ("missing.txt", "no such file"),
        ("MISSING.CSV", "no such file"),
        ("missing.list", "no such file"),
        ("missing.hosts", "no such file"),
        ("my missing.txt", "no such file"),
    ];
    for (word, why) in cases {
        assert_bad(word, why);
    }
}

#[test]
fn usual_mistakes_are_named_with_their_fix() {
    let cases: &[(&str, &str)] = &[
        ("a,b", "',' cannot stand in a name: write one target a line"),
        (
            "10.0.0.0/24;10.0.1.0/24",
            "';' cannot stand in a name: write one target a line",
        ),
        ("10.0.0.1, 10.0.0.2", "--format csv"),
        ("1.1.1.*", "write 1.1.1.0/24"),
        ("10.1.*.*", "write 10.1.0.0/16"),
        ("10.*.1.*", "'*' cannot stand in a name"),
        ("300.1.1.*", "'*' cannot stand in a name"),
        ("x#c", "a comment needs a blank before it, so write x #c"),
        ("10.0.0.1#core router", "so write 10.0.0.1 #core router"),
        ("10.0.0.0/24#c", "so write 10.0.0.0/24 #c"),
        ("10.0.0.1\u{200b}", "U+200B (zero width space)"),
        ("\u{feff}10.0.0.1", "U+FEFF (byte order mark"),
        ("ho\u{ad}st", "U+00AD (soft hyphen)"),
        ("10.0.0.1\u{202c} x", "U+202C (a mark of writing direction)"),
        (
            "10.0.0.1\u{2013}10.0.0.9",
            "U+2013 (en dash) and not a hyphen: write 10.0.0.1-10.0.0.9",
        ),
        (
            "a\u{2011}b",
            "U+2011 (non-breaking hyphen) and not a hyphen: write a-b",
        ),
        ("10.0.0.1\u{2212}9", "U+2212 (minus sign)"),
        ("hosts,1.txt", "no such file"),
        ("hosts#1.txt", "no such file"),
        ("my/folder,1/hosts", "no such file"),
        ("10.0.0.0/24\u{200b}", "U+200B"),
    ];
    for (word, why) in cases {
        assert_bad(word, why);
    }
}

/// A word is refused with a reason.
fn assert_bad(word: &str, why: &str) {
    let error = listed([word]).expect_err(word);
    let TargetsError::Bad(bad) = &error else {
        panic!("{word}: {error}");
    };
    assert_eq!(bad.count(), 1, "{word}");
    assert!(
        bad.reported()[0].to_string().contains(why),
        "{word}: {error}"
    );
    assert!(error.to_string().contains("--skip-bad"), "{word}: {error}");
}

#[test]
fn networks_without_their_ends_may_touch_what_cannot_be_probed() {
    for (word, count) in [("0.0.0.0/30", 2), ("255.255.255.252/30", 2)] {
        assert_eq!(listed([word]).unwrap().count(), count, "{word}");
        let error = listed([word, "--all-addresses"]).unwrap_err();
        assert!(matches!(error, TargetsError::Bad(_)), "{word}: {error}");
    }
}

#[test]
fn all_addresses_includes_network_and_broadcast_address() {
    let targets = listed(["10.0.0.0/30", "--all-addresses"]).unwrap();
    assert_eq!(
        names(&targets),
        ["10.0.0.0", "10.0.0.1", "10.0.0.2", "10.0.0.3"]
    );
}

#[test]
fn host_bits_are_noted() {
    let targets = listed(["10.0.0.5/24", "10.0.1.0/24"]).unwrap();
    assert_eq!(targets.count(), 508);
    assert_eq!(targets.notes().len(), 1);
    assert!(targets.notes()[0].contains("read as 10.0.0.0/24"));
}

#[test]
fn notes_are_capped() {
    let networks: Vec<_> = (0..30).map(|n| format!("10.0.{n}.1/24")).collect();
    let targets = listed(networks.iter().map(String::as_str)).unwrap();
    assert_eq!(targets.notes().len(), 21);
    assert_eq!(targets.notes()[20], "and 10 more notes");
}

#[test]
fn an_address_family_refuses_the_other_one() {
    for (word, family, why) in [
        ("10.0.0.1", Family::V6, "-6"),
        ("10.0.0.0/24", Family::V6, "-6"),
        ("::ffff:10.0.0.1", Family::V6, "-6"),
        ("::ffff:10.0.0.0/120", Family::V6, "-6"),
        ("2001:db8::1", Family::V4, "-4"),
        ("2001:db8::/120", Family::V4, "-4"),
        ("fe80::1%eth0", Family::V4, "-4"),
    ] {
        let error = read(&arguments([word]), family, io::empty()).unwrap_err();
        assert!(error.to_string().contains(why), "{word}: {error}");
    }
    for (word, family) in [
        ("host", Family::V4),
        ("host", Family::V6),
        ("::ffff:10.0.0.1", Family::V4),
    ] {
        assert!(
            read(&arguments([word]), family, io::empty()).is_ok(),
            "{word}"
        );
    }
}

#[test]
fn the_text_of_a_target_is_kept_and_canonical_addresses_are_addresses() {
    let targets = listed(["2001:DB8::1", "10.0.0.1", "::ffff:10.0.0.2"]).unwrap();
    let targets: Vec<_> = (0..3)
        .map(|index| targets.get(index).unwrap().target)
        .collect();
    assert_eq!(targets[0], Target::Text("2001:DB8::1".to_owned()));
    assert_eq!(targets[1], Target::Address("10.0.0.1".parse().unwrap()));
    assert_eq!(targets[2], Target::Address("10.0.0.2".parse().unwrap()));
}

#[test]
fn spellings_of_one_target_are_duplicates() {
    let targets = listed([
        "2001:DB8::1",
        "2001:db8::1",
        "10.0.0.1",
        "::FFFF:10.0.0.1",
        "::ffff:a00:1",
        "Host",
        "hOST",
        "host.",
        "fe80::1%eth0",
        "FE80:0::1%eth0",
        "fe80::1%eth1",
        "fe80::1",
    ])
    .unwrap();
    assert_eq!(
        names(&targets),
        [
            "2001:DB8::1",
            "10.0.0.1",
            "Host",
            "host.",
            "fe80::1%eth0",
            "fe80::1%eth1",
            "fe80::1"
        ]
    );
    assert_eq!(targets.duplicates(), 5);
}

#[test]
fn a_count_over_the_limits_is_refused() {
    assert_eq!(listed(["10.0.0.0/8"]).unwrap().count(), 16_777_214);
    let most = ["10.0.0.0/8", "11.0.0.1", "11.0.0.2"];
    assert_eq!(listed(most).unwrap().count(), 16_777_216);
    let more = ["10.0.0.0/8", "11.0.0.1-11.0.0.3"];
    let error = listed(more).unwrap_err();
    assert!(
        matches!(error, TargetsError::NeedsYes { count: 16_777_217 }),
        "{error}"
    );
    assert!(error.to_string().contains("--yes"));
    assert_eq!(
        listed(more.into_iter().chain(["--yes"])).unwrap().count(),
        16_777_217
    );
    // Excludes and duplicates do not count.
    assert!(listed(["10.0.0.0/8", "11.0.0.1-11.0.0.3", "--exclude", "11.0.0.3"]).is_ok());

    assert_eq!(
        listed(["16.0.0.0/4", "--all-addresses", "--yes"])
            .unwrap()
            .count(),
        1 << 28
    );
    for huge in [
        "16.0.0.0-32.0.0.0",
        "2001:db8::/64",
        "2000::/3",
        "1::-feff::",
    ] {
        let error = listed([huge, "--yes"]).unwrap_err();
        assert!(
            matches!(error, TargetsError::TooMany { .. }),
            "{huge}: {error}"
        );
    }
    assert_eq!(
        listed([
            "2001:db8::/64",
            "--exclude",
            "2001:db8::1:0-2001:db8::ffff:ffff:ffff:ffff"
        ])
        .unwrap()
        .count(),
        65_536
    );
}

#[test]
fn nothing_to_probe_is_an_error_that_says_where_all_went() {
    let error = listed([]).unwrap_err();
    assert!(error.to_string().contains("-f"), "{error}");
    let error = listed([
        "10.0.0.0/30",
        "10.0.0.1",
        "1234",
        "--skip-bad",
        "--exclude",
        "10.0.0.0/8",
    ])
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "nothing to probe (2 excluded, 1 bad and skipped, 1 mentioned again)"
    );
}

#[test]
fn excludes_take_out_addresses_names_and_zones() {
    let targets = listed([
        "10.0.0.0/29",
        "::ffff:10.0.1.1",
        "2001:DB8::1",
        "Host",
        "other",
        "fe80::1%eth0",
        "fe80::2%eth0",
        "fe80::2%eth1",
        "--exclude",
        "10.0.0.2-10.0.0.4",
        "--exclude",
        "10.0.1.0/24",
        "--exclude",
        "2001:db8::/64",
        "--exclude",
        "hOST",
        "--exclude",
        "fe80::1",
        "--exclude",
        "FE80::2%eth1",
    ])
    .unwrap();
    assert_eq!(
        names(&targets),
        ["10.0.0.1", "10.0.0.5", "10.0.0.6", "other", "fe80::2%eth0"]
    );
    assert_eq!(targets.excluded(), 8);
}

#[test]
fn excludes_may_be_what_no_target_may() {
    let targets = listed([
        "10.0.0.1",
        "--exclude=0.0.0.0",
        "--exclude=224.0.0.0/4",
        "--exclude=::/0",
        "--exclude=255.255.255.255",
    ])
    .unwrap();
    assert_eq!(names(&targets), ["10.0.0.1"]);
}

#[test]
fn a_bad_exclude_is_never_skipped() {
    let error = listed(["10.0.0.0/24", "--exclude", "10.0.0.1-9", "--skip-bad"]).unwrap_err();
    assert!(matches!(error, TargetsError::BadExcludes(_)), "{error}");
    assert!(
        error.to_string().contains("write 10.0.0.1-10.0.0.9"),
        "{error}"
    );
}

#[test]
fn a_seed_without_a_shuffle_is_refused() {
    assert_eq!(arguments(["--seed", "7"]).seed, Some(7));
    assert!(arguments(["--no-shuffle"]).no_shuffle);
    assert!(CommandLine::try_parse_from(["test", "--seed", "7", "--no-shuffle"]).is_err());
}

#[test]
fn names_with_equal_hashes_are_different_targets() {
    // Among so many, about ten pairs have the same 32 bits of hash.
    let mut input = String::new();
    for _ in 0..2 {
        for number in 0..300_000 {
            writeln!(input, "host{number}").unwrap();
        }
    }
    let targets = read(&arguments(["-"]), Family::Any, input.as_bytes()).unwrap();
    assert_eq!((targets.count(), targets.duplicates()), (300_000, 300_000));
    let last = targets.get(299_999).unwrap().target;
    assert_eq!(last, Target::Text("host299999".to_owned()));
}

#[test]
fn the_description_names_a_few_sources() {
    let targets = listed(["10.0.0.1", "10.0.0.2", "--exclude", "10.0.0.3"]).unwrap();
    assert_eq!(targets.sources(), "10.0.0.1, 10.0.0.2 without 10.0.0.3");
    let many: Vec<_> = (0..9).map(|n| format!("10.0.0.{}", n + 1)).collect();
    let targets = listed(many.iter().map(String::as_str)).unwrap();
    assert!(
        targets.sources().ends_with("10.0.0.5 and 4 more"),
        "{}",
        targets.sources()
    );
}
