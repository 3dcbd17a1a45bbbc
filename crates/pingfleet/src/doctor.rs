//! `doctor`: what sweeps need on this box, each with the line that mends it. It changes nothing, here or on the broker.

use std::{
    io::{self, Write},
    path::Path,
    sync::Arc,
};

use ping_worker::{
    prober::{OpenProber, ProbeError},
    surge::SurgePing,
};
use pingfleet_broker::{Broker as _, BrokerError, Queue, RabbitBroker};
use pingfleet_settings::{Common, Exit, Failure, printed};
use pingfleet_store::StoreError;

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
        ("ICMP socket", icmp_socket()),
        ("receive buffer", receive_buffer()),
        ("database", database(common)),
        ("broker", broker(common)),
    ];
    let mut exit = Exit::Complete;
    let mut text = Vec::new();
    for (what, finding) in findings {
        let (state, found, mend) = match finding {
            Finding::Good(found) => ("ok", found, None),
            Finding::Poor { found, mend } => ("poor", found, Some(mend)),
            Finding::Bad { found, mend } => {
                exit = Exit::System;
                ("BAD", found, Some(mend))
            }
        };
        printed(writeln!(text, "{state:<4}  {what:<14}  {found}"))?;
        if let Some(mend) = mend {
            printed(writeln!(text, "{:22}to mend it: {mend}", ""))?;
        }
    }
    printed(io::stdout().lock().write_all(&text))?;
    Ok(exit)
}

fn icmp_socket() -> Finding {
    let opener: Arc<dyn OpenProber> = Arc::new(SurgePing::new());
    match ping_worker::check(&opener) {
        Ok(()) => Finding::Good("can be opened".to_owned()),
        Err(ProbeError::NoPermission { .. }) => Finding::Bad {
            found: "not permitted to this user".to_owned(),
            mend: "sudo sysctl -w net.ipv4.ping_group_range=\"0 2147483647\"".to_owned(),
        },
        Err(error) => Finding::Bad {
            found: Failure::system(&error).message,
            mend: "see whether root has it: sudo pingfleet doctor".to_owned(),
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
            mend: format!("sudo chown \"$USER\" {shown}; or a file elsewhere, with --db"),
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
        Err(error @ BrokerError::Unreachable { .. }) => Finding::Poor {
            found: Failure::system(&error).message,
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

/// Looks whether the queues stand, and declares none.
async fn look(broker: &RabbitBroker) -> Result<(), BrokerError> {
    for queue in Queue::ALL {
        broker.depth(queue).await?;
    }
    Ok(())
}
