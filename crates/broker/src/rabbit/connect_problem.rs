//! Why a connection cannot be opened although something answers, in words, and what to do about it. The texts of TLS and of
//! lapin name neither. No I/O.
//!
//! Source: RFC 5280, section 6 (certificates); RabbitMQ's `rabbit_reader` for its limits of connections.

use std::{error::Error, io};

use lapin::{ErrorKind, uri::AMQPScheme};
use pingfleet_settings::shell_word;
use rustls::CertificateError;
use thiserror::Error;

use super::endpoint::Endpoint;

/// What is wrong with a connection.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum ConnectProblem {
    #[error("its certificate is not accepted: {0}")]
    Certificate(CertificateProblem),
    #[error("this port does not speak TLS")]
    NoTls,
    #[error("what answers there does not speak AMQP")]
    NotAmqp,
    #[error("the connection was closed before the login")]
    ClosedEarly { is_tls: bool },
    /// The broker's words, and the command or the setting that changes the limit.
    #[error("{reason}")]
    Limit { reason: String, command: String },
}

/// What is wrong with the broker's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum CertificateProblem {
    #[error("this machine does not trust the authority that signed it")]
    UnknownAuthority,
    #[error("it has expired, or is not valid yet")]
    Expired,
    #[error("it is for another host name")]
    OtherName,
    #[error("it cannot be verified")]
    Other,
}

impl ConnectProblem {
    /// The problem behind an error of lapin, if it is one of these.
    pub(super) fn of(endpoint: &Endpoint, error: &lapin::Error) -> Option<Self> {
        let is_tls = endpoint.uri.scheme == AMQPScheme::AMQPS;
        if let Some(tls) = tls_error(error) {
            return match tls {
                rustls::Error::InvalidCertificate(refused) => {
                    Some(Self::Certificate(refused.into()))
                }
                rustls::Error::InvalidMessage(_) => Some(Self::NoTls),
                _ => None,
            };
        }
        match error.kind() {
            ErrorKind::ParsingError(_) | ErrorKind::InvalidProtocolVersion(_) => {
                Some(Self::NotAmqp)
            }
            ErrorKind::IOError(error) => matches!(
                error.kind(),
                io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::UnexpectedEof
            )
            .then_some(Self::ClosedEarly { is_tls }),
            _ => None,
        }
    }

    /// A limit of connections, which the broker reports as `reason`.
    pub(super) fn limit(endpoint: &Endpoint, reason: &str) -> Self {
        let limit = shell_word("{\"max-connections\": NUMBER}");
        let command = if reason.contains("node connection limit") {
            "connection_max in rabbitmq.conf".to_owned()
        } else if reason.contains("user connection limit") {
            let user = shell_word(endpoint.user());
            format!("rabbitmqctl set_user_limits {user} {limit}")
        } else {
            let vhost = shell_word(&endpoint.uri.vhost);
            format!("rabbitmqctl set_vhost_limits -p {vhost} {limit}")
        };
        Self::Limit {
            reason: reason.to_owned(),
            command,
        }
    }

    /// What the user can do.
    pub(crate) fn advice(&self) -> String {
        match self {
            Self::Certificate(CertificateProblem::UnknownAuthority) => {
                "add that authority's certificate to those that this machine trusts, or name a file with it in the \
                 variable SSL_CERT_FILE"
            }
            Self::Certificate(CertificateProblem::Expired) => {
                "renew the certificate, or set the clock of this machine"
            }
            Self::Certificate(CertificateProblem::OtherName) => {
                "write the host in the broker's URL as the certificate names it"
            }
            Self::Certificate(CertificateProblem::Other) => {
                "look at it with `openssl s_client`, and replace it"
            }
            Self::NoTls => "write amqp:// for this port, or name the one for TLS, usually 5671",
            Self::NotAmqp => {
                "name the port for AMQP, usually 5672; if this one expects TLS, write amqps://"
            }
            Self::ClosedEarly { is_tls: false } => {
                "the broker may be starting; if this port expects TLS, write amqps://"
            }
            Self::ClosedEarly { is_tls: true } => {
                "the broker may be starting; if this port does not speak TLS, write amqp://"
            }
            Self::Limit { command, .. } => {
                return format!("end other connections, or raise the limit: {command}");
            }
        }
        .to_owned()
    }
}

impl From<&CertificateError> for CertificateProblem {
    fn from(error: &CertificateError) -> Self {
        match error {
            CertificateError::UnknownIssuer => Self::UnknownAuthority,
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => Self::Expired,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Self::OtherName
            }
            // A certificate that signed itself as an authority: nobody else vouches for it (RFC 5280, section 4.2.1.9).
            CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
                Self::UnknownAuthority
            }
            _ => Self::Other,
        }
    }
}

/// The error of TLS inside an error of lapin.
fn tls_error(error: &lapin::Error) -> Option<&rustls::Error> {
    let ErrorKind::IOError(error) = error.kind() else {
        return None;
    };
    let mut error: &io::Error = error;
    loop {
        let inner: &(dyn Error + Send + Sync + 'static) = error.get_ref()?;
        if let Some(found) = inner.downcast_ref() {
            return Some(found);
        }
        error = inner.downcast_ref()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RabbitConfig;

    #[test]
    fn the_problem_is_found_behind_lapins_error() {
        let endpoint = |url| Endpoint::new(&RabbitConfig::new(url)).unwrap();
        let tls = |error: rustls::Error| {
            let wrapped = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, error));
            lapin::Error::from(wrapped)
        };
        let of = |url, error| ConnectProblem::of(&endpoint(url), &error);
        let refused = |error| Some(ConnectProblem::Certificate(error));
        let invalid = |error| tls(rustls::Error::InvalidCertificate(error));
        for (error, problem) in [
            (
                CertificateError::UnknownIssuer,
                CertificateProblem::UnknownAuthority,
            ),
            (CertificateError::Expired, CertificateProblem::Expired),
            (
                CertificateError::NotValidForName,
                CertificateProblem::OtherName,
            ),
            (CertificateError::BadSignature, CertificateProblem::Other),
        ] {
            assert_eq!(of("amqps://h", invalid(error)), refused(problem));
        }
        let content = rustls::InvalidMessage::InvalidContentType;
        assert_eq!(
            of("amqps://h", tls(rustls::Error::InvalidMessage(content))),
            Some(ConnectProblem::NoTls)
        );
        let io = |kind: io::ErrorKind| lapin::Error::from(io::Error::from(kind));
        assert_eq!(
            of("amqp://h", io(io::ErrorKind::ConnectionAborted)),
            Some(ConnectProblem::ClosedEarly { is_tls: false })
        );
        assert_eq!(of("amqp://h", io(io::ErrorKind::ConnectionRefused)), None);
    }

    #[test]
    fn the_command_that_raises_a_limit_is_for_the_virtual_host_or_the_user() {
        let endpoint = Endpoint::new(&RabbitConfig::new("amqp://bob@h/a%20b")).unwrap();
        let command = |reason| ConnectProblem::limit(&endpoint, reason).advice();
        let vhost = command("access to vhost 'a b' refused: connection limit (1) is reached");
        assert!(
            vhost.contains("set_vhost_limits -p 'a b' '{\"max-conn"),
            "{vhost}"
        );
        let user =
            command("connection refused for user 'bob': user connection limit (1) is reached");
        assert!(user.contains("set_user_limits bob '{"), "{user}");
        let node = command("connection refused: node connection limit (1) is reached");
        assert!(node.contains("connection_max"), "{node}");
    }
}
