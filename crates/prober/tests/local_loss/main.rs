//! Losses that this machine itself causes, and requests that its kernel refuses: no target is `down` because of them. Each
//! test causes its loss for real, in network namespaces, and first proves by the kernel's own counters that it happened.
//!
//! The result is the same for root and for a user without privileges, each on datagram and on raw sockets. Needs root, and
//! fails with the reason without.
#![cfg(target_os = "linux")]

mod canary;
#[path = "../support/chunk_files.rs"]
mod chunk_files;
mod counters;
mod dropped_on_send;
mod earlier_attempts;
mod expectations;
mod link_outages;
mod lost_address;
mod many_routes;
mod neighbours;
mod next_hops;
mod own_path;
mod pair;
mod partly_refused;
mod probing_process;
mod receive_buffer;
mod renamed_interface;
mod repeated;
mod reverse_path;
mod send_refused;
mod silent_neighbours;
mod standby_link;
mod stopped_process;
mod variants;
