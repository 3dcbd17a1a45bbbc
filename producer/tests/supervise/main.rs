//! The producer's `run` over a watched broker and a real database: what it plans, what it publishes, what it publishes
//! again, and how a run ends.

#[path = "../../../ping-worker/tests/queue/answers.rs"]
mod answers;
mod ending;
mod planning;
mod publishing;
mod rig;
#[path = "../../../ping-worker/tests/queue/watched.rs"]
mod watched;
mod window;
