//! The keys of the connection to the broker.

use std::path::PathBuf;

use pingfleet_wire::{DEFAULT_QUEUE_PREFIX, check_queue_prefix};

use super::ALL_PROGRAMS;
use crate::{
    key::{AnyKey, Fixed, Flag, Key, Unset},
    values,
};

/// How a program proves to the broker who it is (SASL).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrokerAuth {
    /// By the user and the password of the URL and the settings (`PLAIN`).
    Plain,
    /// By its certificate, in which the broker finds the user (`EXTERNAL`, RFC 4422, appendix A).
    External,
}

/// The broker's address. The default is the broker that `docker-compose up` starts, with its default login.
pub static BROKER_URL: Key<String> = Key {
    name: "broker.url",
    flag: Some(Flag::new("broker", "URL")),
    default: Fixed("amqp://pingfleet:pingfleet@127.0.0.1:5672/%2f"),
    help: "Broker, as amqp://user@host:5672/vhost. Its password belongs in PINGFLEET_BROKER__PASSWORD, or in a file \
           that broker.password_file names",
    programs: ALL_PROGRAMS,
    parse: values::text,
};

/// The broker's password.
pub static BROKER_PASSWORD: Key<String, Unset> = Key {
    name: "broker.password",
    flag: None,
    default: Unset(None),
    help: "Password of the user in broker.url",
    programs: ALL_PROGRAMS,
    parse: values::text,
};

/// A file with the broker's password.
pub static BROKER_PASSWORD_FILE: Key<PathBuf, Unset> = Key {
    name: "broker.password_file",
    flag: None,
    default: Unset(None),
    help: "File whose first line is that password",
    programs: ALL_PROGRAMS,
    parse: values::path,
};

/// The prefix of all queues and exchanges.
pub static BROKER_PREFIX: Key<String> = Key {
    name: "broker.prefix",
    flag: None,
    default: Fixed(DEFAULT_QUEUE_PREFIX),
    help: "First part of the names of all queues and exchanges; the same for all programs",
    programs: ALL_PROGRAMS,
    parse: |text| check_queue_prefix(text).map(|()| text.to_owned()),
};

/// A file with the authorities that may sign the broker's certificate.
pub static BROKER_CA_FILE: Key<PathBuf, Unset> = Key {
    name: "broker.ca_file",
    flag: None,
    default: Unset(Some("the authorities that the system trusts")),
    help: "File (PEM) with the only authorities that may sign the broker's certificate, for amqps://",
    programs: ALL_PROGRAMS,
    parse: values::path,
};

/// A file with this program's certificate.
pub static BROKER_CERT_FILE: Key<PathBuf, Unset> = Key {
    name: "broker.cert_file",
    flag: None,
    default: Unset(None),
    help: "File (PEM) with the certificate that this program shows to the broker, then those that signed it",
    programs: ALL_PROGRAMS,
    parse: values::path,
};

/// A file with the key of this program's certificate.
pub static BROKER_KEY_FILE: Key<PathBuf, Unset> = Key {
    name: "broker.key_file",
    flag: None,
    default: Unset(None),
    help: "File (PEM) with the private key of that certificate",
    programs: ALL_PROGRAMS,
    parse: values::path,
};

/// How the program logs in.
pub static BROKER_AUTH: Key<BrokerAuth> = Key {
    name: "broker.auth",
    flag: None,
    default: Fixed("plain"),
    help: "Log in with user and password (plain), or as the user whom the certificate names (external)",
    programs: ALL_PROGRAMS,
    parse: |text| match text {
        "plain" => Ok(BrokerAuth::Plain),
        "external" => Ok(BrokerAuth::External),
        _ => Err(format!("{text:?} is neither plain nor external")),
    },
};

/// The broker's keys.
pub const BROKER: &[&dyn AnyKey] = &[
    &BROKER_URL,
    &BROKER_PASSWORD,
    &BROKER_PASSWORD_FILE,
    &BROKER_CA_FILE,
    &BROKER_CERT_FILE,
    &BROKER_KEY_FILE,
    &BROKER_AUTH,
    &BROKER_PREFIX,
];
