//! Guarantees whose tests need the connection itself: to limit it, to watch its statements, to stop at one of them.

#[path = "../tests/store/child.rs"]
mod child;
mod crash;
mod faults;
mod migration;
mod progress_cost;
mod queries;
mod reader_plans;
#[path = "../tests/store/sample.rs"]
mod sample;
