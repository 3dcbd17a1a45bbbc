//! The publishing half: results and heartbeats on a connection of their own, each result until it is confirmed.
//!
//! Invariant: a result leaves the outbox only when the broker has stored it. A refused or unroutable one, and one
//! whose confirm was lost with its session, is published again, the same bytes; nothing is probed again for it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::{
    StreamExt,
    future::{BoxFuture, FutureExt},
    stream::FuturesUnordered,
};
use pingfleet_broker::{Broker, BrokerError, Confirmed, Publisher, Queue, Sessions, pauses};
use pingfleet_wire::{ChunkKey, Message};
use tokio::{sync::mpsc, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::heartbeat::Pulse;

/// How often a heartbeat leaves.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(5);

/// A result to publish.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) key: ChunkKey,
    pub(crate) body: Vec<u8>,
}

/// What a confirm answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    Result(ChunkKey),
    Heartbeat,
}

type Answers = FuturesUnordered<BoxFuture<'static, (Sent, Result<Confirmed, BrokerError>)>>;

/// Publishes what comes by `results` until that is closed and everything in it is confirmed, and tells each confirmed
/// chunk by `confirmed`. `leave` ends it at once, with unconfirmed results left to redelivery.
pub(crate) async fn run(
    broker: Arc<dyn Broker>,
    pulse: Arc<Pulse>,
    mut results: mpsc::Receiver<Outgoing>,
    confirmed: mpsc::Sender<ChunkKey>,
    leave: CancellationToken,
) -> Result<(), BrokerError> {
    let mut unconfirmed: HashMap<ChunkKey, Vec<u8>> = HashMap::new();
    let mut open = true;
    let mut sessions = Sessions::default();
    while open || !unconfirmed.is_empty() {
        let session = || async {
            broker.check().await?;
            broker.publisher().await
        };
        let Some(mut publisher) = sessions.open(None, &leave, session).await? else {
            return Ok(());
        };
        let lost = tokio::select! {
            biased;
            () = leave.cancelled() => return Ok(()),
            lost = publish(&mut *publisher, &pulse, &mut results, &confirmed, &mut unconfirmed, &mut open) => lost,
        };
        match lost {
            Ok(()) => publisher.close().await,
            Err(error) if error.is_transient() => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%error, cause, unconfirmed = unconfirmed.len(), "session lost; unconfirmed results are published again");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// One session of publishing.
async fn publish(
    publisher: &mut dyn Publisher,
    pulse: &Pulse,
    results: &mut mpsc::Receiver<Outgoing>,
    confirmed: &mpsc::Sender<ChunkKey>,
    unconfirmed: &mut HashMap<ChunkKey, Vec<u8>>,
    open: &mut bool,
) -> Result<(), BrokerError> {
    let mut answers: Answers = FuturesUnordered::new();
    // Refused results wait here for their next try.
    let mut again: FuturesUnordered<BoxFuture<'static, ChunkKey>> = FuturesUnordered::new();
    let mut patience = pauses();
    for (key, body) in unconfirmed.iter() {
        send(
            publisher,
            Queue::Results,
            Sent::Result(*key),
            body,
            &mut answers,
        )
        .await?;
    }
    let mut heartbeat = tokio::time::interval(HEARTBEAT_EVERY);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while *open || !unconfirmed.is_empty() {
        tokio::select! {
            biased;
            Some((sent, answer)) = answers.next() => match (sent, answer?) {
                (Sent::Heartbeat, _) => {}
                (Sent::Result(key), Confirmed::Stored) => {
                    unconfirmed.remove(&key);
                    patience = pauses();
                    if confirmed.send(key).await.is_err() {
                        tracing::debug!(chunk = key.chunk, "the worker leaves without acking it");
                    }
                }
                (Sent::Result(_), Confirmed::Unroutable) => {
                    // A binding is gone: the next session's look at the topology mends it.
                    return Err(BrokerError::Lost("a result was returned, for no queue is bound for it".into()));
                }
                (Sent::Result(key), answer @ Confirmed::Refused) => {
                    let pause = patience.next().unwrap_or(Duration::from_secs(30));
                    tracing::warn!(chunk = key.chunk, run = %key.run, ?answer, ?pause, "result not stored, trying again");
                    again.push(async move { tokio::time::sleep(pause).await; key }.boxed());
                }
            },
            Some(key) = again.next() => {
                if let Some(body) = unconfirmed.get(&key) {
                    send(publisher, Queue::Results, Sent::Result(key), body, &mut answers).await?;
                }
            }
            _ = heartbeat.tick() => {
                let body = pulse.heartbeat(false).encode();
                send(publisher, Queue::Heartbeats, Sent::Heartbeat, &body, &mut answers).await?;
            }
            outgoing = results.recv(), if *open => match outgoing {
                Some(Outgoing { key, body }) => {
                    // Before it is sent: a publish that breaks the session must not take the result with it.
                    let body = unconfirmed.entry(key).insert_entry(body).into_mut();
                    send(publisher, Queue::Results, Sent::Result(key), body, &mut answers).await?;
                }
                None => *open = false,
            },
        }
    }
    let farewell = pulse.heartbeat(true).encode();
    let answer = publisher.publish(Queue::Heartbeats, &farewell).await?;
    answer.await?;
    Ok(())
}

async fn send(
    publisher: &mut dyn Publisher,
    queue: Queue,
    sent: Sent,
    body: &[u8],
    answers: &mut Answers,
) -> Result<(), BrokerError> {
    let answer = publisher.publish(queue, body).await?;
    answers.push(async move { (sent, answer.await) }.boxed());
    Ok(())
}
