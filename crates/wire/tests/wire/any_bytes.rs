//! What holds for any bytes that a queue brings. The fuzz target tries it with bytes of its own; the tests with the
//! fuzzer's corpus.

use std::fmt;

use pingfleet_wire::{Heartbeat, Message, ResultChunk, WorkChunk};

/// The longest text of an error, in bytes. It must not grow with the message.
const MAX_ERROR_BYTES: usize = 300;

/// Bytes are a message of one kind, which is written and read again as the same message in no more bytes, or they are
/// refused for a reason that is short and has no control characters. Returns the kind.
///
/// # Panics
/// When that does not hold.
pub(crate) fn check_message(bytes: &[u8]) -> Option<&'static str> {
    let kinds = [
        ("work", check_as::<WorkChunk>(bytes)),
        ("result", check_as::<ResultChunk>(bytes)),
        ("heartbeat", check_as::<Heartbeat>(bytes)),
    ];
    let mut read = kinds
        .into_iter()
        .filter_map(|(kind, ok)| ok.then_some(kind));
    let kind = read.next();
    assert_eq!(read.next(), None, "also a {kind:?}");
    kind
}

/// Whether the bytes are a message of this kind.
fn check_as<M: Message + PartialEq + fmt::Debug>(bytes: &[u8]) -> bool {
    match M::decode(bytes) {
        Ok(message) => {
            let written = message.encode();
            assert_eq!(message.encoded_len(), written.len());
            assert!(written.len() <= bytes.len(), "{message:?}");
            assert_eq!(M::decode(&written), Ok(message));
            true
        }
        Err(error) => {
            let reason = error.to_string();
            assert!((1..MAX_ERROR_BYTES).contains(&reason.len()), "{reason}");
            assert!(!reason.contains(char::is_control), "{reason:?}");
            false
        }
    }
}
