//! The broker: whether it answers, accepts the login, and has the queues. Nothing is declared.

use std::{error::Error, iter::successors};

use pingfleet_broker::{Broker as _, BrokerError, QueueName, RabbitBroker, RabbitConfig};
use pingfleet_settings::{FILES_FOR_QUEUES, Failure, run_async};

use super::CheckResult;

pub(super) fn check(config: &RabbitConfig) -> CheckResult {
    let checked = run_async(FILES_FOR_QUEUES, async { Ok(connect(config).await) });
    checked.unwrap_or_else(|failure| CheckResult::NotShown(failure.message))
}

async fn connect(config: &RabbitConfig) -> CheckResult {
    let broker = match RabbitBroker::new(config) {
        Ok(broker) => broker,
        Err(error) => {
            return CheckResult::Bad {
                found: error.to_string(),
                fix: "--broker amqp://user@host:5672/%2f".to_owned(),
            };
        }
    };
    let checked = match check_queues(&broker).await {
        Ok(()) => alarm(&broker).await,
        Err(error) => Err(error),
    };
    broker.close().await;
    let is_answered = checked.as_ref().is_err_and(BrokerError::is_answered);
    match checked {
        Ok(None) => CheckResult::Good(format!(
            "{} answers and has all queues",
            broker.place()
        )),
        // Not bad: runs go on when it ends.
        Ok(Some(reason)) => CheckResult::Poor {
            found: format!("{} has an alarm and takes no messages: {reason}", broker.place()),
            fix: "rabbitmq-diagnostics alarms; then give it memory or disk space".to_owned(),
        },
        // Not bad: `sweep` needs no broker.
        Err(BrokerError::Unreachable { address, source }) if !is_answered => CheckResult::Poor {
            found: format!("{address}: {}", root_cause(&*source)),
            fix: "docker-compose up -d (`pingfleet sweep` needs none)".to_owned(),
        },
        Err(
            error @ (BrokerError::Unreachable { .. }
            | BrokerError::Tls { .. }
            | BrokerError::CertificateLogin { .. }),
        ) => CheckResult::Bad {
            fix: error.advice().unwrap_or_default(),
            found: Failure::system(&error).message,
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

/// The broker's alarm. A worker's user may write to the exchange of heartbeats, a producer's to that of work, a writer's to
/// that of foreign messages; with none of them it stays unknown.
async fn alarm(broker: &RabbitBroker) -> Result<Option<String>, BrokerError> {
    for queue in [QueueName::WORK, QueueName::HEARTBEATS, QueueName::FOREIGN] {
        match broker.alarm(queue).await {
            Err(BrokerError::Forbidden { .. }) => {}
            known => return known,
        }
    }
    Ok(None)
}

/// Checks that all queues exist. It declares none.
async fn check_queues(broker: &RabbitBroker) -> Result<(), BrokerError> {
    for queue in QueueName::ALL {
        broker.depth(queue).await?;
    }
    Ok(())
}
