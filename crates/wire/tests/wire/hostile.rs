//! Any bytes that are no message are refused with an error and without a panic.

use pingfleet_wire::{
    DecodeError, Heartbeat, MAX_CHUNK_TARGETS, MAX_DEPTH, MAX_MESSAGE_BYTES, Message, ResultChunk,
    Target, WorkChunk,
};
use proptest::{collection::vec, prelude::*};

use crate::{mutation::Mutation, samples};

/// Heads that claim 2^32 - 1 elements or bytes: an array, a binary, a string, a map.
pub(crate) const CLAIMS: [[u8; 5]; 4] = [
    [0xdd, 0xff, 0xff, 0xff, 0xff],
    [0xc6, 0xff, 0xff, 0xff, 0xff],
    [0xdb, 0xff, 0xff, 0xff, 0xff],
    [0xdf, 0xff, 0xff, 0xff, 0xff],
];

/// A message with a claim put in at `place`, and with or without what came after it.
pub(crate) fn with_claim(bytes: &[u8], place: usize, claim: [u8; 5]) -> [Vec<u8>; 2] {
    let cut = [&bytes[..place], &claim].concat();
    let whole = [&cut, &bytes[place..]].concat();
    [cut, whole]
}

/// A string of nearly a mebibyte, whose characters take five bytes each where they are quoted.
pub(crate) fn long_text() -> Vec<u8> {
    [vec![0xdb, 0x00, 0x0f, 0x00, 0x00], vec![0x01; 0x0f_0000]].concat()
}

/// The bytes with their only occurrence of `from` replaced.
pub(crate) fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let places: Vec<_> = bytes
        .windows(from.len())
        .enumerate()
        .filter_map(|(place, window)| (window == from).then_some(place))
        .collect();
    let [place] = places[..] else {
        panic!("{} occurrences of what is replaced", places.len());
    };
    [&bytes[..place], to, &bytes[place + from.len()..]].concat()
}

pub(crate) fn is_malformed<T>(decoded: Result<T, DecodeError>, why: &str) -> bool {
    matches!(decoded, Err(DecodeError::Malformed(reason)) if reason.contains(why))
}

#[test]
fn truncated_message_is_refused_at_every_length() {
    for (name, decode, bytes) in samples::kinds() {
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length]).is_err(), "{name} at {length}");
        }
    }
}

#[test]
fn bytes_after_the_end_are_refused() {
    for (name, decode, bytes) in samples::kinds() {
        for extra in [1, 2, bytes.len()] {
            let longer = [bytes.clone(), vec![0xc0; extra]].concat();
            assert_eq!(
                decode(&longer),
                Err(DecodeError::TrailingBytes { extra }),
                "{name}"
            );
        }
        let twice = [bytes.clone(), bytes.clone()].concat();
        assert!(decode(&twice).is_err(), "{name}");
    }
}

#[test]
fn nesting_over_the_limit_is_refused() {
    for (name, decode, _) in samples::kinds() {
        for depth in [MAX_DEPTH, MAX_DEPTH + 1, 1000, MAX_MESSAGE_BYTES - 3] {
            // [1, [[...[nil]...]]], of which the outermost array is the first level.
            let nested = [vec![0x92, 0x01], vec![0x91; depth - 1], vec![0xc0]].concat();
            let deep = decode(&nested).expect_err(name);
            assert_eq!(
                deep.to_string().contains("nest too deep"),
                depth > MAX_DEPTH,
                "{name}, depth {depth}: {deep}"
            );
        }
    }
}

#[test]
fn claimed_length_is_refused_at_every_place() {
    for (name, decode, bytes) in samples::kinds() {
        for place in 0..bytes.len() {
            for claim in CLAIMS {
                for hostile in with_claim(&bytes, place, claim) {
                    assert!(decode(&hostile).is_err(), "{name}, {claim:x?} at {place}");
                }
            }
        }
    }
}

#[test]
fn text_that_is_not_utf8_is_refused() {
    let work = samples::work().encode();
    for length in [4, 14, 16] {
        let mut bad = vec![0xa0 | length];
        bad.extend(vec![0xff; length.into()]);
        let bytes = replaced(&work, b"\xaegw.example.net", &bad);
        let decoded = WorkChunk::decode(&bytes);
        assert!(is_malformed(decoded, "UTF-8"), "target of {length} bytes");
    }
    let bytes = replaced(&work, b"\xa4eth0", b"\xa4eth\xff");
    assert!(is_malformed(WorkChunk::decode(&bytes), "UTF-8"));
    let bytes = replaced(&samples::result().encode(), b"\xa6host-1", b"\xa2\xc3\x28");
    assert!(is_malformed(ResultChunk::decode(&bytes), "UTF-8"));
    // A surrogate is no character.
    let bytes = replaced(
        &samples::heartbeat().encode(),
        b"\xa6host-1",
        b"\xa3\xed\xa0\x80",
    );
    assert!(is_malformed(Heartbeat::decode(&bytes), "UTF-8"));
}

#[test]
fn another_version_is_reported_before_anything_else_is_read() {
    for (name, decode, bytes) in samples::kinds() {
        for (version, found) in [
            (vec![0x00], 0),
            (vec![0x02], 2),
            (vec![0xcc, 0xff], 255),
            (vec![0xcd, 0x01, 0x01], 257),
            (vec![0xcf, 0, 0, 1, 0, 0, 0, 0, 1], (1 << 40) + 1),
        ] {
            let other = [&bytes[..1], &version, &bytes[2..]].concat();
            assert_eq!(
                decode(&other),
                Err(DecodeError::Version { found }),
                "{name}"
            );
            // Another version may have another shape.
            let other = [&[0xdc, 0x00, 0x63], &version[..], b"\xca"].concat();
            assert_eq!(
                decode(&other),
                Err(DecodeError::Version { found }),
                "{name}"
            );
        }
    }
}

#[test]
fn what_has_no_version_is_no_message() {
    for (name, decode, bytes) in samples::kinds() {
        for head in [
            &b""[..],
            b"\x01",
            b"\x90",
            b"\x91\xc0",
            b"\x91\xff",
            b"\x91\xa11",
            b"\x91\xcb\x3f\xf0\0\0\0\0\0\0",
            b"\x81\xa7version\x01",
            b"{\"version\":1}",
        ] {
            assert_eq!(
                decode(head),
                Err(DecodeError::NotAMessage),
                "{name} {head:x?}"
            );
        }
        let map = [&[0x80 | (bytes[0] & 0x0f)], &bytes[1..]].concat();
        assert_eq!(decode(&map), Err(DecodeError::NotAMessage), "{name}");
    }
}

#[test]
fn map_in_place_of_an_array_is_refused() {
    let array = rmp_serde::to_vec(&samples::key()).unwrap();
    let map = rmp_serde::to_vec_named(&samples::key()).unwrap();
    for (name, decode, bytes) in samples::kinds() {
        let decoded = decode(&replaced(&bytes, &array, &map));
        assert!(is_malformed(decoded, "a map"), "{name}");
    }
}

#[test]
fn another_kind_of_message_is_refused() {
    let kinds = samples::kinds();
    for (name, _, bytes) in &kinds {
        for (other, decode, _) in &kinds {
            assert_eq!(decode(bytes).is_ok(), name == other, "{name} as {other}");
        }
    }
}

#[test]
fn more_elements_than_the_limit_are_refused() {
    let mut work = samples::work();
    work.targets = vec![Target::Text("a".to_owned()); MAX_CHUNK_TARGETS + 1];
    let decoded = WorkChunk::decode(&samples::raw(&work));
    assert!(is_malformed(decoded, "more than 10000 elements"));

    let mut result = samples::result();
    result.outcomes = vec![samples::outcomes()[0].clone(); MAX_CHUNK_TARGETS + 1];
    let decoded = ResultChunk::decode(&samples::raw(&result));
    assert!(is_malformed(decoded, "more than 10000 elements"));

    let mut heartbeat = samples::heartbeat();
    heartbeat.in_hand = vec![samples::in_hand(); 513];
    let decoded = Heartbeat::decode(&samples::raw(&heartbeat));
    assert!(is_malformed(decoded, "more than 512 elements"));
}

#[test]
fn message_over_the_limit_is_not_looked_at() {
    for (name, decode, bytes) in samples::kinds() {
        let longest = [bytes.clone(), vec![0; MAX_MESSAGE_BYTES - bytes.len()]].concat();
        let extra = MAX_MESSAGE_BYTES - bytes.len();
        assert_eq!(
            decode(&longest),
            Err(DecodeError::TrailingBytes { extra }),
            "{name}"
        );
        let length = MAX_MESSAGE_BYTES + 1;
        let longer = [longest, vec![0]].concat();
        assert_eq!(
            decode(&longer),
            Err(DecodeError::TooLong { length }),
            "{name}"
        );
    }
}

#[test]
fn error_quotes_no_long_text() {
    let text = long_text();
    for (name, decode, bytes) in samples::kinds() {
        for place in 2..bytes.len() {
            let hostile = [&bytes[..place], &text, &bytes[place..]].concat();
            let error = decode(&hostile).expect_err(name).to_string();
            assert!(error.len() < 300, "{name} at {place}: {error}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn random_bytes_are_refused(bytes in vec(any::<u8>(), 0..300)) {
        for (name, decode, good) in samples::kinds() {
            prop_assert!(decode(&bytes).is_err(), "{}", name);
            let headed = [&good[..2], &bytes].concat();
            prop_assert!(decode(&headed).is_err(), "{}", name);
        }
    }

    /// Another figure in a good message may make another good message. It must then be one in full: what a reader
    /// takes from it is what a writer could have sent.
    #[test]
    fn mutated_message_is_refused_or_a_good_message(mutations in vec(Mutation::any(), 1..4)) {
        for (name, decode, mut bytes) in samples::kinds() {
            for mutation in &mutations {
                mutation.apply(&mut bytes);
            }
            if let Ok(written) = decode(&bytes) {
                prop_assert_eq!(decode(&written), Ok(written), "{}", name);
            }
        }
    }
}
