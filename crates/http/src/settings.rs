//! What a server needs, and why it does not start.

use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

use pingfleet_settings::{Exit, Failure, open_files_limit};
use thiserror::Error;

/// The most connections at once. Fewer where the process may open few files.
const MAX_CONNECTIONS: usize = 256;

/// Open files that the rest of the program may need.
const OTHER_FILES: u64 = 96;

/// The settings of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpSettings {
    /// The address. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// The flag that sets the address, for messages.
    pub flag: &'static str,
    /// The section of the settings, for messages: it has `name` and `token_file`.
    pub section: &'static str,
    /// A name under which browsers may open the pages, besides addresses and `localhost`.
    pub name: Option<String>,
    /// A file whose first line is the token that every visitor needs. Without it the address must be loopback.
    pub token_file: Option<PathBuf>,
    /// What clients may hold, and for how long.
    pub limits: Limits,
}

/// What clients may hold of a server, and for how long. The defaults suit some administrators, each with some tabs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most connections at once; a further one is closed at once. By default 256, or half of the files that the
    /// process may open beside the 96 that the rest of the program may need.
    pub connections: usize,
    /// The most connections at once of one address that is not loopback. By default 32.
    pub connections_per_peer: usize,
    /// The most event streams at once, one for each open tab; a further one is refused with 503. By default 64.
    pub event_streams: usize,
    /// How long a client may take to send a request, or to send the next one on the same connection. By default 10 s.
    pub request_timeout: Duration,
    /// How long a client may take nothing of an answer. By default 20 s.
    pub write_timeout: Duration,
    /// After how long without an event a stream has a comment, by which the server learns that a client is gone. By
    /// default 15 s.
    pub stream_silence: Duration,
    /// How long answers may take at the end. By default 2 s.
    pub stop_wait: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: most_connections(open_files_limit()),
            connections_per_peer: 32,
            event_streams: 64,
            request_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(20),
            stream_silence: Duration::from_secs(15),
            stop_wait: Duration::from_secs(2),
        }
    }
}

/// The most connections of a process that may open so many files.
fn most_connections(files: Option<u64>) -> usize {
    files.map_or(MAX_CONNECTIONS, |files| {
        let share = files.saturating_sub(OTHER_FILES) / 2;
        usize::try_from(share).map_or(MAX_CONNECTIONS, |share| share.clamp(4, MAX_CONNECTIONS))
    })
}

/// Why a server does not start.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The system refuses the address.
    #[error("cannot listen on {address}: {}", advice(source, flag))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The flag that sets it.
        flag: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Other machines reach the address, and there is no token.
    #[error(
        "{address} can be reached from other machines, so visitors need a token: write one into a file and name that in \
         {section}.token_file, or listen on 127.0.0.1"
    )]
    NoToken {
        /// The address.
        address: SocketAddr,
        /// The section of the settings.
        section: &'static str,
    },
    /// The file of the token cannot be used.
    #[error("{section}.token_file: {why}")]
    TokenFile {
        /// The section of the settings.
        section: &'static str,
        /// The file, and what is wrong with it.
        why: String,
    },
}

fn advice(error: &io::Error, flag: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("another program uses it; choose another address with {flag}, or {flag} off")
        }
        io::ErrorKind::PermissionDenied => {
            format!("no permission; choose a port of 1024 or more with {flag}, or {flag} off")
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("it is no address of this machine; choose one with {flag}, or {flag} off")
        }
        _ => error.to_string(),
    }
}

/// What the system refuses is a system failure; the rest is configuration.
impl From<ServeError> for Failure {
    fn from(error: ServeError) -> Self {
        match error {
            // Its message has that of its source.
            ServeError::Listen { .. } => Self::new(Exit::System, error),
            ServeError::NoToken { .. } | ServeError::TokenFile { .. } => {
                Self::new(Exit::Usage, error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_the_rest_of_the_program() {
        assert_eq!(most_connections(None), MAX_CONNECTIONS);
        assert_eq!(most_connections(Some(1 << 20)), MAX_CONNECTIONS);
        assert_eq!(most_connections(Some(128)), 16);
        assert_eq!(most_connections(Some(64)), 4);
    }
}
