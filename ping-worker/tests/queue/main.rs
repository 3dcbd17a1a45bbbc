//! The worker's `run` over a watched broker and a scripted prober: when it acks, what it publishes again, how many
//! chunks it takes, and how it drains.

mod answers;
mod clock;
mod draining;
mod faults;
mod rig;
mod settling;
mod watched;
mod window;
