//! The keys of what the programs serve over HTTP: the live page of the writer, and the metrics of a worker.

use std::{net::SocketAddr, path::PathBuf};

use super::WRITER_PROGRAMS;
use crate::{
    key::{AnyKey, Fixed, Flag, Key, Program, Unset},
    values,
};

/// Programs that serve nothing but metrics: those of the writer are beside its live page.
const METRICS_PROGRAMS: &[Program] = &[Program::PingWorker];

/// The address of the live page.
pub static DASHBOARD_LISTEN: Key<Option<SocketAddr>, Unset> = Key {
    name: "dashboard.listen",
    flag: Some(Flag::new("dashboard", "ADDRESS")),
    default: Unset(Some("127.0.0.1:8787")),
    help: "Address and port of the live page, or off",
    programs: WRITER_PROGRAMS,
    parse: values::listen_address,
};

/// A file with the token of the live page.
pub static DASHBOARD_TOKEN_FILE: Key<PathBuf, Unset> = Key {
    name: "dashboard.token_file",
    flag: None,
    default: Unset(None),
    help: "File whose first line is the token that visitors of the live page need. Without it the address must be a \
           loopback one",
    programs: WRITER_PROGRAMS,
    parse: values::path,
};

/// A name under which browsers may open the live page.
pub static DASHBOARD_NAME: Key<String, Unset> = Key {
    name: "dashboard.name",
    flag: None,
    default: Unset(None),
    help: "Host name under which browsers may open the live page, besides addresses and localhost",
    programs: WRITER_PROGRAMS,
    parse: values::host_name,
};

/// The address of a worker's metrics.
pub static METRICS_LISTEN: Key<Option<SocketAddr>> = Key {
    name: "metrics.listen",
    flag: Some(Flag::new("metrics", "ADDRESS")),
    default: Fixed("off"),
    help: "Address and port of the worker's metrics for Prometheus, such as 127.0.0.1:9787, or off",
    programs: METRICS_PROGRAMS,
    parse: values::listen_address,
};

/// A file with the token of a worker's metrics.
pub static METRICS_TOKEN_FILE: Key<PathBuf, Unset> = Key {
    name: "metrics.token_file",
    flag: None,
    default: Unset(None),
    help: "File whose first line is the token that Prometheus needs. Without it the address must be a loopback one",
    programs: METRICS_PROGRAMS,
    parse: values::path,
};

/// A name under which a worker's metrics may be read.
pub static METRICS_NAME: Key<String, Unset> = Key {
    name: "metrics.name",
    flag: None,
    default: Unset(None),
    help: "Host name under which Prometheus may read the metrics, besides addresses and localhost",
    programs: METRICS_PROGRAMS,
    parse: values::host_name,
};

/// The keys of the live page.
pub const DASHBOARD: &[&dyn AnyKey] = &[&DASHBOARD_LISTEN, &DASHBOARD_TOKEN_FILE, &DASHBOARD_NAME];

/// The keys of a worker's metrics.
pub const METRICS: &[&dyn AnyKey] = &[&METRICS_LISTEN, &METRICS_TOKEN_FILE, &METRICS_NAME];
