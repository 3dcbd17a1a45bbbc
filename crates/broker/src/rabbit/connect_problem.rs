//! Why a connection cannot be opened although something answers, in words, and what to do about it. The texts of TLS and of
//! lapin name neither. No I/O.
//!
//! Source: RFC 5280, section 6 (certificates); RabbitMQ's `rabbit_reader` for its limits of connections.

use std::{error::Error, io};

use lapin::ErrorKind;
use pingfleet_settings::{keys::BrokerAuth, shell_word};
use rustls::{AlertDescription, CertificateError};
use thiserror::Error;

use super::{endpoint::Endpoint, tls::TlsFileError};

/// What is wrong with a connection.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum ConnectProblem {
    /// Of the broker, and whether the settings name its authority.
    #[error("its certificate is not accepted: {problem}")]
    Certificate {
        problem: CertificateProblem,
        has_ca_file: bool,
    },
    /// Of this program.
    #[error("{0}")]
    OwnCertificate(OwnCertificateProblem),
    #[error("{0}")]
    File(#[from] TlsFileError),
    #[error("this port does not speak TLS")]
    NoTls,
    #[error("this port expects TLS")]
    ExpectsTls,
    #[error("it does not offer logins {}", way(*.0))]
    NotOffered(BrokerAuth),
    #[error("no version or cipher of TLS is common to both sides")]
    NothingInCommon,
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

/// What the broker finds wrong with this program's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum OwnCertificateProblem {
    #[error("it demands a certificate of this program")]
    Missing,
    #[error("it does not trust the authority that signed this program's certificate")]
    UnknownAuthority,
    #[error("this program's certificate has expired, or is not valid yet")]
    Expired,
    #[error("it does not accept this program's certificate")]
    Refused,
}

impl ConnectProblem {
    /// The problem behind an error of lapin, if it is one of these.
    pub(super) fn of(endpoint: &Endpoint, error: &lapin::Error) -> Option<Self> {
        if let ErrorKind::IOError(error) = error.kind() {
            if let Some(problem) = inner::<Self>(error) {
                return Some(problem.clone());
            }
            if let Some(file) = inner::<TlsFileError>(error) {
                return Some(Self::File(file.clone()));
            }
            if let Some(tls) = inner::<rustls::Error>(error) {
                return Self::of_tls(endpoint, tls);
            }
        }
        let is_tls = endpoint.is_tls();
        match error.kind() {
            ErrorKind::ParsingError(_) | ErrorKind::InvalidProtocolVersion(_) => {
                Some(Self::NotAmqp)
            }
            ErrorKind::IOError(error) => matches!(
                error.kind(),
                io::ErrorKind::BrokenPipe
                    | io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::UnexpectedEof
            )
            .then_some(Self::ClosedEarly { is_tls }),
            _ => None,
        }
    }

    fn of_tls(endpoint: &Endpoint, error: &rustls::Error) -> Option<Self> {
        let has_certificate = endpoint.tls.certificate.is_some();
        match error {
            rustls::Error::InvalidCertificate(refused) => Some(Self::Certificate {
                problem: refused.into(),
                has_ca_file: endpoint.tls.ca.is_some(),
            }),
            rustls::Error::InvalidMessage(_) => Some(Self::NoTls),
            rustls::Error::AlertReceived(alert) => Self::of_alert(*alert, has_certificate),
            rustls::Error::PeerIncompatible(_) => Some(Self::NothingInCommon),
            _ => None,
        }
    }

    /// What an alert of the broker means (RFC 8446, section 6.2; RFC 5246, section 7.2.2).
    fn of_alert(alert: AlertDescription, has_certificate: bool) -> Option<Self> {
        let own = match alert {
            AlertDescription::CertificateRequired => OwnCertificateProblem::Missing,
            // What TLS 1.2 has for a missing certificate.
            AlertDescription::HandshakeFailure if !has_certificate => {
                OwnCertificateProblem::Missing
            }
            AlertDescription::ProtocolVersion
            | AlertDescription::InsufficientSecurity
            | AlertDescription::HandshakeFailure => return Some(Self::NothingInCommon),
            AlertDescription::UnknownCA if has_certificate => {
                OwnCertificateProblem::UnknownAuthority
            }
            AlertDescription::CertificateExpired => OwnCertificateProblem::Expired,
            AlertDescription::AccessDenied
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::DecryptError
            | AlertDescription::UnsupportedCertificate
                if has_certificate =>
            {
                OwnCertificateProblem::Refused
            }
            _ => return None,
        };
        Some(Self::OwnCertificate(own))
    }

    /// Whether trying again can only help after somebody changed a setting or a certificate.
    pub(super) fn is_lasting(&self) -> bool {
        match self {
            Self::Certificate { .. }
            | Self::OwnCertificate(_)
            | Self::File(_)
            | Self::NoTls
            | Self::ExpectsTls
            | Self::NotOffered(_)
            | Self::NothingInCommon => true,
            Self::NotAmqp | Self::ClosedEarly { .. } | Self::Limit { .. } => false,
        }
    }

    /// A limit of connections, which the broker reports as `reason`.
    pub(super) fn limit(endpoint: &Endpoint, reason: &str) -> Self {
        let limit = shell_word("{\"max-connections\": NUMBER}");
        let command = if reason.contains("node connection limit") {
            "connection_max in rabbitmq.conf".to_owned()
        } else if reason.contains("user connection limit") {
            let user = match endpoint.auth {
                BrokerAuth::Plain => shell_word(endpoint.user()),
                BrokerAuth::External => "USER".into(),
            };
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
            Self::Certificate {
                problem,
                has_ca_file,
            } => problem.advice(*has_ca_file),
            Self::OwnCertificate(problem) => problem.advice(),
            Self::File(_) => "fix the file, or name another one",
            Self::NoTls => "write amqp:// for this port, or name the one for TLS, usually 5671",
            Self::ExpectsTls => "write amqps:// for this port, or name the one without TLS, usually 5672",
            Self::NotOffered(BrokerAuth::Plain) => {
                "add auth_mechanisms.1 = PLAIN to rabbitmq.conf of the broker, or set broker.auth = external"
            }
            Self::NotOffered(BrokerAuth::External) => {
                "on the broker: `rabbitmq-plugins enable rabbitmq_auth_mechanism_ssl`, and in rabbitmq.conf \
                 auth_mechanisms.1 = EXTERNAL and ssl_options.verify = verify_peer; or set broker.auth = plain"
            }
            Self::NothingInCommon => "allow TLS 1.2 or 1.3 on the broker (ssl_options.versions)",
            Self::NotAmqp => {
                "name the port for AMQP, usually 5672; if this one expects TLS, write amqps://"
            }
            Self::ClosedEarly { is_tls: false } => {
                "the broker may be starting; if this port expects TLS, write amqps://"
            }
            Self::ClosedEarly { is_tls: true } => {
                "the broker may be starting, or its log says what it refuses; if this port does not speak TLS, write amqp://"
            }
            Self::Limit { command, .. } => {
                return format!("end other connections, or raise the limit: {command}");
            }
        }
        .to_owned()
    }
}

impl CertificateProblem {
    fn advice(self, has_ca_file: bool) -> &'static str {
        match self {
            Self::UnknownAuthority if has_ca_file => {
                "name a file with the certificate of the right authority in broker.ca_file"
            }
            Self::UnknownAuthority => {
                "name a file with the certificate of that authority in broker.ca_file"
            }
            Self::Expired => "renew the certificate, or set the clock of this machine",
            Self::OtherName => "write the host in the broker's URL as the certificate names it",
            Self::Other => "look at it with `openssl s_client`, and replace it",
        }
    }
}

impl OwnCertificateProblem {
    fn advice(self) -> &'static str {
        match self {
            Self::Missing => {
                "name the files of one that it accepts in broker.cert_file and broker.key_file"
            }
            Self::UnknownAuthority => {
                "let an authority that it trusts sign it (ssl_options.cacertfile of the broker), with those between in \
                 broker.cert_file"
            }
            Self::Expired => {
                "renew the certificate in broker.cert_file, or set the clocks of both machines"
            }
            Self::Refused => "look for the reason in the log of the broker",
        }
    }
}

impl From<&CertificateError> for CertificateProblem {
    fn from(error: &CertificateError) -> Self {
        match error {
            // The second: an authority that was made anew has the name of the one that is trusted, and another key.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                Self::UnknownAuthority
            }
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

/// How a program logs in, in words.
fn way(auth: BrokerAuth) -> &'static str {
    match auth {
        BrokerAuth::Plain => "by password (SASL PLAIN)",
        BrokerAuth::External => "by certificate (SASL EXTERNAL)",
    }
}

/// The error of this type inside an error of a stream.
fn inner<T: Error + 'static>(error: &io::Error) -> Option<&T> {
    let mut error = error;
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
        let refused = |problem| {
            Some(ConnectProblem::Certificate {
                problem,
                has_ca_file: false,
            })
        };
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
            (
                CertificateError::BadSignature,
                CertificateProblem::UnknownAuthority,
            ),
            (CertificateError::Revoked, CertificateProblem::Other),
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
