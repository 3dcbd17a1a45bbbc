//! All settings. This table is the only place that knows a setting's name, flag, default and type: the layers, the
//! flags of all programs and their `--help` are made from it, and tests check README.md and deploy/ against it.
//!
//! One settings file serves all programs, so each program knows all names.

mod broker;
mod pages;

use std::{
    net::IpAddr,
    num::{NonZeroU8, NonZeroU16, NonZeroUsize},
    path::PathBuf,
    time::Duration,
};

use pingfleet_wire::{Family, MAX_CHUNK_TARGETS, MAX_PREFETCH, check_worker_name};

use crate::{
    duration,
    key::{AnyKey, Fixed, Flag, Key, Program, Unset},
    logging::LogFormat,
    number, rate,
    values::{self, Rate},
};

pub use self::{
    broker::{
        BROKER, BROKER_AUTH, BROKER_CA_FILE, BROKER_CERT_FILE, BROKER_KEY_FILE, BROKER_PASSWORD,
        BROKER_PASSWORD_FILE, BROKER_PREFIX, BROKER_URL, BrokerAuth,
    },
    pages::{
        DASHBOARD, DASHBOARD_LISTEN, DASHBOARD_NAME, DASHBOARD_TOKEN_FILE, METRICS, METRICS_LISTEN,
        METRICS_NAME, METRICS_TOKEN_FILE,
    },
};

const ALL_PROGRAMS: &[Program] = &[
    Program::Pingfleet,
    Program::Producer,
    Program::PingWorker,
    Program::ConsumerWriter,
];

/// Programs that open the database.
const DATABASE_PROGRAMS: &[Program] = &[
    Program::Pingfleet,
    Program::Producer,
    Program::ConsumerWriter,
];

/// Programs that plan a run.
const PLANNING_PROGRAMS: &[Program] = &[Program::Pingfleet, Program::Producer];

/// Programs that probe.
const WORKER_PROGRAMS: &[Program] = &[Program::Pingfleet, Program::PingWorker];

/// Programs that store results.
const WRITER_PROGRAMS: &[Program] = &[Program::Pingfleet, Program::ConsumerWriter];

/// The database file.
pub static STORE_PATH: Key<PathBuf> = Key {
    name: "store.path",
    flag: Some(Flag::new("db", "PATH")),
    default: Fixed("pingfleet.db"),
    help: "Database file",
    programs: DATABASE_PROGRAMS,
    parse: values::database_path,
};

/// Which failures a commit survives: `full`, `normal` or `off`.
pub static STORE_DURABILITY: Key<String> = Key {
    name: "store.durability",
    flag: None,
    default: Fixed("full"),
    help: "full keeps every committed row in a power cut; normal may lose the last transactions, off the database",
    programs: DATABASE_PROGRAMS,
    parse: |text| match text {
        "full" | "normal" | "off" => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is neither full, normal nor off")),
    },
};

/// Who may read files that are created.
pub static STORE_READABLE_BY: Key<String> = Key {
    name: "store.readable_by",
    flag: None,
    default: Fixed("user"),
    help: "Who may read a new database, its log and its locks: user (mode 0600), or group (0640)",
    programs: DATABASE_PROGRAMS,
    parse: |text| match text {
        "user" | "group" => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is neither user nor group")),
    },
};

/// The format of the log.
pub static LOG_FORMAT: Key<LogFormat> = Key {
    name: "log.format",
    flag: Some(Flag::new("log-format", "FORMAT")),
    default: Fixed("text"),
    help: "Log as text, or as json with one object per line",
    programs: ALL_PROGRAMS,
    parse: |text| match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("{text:?} is neither text nor json")),
    },
};

/// The worker's name.
pub static WORKER_NAME: Key<String, Unset> = Key {
    name: "worker.name",
    flag: Some(Flag::new("name", "NAME")),
    default: Unset(Some("host name and process id")),
    help: "Name in reports, of at most 100 characters",
    programs: WORKER_PROGRAMS,
    parse: |text| check_worker_name(text).map(|()| text.to_owned()),
};

/// Probing threads.
pub static WORKER_THREADS: Key<NonZeroUsize, Unset> = Key {
    name: "worker.threads",
    flag: Some(Flag::new("threads", "N")),
    default: Unset(Some("the cores, at most 4")),
    help: "Probing threads",
    programs: WORKER_PROGRAMS,
    parse: |text| number(NonZeroUsize::MIN, NonZeroUsize::MIN.saturating_add(63))(text),
};

/// The upper limit of a worker's rate.
pub static WORKER_RATE: Key<Rate> = Key {
    name: "worker.rate",
    flag: Some(Flag::new("rate", "RATE")),
    default: Fixed("unlimited"),
    help: "Upper limit of this worker over all runs: requests per second, or unlimited",
    programs: WORKER_PROGRAMS,
    parse: rate,
};

/// Chunks in hand.
pub static WORKER_PREFETCH: Key<NonZeroU16, Unset> = Key {
    name: "worker.prefetch",
    flag: Some(Flag::new("prefetch", "N")),
    default: Unset(Some("what the run's rate needs")),
    help: "Chunks in hand",
    programs: WORKER_PROGRAMS,
    parse: |text| {
        number(
            NonZeroU16::MIN,
            NonZeroU16::MIN.saturating_add(MAX_PREFETCH - 1),
        )(text)
    },
};

/// Rows in a transaction: large enough that syncing the disk is not the limit, small enough that rows are stored while
/// somebody watches.
pub static WRITER_BATCH_SIZE: Key<usize> = Key {
    name: "writer.batch_size",
    flag: Some(Flag::new("batch-size", "ROWS")),
    default: Fixed("5000"),
    help: "Rows in one transaction",
    programs: WRITER_PROGRAMS,
    parse: |text| number(1, 1_000_000)(text),
};

/// How long a row may wait for its transaction.
pub static WRITER_BATCH_INTERVAL: Key<Duration> = Key {
    name: "writer.batch_interval",
    flag: Some(Flag::new("batch-interval", "DURATION")),
    default: Fixed("200ms"),
    help: "Longest time that rows wait for their transaction",
    programs: WRITER_PROGRAMS,
    parse: |text| match duration(text)? {
        long if long > Duration::from_secs(10) => {
            Err("rows must not wait for more than 10s".to_owned())
        }
        interval => Ok(interval),
    },
};

/// Requests to each target.
pub static PROBING_COUNT: Key<u16> = Key {
    name: "probing.count",
    flag: Some(Flag::new("count", "N").with_short('c')),
    default: Fixed("1"),
    help: "Requests to each target",
    programs: PLANNING_PROGRAMS,
    parse: |text| number(1, 1000)(text),
};

/// Gap between the requests to one target.
pub static PROBING_INTERVAL: Key<Duration> = Key {
    name: "probing.interval",
    flag: Some(Flag::new("interval", "DURATION").with_short('p')),
    default: Fixed("1s"),
    help: "Gap between the requests to one target",
    programs: PLANNING_PROGRAMS,
    parse: duration,
};

/// How long to wait for an answer. The timers cannot measure less than 1 ms.
pub static PROBING_TIMEOUT: Key<Duration> = Key {
    name: "probing.timeout",
    flag: Some(Flag::new("timeout", "DURATION").with_short('t')),
    default: Fixed("1s"),
    help: "How long to wait for an answer",
    programs: PLANNING_PROGRAMS,
    parse: |text| match duration(text)? {
        short if short < Duration::from_millis(1) => Err("a timeout is at least 1ms".to_owned()),
        timeout => Ok(timeout),
    },
};

/// More requests if none was answered.
pub static PROBING_RETRIES: Key<u16> = Key {
    name: "probing.retries",
    flag: Some(Flag::new("retries", "N").with_short('r')),
    default: Fixed("2"),
    help: "More requests if none was answered",
    programs: PLANNING_PROGRAMS,
    parse: |text| number(0, 100)(text),
};

/// Factor by which the timeout grows with each retry, in thousandths.
pub static PROBING_BACKOFF: Key<u16> = Key {
    name: "probing.backoff",
    flag: Some(Flag::new("backoff", "FACTOR")),
    default: Fixed("1.5"),
    help: "Factor by which the timeout grows with each retry",
    programs: PLANNING_PROGRAMS,
    parse: |text| Ok((number(1.0_f64, 10.0)(text)? * 1000.0).round() as u16),
};

/// How long to wait for late answers at the end.
pub static PROBING_LATE_WINDOW: Key<Duration> = Key {
    name: "probing.late_window",
    flag: Some(Flag::new("late-window", "DURATION")),
    default: Fixed("0s"),
    help: "How long to wait for late answers at the end",
    programs: PLANNING_PROGRAMS,
    parse: duration,
};

/// Bytes of payload.
pub static PROBING_SIZE: Key<u16> = Key {
    name: "probing.size",
    flag: Some(Flag::new("size", "BYTES").with_short('b')),
    default: Fixed("56"),
    help: "Bytes of payload",
    programs: PLANNING_PROGRAMS,
    parse: |text| number(0, 65_507)(text),
};

/// Time to live, or hop limit.
pub static PROBING_TTL: Key<NonZeroU8, Unset> = Key {
    name: "probing.ttl",
    flag: Some(Flag::new("ttl", "N")),
    default: Unset(Some("the system's")),
    help: "Time to live, or hop limit",
    programs: PLANNING_PROGRAMS,
    parse: |text| number(NonZeroU8::MIN, NonZeroU8::MAX)(text),
};

/// Source address. Which family it must have depends on [`PROBING_FAMILY`].
pub static PROBING_SOURCE: Key<IpAddr, Unset> = Key {
    name: "probing.source",
    flag: Some(Flag::new("source", "ADDRESS").with_short('S')),
    default: Unset(None),
    help: "Source address. Names then resolve to its address family",
    programs: PLANNING_PROGRAMS,
    parse: values::source_address,
};

/// Network interface.
pub static PROBING_INTERFACE: Key<String, Unset> = Key {
    name: "probing.interface",
    flag: Some(Flag::new("interface", "NAME").with_short('I')),
    default: Unset(None),
    help: "Network interface",
    programs: PLANNING_PROGRAMS,
    parse: |text| {
        let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic());
        if (1..=64).contains(&text.len()) && is_plain {
            Ok(text.to_owned())
        } else {
            Err(format!("{text:?} is not the name of an interface"))
        }
    },
};

/// Address family. `-4` and `-6` set it as well.
pub static PROBING_FAMILY: Key<Family> = Key {
    name: "probing.family",
    flag: None,
    default: Fixed("any"),
    help: "Address family: any, ipv4 or ipv6. -4 and -6 set it",
    programs: PLANNING_PROGRAMS,
    parse: |text| match text {
        "any" => Ok(Family::Any),
        "ipv4" => Ok(Family::V4),
        "ipv6" => Ok(Family::V6),
        _ => Err(format!("{text:?} is neither any, ipv4 nor ipv6")),
    },
};

/// Requests per second and worker.
pub static PROBING_RATE: Key<Rate> = Key {
    name: "probing.rate",
    flag: Some(Flag::new("rate", "RATE")),
    default: Fixed("1000"),
    help: "Requests per second and worker, or unlimited",
    programs: PLANNING_PROGRAMS,
    parse: rate,
};

/// Targets in a chunk.
pub static PROBING_CHUNK_SIZE: Key<usize> = Key {
    name: "probing.chunk_size",
    flag: Some(Flag::new("chunk-size", "N")),
    default: Fixed("250"),
    help: "Targets in a chunk",
    programs: PLANNING_PROGRAMS,
    parse: |text| number(1, MAX_CHUNK_TARGETS)(text),
};

/// The database's keys.
pub const STORE: &[&dyn AnyKey] = &[&STORE_PATH, &STORE_DURABILITY, &STORE_READABLE_BY];

/// The keys of the log.
pub const LOG: &[&dyn AnyKey] = &[&LOG_FORMAT];

/// The worker's keys.
pub const WORKER: &[&dyn AnyKey] = &[
    &WORKER_NAME,
    &WORKER_THREADS,
    &WORKER_RATE,
    &WORKER_PREFETCH,
];

/// The writer's keys.
pub const WRITER: &[&dyn AnyKey] = &[&WRITER_BATCH_SIZE, &WRITER_BATCH_INTERVAL];

/// The keys of probing.
pub const PROBING: &[&dyn AnyKey] = &[
    &PROBING_COUNT,
    &PROBING_INTERVAL,
    &PROBING_TIMEOUT,
    &PROBING_RETRIES,
    &PROBING_BACKOFF,
    &PROBING_LATE_WINDOW,
    &PROBING_SIZE,
    &PROBING_TTL,
    &PROBING_SOURCE,
    &PROBING_INTERFACE,
    &PROBING_FAMILY,
    &PROBING_RATE,
    &PROBING_CHUNK_SIZE,
];

/// All keys, section by section.
pub fn all() -> impl Iterator<Item = &'static dyn AnyKey> {
    [
        BROKER, STORE, LOG, WORKER, WRITER, DASHBOARD, METRICS, PROBING,
    ]
    .into_iter()
    .flatten()
    .copied()
}

/// The key with this name.
pub(crate) fn find(name: &str) -> Option<&'static dyn AnyKey> {
    all().find(|key| key.name() == name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_default_is_a_valid_value() {
        for key in all() {
            if let Some(text) = key.default().value() {
                assert_eq!(key.check(text), Ok(()), "{}", key.name());
            }
        }
    }

    #[test]
    fn names_are_unique_and_so_are_the_flags_of_a_program() {
        let names: BTreeSet<_> = all().map(AnyKey::name).collect();
        assert_eq!(names.len(), all().count());
        for program in ALL_PROGRAMS {
            // `pingfleet` has no flags for the worker and the writer.
            let offered = all().filter(|key| {
                let section = key.name().split('.').next();
                let is_hidden = *program == Program::Pingfleet
                    && matches!(section, Some("worker" | "writer" | "dashboard"));
                key.programs().contains(program) && !is_hidden
            });
            let flags: Vec<_> = offered.filter_map(AnyKey::flag).collect();
            let long: BTreeSet<_> = flags.iter().map(|flag| flag.long).collect();
            assert_eq!(long.len(), flags.len(), "{program:?}: {flags:?}");
        }
    }

    #[test]
    fn every_key_with_a_rule_refuses_a_wrong_value() {
        for key in all() {
            let wrong = match key.name() {
                // Any text is a valid value.
                "broker.url"
                | "broker.password"
                | "broker.password_file"
                | "broker.ca_file"
                | "broker.cert_file"
                | "broker.key_file"
                | "dashboard.token_file"
                | "metrics.token_file" => {
                    continue;
                }
                "store.path" => "file:fleet.db",
                "broker.prefix" => "amq.x",
                "worker.name" | "probing.interface" => "",
                _ => "hunter2 and more",
            };
            assert!(key.check(wrong).is_err(), "{}", key.name());
        }
    }
}
