//! `cargo +nightly fuzz run file`, in this folder's parent. What must hold: `check_file` in `src/any_bytes.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pingfleet_settings::any_bytes::check_file;

fuzz_target!(|bytes: &[u8]| {
    let _ = check_file(bytes);
});
