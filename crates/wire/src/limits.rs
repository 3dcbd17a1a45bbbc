//! The limits on which several roles must agree, and the rules for names. Each stands here once. No I/O.

/// The longest message that a reader looks at, in bytes (1 MiB).
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// How deep arrays may nest in a message.
pub const MAX_DEPTH: usize = 16;

/// The longest string or binary in any message, in bytes: a worker's name of 100 characters of 4 bytes.
pub(crate) const MAX_TEXT_BYTES: usize = 400;

/// The most targets in one chunk.
pub const MAX_CHUNK_TARGETS: usize = 10_000;

/// A chunk is cut before its encoded work message becomes longer than this, in bytes (256 KiB).
pub const MAX_CHUNK_BYTES: usize = 256 << 10;

/// The most bytes of an encoded [`Outcome`](crate::Outcome).
pub const MAX_OUTCOME_BYTES: usize = 100;

/// The longest text of a target, in bytes: a DNS name of 253 (RFC 1035, section 3.1), or an address with a zone.
pub const MAX_NAME_BYTES: usize = 253;

/// The largest prefetch of a worker.
pub const MAX_PREFETCH: u16 = 256;

/// The most chunks that a worker has in hand: those of a lost session and those of the next one together.
pub const MAX_IN_HAND: usize = 2 * MAX_PREFETCH as usize;

/// The most attempts at a target: the first one, and two more when this machine may have lost the answer.
pub const MAX_ATTEMPTS: u8 = 3;

/// The longest name of a worker, in characters.
pub const MAX_WORKER_CHARS: usize = 100;

/// The longest version of a program, in characters.
pub const MAX_PROGRAM_VERSION_CHARS: usize = 50;

/// The group of a worker unless the settings have another one.
pub const DEFAULT_GROUP: &str = "default";

/// The longest name of a worker group, in bytes.
pub const MAX_GROUP_BYTES: usize = 32;

/// The prefix of queue and exchange names unless the settings have another one.
pub const DEFAULT_QUEUE_PREFIX: &str = "pingfleet";

/// The longest prefix of queue and exchange names, in bytes: with any suffix it fits AMQP's short strings of 255 bytes.
pub const MAX_QUEUE_PREFIX_BYTES: usize = 100;

/// Checks the name of a worker.
///
/// # Errors
/// A sentence with the rule.
pub fn check_worker_name(name: &str) -> Result<(), String> {
    if (1..=MAX_WORKER_CHARS).contains(&name.chars().count()) && is_printable(name) {
        Ok(())
    } else {
        Err(format!(
            "a worker's name is 1 to {MAX_WORKER_CHARS} printable characters"
        ))
    }
}

/// Checks the version of a program.
///
/// # Errors
/// A sentence with the rule.
pub fn check_program_version(version: &str) -> Result<(), String> {
    if (1..=MAX_PROGRAM_VERSION_CHARS).contains(&version.chars().count()) && is_printable(version) {
        Ok(())
    } else {
        Err(format!(
            "a program's version is 1 to {MAX_PROGRAM_VERSION_CHARS} printable characters"
        ))
    }
}

/// Checks the name of a worker group. It is part of a queue's name.
///
/// # Errors
/// A sentence with the rule.
pub fn check_group(group: &str) -> Result<(), String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    if (1..=MAX_GROUP_BYTES).contains(&group.len()) && group.bytes().all(plain) {
        Ok(())
    } else {
        Err(format!(
            "a group's name is 1 to {MAX_GROUP_BYTES} letters, digits, '-' or '_'"
        ))
    }
}

/// Checks the prefix of queue and exchange names.
///
/// # Errors
/// A sentence with the rule.
pub fn check_queue_prefix(prefix: &str) -> Result<(), String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if (1..=MAX_QUEUE_PREFIX_BYTES).contains(&prefix.len())
        && prefix.bytes().all(plain)
        && !prefix.starts_with("amq.")
    {
        Ok(())
    } else {
        Err(format!(
            "a prefix is 1 to {MAX_QUEUE_PREFIX_BYTES} letters, digits, '-', '_' or '.', and does not begin with amq."
        ))
    }
}

/// Whether a text has no control characters.
pub(crate) fn is_printable(text: &str) -> bool {
    !text.chars().any(char::is_control)
}
