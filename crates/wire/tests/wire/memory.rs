//! A decoder takes memory for what is there, never for what is only claimed. The allocator of this binary counts what
//! each thread holds, and the most that it held.
#![expect(
    unsafe_code,
    reason = "an allocator is the one witness of what a decoder allocates, and is an unsafe trait"
)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    hint::black_box,
};

use pingfleet_wire::MAX_CHUNK_TARGETS;
use proptest::{collection::vec, prelude::*};

use crate::{
    hostile::{CLAIMS, long_text, with_claim},
    mutation::Mutation,
    samples::{self, Decode},
};

struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count(change: isize) {
    let held = HELD.get() + change;
    HELD.set(held);
    MOST.set(MOST.get().max(held));
}

// SAFETY: every call is the system allocator's; the counters are plain thread-local cells that allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    // `realloc` and `alloc_zeroed` are the trait's own, which call these two: old and new count together while both
    // are held.
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most memory that `action` held at once, in bytes.
fn peak<T>(action: impl FnOnce() -> T) -> usize {
    let before = HELD.get();
    MOST.set(before);
    drop(black_box(action()));
    (MOST.get() - before).unsigned_abs()
}

/// Heads, texts of errors, and what of the message itself was read.
const CLAIM_ALLOWANCE: usize = 64 << 10;

/// Enough for the elements of any message within its limits: 10,000 outcomes, twice while their vector grows.
const MESSAGE_ALLOWANCE: usize = 4 << 20;

fn refuse(name: &str, decode: Decode, bytes: &[u8]) -> usize {
    peak(|| assert!(decode(bytes).is_err(), "{name}: {bytes:x?}"))
}

#[test]
fn counter_sees_a_large_allocation() {
    assert!(peak(|| vec![1_u8; 8 << 20]) >= 8 << 20);
    // A reader that believes a claimed length is caught.
    let believing = |bytes: &[u8]| {
        let claimed = u32::from_be_bytes(bytes[1..5].try_into().unwrap());
        Vec::<u8>::with_capacity(claimed as usize)
    };
    assert!(peak(|| believing(&[0xc6, 0x04, 0, 0, 0])) > CLAIM_ALLOWANCE);
}

#[test]
fn claimed_length_allocates_nothing() {
    for (name, decode, bytes) in samples::kinds() {
        for place in 0..bytes.len() {
            for claim in CLAIMS {
                for hostile in with_claim(&bytes, place, claim) {
                    let peak = refuse(name, decode, &hostile);
                    assert!(
                        peak <= CLAIM_ALLOWANCE + hostile.len(),
                        "{name}, {claim:x?} at {place}: {peak} bytes"
                    );
                }
            }
        }
    }
}

#[test]
fn claimed_array_in_front_of_a_long_message_allocates_nothing() {
    for (name, decode, bytes) in samples::kinds() {
        for place in 0..bytes.len() {
            // As many elements as there are bytes, so that the length alone does not betray it.
            let filler = vec![0xc0; 1 << 16];
            let hostile = [&bytes[..place], &[0xdd, 0, 1, 0, 0], &filler].concat();
            let peak = refuse(name, decode, &hostile);
            assert!(
                peak <= CLAIM_ALLOWANCE + hostile.len(),
                "{name} at {place}: {peak} bytes"
            );
        }
    }
}

#[test]
fn long_text_is_not_copied() {
    let text = long_text();
    for (name, decode, bytes) in samples::kinds() {
        for place in 2..bytes.len() {
            let hostile = [&bytes[..place], &text, &bytes[place..]].concat();
            let peak = peak(|| decode(&hostile).is_err());
            assert!(peak <= CLAIM_ALLOWANCE, "{name} at {place}: {peak} bytes");
        }
    }
}

#[test]
fn deep_nesting_allocates_nothing() {
    for (name, decode, _) in samples::kinds() {
        let nested = [vec![0x92, 0x01], vec![0x91; 1 << 19]].concat();
        let peak = refuse(name, decode, &nested);
        assert!(peak <= CLAIM_ALLOWANCE, "{name}: {peak} bytes");
    }
}

#[test]
fn result_that_is_bad_at_its_end_takes_no_more_than_a_good_one() {
    let mut result = samples::result();
    result.outcomes = vec![samples::outcomes()[0].clone(); MAX_CHUNK_TARGETS];
    let [_, (name, decode, _), _] = samples::kinds();
    let mut bytes = pingfleet_wire::Message::encode(&result);
    let good = peak(|| decode(&bytes).is_ok());
    // The last figure of the last outcome becomes a string.
    *bytes.last_mut().unwrap() = 0xa0;
    let bad = refuse(name, decode, &bytes);
    assert!(bad <= good, "{bad} bytes, a good one {good}");
    assert!(good <= MESSAGE_ALLOWANCE, "{good} bytes");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn random_bytes_allocate_no_more_than_their_length_allows(bytes in vec(any::<u8>(), 0..300)) {
        for (name, decode, good) in samples::kinds() {
            let headed = [&good[..2], &bytes].concat();
            let peak = peak(|| decode(&headed).is_err());
            prop_assert!(peak <= CLAIM_ALLOWANCE + headed.len(), "{}: {} bytes", name, peak);
        }
    }

    #[test]
    fn mutated_message_allocates_no_more_than_its_length_allows(mutations in vec(Mutation::any(), 1..4)) {
        for (name, decode, mut bytes) in samples::kinds() {
            for mutation in &mutations {
                mutation.apply(&mut bytes);
            }
            let peak = peak(|| decode(&bytes).is_ok());
            prop_assert!(peak <= CLAIM_ALLOWANCE + bytes.len(), "{}: {} bytes", name, peak);
        }
    }
}
