//! What tests run against: a RabbitMQ node, network namespaces and small disks of their own.
//!
//! Invariant: everything that is started here ends with the value that started it, and at the latest with the test
//! process, however that ends. Nothing of the machine's own broker or network is touched.

mod capture;
mod cleanup;
mod disk;
mod namespace;
mod ports;
mod rabbit;
pub mod simnet;

pub use self::{capture::Capture, disk::SmallDisk, namespace::Namespace, rabbit::Rabbit};
