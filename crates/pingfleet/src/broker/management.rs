//! RabbitMQ's management API over HTTP, as far as users, permissions and bindings need it.
//!
//! Source: the plugin's own description of its API, which the broker serves under `/api/index.html`.

use std::{fmt, path::Path, sync::Arc, time::Duration};

use crate::report::layout::escaped;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use pingfleet_broker::BrokerAddress;
use pingfleet_settings::read_bytes;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use ureq::{
    Agent, Body,
    http::{Response, StatusCode},
    tls::{Certificate, RootCerts, TlsConfig},
};
use url::{Host, Url, form_urlencoded::byte_serialize};

/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(15);

/// The most bytes of an answer.
const MAX_ANSWER: u64 = 16 << 20;

/// The ports of the plugin, without and with TLS.
const PORT: u16 = 15672;
const TLS_PORT: u16 = 15671;

/// The management API of one broker, as one user. It has the password, so it cannot be shown.
pub(super) struct Management {
    agent: Agent,
    /// None if it is not known.
    base: Option<Url>,
    authorization: String,
    pub(super) vhost: String,
    pub(super) user: String,
}

/// Why a request has no answer.
#[derive(Debug)]
pub(super) enum ManagementError {
    /// The API cannot be used at all: it is not there, or refuses the login. The text says why.
    Absent(String),
    /// One request failed. The text says which one, and why.
    Request(String),
}

impl fmt::Display for ManagementError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent(why) | Self::Request(why) => f.write_str(why),
        }
    }
}

/// A user of the broker.
#[derive(Deserialize)]
pub(super) struct User {
    pub(super) name: String,
    #[serde(default)]
    password_hash: String,
    hashing_algorithm: Option<String>,
    tags: Tags,
}

impl User {
    pub(super) fn is_without_tags(&self) -> bool {
        self.tags.list().is_empty()
    }
}

/// A list, or for old versions words with commas between them.
#[derive(Deserialize)]
#[serde(untagged)]
enum Tags {
    List(Vec<String>),
    Text(String),
}

impl Tags {
    fn list(&self) -> Vec<&str> {
        match self {
            Self::List(tags) => tags.iter().map(String::as_str).collect(),
            Self::Text(tags) => tags.split(',').filter(|tag| !tag.is_empty()).collect(),
        }
    }
}

/// What a user may do in a virtual host: regular expressions of names.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Permissions {
    pub(super) configure: String,
    pub(super) write: String,
    pub(super) read: String,
}

/// How a queue or an exchange gets messages from an exchange.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(super) struct Binding {
    /// An exchange; empty for the default one, which is bound to every queue.
    pub(super) source: String,
    pub(super) destination: String,
    /// `queue` or `exchange`.
    pub(super) destination_type: String,
    pub(super) routing_key: String,
    properties_key: String,
}

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the binding of exchange {:?} to {} {:?} with routing key {:?}",
            self.source, self.destination_type, self.destination, self.routing_key
        )
    }
}

/// What a policy does.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Policy {
    pub(super) pattern: String,
    pub(super) definition: Value,
    #[serde(rename = "apply-to")]
    pub(super) apply_to: String,
    pub(super) priority: i64,
}

/// A queue, with what is in it.
#[derive(Deserialize)]
pub(super) struct Queue {
    #[serde(default)]
    pub(super) messages_ready: u64,
    #[serde(default)]
    pub(super) messages_unacknowledged: u64,
    #[serde(default)]
    pub(super) consumers: u64,
    /// The policy that applies to it: of several that match, the one with the highest priority.
    pub(super) policy: Option<String>,
}

/// A connection of a user.
#[derive(Deserialize)]
pub(super) struct Connection {
    pub(super) name: String,
}

impl Management {
    /// The API of a broker, which by TLS trusts the authorities of `ca_file`: at `url`, or where the plugin listens on the
    /// broker's host. A broker with another port than the usual one may be one of several, so that is not done for it.
    ///
    /// # Errors
    /// Why the URL cannot be used.
    pub(super) fn new(
        broker: BrokerAddress,
        url: Option<&str>,
        ca_file: Option<&Path>,
    ) -> Result<Self, String> {
        let base = match url {
            Some(url) => Some(checked(url)?),
            None => default_url(&broker)?,
        };
        let is_plain = base.as_ref().is_some_and(|base| base.scheme() == "http");
        if broker.is_tls && is_plain {
            return Err(
                "the broker is reached by TLS, so this must begin with https://".to_owned(),
            );
        }
        let login = format!("{}:{}", broker.user, broker.password);
        let mut agent = Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .http_status_as_error(false)
            .max_redirects(0)
            // The password is for the broker only.
            .proxy(None);
        if base.as_ref().is_some_and(|base| base.scheme() == "https") {
            agent = agent.tls_config(tls(ca_file)?);
        }
        Ok(Self {
            agent: agent.build().into(),
            base,
            authorization: format!("Basic {}", STANDARD.encode(login)),
            vhost: broker.vhost,
            user: broker.user,
        })
    }

    /// Its name in messages.
    pub(super) fn place(&self) -> String {
        let base = self.base.as_ref();
        base.map_or_else(
            || "the management API".to_owned(),
            |base| {
                format!(
                    "the management API at {}",
                    base.as_str().trim_end_matches('/')
                )
            },
        )
    }

    /// Whether the password goes to another machine as plain text.
    pub(super) fn is_exposed(&self) -> bool {
        let Some(base) = &self.base else {
            return false;
        };
        let is_here = match base.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        };
        base.scheme() == "http" && !is_here
    }

    /// Checks that the API answers, and that the user is an administrator.
    ///
    /// # Errors
    /// [`ManagementError::Absent`].
    pub(super) fn check_administrator(&self) -> Result<(), ManagementError> {
        #[derive(Deserialize)]
        struct WhoAmI {
            tags: Tags,
        }
        let found: Option<WhoAmI> = self.get(&["whoami"])?;
        let is_administrator =
            found.is_some_and(|found| found.tags.list().contains(&"administrator"));
        if is_administrator {
            return Ok(());
        }
        Err(ManagementError::Absent(format!(
            "the user {:?} is no administrator",
            self.user
        )))
    }

    /// The version of the broker.
    pub(super) fn version(&self) -> Result<String, ManagementError> {
        #[derive(Deserialize)]
        struct Overview {
            rabbitmq_version: String,
        }
        let found: Option<Overview> = self.get(&["overview"])?;
        Ok(found.map_or_else(|| "unknown".to_owned(), |found| found.rabbitmq_version))
    }

    pub(super) fn has_vhost(&self) -> Result<bool, ManagementError> {
        self.has(&["vhosts", &self.vhost])
    }

    pub(super) fn make_vhost(&self) -> Result<(), ManagementError> {
        self.put(&["vhosts", &self.vhost], &json!({}))
    }

    pub(super) fn users(&self) -> Result<Vec<User>, ManagementError> {
        Ok(self.get(&["users"])?.unwrap_or_default())
    }

    pub(super) fn user(&self, name: &str) -> Result<Option<User>, ManagementError> {
        self.get(&["users", name])
    }

    /// Makes a user without a tag, or gives one this password.
    pub(super) fn put_user(&self, name: &str, password: &str) -> Result<(), ManagementError> {
        self.put(
            &["users", name],
            &json!({ "password": password, "tags": "" }),
        )
    }

    /// Takes all tags from a user, who keeps the password.
    pub(super) fn remove_tags(&self, user: &User) -> Result<(), ManagementError> {
        let mut body = json!({ "password_hash": user.password_hash, "tags": "" });
        if let Some(algorithm) = &user.hashing_algorithm {
            body["hashing_algorithm"] = json!(algorithm);
        }
        self.put(&["users", &user.name], &body)
    }

    pub(super) fn delete_user(&self, name: &str) -> Result<(), ManagementError> {
        self.delete(&["users", name])
    }

    pub(super) fn permissions(&self, user: &str) -> Result<Option<Permissions>, ManagementError> {
        self.get(&["permissions", &self.vhost, user])
    }

    /// The virtual hosts in which a user has permissions.
    pub(super) fn vhosts_of(&self, user: &str) -> Result<Vec<String>, ManagementError> {
        #[derive(Deserialize)]
        struct Permitted {
            vhost: String,
        }
        let found: Option<Vec<Permitted>> = self.get(&["users", user, "permissions"])?;
        let found = found.unwrap_or_default().into_iter();
        Ok(found.map(|permitted| permitted.vhost).collect())
    }

    pub(super) fn put_permissions(
        &self,
        user: &str,
        permissions: &Permissions,
    ) -> Result<(), ManagementError> {
        let body = json!({
            "configure": permissions.configure, "write": permissions.write, "read": permissions.read,
        });
        self.put(&["permissions", &self.vhost, user], &body)
    }

    /// The most connections that a user may have, if there is a limit.
    pub(super) fn max_connections(&self, user: &str) -> Result<Option<u64>, ManagementError> {
        #[derive(Deserialize)]
        struct Limits {
            value: Value,
        }
        let limits: Option<Vec<Limits>> = self.get(&["user-limits", user])?;
        let first = limits.unwrap_or_default().into_iter().next();
        Ok(first.and_then(|limits| limits.value.get("max-connections")?.as_u64()))
    }

    pub(super) fn put_max_connections(
        &self,
        user: &str,
        connections: u64,
    ) -> Result<(), ManagementError> {
        let path = ["user-limits", user, "max-connections"];
        self.put(&path, &json!({ "value": connections }))
    }

    pub(super) fn connections(&self, user: &str) -> Result<Vec<Connection>, ManagementError> {
        let found = self.get(&["connections", "username", user])?;
        Ok(found.unwrap_or_default())
    }

    pub(super) fn close_connection(&self, name: &str) -> Result<(), ManagementError> {
        self.delete(&["connections", name])
    }

    pub(super) fn queue(&self, name: &str) -> Result<Option<Queue>, ManagementError> {
        self.get(&["queues", &self.vhost, name])
    }

    pub(super) fn has_exchange(&self, name: &str) -> Result<bool, ManagementError> {
        self.has(&["exchanges", &self.vhost, name])
    }

    /// All bindings of the virtual host.
    pub(super) fn bindings(&self) -> Result<Vec<Binding>, ManagementError> {
        Ok(self.get(&["bindings", &self.vhost])?.unwrap_or_default())
    }

    pub(super) fn delete_binding(&self, binding: &Binding) -> Result<(), ManagementError> {
        let kind = match &*binding.destination_type {
            "queue" => "q",
            _ => "e",
        };
        self.delete(&[
            "bindings",
            &self.vhost,
            "e",
            &binding.source,
            kind,
            &binding.destination,
            &binding.properties_key,
        ])
    }

    pub(super) fn policy(&self, name: &str) -> Result<Option<Policy>, ManagementError> {
        self.get(&["policies", &self.vhost, name])
    }

    pub(super) fn put_policy(&self, name: &str, policy: &Policy) -> Result<(), ManagementError> {
        let body = json!({
            "pattern": policy.pattern, "definition": policy.definition, "apply-to": policy.apply_to,
            "priority": policy.priority,
        });
        self.put(&["policies", &self.vhost, name], &body)
    }

    fn url(&self, path: &[&str]) -> Result<String, ManagementError> {
        let Some(base) = &self.base else {
            let why = "the broker has another port than the usual one, so give --management URL";
            return Err(ManagementError::Absent(why.to_owned()));
        };
        let mut url = format!("{}/api", base.as_str().trim_end_matches('/'));
        for segment in path {
            // No parser of URLs sees it, which would drop tabs and segments of points.
            let encoded: String = byte_serialize(segment.as_bytes()).collect();
            url.push('/');
            url += &encoded.replace('+', "%20").replace('.', "%2E");
        }
        Ok(url)
    }

    /// What is there, or None.
    fn get<T: DeserializeOwned>(&self, path: &[&str]) -> Result<Option<T>, ManagementError> {
        let request = self.agent.get(self.url(path)?);
        let request = request.header("authorization", &self.authorization);
        let mut answer = self.answer("GET", path, request.call())?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let body = answer.body_mut().with_config().limit(MAX_ANSWER);
        let parsed = body.read_json();
        let parsed = parsed.map_err(|error| failed("GET", path, &error.to_string()))?;
        Ok(Some(parsed))
    }

    fn has(&self, path: &[&str]) -> Result<bool, ManagementError> {
        Ok(self.get::<serde::de::IgnoredAny>(path)?.is_some())
    }

    fn put(&self, path: &[&str], body: &Value) -> Result<(), ManagementError> {
        let request = self.agent.put(self.url(path)?);
        let request = request.header("authorization", &self.authorization);
        let answer = self.answer("PUT", path, request.send_json(body))?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Err(failed("PUT", path, "there is no such thing"));
        }
        Ok(())
    }

    /// Removes something, which may be gone already.
    fn delete(&self, path: &[&str]) -> Result<(), ManagementError> {
        let request = self.agent.delete(self.url(path)?);
        let request = request.header("authorization", &self.authorization);
        self.answer("DELETE", path, request.call()).map(drop)
    }

    /// An answer that is a success, or that says that something is not there.
    fn answer(
        &self,
        method: &str,
        path: &[&str],
        answer: Result<Response<Body>, ureq::Error>,
    ) -> Result<Response<Body>, ManagementError> {
        let mut answer = answer.map_err(|error| match error {
            ureq::Error::Io(_)
            | ureq::Error::HostNotFound
            | ureq::Error::ConnectionFailed
            | ureq::Error::Timeout(_) => ManagementError::Absent(error.to_string()),
            // What listens there may be the wrong one, which is no reason to go on without it.
            error => failed(method, path, &error.to_string()),
        })?;
        let status = answer.status();
        let has_content = status != StatusCode::NO_CONTENT && status != StatusCode::CREATED;
        let is_of_the_api = is_of_the_api(&answer);
        if status.is_success() && (is_of_the_api || !has_content)
            || status == StatusCode::NOT_FOUND && is_of_the_api
        {
            return Ok(answer);
        }
        match status {
            StatusCode::UNAUTHORIZED => Err(ManagementError::Absent(format!(
                "it refuses the login of user {:?}",
                self.user
            ))),
            _ if !is_of_the_api => {
                let why = "what answers there is not the management API of RabbitMQ";
                Err(ManagementError::Absent(why.to_owned()))
            }
            _ => {
                #[derive(Deserialize)]
                struct Refusal {
                    reason: Value,
                }
                let body = answer.body_mut().with_config().limit(MAX_ANSWER);
                let refusal: Option<Refusal> = body.read_json().ok();
                let why =
                    refusal.map_or_else(String::new, |refusal| format!(": {}", refusal.reason));
                Err(failed(method, path, &format!("{status}{why}")))
            }
        }
    }
}

/// A request that failed, named by its method and its path.
fn failed(method: &str, path: &[&str], why: &str) -> ManagementError {
    let text = format!("{method} {}: {why}", path.join("/"));
    ManagementError::Request(escaped(&text).into_owned())
}

/// Whether an answer is JSON, as all of the API's are.
fn is_of_the_api(answer: &Response<Body>) -> bool {
    answer.body().mime_type() == Some("application/json")
}

/// A URL without a user.
fn checked(url: &str) -> Result<Url, String> {
    let url = Url::parse(url).map_err(|error| error.to_string())?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err("it must begin with http:// or https:// and name a host".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("it may have no user: that of the broker's URL is used".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("it may have no question mark and no #".to_owned());
    }
    Ok(url)
}

fn default_url(broker: &BrokerAddress) -> Result<Option<Url>, String> {
    let host = if broker.host.contains(':') {
        format!("[{}]", broker.host)
    } else {
        broker.host.clone()
    };
    let url = match (broker.is_tls, broker.port) {
        (false, 5672) => format!("http://{host}:{PORT}"),
        (true, 5671) => format!("https://{host}:{TLS_PORT}"),
        _ => return Ok(None),
    };
    Url::parse(&url)
        .map(Some)
        .map_err(|error| error.to_string())
}

/// TLS that trusts the authorities of `ca_file`, or those of this machine, as connections to the broker do.
fn tls(ca_file: Option<&Path>) -> Result<TlsConfig, String> {
    let authorities = match ca_file {
        Some(file) => {
            let bytes = read_bytes(file).map_err(|error| error.to_string())?;
            let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
            read.unwrap_or_default()
        }
        None => rustls_native_certs::load_native_certs().certs,
    };
    let certificates: Vec<_> = (authorities.iter())
        .map(|certificate| Certificate::from_der(certificate).to_owned())
        .collect();
    if certificates.is_empty() {
        return Err("there are no certificate authorities to trust".to_owned());
    }
    let provider = rustls::crypto::ring::default_provider();
    Ok(TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&certificates))
        .unversioned_rustls_crypto_provider(Arc::new(provider))
        .build())
}
