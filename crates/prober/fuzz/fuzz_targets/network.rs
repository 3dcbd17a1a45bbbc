//! `cargo +nightly fuzz run network`, in this folder's parent. What must hold: `check_network` in
//! `src/linux/network/any_bytes.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pingfleet_prober::linux::any_bytes::check_network;

fuzz_target!(|bytes: &[u8]| {
    let _ = check_network(bytes);
});
