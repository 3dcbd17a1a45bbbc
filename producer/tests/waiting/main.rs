//! The producer's `run` over a watched broker and a real database: what it plans, what it publishes and when again,
//! and how its wait ends.

#[path = "../../../ping-worker/tests/queue/answers.rs"]
mod answers;
mod ending;
mod planning;
mod publishing;
mod rig;
#[path = "../../../ping-worker/tests/queue/watched.rs"]
mod watched;
