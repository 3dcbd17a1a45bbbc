//! New sessions on request: nothing is lost or delivered twice for them.

#[expect(dead_code, reason = "the rig serves the contract tests, too")]
mod rig;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use pingfleet_broker::{
    Broker, ConfirmedPublisher, KeyedMessage, QueueName, RabbitBroker, RabbitConfig,
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::rig::{TIMEOUT, bodies, config, next, node, rabbit, stored};

/// Waits until the broker has delivered all but so many messages of the queue of work.
async fn wait_for_ready(broker: &dyn Broker, ready: u32) -> Result<()> {
    let began = Instant::now();
    while broker.depth(QueueName::WORK).await?.ready != ready {
        ensure!(began.elapsed() < TIMEOUT, "not {ready} messages are ready");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

#[tokio::test]
async fn a_cancelled_consumer_hands_out_what_it_has_and_nothing_comes_again() -> Result<()> {
    let rig = rabbit("cancelled").await?;
    // More than a quorum queue lets a channel acknowledge one by one before it holds acknowledgements back.
    let many: Vec<_> = (0..200).map(|number| number.to_string()).collect();
    let all: Vec<_> = many.iter().map(String::as_str).collect();
    stored(&rig, QueueName::WORK, &all).await?;
    stored(&rig, QueueName::WORK, &["left"]).await?;
    let mut consumer = rig.broker.consumer(QueueName::WORK, 1).await?;
    let first = next(&mut consumer).await?;
    // A second consumer on the channel, with the rest of the prefetch.
    consumer.raise_prefetch(200).await?;
    wait_for_ready(&*rig.broker, 1).await?;
    let rest = consumer.cancel().await?;
    assert_eq!(rest.len(), 199);
    let mut tags = vec![first.tag];
    tags.extend(rest.iter().map(|delivery| delivery.tag));
    let taken: BTreeSet<_> = rest.iter().map(|delivery| delivery.body.clone()).collect();
    assert_eq!(taken.len(), 199);
    assert!(!rest.iter().any(|delivery| delivery.redelivered));
    consumer.ack(&tags).await?;
    consumer.close().await;

    let mut other = rig.broker.consumer(QueueName::WORK, 10).await?;
    let left = next(&mut other).await?;
    assert_eq!(
        (left.body.as_slice(), left.redelivered),
        (&b"left"[..], false)
    );
    stored(&rig, QueueName::WORK, &["end"]).await?;
    assert_eq!(bodies(&mut other, 1).await?, ["end"]);

    // The control: what is not acked comes again.
    other.cancel().await?;
    other.close().await;
    let mut last = rig.broker.consumer(QueueName::WORK, 10).await?;
    for body in ["left", "end"] {
        let again = next(&mut last).await?;
        assert_eq!(
            (again.body.as_slice(), again.redelivered),
            (body.as_bytes(), true)
        );
    }
    Ok(())
}

/// The connections of this name, by their processes in the broker.
fn connections(name: &str) -> Result<BTreeSet<String>> {
    let listed = node(|node| node.ctl(&["list_connections", "pid", "state", "client_properties"]))?;
    let of_name = listed.lines().filter(|line| line.contains(name));
    let running = of_name.filter(|line| line.contains("\trunning\t"));
    let pids = running.filter_map(|line| line.split('\t').next());
    Ok(pids.map(str::to_owned).collect())
}

/// Waits until there are connections of this name, and none of `old`.
async fn new_connections(name: &str, old: &BTreeSet<String>) -> Result<BTreeSet<String>> {
    let began = Instant::now();
    loop {
        let now = connections(name)?;
        if !now.is_empty() && now.is_disjoint(old) {
            return Ok(now);
        }
        ensure!(began.elapsed() < TIMEOUT, "{now:?} after {old:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_publisher_answers_what_it_sent_before_it_takes_a_new_session() -> Result<()> {
    let _rig = rabbit("renewed").await?;
    let (request, requests) = watch::channel(0);
    let config = RabbitConfig {
        connection_name: "a-publisher".to_owned(),
        ..config("renewed")?
    };
    let broker = Arc::new(RabbitBroker::new(&config)?.with_reconnects(requests));
    let publisher = ConfirmedPublisher::new(broker, QueueName::WORK, "chunks", 100);
    let (messages, to_publish) = mpsc::channel(100);
    let (confirm, mut confirmed) = mpsc::channel(100);
    let stop = CancellationToken::new();
    let publishing = tokio::spawn(publisher.run(to_publish, confirm, stop.clone()));
    let mut old = BTreeSet::new();
    for round in 0..3_u32 {
        for key in round * 50..(round + 1) * 50 {
            let body = key.to_string().into_bytes();
            messages.send(KeyedMessage::new(key, body)).await?;
        }
        for _ in 0..50 {
            let answer = tokio::time::timeout(TIMEOUT, confirmed.recv()).await?;
            // The first and only sending of each.
            assert_eq!(answer.context("the publisher ended")?.sendings, 1);
        }
        old = new_connections("a-publisher", &old).await?;
        request.send_modify(|count| *count += 1);
        // The control: without a request the connection stays, see the first round of `old`.
        let began = Instant::now();
        while !connections("a-publisher")?.is_disjoint(&old) {
            ensure!(began.elapsed() < TIMEOUT, "the old connection stays");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    drop(messages);
    assert_eq!(publishing.await??, 0);
    Ok(())
}
