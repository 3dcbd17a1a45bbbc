//! The guarantees of the wire format: what is written is read again, the bytes are those of the specification, and
//! nothing that comes from a queue can harm its reader.
//!
//! One binary, because its allocator counts what a decoder takes.

mod any_bytes;
mod corpus;
mod golden;
mod hostile;
mod memory;
mod mutation;
mod range;
mod round_trip;
mod samples;
mod strategies;
