//! Translates lapin's errors into [`BrokerError`]. The one place that does. No I/O.
//!
//! Source: the AMQP 0-9-1 reply codes and RabbitMQ's use of them.

use std::io;

use lapin::{Error, ErrorKind, protocol::AMQPError};

use pingfleet_settings::{keys::BrokerAuth, shell_word};

use super::{connect_problem::ConnectProblem, endpoint::Endpoint};
use crate::BrokerError;

/// What failed. The same reply code means different things in different operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    /// From the TCP connection to `connection.open-ok`.
    Connect,
    /// Checking or declaring queues and exchanges.
    Declare,
    /// Publishing or consuming.
    Transfer,
}

/// The AMQP reply codes that this module translates.
mod code {
    pub(super) const ACCESS_REFUSED: u16 = 403;
    pub(super) const NOT_FOUND: u16 = 404;
    pub(super) const PRECONDITION_FAILED: u16 = 406;
    pub(super) const NOT_ALLOWED: u16 = 530;
}

/// How a program learns the login that the broker takes from its certificate.
const LOGIN_ADVICE: &str = "write the login in broker.url (amqps://LOGIN@HOST), or set ssl_cert_login_from = common_name in \
     rabbitmq.conf of the broker";

/// Whether a queue or exchange does not exist.
///
/// The same code with another text means that the queue's node is down: the queue exists and must not be declared.
pub(super) fn is_missing(error: &Error) -> bool {
    refusal(error).is_some_and(|refusal| {
        refusal.get_id() == code::NOT_FOUND && text(refusal).starts_with("NOT_FOUND - no ")
    })
}

/// Whether the user lacks the permission.
pub(super) fn is_access_refused(error: &Error) -> bool {
    refusal(error).is_some_and(|refusal| refusal.get_id() == code::ACCESS_REFUSED)
}

impl Endpoint {
    /// Translates an error of lapin.
    pub(super) fn broker_error(&self, operation: Operation, error: Error) -> BrokerError {
        let Some(refusal) = refusal(&error) else {
            return match operation {
                Operation::Connect => match ConnectProblem::of(self, &error) {
                    Some(problem) => self.unreachable(problem),
                    None => self.unreachable(error),
                },
                Operation::Declare | Operation::Transfer => BrokerError::Lost(in_words(error)),
            };
        };
        let (address, place) = (self.address.clone(), self.place());
        match (refusal.get_id(), operation) {
            (code::ACCESS_REFUSED, Operation::Connect) => self.refused_login(address),
            // A connection limit is transient: others disconnect.
            (code::NOT_ALLOWED, Operation::Connect)
                if text(refusal).contains("connection limit") =>
            {
                self.unreachable(ConnectProblem::limit(self, text(refusal)))
            }
            (code::NOT_ALLOWED, Operation::Connect) => BrokerError::Forbidden {
                address: place,
                reason: format!("{}; {}", text(refusal), self.vhost_advice(text(refusal))),
            },
            (code::ACCESS_REFUSED, Operation::Declare | Operation::Transfer) => {
                BrokerError::Forbidden {
                    address: place,
                    reason: format!("{}; {}", text(refusal), self.permission_advice()),
                }
            }
            (code::NOT_FOUND, Operation::Transfer) if is_missing(&error) => {
                BrokerError::NoTopology {
                    address: place,
                    what: text(refusal)
                        .trim_start_matches("NOT_FOUND - no ")
                        .to_owned(),
                }
            }
            // The broker checks the property that names the sender.
            (code::PRECONDITION_FAILED, Operation::Transfer)
                if text(refusal).contains("user_id property") =>
            {
                BrokerError::Forbidden {
                    address: place,
                    reason: format!("{}; {LOGIN_ADVICE}", text(refusal)),
                }
            }
            // In other operations this code is about one delivery tag, and the next session has new tags.
            (code::PRECONDITION_FAILED, Operation::Declare) => BrokerError::OtherTopology {
                address: place,
                reason: text(refusal).to_owned(),
            },
            (_, Operation::Connect) => self.unreachable(error),
            (_, Operation::Declare | Operation::Transfer) => BrokerError::Lost(error.into()),
        }
    }

    /// The error for a reply that did not come in time.
    pub(super) fn timed_out(&self, operation: Operation) -> BrokerError {
        let error = io::Error::new(io::ErrorKind::TimedOut, "the broker does not answer");
        match operation {
            Operation::Connect => self.unreachable(error),
            Operation::Declare | Operation::Transfer => BrokerError::Lost(error.into()),
        }
    }

    fn unreachable(
        &self,
        error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> BrokerError {
        let (address, source) = (self.address.clone(), error.into());
        let problem: Option<&ConnectProblem> = source.downcast_ref();
        // A program that was connected waits for the renewed certificate. One that never was would wait for ever.
        if problem.is_some_and(ConnectProblem::is_lasting) && !self.was_connected() {
            BrokerError::Tls { address, source }
        } else {
            BrokerError::Unreachable { address, source }
        }
    }

    fn refused_login(&self, address: String) -> BrokerError {
        match (self.auth, &self.tls.certificate) {
            (BrokerAuth::External, Some(certificate)) => BrokerError::CertificateLogin {
                address,
                certificate: certificate.display().to_string(),
            },
            _ => BrokerError::Login {
                address,
                user: self.user().to_owned(),
            },
        }
    }

    /// How an administrator fixes a refused vhost.
    fn vhost_advice(&self, reason: &str) -> String {
        let (vhost, user) = (shell_word(&self.uri.vhost), shell_word(self.user()));
        if reason.contains("not found") {
            format!("create it with: rabbitmqctl add_vhost {vhost}")
        } else {
            format!(
                "permit it with: rabbitmqctl set_permissions -p {vhost} {user} CONFIGURE WRITE READ"
            )
        }
    }
}

/// The error, or its words where lapin shows a state of its own.
fn in_words(error: Error) -> Box<dyn std::error::Error + Send + Sync> {
    match error.kind() {
        ErrorKind::InvalidChannelState(..) => "its channel is closed".into(),
        ErrorKind::InvalidConnectionState(_) => "it is closed".into(),
        _ => error.into(),
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
