//! A worker needs few permissions on RabbitMQ: it reads its work queue, writes to two exchanges, and configures nothing.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use hickory_resolver::config::{ResolverConfig, ResolverOpts};
use ping_worker::{WorkerError, WorkerSettings, WorkerStatus, WorkerSummary};
use pingfleet_broker::{Broker, QueueName, RabbitBroker, RabbitConfig};
use pingfleet_prober::{prober::OpenProber, resolve::Resolver, scripted::Scripted};
use pingfleet_testbed::Rabbit;
use pingfleet_wire::{
    ChunkKey, Heartbeat, Message as _, Probing, ResultChunk, Target, Token, Version, WorkChunk,
};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The test fails when something takes longer than this.
const TIMEOUT: Duration = Duration::from_mins(1);

fn work() -> WorkChunk {
    WorkChunk {
        version: Version,
        database: Uuid::from_u128(1),
        key: ChunkKey {
            run: Uuid::from_u128(7),
            chunk: 0,
        },
        token: Token(Uuid::from_u128(2)),
        probing: Probing::default(),
        targets: vec![Target::Address([10, 0, 0, 1].into())],
    }
}

/// What a worker may write to, and read from.
const WRITE: &str = r"^pingfleet\.x\.(results|heartbeats)$";
const READ: &str = r"^pingfleet\.work$";

/// A worker with these permissions and none to configure anything.
fn start_worker(
    rabbit: &Rabbit,
    write: &str,
    read: &str,
    stop: &CancellationToken,
) -> Result<JoinHandle<Result<WorkerSummary, WorkerError>>> {
    rabbit.ctl(&["set_permissions", "worker", "^$", write, read])?;
    let mut config = RabbitConfig::new(rabbit.url().replace("guest:guest@", "worker@"));
    config.password = Some("pass".to_owned());
    let broker = Arc::new(RabbitBroker::new(&config)?);
    let settings = WorkerSettings {
        name: "restricted".to_owned(),
        threads: NonZeroUsize::MIN,
        rate: None,
        prefetch: None,
        exclusive: false,
    };
    let opener: Arc<dyn OpenProber> = Arc::new(Scripted::default());
    let no_servers = ResolverConfig::from_parts(None, Vec::new(), Vec::new());
    let resolver = Resolver::with_servers(no_servers, ResolverOpts::default());
    let probe_threads = ping_worker::start_probe_threads(&opener, resolver, &settings)?;
    let stop = stop.clone();
    let status: watch::Sender<WorkerStatus> = watch::Sender::default();
    Ok(tokio::spawn(async move {
        ping_worker::run(broker, probe_threads, &settings, status, stop).await
    }))
}

#[tokio::test]
async fn a_worker_runs_with_only_the_permissions_of_a_worker() -> Result<()> {
    let rabbit = Rabbit::start()?;
    let administrator = RabbitBroker::new(&RabbitConfig::new(rabbit.url()))?;
    administrator.declare().await?;
    rabbit.ctl(&["add_user", "worker", "pass"])?;
    let mut publisher = administrator.publisher().await?;

    // The control: each permission is needed.
    let stop = CancellationToken::new();
    for (write, read) in [
        (WRITE, "^$"),
        (r"^pingfleet\.x\.heartbeats$", READ),
        (r"^pingfleet\.x\.results$", READ),
    ] {
        let confirm = publisher.publish(QueueName::WORK, &work().encode()).await?;
        confirm.await?;
        let running = start_worker(&rabbit, write, read, &stop)?;
        let ended = tokio::time::timeout(TIMEOUT, running);
        let ended = ended.await.context("the worker does not end")??;
        assert!(ended.is_err(), "write {write}, read {read}: {ended:?}");
    }

    let confirm = publisher.publish(QueueName::WORK, &work().encode()).await?;
    confirm.await?;
    let running = start_worker(&rabbit, WRITE, READ, &stop)?;
    let mut results = administrator.consumer(QueueName::RESULTS, 1).await?;
    let result = tokio::time::timeout(TIMEOUT, results.next());
    let result = result.await.context("no result")??;
    assert_eq!(ResultChunk::decode(&result.body)?.key, work().key);
    let mut heartbeats = administrator.consumer(QueueName::HEARTBEATS, 1).await?;
    let heartbeat = tokio::time::timeout(TIMEOUT, heartbeats.next());
    let heartbeat = heartbeat.await.context("no heartbeat")??;
    assert_eq!(Heartbeat::decode(&heartbeat.body)?.worker, "restricted");
    // What the workers without a permission left behind is settled as well. Nobody announces a queue's depth.
    let empty = async {
        while administrator.depth(QueueName::WORK).await?.ready > 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(TIMEOUT, empty)
        .await
        .context("work is left")??;
    // Those that ended took none.
    assert_eq!(rabbit.redelivered()?, 0);
    stop.cancel();
    let summary = tokio::time::timeout(TIMEOUT, running)
        .await
        .context("the worker does not stop")???;
    assert!(summary.chunks > 0);
    assert_eq!(summary.left, 0);
    assert_eq!(administrator.depth(QueueName::WORK).await?.ready, 0);
    Ok(())
}
