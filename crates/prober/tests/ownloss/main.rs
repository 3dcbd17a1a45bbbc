//! Loss that our own box makes, and the refusals of its kernel: nobody is called down because of them. Each test makes
//! its loss for real, in network namespaces, and first proves by the kernel's own counts that it was there.
//!
//! Everybody who may probe gets the same truth: root and a user without privileges, each on datagram and on raw
//! sockets. Needs root. Fails and says so without.
#![cfg(target_os = "linux")]

mod addresses;
mod caller;
mod canary;
mod counters;
mod earlier;
mod hops;
mod links;
mod neighbours;
mod output;
mod pair;
mod prober;
mod receiving;
mod refusals;
mod refused;
mod renamed;
mod standby;
mod stopping;
mod truth;
