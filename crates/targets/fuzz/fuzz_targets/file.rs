//! `cargo +nightly fuzz run file`, in this folder's parent. What must hold: `check_file` in `tests/targets/any_bytes.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;

// Each target uses one of the two checks.
#[expect(dead_code)]
#[path = "../../tests/targets/any_bytes.rs"]
mod any_bytes;

fuzz_target!(|bytes: &[u8]| any_bytes::check_file(bytes));
