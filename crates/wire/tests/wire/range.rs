//! Values that no writer sends are refused, however well they are encoded.

use std::{num::NonZeroU32, time::Duration};

use pingfleet_wire::{
    Heartbeat, Message, Outcome, Probing, ResultChunk, Rtt, Status, Target, WorkChunk,
};

use crate::{
    hostile::{is_malformed, replaced},
    samples::{self, raw},
};

#[test]
fn probing_out_of_its_range_is_refused() {
    let wrong: [fn(&mut Probing); 12] = [
        |probing| probing.count = 0,
        |probing| probing.count = 1001,
        |probing| probing.interval = Duration::from_micros(3_600_000_001),
        |probing| probing.timeout = Duration::ZERO,
        |probing| probing.timeout = Duration::from_micros(u64::MAX),
        |probing| probing.retries = 101,
        |probing| probing.backoff_permille = 999,
        |probing| probing.backoff_permille = 10_001,
        |probing| probing.size = 65_508,
        |probing| probing.ttl = Some(0),
        |probing| probing.interface = Some(String::new()),
        |probing| probing.interface = Some("eth 0".to_owned()),
    ];
    for (n, change) in wrong.into_iter().enumerate() {
        let mut work = samples::work();
        change(&mut work.probing);
        let decoded = WorkChunk::decode(&raw(&work));
        assert!(is_malformed(decoded, "probing setting"), "change {n}");
    }
}

#[test]
fn a_target_that_takes_over_ten_minutes_is_refused() {
    let slow: [fn(&mut Probing); 3] = [
        |probing| probing.late_window = Duration::from_mins(10),
        |probing| {
            probing.count = 1000;
            probing.interval = Duration::from_secs(1);
        },
        |probing| {
            probing.count = 1000;
            probing.interval = Duration::ZERO;
            probing.rate = NonZeroU32::MIN.into();
        },
    ];
    for (n, change) in slow.into_iter().enumerate() {
        let mut work = samples::work();
        change(&mut work.probing);
        let decoded = WorkChunk::decode(&raw(&work));
        assert!(is_malformed(decoded, "ten minutes"), "change {n}");
    }
}

#[test]
fn target_that_is_no_text_of_a_target_is_refused() {
    let refused = |text: &str| {
        let mut work = samples::work();
        work.targets.push(Target::Text(text.to_owned()));
        WorkChunk::decode(&raw(&work)).is_err()
    };
    assert!(!refused(&"a".repeat(253)));
    for text in [
        "",
        &"a".repeat(254),
        "a b",
        "a\n",
        "\u{7f}",
        "m\u{fc}nchen.example",
    ] {
        assert!(refused(text), "{text:?}");
    }
    let mut work = samples::work();
    work.targets.clear();
    assert!(is_malformed(
        WorkChunk::decode(&raw(&work)),
        "without targets"
    ));
    for address in [
        &b"\xc4\x00"[..],
        b"\xc4\x05aaaaa",
        b"\xc4\x11aaaaaaaaaaaaaaaaa",
    ] {
        let bytes = replaced(&raw(&samples::work()), b"\xc4\x04\xc0\x00\x02\x0a", address);
        assert!(WorkChunk::decode(&bytes).is_err(), "{address:x?}");
    }
}

#[test]
fn name_of_a_worker_that_is_not_printable_is_refused() {
    for name in ["", "a\0", "a\u{1b}[2J", "\u{85}", &"a".repeat(101)] {
        let mut result = samples::result();
        name.clone_into(&mut result.worker);
        assert!(ResultChunk::decode(&raw(&result)).is_err(), "{name:?}");
        let mut heartbeat = samples::heartbeat();
        name.clone_into(&mut heartbeat.worker);
        assert!(Heartbeat::decode(&raw(&heartbeat)).is_err(), "{name:?}");
    }
}

#[test]
fn outcome_that_contradicts_itself_is_refused() {
    let [
        up,
        _,
        unreachable,
        dns_failed,
        send_failed,
        unknown,
        down,
        ..,
    ]: [Outcome; 9] = samples::outcomes().try_into().unwrap();
    let rtt = up.rtt;
    let disordered = |min_ns, avg_ns, max_ns, stddev_ns| {
        Some(Rtt {
            min_ns,
            avg_ns,
            max_ns,
            stddev_ns,
        })
    };
    let wrong = [
        Outcome {
            received: 2,
            ..up.clone()
        },
        Outcome {
            received: 0,
            ..up.clone()
        },
        Outcome {
            rtt: None,
            ..up.clone()
        },
        Outcome {
            status: Status::DOWN,
            ..up.clone()
        },
        Outcome {
            rtt: disordered(2, 1, 3, 0),
            ..up.clone()
        },
        Outcome {
            rtt: disordered(1, 3, 2, 0),
            ..up.clone()
        },
        Outcome {
            rtt: disordered(1, 2, 3, 4),
            ..up.clone()
        },
        Outcome {
            rtt: disordered(1, 2, 1 << 63, 0),
            ..up.clone()
        },
        Outcome {
            rtt,
            ..unreachable.clone()
        },
        Outcome {
            received: 1,
            rtt,
            ..unreachable
        },
        Outcome {
            sent: 1,
            ..dns_failed
        },
        Outcome {
            sent: 1,
            ..send_failed
        },
        Outcome {
            received: 1,
            rtt,
            ..unknown
        },
        Outcome {
            sent: 0,
            ..down.clone()
        },
        Outcome {
            received: 1,
            rtt,
            ..down
        },
        Outcome {
            probed_after_us: u64::MAX,
            ..up
        },
    ];
    for (n, outcome) in wrong.into_iter().enumerate() {
        let mut result = samples::result();
        result.outcomes.push(outcome);
        assert!(ResultChunk::decode(&raw(&result)).is_err(), "outcome {n}");
    }
}

#[test]
fn status_that_does_not_exist_is_refused() {
    let bytes = samples::result().encode();
    let dns_failed = b"\x92\x03\x00";
    for status in [
        &b"\x90"[..],
        b"\x91\x07",
        b"\x91\x03",
        b"\x92\x03\x05",
        b"\x93\x03\x00\x00",
        b"\x92\x06\x05",
        // A reason of down without its fact, with a fact too many, and with facts out of their range.
        b"\x92\x06\x02",
        b"\x92\x06\x04",
        b"\x93\x06\x01\x00",
        b"\x93\x06\x02\xc4\x00",
        b"\x93\x06\x02\xc4\x15aaaaaaaaaaaaaaaaaaaaa",
        b"\x93\x06\x04\xc4\x05aaaaa",
        b"\x92\x00\x00",
        b"\x92\x04\xcf\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x92\x05\xce\x00\x01\x00\x00",
        b"\xc0",
    ] {
        let hostile = replaced(&bytes, dns_failed, status);
        assert!(ResultChunk::decode(&hostile).is_err(), "{status:x?}");
    }
}

#[test]
fn figure_that_the_database_cannot_hold_is_refused() {
    let mut result = samples::result();
    result.started_at_us = 253_402_300_800_000_000;
    assert!(is_malformed(ResultChunk::decode(&raw(&result)), "clock"));
    let wrong: [fn(&mut Heartbeat); 6] = [
        |heartbeat| heartbeat.counts.chunks_done = 1 << 63,
        |heartbeat| heartbeat.counts.targets_done = 1 << 63,
        |heartbeat| heartbeat.counts.replies = 1 << 63,
        |heartbeat| heartbeat.counts.local_losses.socket_drops = 1 << 63,
        |heartbeat| heartbeat.counts.local_losses.interrupted = 1 << 63,
        |heartbeat| heartbeat.counts.requests_sent = u64::MAX,
    ];
    for change in wrong {
        let mut heartbeat = samples::heartbeat();
        change(&mut heartbeat);
        assert!(is_malformed(Heartbeat::decode(&raw(&heartbeat)), "2^63"));
    }
}

#[test]
fn text_of_a_heartbeat_that_is_not_printable_is_refused() {
    for version in ["", "1.2\n", "\u{1b}]0;x\u{7}", &"1".repeat(51)] {
        let mut heartbeat = samples::heartbeat();
        version.clone_into(&mut heartbeat.program_version);
        let decoded = Heartbeat::decode(&raw(&heartbeat));
        assert!(is_malformed(decoded, "version"), "{version:?}");
    }
    for group in ["", "a b", "a.b", "gr\u{fc}n", "a\0", &"g".repeat(33)] {
        let mut heartbeat = samples::heartbeat();
        group.clone_into(&mut heartbeat.group);
        let decoded = Heartbeat::decode(&raw(&heartbeat));
        assert!(is_malformed(decoded, "group"), "{group:?}");
    }
}

#[test]
fn the_encoder_refuses_what_the_decoder_refuses() {
    fn panics(encode: impl FnOnce() -> Vec<u8> + std::panic::UnwindSafe) -> bool {
        std::panic::catch_unwind(encode).is_err()
    }
    let mut work = samples::work();
    assert!(!panics({
        let work = work.clone();
        move || work.encode()
    }));
    work.targets.push(Target::Text("a b".to_owned()));
    assert!(panics(move || work.encode()));
    let mut work = samples::work();
    work.targets.clear();
    assert!(panics(move || work.encode()));
    let mut result = samples::result();
    result.outcomes[0].received = 2;
    assert!(panics(move || result.encode()));
    let mut heartbeat = samples::heartbeat();
    heartbeat.in_hand = vec![samples::in_hand(); 513];
    assert!(panics(move || heartbeat.encode()));
}
