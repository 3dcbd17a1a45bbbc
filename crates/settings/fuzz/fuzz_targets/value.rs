//! `cargo +nightly fuzz run value`, in this folder's parent. What must hold: `check_value` in `src/any_bytes.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pingfleet_settings::any_bytes::check_value;

fuzz_target!(|bytes: &[u8]| {
    let _ = check_value(bytes);
});
