//! `doctor`: checks what sweeps need on this machine, and prints a command that fixes each problem. It changes
//! nothing, neither on this machine nor on the broker.

mod broker;
mod database;
#[cfg(target_os = "linux")]
mod linux;

use std::io::{self, Write};

use clap::Args;
use pingfleet_broker::RabbitConfig;
use pingfleet_settings::{BrokerArgs, DatabaseArgs, Exit, Failure, Layers, printed};
use pingfleet_store::DatabaseSettings;

/// Arguments of `pingfleet doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    broker: BrokerArgs,
    #[command(flatten)]
    database: DatabaseArgs,
}

/// How a check ended.
#[derive(Debug, PartialEq, Eq)]
enum CheckResult {
    Good(String),
    /// This system does not have it or does not show it, so there is nothing to check.
    NotShown(String),
    /// Works, and could work better.
    Poor {
        found: String,
        fix: String,
    },
    Bad {
        found: String,
        fix: String,
    },
}

/// The broker is checked only if this check passes: without file descriptors the async runtime panics.
const OPEN_FILES: &str = "open files";

/// The name of a check, and its result.
type Check = (&'static str, CheckResult);

pub(crate) fn doctor(args: &DoctorArgs, mut layers: Layers) -> Result<Exit, Failure> {
    let config = RabbitConfig::resolve(&args.broker, &mut layers, "pingfleet");
    let database = DatabaseSettings::resolve(&args.database, &mut layers);
    layers.finish()?;
    let checks = checks(&config, &database);
    printed(print(&checks))?;
    let is_bad = checks.iter().any(|(_, result)| result.is_bad());
    Ok(if is_bad { Exit::System } else { Exit::Complete })
}

fn checks(config: &RabbitConfig, database: &DatabaseSettings) -> Vec<Check> {
    let mut checks = kernel();
    // If the kernel refuses something, the checks above name it and its fix; the prober would only repeat it.
    if !checks.iter().any(|(_, result)| result.is_bad()) {
        checks.insert(0, ("prober", prober()));
    }
    let too_few_files = checks
        .iter()
        .any(|(name, result)| *name == OPEN_FILES && result.is_bad());
    checks.push(("database", database::check(database)));
    let broker = if too_few_files {
        CheckResult::NotShown("not checked: too few open files".to_owned())
    } else {
        broker::check(config)
    };
    checks.push(("broker", broker));
    checks
}

fn print(checks: &[Check]) -> io::Result<()> {
    let mut text = Vec::new();
    for (name, result) in checks {
        let (state, found, fix) = match result {
            CheckResult::Good(found) => ("ok", found, None),
            CheckResult::NotShown(found) => ("-", found, None),
            CheckResult::Poor { found, fix } => ("poor", found, Some(fix)),
            CheckResult::Bad { found, fix } => ("BAD", found, Some(fix)),
        };
        writeln!(text, "{state:<4}  {name:<15}  {found}")?;
        if let Some(fix) = fix {
            writeln!(text, "{:6}fix: {fix}", "")?;
        }
    }
    io::stdout().lock().write_all(&text)
}

impl CheckResult {
    fn is_bad(&self) -> bool {
        matches!(self, Self::Bad { .. })
    }
}

#[cfg(target_os = "linux")]
fn kernel() -> Vec<Check> {
    linux::checks()
}

#[cfg(not(target_os = "linux"))]
fn kernel() -> Vec<Check> {
    let found = "only checked on Linux".to_owned();
    vec![("kernel limits", CheckResult::NotShown(found))]
}

/// Opens the sockets as a sweep does.
fn prober() -> CheckResult {
    match pingfleet_prober::check(&pingfleet_prober::default_prober()) {
        Ok(()) => CheckResult::Good("starts and opens its ICMP sockets".to_owned()),
        Err(error) => CheckResult::Bad {
            found: Failure::system(&error).message,
            fix: "check whether root has it: sudo pingfleet doctor".to_owned(),
        },
    }
}
