//! Publishes results and heartbeats on a connection of its own, each result until it is confirmed.
//!
//! Invariant: a result is dropped only when the broker has stored it. A result that was refused or unroutable, or whose
//! confirm was lost with its session, is published again with the same bytes; its chunk is not probed again.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::{
    StreamExt,
    future::{BoxFuture, FutureExt},
    stream::FuturesUnordered,
};
use pingfleet_broker::{Broker, BrokerError, Confirmed, Publisher, Queue, Sessions, backoff};
use pingfleet_wire::{ChunkKey, Message, timing::HEARTBEAT_INTERVAL};
use tokio::{sync::mpsc, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::status::WorkerStatus;

/// A result to publish.
#[derive(Debug)]
pub(crate) struct ResultMessage {
    pub(crate) key: ChunkKey,
    pub(crate) body: Vec<u8>,
}

/// What a confirm is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Published {
    Result(ChunkKey),
    Heartbeat,
}

type Answers = FuturesUnordered<BoxFuture<'static, (Published, Result<Confirmed, BrokerError>)>>;

/// Publishes all `results` until that channel is closed and everything is confirmed. Sends each confirmed chunk to
/// `confirmed`. `leave` ends it at once; chunks with unconfirmed results are then delivered to another worker.
pub(crate) async fn run(
    broker: Arc<dyn Broker>,
    status: Arc<WorkerStatus>,
    mut results: mpsc::Receiver<ResultMessage>,
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
            lost = publish(&mut *publisher, &status, &mut results, &confirmed, &mut unconfirmed, &mut open) => lost,
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
    status: &WorkerStatus,
    results: &mut mpsc::Receiver<ResultMessage>,
    confirmed: &mpsc::Sender<ChunkKey>,
    unconfirmed: &mut HashMap<ChunkKey, Vec<u8>>,
    open: &mut bool,
) -> Result<(), BrokerError> {
    let mut answers: Answers = FuturesUnordered::new();
    // Refused results wait here for their next try.
    let mut refused: FuturesUnordered<BoxFuture<'static, ChunkKey>> = FuturesUnordered::new();
    let mut pauses = backoff();
    for (key, body) in unconfirmed.iter() {
        send(
            publisher,
            Queue::Results,
            Published::Result(*key),
            body,
            &mut answers,
        )
        .await?;
    }
    let mut heartbeat = tokio::time::interval(HEARTBEAT_INTERVAL);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while *open || !unconfirmed.is_empty() {
        tokio::select! {
            biased;
            Some((sent, answer)) = answers.next() => match (sent, answer?) {
                (Published::Heartbeat, _) => {}
                (Published::Result(key), Confirmed::Stored) => {
                    unconfirmed.remove(&key);
                    pauses = backoff();
                    if confirmed.send(key).await.is_err() {
                        tracing::debug!(chunk = key.chunk, "the worker stops without acking it");
                    }
                }
                (Published::Result(_), Confirmed::Unroutable) => {
                    // A binding is missing: the next session's check binds again.
                    return Err(BrokerError::Lost("a result was redelivered, for no queue is bound for it".into()));
                }
                (Published::Result(key), answer @ Confirmed::Refused) => {
                    let pause = pauses.next().unwrap_or(Duration::from_secs(30));
                    tracing::warn!(chunk = key.chunk, run = %key.run, ?answer, ?pause, "result not stored, trying again");
                    refused.push(async move { tokio::time::sleep(pause).await; key }.boxed());
                }
            },
            Some(key) = refused.next() => {
                if let Some(body) = unconfirmed.get(&key) {
                    send(publisher, Queue::Results, Published::Result(key), body, &mut answers).await?;
                }
            }
            () = async {
                tokio::select! {
                    _ = heartbeat.tick() => {}
                    () = status.heartbeat_due.notified() => {}
                }
            } => {
                let body = status.heartbeat().encode();
                send(publisher, Queue::Heartbeats, Published::Heartbeat, &body, &mut answers).await?;
            }
            outgoing = results.recv(), if *open => match outgoing {
                Some(ResultMessage { key, body }) => {
                    // Before it is sent: a publish that breaks the session must not lose the result.
                    let body = unconfirmed.entry(key).insert_entry(body).into_mut();
                    send(publisher, Queue::Results, Published::Result(key), body, &mut answers).await?;
                }
                None => *open = false,
            },
        }
    }
    let last_heartbeat = status.heartbeat().encode();
    let answer = publisher
        .publish(Queue::Heartbeats, &last_heartbeat)
        .await?;
    answer.await?;
    Ok(())
}

async fn send(
    publisher: &mut dyn Publisher,
    queue: Queue,
    sent: Published,
    body: &[u8],
    answers: &mut Answers,
) -> Result<(), BrokerError> {
    let answer = publisher.publish(queue, body).await?;
    answers.push(async move { (sent, answer.await) }.boxed());
    Ok(())
}
