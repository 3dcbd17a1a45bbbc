//! Checks the structure of a message: one pass over the bytes before any value is built. Invariant: nothing is
//! allocated, and what passes has only arrays, integers, booleans, nils and short texts, and no length claims more bytes
//! than there are. No I/O.
//!
//! Source: the MessagePack specification. The pass is needed beside rmp-serde 1.3.1, which quotes a text of any length
//! in its error, reads a struct from a map as well, and takes a string that is no UTF-8 for a binary.

use rmp::Marker;

use crate::limits::{MAX_DEPTH, MAX_TEXT_BYTES};

/// Where the message that begins `bytes` ends.
///
/// # Errors
/// What the bytes have that no message has.
pub(crate) fn end_of_message(bytes: &[u8]) -> Result<usize, &'static str> {
    let mut rest = bytes;
    // The number of elements that each open array still lacks, the outermost first.
    let mut open = [0_usize; MAX_DEPTH];
    let mut depth = 0;
    loop {
        if let Some(elements) = read_value(&mut rest)? {
            if elements > rest.len() {
                return Err("an array is longer than the message");
            }
            *open.get_mut(depth).ok_or("arrays nest too deep")? = elements;
            depth += 1;
        } else if depth > 0 {
            open[depth - 1] -= 1;
        }
        while depth > 0 && open[depth - 1] == 0 {
            depth -= 1;
            if depth > 0 {
                open[depth - 1] -= 1;
            }
        }
        if depth == 0 {
            return Ok(bytes.len() - rest.len());
        }
    }
}

/// What follows the head of a value.
enum Body {
    /// The bytes of a number, or nothing.
    Plain,
    /// The bytes of a binary.
    Binary,
    /// The bytes of a string.
    Text,
    /// Elements.
    Array,
}

/// Reads one value, of an array only its head. Returns the number of elements of an array.
fn read_value(rest: &mut &[u8]) -> Result<Option<usize>, &'static str> {
    let marker = Marker::from_u8(take(rest, 1)?[0]);
    let (body, length) = match marker {
        Marker::Null | Marker::True | Marker::False | Marker::FixPos(_) | Marker::FixNeg(_) => {
            (Body::Plain, 0)
        }
        Marker::U8 | Marker::I8 => (Body::Plain, 1),
        Marker::U16 | Marker::I16 => (Body::Plain, 2),
        Marker::U32 | Marker::I32 => (Body::Plain, 4),
        Marker::U64 | Marker::I64 => (Body::Plain, 8),
        Marker::Bin8 => (Body::Binary, read_length(rest, 1)?),
        Marker::Bin16 => (Body::Binary, read_length(rest, 2)?),
        Marker::Bin32 => (Body::Binary, read_length(rest, 4)?),
        Marker::FixStr(length) => (Body::Text, length.into()),
        Marker::Str8 => (Body::Text, read_length(rest, 1)?),
        Marker::Str16 => (Body::Text, read_length(rest, 2)?),
        Marker::Str32 => (Body::Text, read_length(rest, 4)?),
        Marker::FixArray(elements) => (Body::Array, elements.into()),
        Marker::Array16 => (Body::Array, read_length(rest, 2)?),
        Marker::Array32 => (Body::Array, read_length(rest, 4)?),
        _ => return Err("a map, a float or an extension"),
    };
    if matches!(body, Body::Array) {
        return Ok(Some(length));
    }
    if length > MAX_TEXT_BYTES {
        return Err("a string or binary is over 400 bytes");
    }
    let bytes = take(rest, length)?;
    if matches!(body, Body::Text) && std::str::from_utf8(bytes).is_err() {
        return Err("a string is not UTF-8");
    }
    Ok(None)
}

/// A length of `width` bytes in network order; at most 4, so that it fits.
fn read_length(rest: &mut &[u8], width: usize) -> Result<usize, &'static str> {
    let bytes = take(rest, width)?;
    Ok(bytes
        .iter()
        .fold(0, |length, byte| length << 8 | usize::from(*byte)))
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], &'static str> {
    let (taken, left) = rest
        .split_at_checked(length)
        .ok_or("the message ends too early")?;
    *rest = left;
    Ok(taken)
}
