//! What the client library's errors mean to us: the one place that translates them. No I/O.
//!
//! Source: the AMQP 0-9-1 reply codes, and where RabbitMQ uses them.

use std::io;

use lapin::{Error, ErrorKind, protocol::AMQPError};

use super::endpoint::Endpoint;
use crate::BrokerError;

/// What was going on when an error came: the same reply code means different things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    /// From the TCP connection to `connection.open-ok`.
    Connecting,
    /// Looking for the topology, or making it.
    Declaring,
    /// Publishing or consuming.
    Working,
}

/// AMQP reply codes that somebody has to act on.
mod code {
    pub(super) const ACCESS_REFUSED: u16 = 403;
    pub(super) const NOT_FOUND: u16 = 404;
    pub(super) const PRECONDITION_FAILED: u16 = 406;
    pub(super) const NOT_ALLOWED: u16 = 530;
}

/// Whether the broker says that a queue or exchange does not exist.
///
/// The same code with another text means that a queue's node is down: it exists, and must not be declared.
pub(super) fn is_missing(error: &Error) -> bool {
    refusal(error).is_some_and(|refusal| {
        refusal.get_id() == code::NOT_FOUND && text(refusal).starts_with("NOT_FOUND - no ")
    })
}

/// Whether the broker says that we may not do this.
pub(super) fn is_access_refused(error: &Error) -> bool {
    refusal(error).is_some_and(|refusal| refusal.get_id() == code::ACCESS_REFUSED)
}

impl Endpoint {
    /// Translates an error of the client library.
    pub(super) fn fault(&self, moment: Moment, error: Error) -> BrokerError {
        let Some(refusal) = refusal(&error) else {
            return match moment {
                Moment::Connecting => self.unreachable(error),
                Moment::Declaring | Moment::Working => BrokerError::Lost(error.into()),
            };
        };
        let address = self.address.clone();
        match (refusal.get_id(), moment) {
            (code::ACCESS_REFUSED, Moment::Connecting) => BrokerError::Login {
                address,
                user: self.user().to_owned(),
            },
            // A limit of connections lets us in when others leave.
            (code::NOT_ALLOWED, Moment::Connecting) if !text(refusal).contains("limit") => {
                BrokerError::Forbidden {
                    address,
                    reason: format!("{}; {}", text(refusal), self.vhost_advice(text(refusal))),
                }
            }
            (code::ACCESS_REFUSED, Moment::Declaring | Moment::Working) => BrokerError::Forbidden {
                address,
                reason: text(refusal).to_owned(),
            },
            (code::NOT_FOUND, Moment::Working) if is_missing(&error) => BrokerError::NoTopology {
                address,
                what: text(refusal)
                    .trim_start_matches("NOT_FOUND - no ")
                    .to_owned(),
            },
            // Outside of declarations it is about one delivery tag, and the next session has others.
            (code::PRECONDITION_FAILED, Moment::Declaring) => BrokerError::OtherTopology {
                address,
                reason: text(refusal).to_owned(),
            },
            (_, Moment::Connecting) => self.unreachable(error),
            (_, Moment::Declaring | Moment::Working) => BrokerError::Lost(error.into()),
        }
    }

    /// No answer came in time.
    pub(super) fn silence(&self, moment: Moment) -> BrokerError {
        let error = io::Error::new(io::ErrorKind::TimedOut, "the broker does not answer");
        match moment {
            Moment::Connecting => self.unreachable(error),
            Moment::Declaring | Moment::Working => BrokerError::Lost(error.into()),
        }
    }

    fn unreachable(
        &self,
        error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> BrokerError {
        BrokerError::Unreachable {
            address: self.address.clone(),
            source: error.into(),
        }
    }

    /// What an administrator does about a refused vhost.
    fn vhost_advice(&self, reason: &str) -> String {
        let (vhost, user) = (&self.uri.vhost, self.user());
        if reason.contains("not found") {
            format!("create it with: rabbitmqctl add_vhost '{vhost}'")
        } else {
            format!(
                "permit it with: rabbitmqctl set_permissions -p '{vhost}' '{user}' CONFIGURE WRITE READ"
            )
        }
    }
}

fn refusal(error: &Error) -> Option<&AMQPError> {
    match error.kind() {
        ErrorKind::ProtocolError(refusal) => Some(refusal),
        _ => None,
    }
}

fn text(refusal: &AMQPError) -> &str {
    refusal.get_message().as_str()
}
