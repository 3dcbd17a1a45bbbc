//! `doctor`: what sweeps need on this box, each with the line that mends it. It changes nothing, here or on the broker.

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
enum Finding {
    Good(String),
    /// This system does not have it, or does not show it: there is nothing to judge.
    Untold(String),
    /// Works, and could work better.
    Poor {
        found: String,
        mend: String,
    },
    Bad {
        found: String,
        mend: String,
    },
}

/// The check that decides whether the broker can be tried: a runtime that gets no file panics.
const OPEN_FILES: &str = "open files";

/// What was looked at, and what was found.
type Check = (&'static str, Finding);

pub(crate) fn doctor(common: &Common) -> Result<Exit, Failure> {
    let mut checks = kernel();
    // What the kernel refuses has been told by then, with what mends it.
    if !checks.iter().any(|(_, finding)| finding.is_bad()) {
        checks.insert(0, ("prober", prober()));
    }
    checks.push(("database", database(common)));
    let too_few_files = checks
        .iter()
        .any(|(what, finding)| *what == OPEN_FILES && finding.is_bad());
    checks.push((
        "broker",
        if too_few_files {
            Finding::Untold("not tried, with so few open files".to_owned())
        } else {
            broker(common)
        },
    ));
    let mut exit = Exit::Complete;
    let mut text = Vec::new();
    for (what, finding) in checks {
        if finding.is_bad() {
            exit = Exit::System;
        }
        let (state, found, mend) = match finding {
            Finding::Good(found) => ("ok", found, None),
            Finding::Untold(found) => ("-", found, None),
            Finding::Poor { found, mend } => ("poor", found, Some(mend)),
            Finding::Bad { found, mend } => ("BAD", found, Some(mend)),
        };
        printed(writeln!(text, "{state:<4}  {what:<15}  {found}"))?;
        if let Some(mend) = mend {
            printed(writeln!(text, "{:6}to mend it: {mend}", ""))?;
        }
    }
    printed(io::stdout().lock().write_all(&text))?;
    Ok(exit)
}

impl Finding {
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
    let found = "this system's are not known here: only those of Linux".to_owned();
    vec![("kernel limits", Finding::Untold(found))]
}

/// The sweep's own way of opening its sockets.
fn prober() -> Finding {
    match pingfleet_prober::check(&pingfleet_prober::default_prober()) {
        Ok(()) => Finding::Good("starts, and has its ICMP sockets".to_owned()),
        Err(error) => Finding::Bad {
            found: Failure::system(&error).message,
            mend: "see whether root has it: sudo pingfleet doctor".to_owned(),
        },
    }
}

fn database(common: &Common) -> Finding {
    let path = common.database.display();
    let opened = common.database(false, true).open();
    let tried = match opened {
        Ok(mut store) => store.try_commit().and_then(|()| store.close()),
        Err(StoreError::Missing { .. }) => return folder(common),
        Err(error) => Err(error),
    };
    let error = match tried {
        Ok(()) => return Finding::Good(format!("{path} is sound and writable")),
        Err(error) => error,
    };
    Finding::Bad {
        mend: match &error {
            StoreError::Foreign { .. } | StoreError::Newer { .. } => {
                "pingfleet doctor --db ANOTHER.db".to_owned()
            }
            StoreError::Corrupt { .. } => {
                format!("sqlite3 {path} .recover | sqlite3 RECOVERED.db")
            }
            _ => format!("sudo chown \"$USER\" {path}*; or look: ls -ld . {path}*; df -h {path}"),
        },
        found: Failure::system(&error).message,
    }
}

/// No database yet: whether one can be created.
fn folder(common: &Common) -> Finding {
    let folder = match common.database.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let shown = folder.display();
    match tempfile::NamedTempFile::new_in(folder) {
        Ok(_) => Finding::Good(format!(
            "{} is not there yet, and can be created",
            common.database.display()
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Finding::Bad {
            found: format!("there is no folder {shown}"),
            mend: format!("mkdir -p {shown}"),
        },
        Err(error) => Finding::Bad {
            // The error itself names a file that only this check knows.
            found: format!(
                "folder {shown} cannot be written: {}",
                io::Error::from(error.kind())
            ),
            mend: format!("sudo chown \"$USER\" {shown}; or --db ELSEWHERE"),
        },
    }
}

#[tokio::main(flavor = "current_thread")]
async fn broker(common: &Common) -> Finding {
    let broker = match RabbitBroker::new(&common.broker) {
        Ok(broker) => broker,
        Err(error) => {
            return Finding::Bad {
                found: error.to_string(),
                mend: "--broker amqp://user@host:5672/%2f".to_owned(),
            };
        }
    };
    match look(&broker).await {
        Ok(()) => Finding::Good(format!("{} is reached, its queues stand", broker.address())),
        // Without a broker there still is `sweep`.
        Err(BrokerError::Unreachable { address, source }) => Finding::Poor {
            found: format!("{address}: {}", cause(&*source)),
            mend: "docker-compose up -d (`pingfleet sweep` needs none)".to_owned(),
        },
        // A role that may do so declares what is missing when it starts.
        Err(error @ BrokerError::NoTopology { .. }) => Finding::Poor {
            found: error.to_string(),
            mend: "pingfleet broker init, as a user who may configure".to_owned(),
        },
        Err(error @ BrokerError::Login { .. }) => Finding::Bad {
            found: error.to_string(),
            mend: "export PINGFLEET_BROKER__URL=amqp://USER@HOST:5672/%2f PINGFLEET_BROKER__PASSWORD=..."
                .to_owned(),
        },
        Err(error @ BrokerError::OtherTopology { .. }) => Finding::Bad {
            found: error.to_string(),
            mend: "export PINGFLEET_BROKER__PREFIX=ANOTHER, on every box".to_owned(),
        },
        Err(error) => Finding::Bad {
            found: Failure::system(&error).message,
            mend: "rabbitmqctl list_vhosts; rabbitmqctl list_permissions".to_owned(),
        },
    }
}

/// What is at the bottom of an error: wrappers repeat it, at a length that no line has room for.
fn cause(error: &(dyn Error + 'static)) -> String {
    let sources = successors(Some(error), |error: &&(dyn Error + 'static)| {
        (*error).source()
    });
    sources.last().unwrap_or(error).to_string()
}

/// Looks whether the queues stand, and declares none.
async fn look(broker: &RabbitBroker) -> Result<(), BrokerError> {
    for queue in Queue::ALL {
        broker.depth(queue).await?;
    }
    Ok(())
}
