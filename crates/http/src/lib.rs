//! An HTTP server for one machine's administrators: the live page of the writer, and the metrics of the roles.
//!
//! Every request passes the checks of `access.rs` first: a browser that was led here by another site gets nothing, and
//! nothing can be changed. Every resource that a client can hold is bounded: connections, headers, event streams, and the
//! time that a client may take to send a request or to read an answer. No database and no broker.

mod access;
mod answer;
mod events;
mod server;
mod settings;
mod token;

pub use answer::{Answer, answer, failed, kept};
pub use events::{EventStreams, MAX_EVENT_STREAMS};
pub use server::{MAX_CONNECTIONS, MAX_HEADER_BYTES, Server};
pub use settings::{HttpSettings, ServeError};
