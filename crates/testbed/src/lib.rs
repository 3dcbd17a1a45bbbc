//! What tests run against: a RabbitMQ node, network namespaces and small disks of their own, and a generated database.
//!
//! Invariant: everything that is started here ends with the value that started it, and at the latest with the test
//! process, however that ends. Nothing of the machine's own broker or network is touched.

mod capture;
mod certificates;
mod cleanup;
mod disk;
mod generated_runs;
mod namespace;
mod ports;
mod rabbit;
pub mod simnet;

pub use self::{
    capture::Capture,
    certificates::{CertificateFiles, TestAuthority, Validity},
    disk::SmallDisk,
    generated_runs::GeneratedRuns,
    namespace::Namespace,
    rabbit::{QUEUE_TICK, Rabbit, TlsListener},
};
