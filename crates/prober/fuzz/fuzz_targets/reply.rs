//! `cargo +nightly fuzz run reply`, in this folder's parent. What must hold: `check_reply` in
//! `src/linux/any_bytes/reply.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pingfleet_prober::linux::any_bytes::check_reply;

fuzz_target!(|bytes: &[u8]| {
    let _ = check_reply(bytes);
});
