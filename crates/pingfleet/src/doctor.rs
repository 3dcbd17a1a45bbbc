//! `doctor`: checks what sweeps need on this machine, and prints a command that fixes each problem. It changes
//! nothing, neither on this machine nor on the broker.

#[cfg(target_os = "linux")]
mod linux;

use std::{
    error::Error,
    io::{self, Write},
    iter::successors,
    path::Path,
};

use pingfleet_broker::{Broker as _, BrokerError, Queue, RabbitBroker};
use pingfleet_settings::{Common, Exit, Failure, printed};
use pingfleet_store::StoreError;

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

pub(crate) fn doctor(common: &Common) -> Result<Exit, Failure> {
    let mut checks = kernel();
    // If the kernel refuses something, the checks above name it and its fix; the prober would only repeat it.
    if !checks.iter().any(|(_, result)| result.is_bad()) {
        checks.insert(0, ("prober", prober()));
    }
    checks.push(("database", database(common)));
    let too_few_files = checks
        .iter()
        .any(|(name, result)| *name == OPEN_FILES && result.is_bad());
    checks.push((
        "broker",
        if too_few_files {
            CheckResult::NotShown("not checked: too few open files".to_owned())
        } else {
            broker(common)
        },
    ));
    let mut exit = Exit::Complete;
    let mut text = Vec::new();
    for (name, result) in checks {
        if result.is_bad() {
            exit = Exit::System;
        }
        let (state, found, fix) = match result {
            CheckResult::Good(found) => ("ok", found, None),
            CheckResult::NotShown(found) => ("-", found, None),
            CheckResult::Poor { found, fix } => ("poor", found, Some(fix)),
            CheckResult::Bad { found, fix } => ("BAD", found, Some(fix)),
        };
        printed(writeln!(text, "{state:<4}  {name:<15}  {found}"))?;
        if let Some(fix) = fix {
            printed(writeln!(text, "{:6}fix: {fix}", ""))?;
        }
    }
    printed(io::stdout().lock().write_all(&text))?;
    Ok(exit)
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

fn database(common: &Common) -> CheckResult {
    let path = common.database.display();
    let opened = common.database(false, true).open();
    let committed = match opened {
        Ok(mut store) => store.try_commit().and_then(|()| store.close()),
        Err(StoreError::Missing { .. }) => return folder(common),
        Err(error) => Err(error),
    };
    let error = match committed {
        Ok(()) => return CheckResult::Good(format!("{path} is sound and writable")),
        Err(error) => error,
    };
    CheckResult::Bad {
        fix: match &error {
            StoreError::Foreign { .. } | StoreError::Newer { .. } => {
                "pingfleet doctor --db ANOTHER.db".to_owned()
            }
            StoreError::Corrupt { .. } => {
                format!("sqlite3 {path} .recover | sqlite3 RECOVERED.db")
            }
            _ => format!(
                "sudo chown \"$USER\" {path}*; if that is not it, see: ls -ld . {path}*; df -h {path}"
            ),
        },
        found: Failure::system(&error).message,
    }
}

/// There is no database yet: checks whether one can be created.
fn folder(common: &Common) -> CheckResult {
    let folder = match common.database.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let shown = folder.display();
    match tempfile::NamedTempFile::new_in(folder) {
        Ok(_) => CheckResult::Good(format!(
            "{} does not exist yet and can be created",
            common.database.display()
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => CheckResult::Bad {
            found: format!("there is no folder {shown}"),
            fix: format!("mkdir -p {shown}"),
        },
        Err(error) => CheckResult::Bad {
            // Only the kind of the error: its text names the temporary file of this check.
            found: format!(
                "folder {shown} cannot be written: {}",
                io::Error::from(error.kind())
            ),
            fix: format!("sudo chown \"$USER\" {shown}; or --db ELSEWHERE"),
        },
    }
}

#[tokio::main(flavor = "current_thread")]
async fn broker(common: &Common) -> CheckResult {
    let broker = match RabbitBroker::new(&common.broker) {
        Ok(broker) => broker,
        Err(error) => {
            return CheckResult::Bad {
                found: error.to_string(),
                fix: "--broker amqp://user@host:5672/%2f".to_owned(),
            };
        }
    };
    match check_queues(&broker).await {
        Ok(()) => CheckResult::Good(format!(
            "{} answers and has all queues",
            broker.address()
        )),
        // Not bad: `sweep` needs no broker.
        Err(BrokerError::Unreachable { address, source }) => CheckResult::Poor {
            found: format!("{address}: {}", root_cause(&*source)),
            fix: "docker-compose up -d (`pingfleet sweep` needs none)".to_owned(),
        },
        // Not bad: a role with the permission declares missing queues when it starts.
        Err(error @ BrokerError::NoTopology { .. }) => CheckResult::Poor {
            found: error.to_string(),
            fix: "pingfleet broker init, as a user with the configure permission".to_owned(),
        },
        Err(error @ BrokerError::Login { .. }) => CheckResult::Bad {
            found: error.to_string(),
            fix: "export PINGFLEET_BROKER__URL=amqp://USER@HOST:5672/%2f PINGFLEET_BROKER__PASSWORD=..."
                .to_owned(),
        },
        Err(error @ BrokerError::OtherTopology { .. }) => CheckResult::Bad {
            found: error.to_string(),
            fix: "export PINGFLEET_BROKER__PREFIX=ANOTHER, on every machine".to_owned(),
        },
        Err(error) => CheckResult::Bad {
            found: Failure::system(&error).message,
            fix: "rabbitmqctl list_vhosts; rabbitmqctl list_permissions".to_owned(),
        },
    }
}

/// The innermost source of an error. Its wrappers repeat it and are too long for one line.
fn root_cause(error: &(dyn Error + 'static)) -> String {
    let sources = successors(Some(error), |error: &&(dyn Error + 'static)| {
        (*error).source()
    });
    sources.last().unwrap_or(error).to_string()
}

/// Checks that all queues exist. It declares none.
async fn check_queues(broker: &RabbitBroker) -> Result<(), BrokerError> {
    for queue in Queue::ALL {
        broker.depth(queue).await?;
    }
    Ok(())
}
