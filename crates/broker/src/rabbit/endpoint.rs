//! The broker's URL, read and checked once. No I/O.
//!
//! Invariant: no error and no `Debug` text from here has the password.

use std::{
    fmt,
    sync::atomic::{AtomicBool, Ordering},
};

use lapin::{
    types::ShortString,
    uri::{AMQPScheme, AMQPUri, SASLMechanism},
};
use pingfleet_settings::{Secret, keys::BrokerAuth, shell_word};
use pingfleet_wire::{DEFAULT_QUEUE_PREFIX, check_queue_prefix};
use url::{Host, Url};

use super::tls::TlsFiles;
use crate::{BrokerError, QueueName};

/// AMQP heartbeat in seconds. A dead broker is noticed after two; the usual 60 s is too long for a sweep.
const DEFAULT_HEARTBEAT_S: u16 = 15;

/// The keys of the URL's query that are used.
const QUERY_KEYS: [&str; 3] = ["channel_max", "frame_max", "heartbeat"];

/// Keys that other clients of RabbitMQ know (<https://www.rabbitmq.com/docs/uri-query-parameters>), and what replaces each.
const REPLACED_KEYS: [(&str, &str); 8] = [
    ("auth_mechanism", "set broker.auth"),
    ("cacertfile", "set broker.ca_file"),
    ("certfile", "set broker.cert_file"),
    ("keyfile", "set broker.key_file"),
    (
        "password",
        "the key in broker.key_file must have no passphrase",
    ),
    ("verify", "the broker's certificate is always verified"),
    (
        "server_name_indication",
        "the certificate must be for the host in the URL",
    ),
    ("connection_timeout", "a try to connect takes 10 s at most"),
];

/// How to reach a RabbitMQ broker.
#[derive(Clone)]
pub struct RabbitConfig {
    /// `amqp://user:password@host:5672/vhost`, or `amqps://` for TLS.
    /// Without a user it is `guest` with the password `guest`. An empty vhost is the vhost `/`.
    pub url: String,
    /// The prefix of queue and exchange names.
    pub prefix: String,
    /// The password, instead of the one in the URL.
    pub password: Option<Secret>,
    /// How the program logs in.
    pub auth: BrokerAuth,
    /// The files of TLS.
    pub tls: TlsFiles,
    /// The name of our connections in the broker's tools.
    pub connection_name: String,
}

impl RabbitConfig {
    /// A broker by its URL, everything else by default.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            prefix: DEFAULT_QUEUE_PREFIX.to_owned(),
            password: None,
            auth: BrokerAuth::Plain,
            tls: TlsFiles::default(),
            connection_name: "pingfleet".to_owned(),
        }
    }
}

impl RabbitConfig {
    /// What is wrong with the settings of TLS and of the login, and with the files of TLS as they are now. Empty if the URL
    /// cannot be read.
    pub(crate) fn security_problems(&self) -> impl Iterator<Item = String> {
        let url = Url::parse(&self.url).ok();
        let is_tls = url.as_ref().is_some_and(|url| url.scheme() == "amqps");
        let contradictions = url.into_iter().flat_map(|url| {
            let found: Vec<_> = self.contradictions(&url).map(str::to_owned).collect();
            found
        });
        let files = is_tls.then(|| self.tls.connector().err()).flatten();
        let is_nobody = files.is_none() && self.auth == BrokerAuth::External && {
            let login = Endpoint::new(self).map(|endpoint| endpoint.login());
            login.is_ok_and(|login| login.is_empty())
        };
        let nobody = is_nobody.then(|| {
            "broker.auth = external: the certificate in broker.cert_file has no common name, so write the login that the \
             broker takes from it in broker.url (amqps://LOGIN@HOST)"
                .to_owned()
        });
        contradictions
            .chain(files.map(|error| error.to_string()))
            .chain(nobody)
    }

    /// Settings of TLS and of the login that would have no effect.
    fn contradictions(&self, url: &Url) -> impl Iterator<Item = &'static str> {
        let is_tls = url.scheme() == "amqps";
        let is_external = self.auth == BrokerAuth::External;
        let has_password = url.password().is_some() || self.password.is_some();
        let plain_files = "broker.ca_file, broker.cert_file and broker.key_file have no effect on amqp://, which is not \
                           encrypted: write amqps:// in broker.url";
        let lacking = "broker.auth = external needs amqps:// in broker.url, and a certificate in broker.cert_file and \
                       broker.key_file";
        let password = "a password has no effect with broker.auth = external: remove it, or write broker.auth = plain";
        [
            (self.tls.are_named() && !is_tls, plain_files),
            (
                is_external && !(is_tls && self.tls.certificate.is_some()),
                lacking,
            ),
            (is_external && is_tls && has_password, password),
        ]
        .into_iter()
        .filter_map(|(is_wrong, why)| is_wrong.then_some(why))
    }
}

impl fmt::Debug for RabbitConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A mistyped URL may have the password anywhere, so only parts that were parsed are shown.
        let address = Endpoint::new(self).map(|endpoint| endpoint.address);
        f.debug_struct("RabbitConfig")
            .field("address", &address.as_deref().unwrap_or("unreadable"))
            .field("prefix", &self.prefix)
            .field("auth", &self.auth)
            .field("tls", &self.tls)
            .field("connection_name", &self.connection_name)
            .finish_non_exhaustive()
    }
}

/// Where a broker is, and the login, as its URL has them. It has the password, so it cannot be shown.
pub struct BrokerAddress {
    /// Whether the connection is encrypted (`amqps://`).
    pub is_tls: bool,
    /// A name, or an address without brackets.
    pub host: String,
    /// The port of AMQP.
    pub port: u16,
    /// The virtual host.
    pub vhost: String,
    /// The user.
    pub user: String,
    /// The user's password.
    pub password: Secret,
}

/// A checked [`RabbitConfig`].
pub(super) struct Endpoint {
    pub(super) uri: AMQPUri,
    /// Host and port, for messages.
    pub(super) address: String,
    pub(super) connection_name: String,
    pub(super) auth: BrokerAuth,
    pub(super) tls: TlsFiles,
    prefix: String,
    /// The user, if the URL names one.
    pub(super) named_user: Option<String>,
    /// Whether a connection was open before.
    was_connected: AtomicBool,
}

impl Endpoint {
    pub(super) fn new(config: &RabbitConfig) -> Result<Self, BrokerError> {
        let url = Url::parse(&config.url).map_err(|error| {
            BrokerError::Url(format!("{error}; expected amqp://user@host:5672/vhost"))
        })?;
        if !matches!(url.scheme(), "amqp" | "amqps") || url.cannot_be_a_base() {
            return Err(BrokerError::Url(
                "it must begin with amqp:// or amqps://".to_owned(),
            ));
        }
        check_query(&url)?;
        let mut uri: AMQPUri = config.url.parse().map_err(BrokerError::Url)?;
        match url.host() {
            // lapin's parser knows domain names only and uses localhost for anything else.
            Some(Host::Ipv6(host)) => uri.authority.host = host.to_string(),
            Some(Host::Ipv4(host)) => uri.authority.host = host.to_string(),
            Some(Host::Domain(name)) if !name.is_empty() => {}
            Some(Host::Domain(_)) | None => {
                return Err(BrokerError::Url("it names no host".to_owned()));
            }
        }
        if uri.vhost.is_empty() {
            "/".clone_into(&mut uri.vhost);
        }
        uri.query.heartbeat.get_or_insert(DEFAULT_HEARTBEAT_S);
        if let Some(password) = &config.password {
            let password = password.expose();
            password.clone_into(&mut uri.authority.userinfo.password);
        }
        if let Some(why) = config.contradictions(&url).next() {
            return Err(BrokerError::Url(why.to_owned()));
        }
        if config.auth == BrokerAuth::External {
            uri.query.auth_mechanism = Some(SASLMechanism::External);
        }
        check_queue_prefix(&config.prefix).map_err(BrokerError::Url)?;
        let (host, port) = (&uri.authority.host, uri.authority.port);
        let address = if host.contains(':') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        };
        Ok(Self {
            address,
            connection_name: config.connection_name.clone(),
            auth: config.auth,
            tls: config.tls.clone(),
            prefix: config.prefix.clone(),
            named_user: (!url.username().is_empty())
                .then(|| uri.authority.userinfo.username.clone()),
            uri,
            was_connected: AtomicBool::new(false),
        })
    }

    /// Notes that a connection is open, so that its settings were right at least once.
    pub(super) fn note_connected(&self) {
        self.was_connected.store(true, Ordering::Relaxed);
    }

    /// Whether a connection was open before.
    pub(super) fn was_connected(&self) -> bool {
        self.was_connected.load(Ordering::Relaxed)
    }

    pub(super) fn is_tls(&self) -> bool {
        self.uri.scheme == AMQPScheme::AMQPS
    }

    pub(super) fn parts(&self) -> BrokerAddress {
        let authority = &self.uri.authority;
        BrokerAddress {
            is_tls: self.uri.scheme == AMQPScheme::AMQPS,
            host: authority.host.clone(),
            port: authority.port,
            vhost: self.uri.vhost.clone(),
            user: authority.userinfo.username.clone(),
            password: authority.userinfo.password.as_str().into(),
        }
    }

    /// Host, port and virtual host, for messages.
    pub(super) fn place(&self) -> String {
        let vhost = shell_word(&self.uri.vhost);
        format!("{} (virtual host {vhost})", self.address)
    }

    pub(super) fn user(&self) -> &str {
        &self.uri.authority.userinfo.username
    }

    /// The name of a queue, which is also the routing key that binds it.
    pub(super) fn queue(&self, queue: QueueName) -> ShortString {
        format!("{}.{queue}", self.prefix).into()
    }

    /// The name of the exchange that feeds a queue.
    pub(super) fn exchange(&self, queue: QueueName) -> ShortString {
        format!("{}.x.{}", self.prefix, queue.kind.name()).into()
    }
}

/// Refuses a key that has no effect, or that would hide one. The value may be a secret and is not shown; the key is shown
/// only if it looks like one.
fn check_query(url: &Url) -> Result<(), BrokerError> {
    let mut seen = Vec::new();
    for (key, _) in url.query_pairs() {
        let is_word = key.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        let name = if is_word && key.len() <= 30 {
            format!("key {key}")
        } else {
            "a key".to_owned()
        };
        let known = QUERY_KEYS.join(", ");
        if let Some((key, instead)) = REPLACED_KEYS.iter().find(|(replaced, _)| key == *replaced) {
            return Err(BrokerError::Url(format!(
                "{key} after the question mark has no effect here: {instead}"
            )));
        }
        if !QUERY_KEYS.contains(&&*key) {
            return Err(BrokerError::Url(format!(
                "unknown {name} after the question mark; known are {known}"
            )));
        }
        if seen.contains(&key) {
            return Err(BrokerError::Url(format!("{name} is given twice")));
        }
        seen.push(key);
    }
    Ok(())
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("address", &self.address)
            .field("user", &self.user())
            .field("vhost", &self.uri.vhost)
            .field("prefix", &self.prefix)
            .field("connection_name", &self.connection_name)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(url: &str) -> Endpoint {
        Endpoint::new(&RabbitConfig::new(url)).unwrap()
    }

    #[test]
    fn a_url_is_split_into_its_parts() {
        for (url, address, user, password, vhost) in [
            ("amqp://h", "h:5672", "guest", "guest", "/"),
            ("amqp://h/", "h:5672", "guest", "guest", "/"),
            ("amqp://h/%2f", "h:5672", "guest", "guest", "/"),
            ("amqps://u:p%40ss@h/v", "h:5671", "u", "p@ss", "v"),
            ("amqp://[::1]:7/", "[::1]:7", "guest", "guest", "/"),
            ("amqp://10.0.0.1", "10.0.0.1:5672", "guest", "guest", "/"),
        ] {
            let endpoint = endpoint(url);
            assert_eq!(endpoint.address, address, "{url}");
            assert_eq!(endpoint.user(), user, "{url}");
            assert_eq!(endpoint.uri.authority.userinfo.password, password, "{url}");
            assert_eq!(endpoint.uri.vhost, vhost, "{url}");
        }
        assert_eq!(endpoint("amqp://[::1]").uri.authority.host, "::1");
    }

    #[test]
    fn heartbeat_is_15_s_unless_the_url_has_another() {
        assert_eq!(endpoint("amqp://h").uri.query.heartbeat, Some(15));
        assert_eq!(
            endpoint("amqp://h?heartbeat=60").uri.query.heartbeat,
            Some(60)
        );
    }

    #[test]
    fn a_separate_password_replaces_the_one_in_the_url() {
        let mut config = RabbitConfig::new("amqp://u:old@h");
        config.password = Some("new".into());
        let endpoint = Endpoint::new(&config).unwrap();
        assert_eq!(endpoint.uri.authority.userinfo.password, "new");
    }

    #[test]
    fn no_text_shows_the_password() {
        for url in [
            "amqp://u:hunter2@h/v",
            "amqp://u:hunter2@h:port",
            "amqp://u:hunter2@",
            "amqp://u:hunter2@h?heartbeat=hunter2",
            "amqp://u:hunter2%ff@h",
            "http://u:hunter2@h",
            "amqp:u:hunter2@h",
            "u:hunter2@h",
        ] {
            let mut config = RabbitConfig::new(url);
            let text = format!("{config:?} {:?}", Endpoint::new(&config));
            assert!(!text.contains("hunter2"), "{text}");
            config.password = Some("hunter2".into());
            config.url = "amqp://u@h".to_owned();
            let text = format!("{config:?} {:?}", Endpoint::new(&config));
            assert!(!text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn unusable_urls_are_refused() {
        for url in ["", "h", "h:5672", "http://h", "amqp:h", "amqp:///v"] {
            let refused = Endpoint::new(&RabbitConfig::new(url));
            assert!(matches!(refused, Err(BrokerError::Url(_))), "{url}");
        }
        for (query, part) in [
            ("heartbeats=60", "unknown key heartbeats"),
            (
                "heartbeat=60&verify=verify_none",
                "verify after the question mark has no effect here: the broker's certificate is always",
            ),
            ("cacertfile=ca.pem", "set broker.ca_file"),
            ("certfile=c.pem", "set broker.cert_file"),
            ("keyfile=k.pem", "set broker.key_file"),
            ("auth_mechanism=external", "set broker.auth"),
            ("hunter2%20Secret=1", "unknown a key"),
            ("heartbeat=5&heartbeat=60", "heartbeat is given twice"),
        ] {
            let refused = Endpoint::new(&RabbitConfig::new(format!("amqp://h?{query}")));
            let Err(BrokerError::Url(why)) = refused else {
                panic!("{query}");
            };
            assert!(why.contains(part), "{why}");
        }
        for prefix in ["", "amq.x", "a\nb", &"x".repeat(101)] {
            let mut config = RabbitConfig::new("amqp://h");
            prefix.clone_into(&mut config.prefix);
            assert!(Endpoint::new(&config).is_err(), "{prefix:?}");
        }
    }
}
