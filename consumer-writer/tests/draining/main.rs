//! The writer's `run` over a watched broker and a real database: what it stores, when it acks, and what it leaves.

mod batches;
mod faults;
mod large;
mod liveness;
mod other_writers;
mod rig;
#[path = "../../../ping-worker/tests/queue/watched.rs"]
mod watched;
