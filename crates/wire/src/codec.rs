//! Encoding and decoding with the limits of the wire format. Invariant: a decoder never panics, and never allocates
//! memory for a length that is only claimed. No I/O.
//!
//! Source: the MessagePack specification; rmp-serde 1.3.1, whose `from_slice` accepts trailing bytes and depth 1,024.

use std::{fmt, io::Cursor, marker::PhantomData};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, SeqAccess, Visitor},
};
use thiserror::Error;

use crate::{
    limits::{MAX_DEPTH, MAX_MESSAGE_BYTES},
    outline::end_of_message,
};

/// The version of the wire format that this build reads and writes; the first element of every message.
pub const WIRE_VERSION: u8 = 1;

/// Why bytes are not a message. Each is a reason for quarantine, none for a second try.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum DecodeError {
    /// The message is longer than [`MAX_MESSAGE_BYTES`].
    #[error("message of {length} bytes is over the limit of {MAX_MESSAGE_BYTES}")]
    TooLong {
        /// Length in bytes.
        length: usize,
    },
    /// The message does not begin with an array whose first element is an integer.
    #[error("not a pingfleet message: it does not begin with an array and a version")]
    NotAMessage,
    /// The message is of another wire version.
    #[error("wire version {found}, this build reads {WIRE_VERSION}")]
    Version {
        /// The version that the message claims.
        found: u64,
    },
    /// The message has the right version and the wrong content.
    #[error("malformed message: {0}")]
    Malformed(String),
    /// Bytes follow the end of the message.
    #[error("{extra} bytes after the end of the message")]
    TrailingBytes {
        /// How many bytes follow.
        extra: usize,
    },
}

/// The first element of every message. It encodes as [`WIRE_VERSION`] and decodes from nothing else.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Version;

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(WIRE_VERSION)
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u8::deserialize(deserializer)? {
            WIRE_VERSION => Ok(Self),
            _ => Err(serde::de::Error::custom("another wire version")),
        }
    }
}

/// A message of the wire format: an array whose first element is the version.
pub trait Message: Serialize + DeserializeOwned {
    /// Checks what the types cannot express, such as a limit of a length.
    ///
    /// # Errors
    /// A sentence with the problem.
    fn check(&self) -> Result<(), String>;

    /// The message as bytes, the version first.
    ///
    /// # Panics
    /// When the message is one that [`Self::decode`] refuses. Building such a message is a defect.
    fn encode(&self) -> Vec<u8> {
        if let Err(problem) = self.check() {
            panic!("no reader accepts this message: {problem}");
        }
        let bytes = to_bytes(self);
        assert!(
            bytes.len() <= MAX_MESSAGE_BYTES,
            "no reader accepts a message of {} bytes",
            bytes.len()
        );
        bytes
    }

    /// The length of the encoded message, also of one that is not complete yet.
    fn encoded_len(&self) -> usize {
        to_bytes(self).len()
    }

    /// Reads a message.
    ///
    /// # Errors
    /// [`DecodeError`] when the bytes are not exactly one message of this kind and version.
    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() > MAX_MESSAGE_BYTES {
            return Err(DecodeError::TooLong {
                length: bytes.len(),
            });
        }
        check_version(bytes)?;
        let end =
            end_of_message(bytes).map_err(|reason| DecodeError::Malformed(reason.to_owned()))?;
        if end < bytes.len() {
            return Err(DecodeError::TrailingBytes {
                extra: bytes.len() - end,
            });
        }
        let mut reader = rmp_serde::Deserializer::from_read_ref(bytes);
        // rmp-serde stops when its counter is zero, which is one array early.
        reader.set_max_depth(MAX_DEPTH + 1);
        let message = Self::deserialize(&mut reader)
            .map_err(|error| DecodeError::Malformed(error.to_string()))?;
        message.check().map_err(DecodeError::Malformed)?;
        Ok(message)
    }
}

fn to_bytes(message: &impl Serialize) -> Vec<u8> {
    rmp_serde::to_vec(message).expect("a vector takes every byte and all lengths are known")
}

/// Refuses another version before anything else is read, because another version may have another shape.
fn check_version(bytes: &[u8]) -> Result<(), DecodeError> {
    let mut head = Cursor::new(bytes);
    rmp::decode::read_array_len(&mut head).map_err(|_| DecodeError::NotAMessage)?;
    let found: u64 = rmp::decode::read_int(&mut head).map_err(|_| DecodeError::NotAMessage)?;
    if found == u64::from(WIRE_VERSION) {
        Ok(())
    } else {
        Err(DecodeError::Version { found })
    }
}

/// Reads an array of at most `LIMIT` elements. Memory grows with the elements that are there, never with the claimed
/// length.
pub(crate) fn bounded<'de, D, T, const LIMIT: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Bounded<T, const LIMIT: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const LIMIT: usize> Visitor<'de> for Bounded<T, LIMIT> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "an array of at most {LIMIT} elements")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
            let mut elements = Vec::new();
            while let Some(element) = seq.next_element()? {
                if elements.len() == LIMIT {
                    return Err(serde::de::Error::custom(format_args!(
                        "more than {LIMIT} elements"
                    )));
                }
                elements.push(element);
            }
            Ok(elements)
        }
    }

    deserializer.deserialize_seq(Bounded::<T, LIMIT>(PhantomData))
}
