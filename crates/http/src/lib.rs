//! An HTTP server for one machine's administrators: the live page of the writer, and the metrics of the roles.
//!
//! Every request passes `access` first: a page of another site may lead here by a link, gets nothing to show or to read,
//! and nothing can be changed. Every resource that a client can hold is bounded: connections, headers, event streams,
//! and the time that a client may take to send a request or to read an answer. No database and no broker.

mod access;
mod answer;
mod connections;
mod events;
pub mod exposition;
mod server;
mod settings;
mod token;

pub use answer::{Answer, answer, failed, kept};
pub use events::EventStreams;
pub use server::{MAX_HEADER_BYTES, Server};
pub use settings::{HttpSettings, Limits, ServeError};
