//! What the errors of a socket mean.

use std::io;

/// "Invalid argument" (EINVAL): stands for an error that has no number.
pub(crate) const INVALID: i32 = 22;

/// "Operation not permitted" (EPERM).
const NOT_PERMITTED: i32 = 1;

/// "No buffer space available" (ENOBUFS). std has no kind for it.
const NO_BUFFER_SPACE: i32 = if cfg!(windows) { 10055 } else { 105 };

/// The errno of an error. surge-ping reports missing permissions as a text without a number.
pub(crate) fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(match error.kind() {
        io::ErrorKind::PermissionDenied => NOT_PERMITTED,
        _ => INVALID,
    })
}

/// Whether the kernel has no memory for a message now, and will accept it later.
pub(crate) fn is_back_pressure(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::OutOfMemory
    ) || error.raw_os_error() == Some(NO_BUFFER_SPACE)
}
