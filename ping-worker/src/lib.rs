//! The worker: takes a chunk, probes its targets, publishes their outcomes.

pub mod course;
pub mod lanes;
pub mod pacing;
pub mod prober;
pub mod resolve;
pub mod scripted;
pub mod window;
