//! Publishes the worker's results, each until its confirm, and its heartbeats beside them, in a task of its own.

use std::{sync::Arc, time::Duration};

use pingfleet_broker::{
    Broker, BrokerError, ConfirmedMessage, ConfirmedPublisher, KeyedMessage, QueueName,
};
use pingfleet_wire::{ChunkKey, MAX_IN_HAND};
use tokio::{
    sync::{mpsc, watch},
    task::{JoinError, JoinHandle},
};
use tokio_util::sync::CancellationToken;

use crate::{WorkerError, heartbeats::make_heartbeats, status::StatusBoard};

/// The running publisher.
pub(crate) struct ResultPublisher {
    task: JoinHandle<Result<usize, BrokerError>>,
    /// The worker is finished: one last heartbeat.
    finished: CancellationToken,
    /// Nothing is waited for any more.
    leave: CancellationToken,
}

impl ResultPublisher {
    pub(crate) fn start(
        broker: Arc<dyn Broker>,
        board: Arc<StatusBoard>,
        results: mpsc::Receiver<KeyedMessage<ChunkKey>>,
        confirmed: mpsc::Sender<ConfirmedMessage<ChunkKey>>,
    ) -> Self {
        let (bodies, newest) = watch::channel(None);
        let finished = CancellationToken::new();
        let leave = CancellationToken::new();
        let heartbeats = make_heartbeats(board, bodies, finished.clone());
        let publishing =
            ConfirmedPublisher::new(broker, QueueName::RESULTS, "results", MAX_IN_HAND)
                .with_latest(QueueName::HEARTBEATS, newest)
                .run(results, confirmed, leave.clone());
        let task = tokio::spawn(async move {
            let heartbeats = async {
                heartbeats.await;
                std::future::pending::<()>().await;
            };
            tokio::select! {
                ended = publishing => ended,
                () = heartbeats => Ok(0),
            }
        });
        Self {
            task,
            finished,
            leave,
        }
    }

    /// Waits for its failure: only a final error ends it before [`Self::finish`]. Cancel-safe.
    pub(crate) async fn failed(&mut self) -> WorkerError {
        match (&mut self.task).await {
            Ok(Err(error)) => error.into(),
            _ => task_failed(),
        }
    }

    /// Publishes the last heartbeat after the last result, for at most `timeout`. The sender of results must be dropped.
    pub(crate) async fn finish(mut self, timeout: Duration) -> Result<(), WorkerError> {
        self.finished.cancel();
        let in_time = tokio::time::timeout(timeout, &mut self.task).await;
        let joined: Result<_, JoinError> = if let Ok(joined) = in_time {
            joined
        } else {
            self.leave.cancel();
            self.task.await
        };
        joined.map_err(|_| task_failed())??;
        Ok(())
    }
}

fn task_failed() -> WorkerError {
    WorkerError::TaskFailed("publisher")
}
