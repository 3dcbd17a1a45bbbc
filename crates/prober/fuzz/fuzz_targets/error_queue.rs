//! `cargo +nightly fuzz run error_queue`, in this folder's parent. What must hold: `check_error_queue` in
//! `src/linux/any_bytes/error_queue.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pingfleet_prober::linux::any_bytes::check_error_queue;

fuzz_target!(|bytes: &[u8]| {
    let _ = check_error_queue(bytes);
});
