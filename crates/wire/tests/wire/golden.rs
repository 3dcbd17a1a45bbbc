//! The bytes of the samples, once here and once in the specification. An unintended change of the format fails, and so
//! does a specification that is out of date.

use std::fmt::Write;

use pingfleet_wire::{
    Heartbeat, MAX_CHUNK_BYTES, MAX_CHUNK_TARGETS, MAX_DEPTH, MAX_MESSAGE_BYTES, MAX_NAME_BYTES,
    MAX_OUTCOME_BYTES, Message, ResultChunk, Status, WIRE_VERSION, WorkChunk,
};

use crate::samples;

const SPECIFICATION: &str = include_str!("../../../../docs/wire-format.md");

const WORK: &str = "\
    9601c4100f0e0d0c0b0a4908870605040302010092c4100198000000007000800000000000000107\
    c410a0a1a2a3a4a5a6a7a8a9aaabacadaeaf9c03ce00030d40ce000f424002cd05dcce001e848038\
    40c404c0000201a46574683004cd03e893c404c000020ac41020010db80000000000000000000000\
    01ae67772e6578616d706c652e6e6574";

const RESULT: &str = "\
    9801c4100f0e0d0c0b0a4908870605040302010092c4100198000000007000800000000000000107\
    c410a0a1a2a3a4a5a6a7a8a9aaabacadaeafa6686f73742d31c2cf000647484620400099979100c001\
    0194ce0003d090ce0003d090ce0003d090000100979101c41020010db80000000000000000000000\
    01030294ce4190ab00ce448b9b80ce47868c00ce02faf08001cd07d09794020301c404c00002fec0\
    0300c001cd07d097920300c00000c001cd07d097920465c00000c001cd07d097920505c00300c003\
    cd07d097920601c00300c001cd07d097930602c406020000000001c00300c001cd07d097930604c4\
    04c00002fec00300c001cd07d0";

const HEARTBEAT: &str = "\
    9c01a6686f73742d31c410b0b1b2b3b4b546b7b8b9babbbcbdbebfcd1092a5312e322e33a76465666175\
    6c740215cd1388c2950ccd0bb8cd0d80cd0b54950400020100919292c4100198000000007000800000\
    000000000107cd05dc";

/// The bytes of pairs of hexadecimal digits; white space counts nothing.
fn bytes_of(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex
        .chars()
        .filter(|character| !character.is_whitespace())
        .map(|character| character.to_digit(16).expect("a hexadecimal digit") as u8)
        .collect();
    let (pairs, rest) = digits.as_chunks::<2>();
    assert!(rest.is_empty(), "half a byte");
    pairs.iter().map(|[high, low]| high << 4 | low).collect()
}

fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("a string takes every digit");
        hex
    })
}

/// The bytes of the block that the specification calls `golden NAME`; what follows a `#` explains them.
fn specified(name: &str) -> Vec<u8> {
    let begin = format!("```text golden {name}\n");
    let (_, block) = SPECIFICATION
        .split_once(&begin)
        .unwrap_or_else(|| panic!("the specification has no block {name}"));
    let (block, _) = block.split_once("```").expect("the block ends");
    let hex: Vec<_> = block
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default())
        .collect();
    bytes_of(&hex.concat())
}

#[test]
fn samples_have_the_golden_bytes() {
    for ((name, _, bytes), golden) in samples::kinds().into_iter().zip([WORK, RESULT, HEARTBEAT]) {
        assert_eq!(hex_of(&bytes), hex_of(&bytes_of(golden)), "{name}");
    }
}

#[test]
fn golden_bytes_are_read_as_the_samples() {
    assert_eq!(WorkChunk::decode(&bytes_of(WORK)), Ok(samples::work()));
    assert_eq!(
        ResultChunk::decode(&bytes_of(RESULT)),
        Ok(samples::result())
    );
    assert_eq!(
        Heartbeat::decode(&bytes_of(HEARTBEAT)),
        Ok(samples::heartbeat())
    );
}

#[test]
fn specification_shows_the_bytes_that_the_code_writes() {
    for (name, _, bytes) in samples::kinds() {
        assert_eq!(hex_of(&specified(name)), hex_of(&bytes), "{name}");
    }
}

#[test]
fn specification_shows_the_outcome_of_every_status() {
    let names = Status::NAMES;
    let outcomes = samples::outcomes();
    let mut shown: Vec<_> = outcomes.iter().map(|o| o.status.name()).collect();
    shown.dedup();
    assert_eq!(shown, names);
    for outcome in outcomes {
        let mut name = outcome.status.name().to_owned();
        if let Status::Down(_) = outcome.status {
            let reason = outcome.status.reason().expect("each of them has one");
            let (kind, _) = reason.split_once(' ').unwrap_or((&reason, ""));
            name = format!("{name}, {kind}");
        }
        let bytes = hex_of(&rmp_serde::to_vec(&outcome).unwrap());
        let line = SPECIFICATION
            .lines()
            .find(|line| line.ends_with(&format!("# outcome: {name}")))
            .unwrap_or_else(|| panic!("the specification has no outcome {name}"));
        let hex = line.split('#').next().unwrap_or_default();
        assert_eq!(hex_of(&bytes_of(hex)), bytes, "{name}");
    }
}

#[test]
fn specification_has_the_limits_of_the_code() {
    for limit in [
        format!("wire version {WIRE_VERSION}"),
        format!("| message | {MAX_MESSAGE_BYTES} bytes |"),
        format!("| targets or outcomes | {MAX_CHUNK_TARGETS} |"),
        format!("| work message | {MAX_CHUNK_BYTES} bytes |"),
        format!("| outcome | {MAX_OUTCOME_BYTES} bytes |"),
        format!("| text of a target | {MAX_NAME_BYTES} bytes |"),
        format!("| nesting | {MAX_DEPTH} arrays |"),
    ] {
        assert!(SPECIFICATION.contains(&limit), "no {limit:?}");
    }
}
