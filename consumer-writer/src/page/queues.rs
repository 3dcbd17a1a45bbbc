//! How full the queues are, and whether the broker has an alarm.

use std::{sync::Arc, time::Duration};

use pingfleet_broker::{Broker, BrokerError, QueueDepth, QueueKind, QueueName};
use pingfleet_store::Transport;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::snapshot::Look;

/// How often the depths are read while somebody looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// How often the broker is asked for an alarm. It takes a connection of its own.
const ALARM_INTERVAL: Duration = Duration::from_secs(15);

/// How long the broker may take for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// What is known of the queues.
#[derive(Debug, Clone, Default)]
pub(super) struct Queues {
    /// Each queue with how full it is.
    pub(super) depths: Vec<(QueueKind, QueueDepth)>,
    /// Why it is not known how full they are, with what the user can do.
    pub(super) error: Option<String>,
    /// The broker's reason for taking no messages.
    pub(super) alarm: Option<String>,
}

/// Reads the depths until `stop`, while somebody looks.
pub(super) async fn follow(
    broker: Arc<dyn Broker>,
    transport: Transport,
    look: Arc<Look>,
    found: watch::Sender<Queues>,
    stop: CancellationToken,
) {
    let mut asked: Option<Instant> = None;
    loop {
        if look.is_watched() {
            let is_due = asked.is_none_or(|at| at.elapsed() >= ALARM_INTERVAL);
            let is_alarm_due = transport == Transport::Broker && is_due;
            let known = found.borrow().alarm.clone();
            let read = tokio::select! {
                () = stop.cancelled() => return,
                read = tokio::time::timeout(ANSWER_TIMEOUT, depths(&*broker)) => read,
            };
            let mut now = Queues::default();
            match read {
                Ok(Ok(depths)) => now.depths = depths,
                Ok(Err(error)) => now.error = Some(in_words(&error)),
                Err(_) => now.error = Some("The broker does not answer.".to_owned()),
            }
            now.alarm = if is_alarm_due && now.error.is_none() {
                asked = Some(Instant::now());
                tokio::select! {
                    () = stop.cancelled() => return,
                    alarm = tokio::time::timeout(ANSWER_TIMEOUT, broker.alarm(QueueName::RESULTS)) => {
                        // Who may not publish learns of no alarm.
                        alarm.ok().and_then(Result::ok).flatten()
                    }
                }
            } else {
                known.filter(|_| now.error.is_none())
            };
            found.send_replace(now);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

async fn depths(broker: &dyn Broker) -> Result<Vec<(QueueKind, QueueDepth)>, BrokerError> {
    let mut depths = Vec::new();
    for queue in QueueName::ALL {
        depths.push((queue.kind, broker.depth(queue).await?));
    }
    Ok(depths)
}

/// An error with what the user can do about it.
fn in_words(error: &BrokerError) -> String {
    match error.advice() {
        Some(advice) => format!("{error}: {advice}."),
        None => format!("{error}."),
    }
}
