//! Whose message it is: the AMQP property `user_id`, which the broker compares with the login of the connection and refuses
//! if it is another one (406), and the header with the login of a message that is published again by another program.
//! Headers are untrusted: who reads one decides by `user_id` whether to believe it. No I/O.
//!
//! Source: RabbitMQ's page "Validated User-ID".

use lapin::{
    BasicProperties,
    types::{AMQPValue, ShortString},
};

use pingfleet_settings::keys::BrokerAuth;

use super::{
    common_name::common_name,
    dead_letter::with_dead_letter_reason,
    endpoint::{Endpoint, RabbitConfig},
    tls,
};
use crate::{Origin, QueueName};

/// The longest login, in bytes: that of an AMQP short string.
const MAX_LOGIN_BYTES: usize = 255;

/// The header with the login of the worker whose message is published again.
const LOGIN_HEADER: &str = "x-pingfleet-login";

impl RabbitConfig {
    /// The login of the connections, which their messages carry. Empty if it is not known: then no message that is published
    /// by this program counts.
    #[must_use]
    pub fn login(&self) -> String {
        Endpoint::new(self).map_or_else(|_| String::new(), |endpoint| endpoint.login())
    }
}

impl Endpoint {
    /// The login of the connections, empty if it is not known. The one place that knows it: with a password, the user of the
    /// URL. With a certificate the broker decides: it is the user that the URL names, or else the common name in the
    /// certificate, from which RabbitMQ takes it with `ssl_cert_login_from = common_name`. A wrong one is refused.
    pub(super) fn login(&self) -> String {
        match (self.auth, &self.named_user, &self.tls.certificate) {
            (BrokerAuth::External, None, Some(file)) => tls::first_certificate(file)
                .and_then(|certificate| common_name(&certificate))
                .unwrap_or_default(),
            (BrokerAuth::External, Some(user), _) => user.clone(),
            _ => self.user().to_owned(),
        }
    }
}

/// The properties of a message for this queue, published by this login.
pub(super) fn properties(login: &str, queue: QueueName, origin: Origin<'_>) -> BasicProperties {
    let mut properties = with_dead_letter_reason(origin.dead_letter_reason);
    if let Some(login) = origin.login {
        let mut headers = properties.headers().clone().unwrap_or_default();
        headers.insert(LOGIN_HEADER.into(), AMQPValue::LongString(login.into()));
        properties = properties.with_headers(headers);
    }
    if queue.kind.has_logins() && is_login(login) {
        properties = properties.with_user_id(login.into());
    }
    properties
}

/// The login that published a message, as the broker checked it.
pub(super) fn login(properties: &BasicProperties) -> Option<String> {
    let login = properties.user_id().as_ref().map(ShortString::as_str)?;
    is_login(login).then(|| login.to_owned())
}

/// The login in the header. Anybody can write it.
pub(super) fn original_login(properties: &BasicProperties) -> Option<String> {
    let headers = properties.headers().as_ref()?;
    let login = match headers.inner().get(LOGIN_HEADER)? {
        AMQPValue::LongString(text) => String::from_utf8(text.as_bytes().to_vec()).ok()?,
        _ => return None,
    };
    is_login(&login).then_some(login)
}

/// Whether it is text that a login can be: bounded, and without control characters.
fn is_login(login: &str) -> bool {
    (1..=MAX_LOGIN_BYTES).contains(&login.len()) && !login.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_workers_publish_has_their_login_and_what_they_read_has_none() {
        for (queue, expected) in [
            (QueueName::RESULTS, Some("rack 7")),
            (QueueName::HEARTBEATS, Some("rack 7")),
            (QueueName::FOREIGN, Some("rack 7")),
            (QueueName::WORK, None),
            (QueueName::DEAD, None),
        ] {
            let properties = properties("rack 7", queue, Origin::default());
            assert_eq!(login(&properties).as_deref(), expected, "{queue}");
            assert_eq!(original_login(&properties), None, "{queue}");
        }
        let config = RabbitConfig::new("amqp://rack%207:secret@h");
        assert_eq!(config.login(), "rack 7");
        assert_eq!(RabbitConfig::new("amqp:").login(), "");
        // Without a known login there is none in the message, and the writer refuses it.
        let unknown = properties("", QueueName::RESULTS, Origin::default());
        assert_eq!(login(&unknown), None);
    }

    #[test]
    fn the_login_and_the_reason_of_a_message_that_is_published_again_go_together() {
        let origin = Origin {
            dead_letter_reason: Some("expired"),
            login: Some("rack-9"),
        };
        let properties = properties("rack 7", QueueName::RESULTS, origin);
        assert_eq!(login(&properties).as_deref(), Some("rack 7"));
        assert_eq!(original_login(&properties).as_deref(), Some("rack-9"));
        let reason = super::super::dead_letter::dead_letter_reason(&properties);
        assert_eq!(reason.as_deref(), Some("expired"));
    }

    #[test]
    fn an_endless_or_empty_login_or_one_with_escapes_is_none() {
        for text in [String::new(), "x".repeat(256), "a\u{1b}[2J".to_owned()] {
            let origin = Origin {
                login: Some(&text),
                ..Origin::default()
            };
            let properties = properties("rack-7", QueueName::RESULTS, origin);
            assert_eq!(original_login(&properties), None);
        }
        let none = BasicProperties::default().with_user_id("".into());
        assert_eq!(login(&none), None);
    }
}
