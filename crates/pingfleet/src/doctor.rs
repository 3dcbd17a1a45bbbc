//! `doctor`: what sweeps need on this box, each with the line that mends it.

use std::{
    io::{self, Write},
    sync::Arc,
};

use ping_worker::{prober::OpenProber, surge::SurgePing};
use pingfleet_broker::{Broker as _, BrokerError, RabbitBroker};
use pingfleet_settings::{Common, Exit, Failure, printed};
use pingfleet_store::StoreError;

use crate::report::table;

/// A receive buffer below this holds the replies of some thousand targets only.
const ROOMY_BUFFER: u64 = 16 << 20;

/// How a check ended.
enum Finding {
    Good(String),
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

pub(crate) fn doctor(common: &Common) -> Result<Exit, Failure> {
    let findings = [
        ("icmp socket", icmp_socket()),
        ("receive buffer", receive_buffer()),
        ("database", database(common)),
        ("broker", broker(common)),
    ];
    let mut table = table(&["CHECK", "STATE", "FOUND", "TO MEND IT"]);
    let mut exit = Exit::Complete;
    for (what, finding) in findings {
        let (state, found, mend) = match finding {
            Finding::Good(found) => ("ok", found, String::new()),
            Finding::Poor { found, mend } => ("poor", found, mend),
            Finding::Bad { found, mend } => {
                exit = Exit::System;
                ("BAD", found, mend)
            }
        };
        table.add_row([what.to_owned(), state.to_owned(), found, mend]);
    }
    printed(writeln!(io::stdout().lock(), "{}", table.trim_fmt()))?;
    Ok(exit)
}

fn icmp_socket() -> Finding {
    let opener: Arc<dyn OpenProber> = Arc::new(SurgePing::new());
    match ping_worker::check(&opener) {
        Ok(()) => Finding::Good("may be opened".to_owned()),
        Err(error) => Finding::Bad {
            found: error
                .to_string()
                .lines()
                .next()
                .unwrap_or_default()
                .to_owned(),
            mend: "sudo sysctl -w net.ipv4.ping_group_range=\"0 2147483647\"".to_owned(),
        },
    }
}

fn receive_buffer() -> Finding {
    let path = "/proc/sys/net/core/rmem_max";
    let Some(bytes) = std::fs::read_to_string(path)
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok())
    else {
        return Finding::Good("this system has no limit that we know how to read".to_owned());
    };
    if bytes >= ROOMY_BUFFER {
        return Finding::Good(format!("up to {} MiB", bytes >> 20));
    }
    Finding::Poor {
        found: format!(
            "at most {} KiB: a burst of replies may not fit",
            bytes >> 10
        ),
        mend: "sudo sysctl -w net.core.rmem_max=67108864".to_owned(),
    }
}

fn database(common: &Common) -> Finding {
    let path = common.database.display();
    // A check that finds nothing leaves nothing behind.
    let opened = common.database(false, true).open();
    let tried = match opened {
        Ok(mut store) => store.try_commit().and_then(|()| store.close()),
        Err(StoreError::Missing { .. }) => return folder(common),
        Err(error) => Err(error),
    };
    match tried {
        Ok(()) => Finding::Good(format!("{path} is sound and writable")),
        Err(error) => Finding::Bad {
            found: error.to_string(),
            mend: format!("ls -l {path}*; df -h {path}; or name another file with --db"),
        },
    }
}

/// No database yet: whether one can be created.
fn folder(common: &Common) -> Finding {
    let folder = match common.database.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => std::path::Path::new("."),
    };
    match tempfile::NamedTempFile::new_in(folder) {
        Ok(_) => Finding::Good(format!(
            "{} is not there yet, and can be created",
            common.database.display()
        )),
        Err(error) => Finding::Bad {
            found: format!("{} cannot be written: {error}", folder.display()),
            mend: format!("sudo chown $USER {}", folder.display()),
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
    match broker.check().await {
        Ok(()) => Finding::Good(format!("{} is reached, its queues stand", broker.address())),
        // Without a broker there still is `sweep`.
        Err(error @ BrokerError::Unreachable { .. }) => Finding::Poor {
            found: Failure::system(&error).message,
            mend: "docker-compose up -d (`pingfleet sweep` needs none)".to_owned(),
        },
        Err(error @ BrokerError::Login { .. }) => Finding::Bad {
            found: error.to_string(),
            mend: "export PINGFLEET_BROKER__URL='amqp://user:password@host:5672/%2f'".to_owned(),
        },
        Err(error @ BrokerError::NoTopology { .. }) => Finding::Bad {
            found: error.to_string(),
            mend: "pingfleet broker init, as a user who may configure".to_owned(),
        },
        Err(error) => Finding::Bad {
            found: Failure::system(&error).message,
            mend: "rabbitmqctl list_permissions; rabbitmqctl list_queues name arguments".to_owned(),
        },
    }
}
