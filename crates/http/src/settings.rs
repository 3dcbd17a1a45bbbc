//! What a server needs, and why it does not start.

use std::{io, net::SocketAddr, path::PathBuf};

use pingfleet_settings::{Exit, Failure};
use thiserror::Error;

/// The settings of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpSettings {
    /// The address. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// The flag that sets the address, for messages.
    pub flag: &'static str,
    /// A name under which browsers may open the pages, besides addresses and `localhost`.
    pub name: Option<String>,
    /// A file whose first line is the token that every visitor needs. Without it the address must be loopback.
    pub token_file: Option<PathBuf>,
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
         dashboard.token_file, or listen on 127.0.0.1"
    )]
    NoToken {
        /// The address.
        address: SocketAddr,
    },
    /// The file of the token cannot be used.
    #[error("dashboard.token_file: {0}")]
    TokenFile(String),
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
            ServeError::NoToken { .. } | ServeError::TokenFile(_) => Self::new(Exit::Usage, error),
        }
    }
}
