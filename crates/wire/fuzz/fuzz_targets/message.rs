//! `cargo +nightly fuzz run message`, in this folder's parent. What must hold: `check_message` in
//! `tests/wire/any_bytes.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/wire/any_bytes.rs"]
mod any_bytes;

fuzz_target!(|bytes: &[u8]| {
    any_bytes::check_message(bytes);
});
