//! What a writer may send is read again as it was, up to the largest messages.

use std::{net::Ipv6Addr, time::Duration};

use pingfleet_wire::{
    Heartbeat, MAX_CHUNK_BYTES, MAX_CHUNK_TARGETS, MAX_MESSAGE_BYTES, MAX_OUTCOME_BYTES, Message,
    Outcome, ResultChunk, Rtt, Status, Target, WorkChunk,
};
use proptest::prelude::*;

use crate::{samples, strategies};

proptest! {
    #[test]
    fn work_is_read_as_it_was_written(message in strategies::work()) {
        prop_assert_eq!(WorkChunk::decode(&message.encode()), Ok(message));
    }

    #[test]
    fn result_is_read_as_it_was_written(message in strategies::result()) {
        prop_assert_eq!(ResultChunk::decode(&message.encode()), Ok(message));
    }

    #[test]
    fn heartbeat_is_read_as_it_was_written(message in strategies::heartbeat()) {
        prop_assert_eq!(Heartbeat::decode(&message.encode()), Ok(message));
    }

    #[test]
    fn every_outcome_is_within_its_limit(outcome in strategies::outcome()) {
        let bytes = rmp_serde::to_vec(&outcome).unwrap();
        prop_assert!(bytes.len() <= MAX_OUTCOME_BYTES, "{} bytes", bytes.len());
    }
}

#[test]
fn chunk_cut_at_its_limit_of_bytes_is_read() {
    let mut message = samples::work();
    let name = |n: usize| Target::Text(format!("{n:0>253}"));
    message.targets = (0..1000).map(name).collect();
    let one = name(0);
    let bytes_of_one = rmp_serde::to_vec(&one).unwrap().len();
    let room = MAX_CHUNK_BYTES - message.encode().len();
    message
        .targets
        .extend(std::iter::repeat_n(one, room / bytes_of_one));
    let bytes = message.encode();
    assert!(
        (MAX_CHUNK_BYTES - bytes_of_one..=MAX_CHUNK_BYTES).contains(&bytes.len()),
        "{} bytes",
        bytes.len()
    );
    assert_eq!(WorkChunk::decode(&bytes), Ok(message));
}

#[test]
fn chunk_of_the_most_targets_is_read_and_is_within_its_limit_of_bytes() {
    let mut message = samples::work();
    message.targets = (0..MAX_CHUNK_TARGETS as u128)
        .map(|n| Target::Address(Ipv6Addr::from(n).into()))
        .collect();
    let bytes = message.encode();
    assert!(bytes.len() <= MAX_CHUNK_BYTES, "{} bytes", bytes.len());
    assert_eq!(WorkChunk::decode(&bytes), Ok(message));
}

/// An answered outcome with every figure as long as it can be.
fn longest_answer() -> Outcome {
    let most = i64::MAX as u64;
    Outcome {
        status: Status::Late,
        address: Some(samples::address("ffff::1")),
        sent: u16::MAX,
        received: u16::MAX,
        rtt: Some(Rtt {
            min_ns: most,
            avg_ns: most,
            max_ns: most,
            stddev_ns: most,
        }),
        attempts: u8::MAX,
        probed_after_us: Duration::from_hours(24 * 365).as_micros() as u64,
    }
}

#[test]
fn largest_result_is_read() {
    let mut message = samples::result();
    message.worker = "\u{10fffd}".repeat(100);
    message.outcomes = vec![longest_answer(); MAX_CHUNK_TARGETS];
    let bytes = message.encode();
    assert!(bytes.len() > 70 * MAX_CHUNK_TARGETS, "{}", bytes.len());
    assert_eq!(ResultChunk::decode(&bytes), Ok(message));
}

#[test]
fn result_of_the_most_outcomes_at_their_limit_is_a_message() {
    let mut message = samples::result();
    message.worker = "\u{10fffd}".repeat(100);
    message.outcomes.clear();
    // The empty array's head of one byte grows to three with 10,000 elements.
    let around = message.encode().len() + 2;
    assert!(around + MAX_CHUNK_TARGETS * MAX_OUTCOME_BYTES <= MAX_MESSAGE_BYTES);
}

#[test]
fn heartbeat_with_the_most_chunks_in_hand_is_read() {
    let mut message = samples::heartbeat();
    message.in_hand = vec![samples::in_hand(); 512];
    assert_eq!(Heartbeat::decode(&message.encode()), Ok(message));
}
