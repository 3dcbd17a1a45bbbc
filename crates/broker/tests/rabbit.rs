//! Behaviour that only RabbitMQ has: refusals, permissions, queues with other arguments, alarms, and kills of the node.

#[expect(dead_code, reason = "the rig serves the contract tests, too")]
mod rig;

use std::{
    io::Read,
    net::{Ipv4Addr, TcpListener},
    time::Duration,
};

use anyhow::{Context, Result};
use futures_util::FutureExt;
use lapin::{
    Channel, Connection, ConnectionProperties, ExchangeKind,
    options::{
        ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions,
    },
    types::FieldTable,
};
use pingfleet_broker::{
    Broker, BrokerError, Confirmed, Group, QueueName, RabbitBroker, RabbitConfig,
};
use pingfleet_testbed::Rabbit;

use crate::rig::{bodies, config, next, node, publish, rabbit, stored};

/// A channel of an administrator.
async fn administrator() -> Result<Channel> {
    let url = node(|node| Ok(node.url().trim_end_matches('/').to_owned()))?;
    let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
    Ok(connection.create_channel().await?)
}

async fn unbind(prefix: &str, queue: QueueName) -> Result<()> {
    let channel = administrator().await?;
    let arguments = FieldTable::default();
    let name = format!("{prefix}.{queue}");
    let exchange = format!("{prefix}.x.{}", queue.kind.name());
    let unbound = channel.queue_unbind(
        name.as_str().into(),
        exchange.into(),
        name.into(),
        arguments,
    );
    Ok(unbound.await?)
}

/// The configuration of a user who may do what the three patterns say.
fn user(prefix: &str, configure: &str, write: &str, read: &str) -> Result<RabbitConfig> {
    node(|node| {
        node.ctl(&["add_user", prefix, "pass-of-a-user"])?;
        node.ctl(&["set_permissions", prefix, configure, write, read])
    })?;
    let mut config = config(prefix)?;
    config.url = config.url.replace("guest:guest@", &format!("{prefix}@"));
    config.password = Some("pass-of-a-user".into());
    Ok(config)
}

fn refused_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

#[tokio::test]
async fn an_unroutable_message_is_never_stored_and_the_next_check_binds_again() -> Result<()> {
    let rig = rabbit("unroutable").await?;
    for queue in QueueName::ALL {
        unbind("unroutable", queue).await?;
    }
    let mut publisher = rig.broker.publisher().await?;
    let mut confirms = Vec::new();
    for number in 0..100 {
        let queue = QueueName::ALL[number % QueueName::ALL.len()];
        confirms.push(publisher.publish(queue, b"x").await?);
    }
    for confirm in confirms {
        assert_eq!(confirm.await?, Confirmed::Unroutable);
    }
    rig.broker.ensure(&QueueName::ALL).await?;
    for queue in QueueName::ALL {
        assert_eq!(publish(&rig, queue, b"x").await?, Confirmed::Stored);
    }
    Ok(())
}

#[tokio::test]
async fn a_binding_that_is_missing_for_one_queue_leaves_the_confirms_of_others_alone() -> Result<()>
{
    let rig = rabbit("half-bound").await?;
    unbind("half-bound", QueueName::RESULTS).await?;
    let mut publisher = rig.broker.publisher().await?;
    let mut confirms = Vec::new();
    for number in 0..400 {
        let (queue, expected) = if number % 2 == 0 {
            (QueueName::HEARTBEATS, Confirmed::Stored)
        } else {
            (QueueName::RESULTS, Confirmed::Unroutable)
        };
        confirms.push((publisher.publish(queue, b"x").await?, expected));
    }
    for (confirm, expected) in confirms {
        assert_eq!(confirm.await?, expected);
    }
    Ok(())
}

#[tokio::test]
async fn a_full_queue_refuses_and_stores_the_same_bytes_later() -> Result<()> {
    let rig = rabbit("full").await?;
    let limit = r#"{"max-length":2}"#;
    node(|node| node.ctl(&["set_policy", "full", "^full\\.work$", limit]))?;
    // A quorum queue counts late, so it may accept a few more than the limit.
    let mut kept = 0;
    while publish(&rig, QueueName::WORK, b"kept").await? == Confirmed::Stored {
        kept += 1;
        anyhow::ensure!(kept < 100, "the limit does not hold");
    }
    let mut consumer = rig.broker.consumer(QueueName::WORK, 100).await?;
    for _ in 0..kept {
        let delivery = next(&mut consumer).await?;
        consumer.ack(&[delivery.tag]).await?;
    }
    while publish(&rig, QueueName::WORK, b"later").await? == Confirmed::Refused {}
    assert_eq!(bodies(&mut consumer, 1).await?, ["later"]);
    Ok(())
}

#[tokio::test]
async fn a_wrong_password_is_a_login_error_that_does_not_show_it() -> Result<()> {
    for (user, password) in [("guest", "hunter2"), ("nobody", "hunter2")] {
        let mut config = config("login")?;
        config.url = config
            .url
            .replace("guest:guest@", &format!("{user}:{password}@"));
        let broker = RabbitBroker::new(&config)?;
        let error = broker.ensure(&QueueName::ALL).await.unwrap_err();
        assert!(matches!(&error, BrokerError::Login { user: who, .. } if who == user));
        assert!(!error.is_transient());
        let text = format!("{broker:?} {config:?} {error} {error:?}");
        assert!(!text.contains("hunter2"), "{text}");
    }
    Ok(())
}

#[tokio::test]
async fn a_missing_or_forbidden_vhost_is_reported_with_the_fix() -> Result<()> {
    let mut config = user("vhosts", ".*", ".*", ".*")?;
    let url = config.url.clone();
    config.url = format!("{url}nowhere");
    let error = RabbitBroker::new(&config)?
        .ensure(&QueueName::ALL)
        .await
        .unwrap_err();
    assert!(matches!(error, BrokerError::Forbidden { .. }), "{error:?}");
    assert!(error.to_string().contains("add_vhost nowhere"), "{error}");

    node(|node| node.ctl(&["add_vhost", "closed"]))?;
    config.url = format!("{url}closed");
    let error = RabbitBroker::new(&config)?
        .ensure(&QueueName::ALL)
        .await
        .unwrap_err();
    assert!(matches!(error, BrokerError::Forbidden { .. }), "{error:?}");
    let advice = "set_permissions -p closed vhosts ";
    assert!(error.to_string().contains(advice), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_user_without_configure_permission_sees_what_is_missing_and_works_once_it_exists()
-> Result<()> {
    let config = user("worker", "^$", r"^worker\.x\.results$", r"^worker\.work$")?;
    let worker = RabbitBroker::new(&config)?;
    let error = worker
        .ensure(&[QueueName::WORK, QueueName::RESULTS, QueueName::HEARTBEATS])
        .await
        .unwrap_err();
    assert!(
        matches!(&error, BrokerError::NoTopology { what, .. } if what == "exchange worker.x.work"),
        "{error:?}"
    );
    assert!(error.is_transient());

    let rig = rabbit("worker").await?;
    worker
        .ensure(&[QueueName::WORK, QueueName::RESULTS, QueueName::HEARTBEATS])
        .await?;
    stored(&rig, QueueName::WORK, &["1"]).await?;
    let mut consumer = worker.consumer(QueueName::WORK, 1).await?;
    assert_eq!(bodies(&mut consumer, 1).await?, ["1"]);
    assert_eq!(worker.depth(QueueName::RESULTS).await?.ready, 0);
    let mut publisher = worker.publisher().await?;
    let confirm = publisher.publish(QueueName::RESULTS, b"1").await?;
    assert_eq!(confirm.await?, Confirmed::Stored);

    // The broker closes the channel after a forbidden publish.
    let forbidden = match publisher.publish(QueueName::WORK, b"1").await {
        Ok(confirm) => confirm.await.unwrap_err(),
        Err(error) => error,
    };
    assert!(
        matches!(forbidden, BrokerError::Forbidden { .. }),
        "{forbidden:?}"
    );
    let Err(error) = worker.consumer(QueueName::RESULTS, 1).await else {
        anyhow::bail!("a queue was read without the permission");
    };
    assert!(matches!(error, BrokerError::Forbidden { .. }), "{error:?}");
    Ok(())
}

#[tokio::test]
async fn a_user_without_configure_permission_goes_on_once_somebody_binds_again() -> Result<()> {
    let administrator = RabbitBroker::new(&config("bound")?)?;
    administrator.declare().await?;
    let worker = RabbitBroker::new(&user("bound", "^$", r"^bound\.x\.results$", "^$")?)?;
    unbind("bound", QueueName::RESULTS).await?;
    let mut publisher = worker.publisher().await?;
    let confirm = publisher.publish(QueueName::RESULTS, b"1").await?;
    assert_eq!(confirm.await?, Confirmed::Unroutable);
    // The worker cannot bind it, and does not fail because of that.
    worker.ensure(&[QueueName::RESULTS]).await?;
    let mut publisher = worker.publisher().await?;
    let confirm = publisher.publish(QueueName::RESULTS, b"2").await?;
    assert_eq!(confirm.await?, Confirmed::Unroutable);
    administrator.declare().await?;
    worker.ensure(&[QueueName::RESULTS]).await?;
    let mut publisher = worker.publisher().await?;
    let confirm = publisher.publish(QueueName::RESULTS, b"3").await?;
    assert_eq!(confirm.await?, Confirmed::Stored);
    Ok(())
}

#[tokio::test]
async fn a_missing_topology_is_named_by_every_operation() -> Result<()> {
    let broker = RabbitBroker::new(&config("absent")?)?;
    let missing = |error: BrokerError| match error {
        BrokerError::NoTopology { what, .. } => Ok(what),
        other => Err(anyhow::anyhow!("{other:?}")),
    };
    let error = broker.depth(QueueName::WORK).await.unwrap_err();
    assert_eq!(missing(error)?, "queue absent.work");
    let Err(error) = broker.consumer(QueueName::WORK, 1).await else {
        anyhow::bail!("a queue that does not exist was consumed");
    };
    assert!(missing(error)?.contains("absent.work"));
    let mut publisher = broker.publisher().await?;
    let error = match publisher.publish(QueueName::WORK, b"x").await {
        Ok(confirm) => confirm.await.unwrap_err(),
        Err(error) => error,
    };
    assert!(missing(error)?.contains("absent.x.work"));
    Ok(())
}

#[tokio::test]
async fn a_queue_with_other_arguments_is_refused() -> Result<()> {
    administrator()
        .await?
        .queue_declare(
            "foreign.work".into(),
            QueueDeclareOptions {
                durable: true,
                ..QueueDeclareOptions::default()
            },
            FieldTable::default(),
        )
        .await?;
    let broker = RabbitBroker::new(&config("foreign")?)?;
    let error = broker.ensure(&QueueName::ALL).await.unwrap_err();
    assert!(
        matches!(error, BrokerError::OtherTopology { .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains("foreign.work"), "{error}");
    assert!(!error.is_transient());
    Ok(())
}

#[tokio::test]
async fn a_missing_part_of_the_topology_is_declared() -> Result<()> {
    let rig = rabbit("lacking").await?;
    stored(&rig, QueueName::RESULTS, &["kept"]).await?;
    administrator()
        .await?
        .exchange_delete("lacking.x.results".into(), ExchangeDeleteOptions::default())
        .await?;
    rig.broker.ensure(&QueueName::ALL).await?;
    stored(&rig, QueueName::RESULTS, &["more"]).await?;
    let mut consumer = rig.broker.consumer(QueueName::RESULTS, 10).await?;
    assert_eq!(bodies(&mut consumer, 2).await?, ["kept", "more"]);
    Ok(())
}

#[tokio::test]
async fn a_consumer_whose_queue_is_deleted_is_lost() -> Result<()> {
    let rig = rabbit("deleted").await?;
    let mut consumer = rig.broker.consumer(QueueName::RESULTS, 1).await?;
    node(|node| node.ctl(&["delete_queue", "deleted.results"]))?;
    let lost = next(&mut consumer).await.unwrap_err();
    assert!(
        matches!(lost.downcast_ref(), Some(BrokerError::Lost(_))),
        "{lost:?}"
    );
    Ok(())
}

#[tokio::test]
async fn an_ipv6_literal_connects() -> Result<()> {
    let mut config = config("ipv6")?;
    config.url = node(Rabbit::ipv6_url)?;
    let broker = RabbitBroker::new(&config)?;
    assert!(broker.place().starts_with("[::1]:"));
    broker.ensure(&QueueName::ALL).await?;
    Ok(())
}

#[tokio::test]
async fn no_broker_is_unreachable() -> Result<()> {
    for host in ["127.0.0.1", "[::1]", "name.invalid"] {
        let url = format!("amqp://u:hunter2@{host}:{}", refused_port()?);
        let error = RabbitBroker::new(&RabbitConfig::new(url))?
            .ensure(&QueueName::ALL)
            .await
            .unwrap_err();
        assert!(
            matches!(error, BrokerError::Unreachable { .. }),
            "{error:?}"
        );
        assert!(error.is_transient());
        assert!(!format!("{error:?}").contains("hunter2"));
    }
    Ok(())
}

#[tokio::test]
async fn a_silent_peer_is_unreachable_and_its_connection_is_closed() -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let url = format!("amqp://127.0.0.1:{}", listener.local_addr()?.port());
    let error = RabbitBroker::new(&RabbitConfig::new(url))?
        .ensure(&QueueName::ALL)
        .await
        .unwrap_err();
    assert!(
        matches!(error, BrokerError::Unreachable { .. }),
        "{error:?}"
    );
    let (mut peer, _) = listener.accept()?;
    peer.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut said = Vec::new();
    peer.read_to_end(&mut said)
        .context("the connection was not closed")?;
    assert_eq!(said, b"AMQP\0\0\x09\x01");
    Ok(())
}

#[tokio::test]
async fn a_peer_with_another_protocol_is_unreachable() -> Result<()> {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let url = format!("amqp://127.0.0.1:{}", listener.local_addr()?.port());
    let broker = RabbitBroker::new(&RabbitConfig::new(url))?;
    let other = async {
        let (peer, _) = listener.accept().await?;
        peer.writable().await?;
        peer.try_write(b"HTTP/1.1 400 Bad Request\r\n\r\n")?;
        anyhow::Ok(peer)
    };
    let (error, peer) = tokio::join!(broker.ensure(&QueueName::ALL), other);
    let error = error.unwrap_err();
    drop(peer?);
    assert!(
        matches!(error, BrokerError::Unreachable { .. }),
        "{error:?}"
    );
    Ok(())
}

/// It has a node of its own because an alarm and a kill affect all users of a node.
#[tokio::test]
async fn an_alarm_delays_and_a_kill_loses_sessions_but_no_stored_message() -> Result<()> {
    let mut rabbit = Rabbit::start()?;
    // This test waits for `rabbitmqctl` and reads no heartbeats meanwhile.
    let url = format!("{}?heartbeat=600", rabbit.url());
    let broker = RabbitBroker::new(&RabbitConfig::new(url))?;
    broker.ensure(&QueueName::ALL).await?;
    let mut publisher = broker.publisher().await?;
    let confirm = publisher.publish(QueueName::WORK, b"before").await?;
    assert_eq!(confirm.await?, Confirmed::Stored);

    assert_eq!(broker.alarm(QueueName::WORK).await?, None);
    rabbit.ctl(&["set_vm_memory_high_watermark", "absolute", "1"])?;
    let alarm = broker.alarm(QueueName::HEARTBEATS).await?;
    assert!(alarm.is_some_and(|reason| reason.contains("memory")));
    let publish = async {
        // The first publish makes the broker block the connection. Nothing leaves after that.
        let first = publisher.publish(QueueName::WORK, b"first").await?;
        let second = publisher.publish(QueueName::WORK, b"second").await?;
        anyhow::Ok((publisher, first.await?, second.await?))
    };
    let mut publish = std::pin::pin!(publish);
    // It still waits after two commands of rabbitmqctl.
    rabbit.ctl(&["list_queues"])?;
    assert!(publish.as_mut().now_or_never().is_none());
    rabbit.ctl(&["list_queues"])?;
    assert!(publish.as_mut().now_or_never().is_none());
    rabbit.ctl(&["set_vm_memory_high_watermark", "0.8"])?;
    let (mut publisher, first, second) = publish.await?;
    assert_eq!((first, second), (Confirmed::Stored, Confirmed::Stored));
    // What the question for an alarm publishes is in no queue: see the bodies below.
    assert_eq!(broker.alarm(QueueName::WORK).await?, None);

    let mut consumer = broker.consumer(QueueName::WORK, 2).await?;
    let delivery = next(&mut consumer).await?;
    rabbit.kill();
    while consumer.next().await.is_ok() {}
    let lost = consumer.ack(&[delivery.tag]).await.unwrap_err();
    assert!(lost.is_transient(), "{lost:?}");
    let lost = match publisher.publish(QueueName::WORK, b"x").await {
        Ok(confirm) => confirm.await.unwrap_err(),
        Err(error) => error,
    };
    assert!(matches!(lost, BrokerError::Lost(_)), "{lost:?}");
    let gone = broker.depth(QueueName::WORK).await.unwrap_err();
    assert!(matches!(gone, BrokerError::Unreachable { .. }), "{gone:?}");

    rabbit.start_again()?;
    broker.ensure(&QueueName::ALL).await?;
    let mut consumer = broker.consumer(QueueName::WORK, 10).await?;
    // After a kill the order is not promised.
    let mut kept = bodies(&mut consumer, 3).await?;
    kept.sort();
    assert_eq!(kept, ["before", "first", "second"]);

    // A regular stop of the node loses sessions as well.
    rabbit.stop()?;
    let lost = next(&mut consumer).await.unwrap_err();
    let lost: BrokerError = lost.downcast()?;
    assert!(matches!(lost, BrokerError::Lost(_)), "{lost:?}");
    Ok(())
}

/// A channel of a user.
async fn channel_of(config: &RabbitConfig) -> Result<Channel> {
    let user = config
        .url
        .trim_end_matches('/')
        .replace('@', ":pass-of-a-user@");
    let connection = Connection::connect(&user, ConnectionProperties::default()).await?;
    Ok(connection.create_channel().await?)
}

/// Binds the results queue to the exchange or queue name that a user may read.
async fn bind_results(config: &RabbitConfig, exchange: &str) -> Result<(), lapin::Error> {
    let channel = channel_of(config).await.expect("the user may connect");
    let queue = format!("{}.results", config.prefix);
    let arguments = FieldTable::default();
    let options = QueueBindOptions::default();
    channel
        .queue_bind(
            queue.into(),
            exchange.into(),
            "stolen".into(),
            options,
            arguments,
        )
        .await
}

#[tokio::test]
async fn who_may_publish_results_may_not_bind_their_queue() -> Result<()> {
    let _rig = rabbit("bound").await?;
    let readable = "bound.work";
    // An exchange of the name that a worker may read.
    let administrator = administrator().await?;
    let declare = |name: &'static str| {
        administrator.exchange_declare(
            name.into(),
            ExchangeKind::Direct,
            ExchangeDeclareOptions::default(),
            FieldTable::default(),
        )
    };
    declare(readable).await?;
    let worker = user(
        "bound",
        "^$",
        r"^bound\.x\.(results|heartbeats)$",
        r"^bound\.work$",
    )?;
    let refused = bind_results(&worker, readable).await.unwrap_err();
    assert!(refused.to_string().contains("ACCESS_REFUSED"), "{refused}");

    // The control: with exchanges named as the queues, the same user could bind.
    node(|node| {
        node.ctl(&[
            "set_permissions",
            "bound",
            "^$",
            r"^bound\.(results|heartbeats)$",
            r"^bound\.work$",
        ])
    })?;
    bind_results(&worker, readable).await?;
    Ok(())
}

#[tokio::test]
async fn a_check_declares_only_the_queues_that_were_named() -> Result<()> {
    let broker = RabbitBroker::new(&config("own")?)?;
    broker.ensure(&[QueueName::RESULTS]).await?;
    assert_eq!(broker.depth(QueueName::RESULTS).await?.ready, 0);
    for other in [
        QueueName::WORK,
        QueueName::DEAD,
        QueueName::HEARTBEATS,
        QueueName::FOREIGN,
    ] {
        let error = broker.depth(other).await.unwrap_err();
        assert!(matches!(error, BrokerError::NoTopology { .. }), "{error:?}");
    }
    broker.declare().await?;
    broker.ensure(&QueueName::ALL).await?;
    Ok(())
}

#[tokio::test]
async fn declaring_repairs_a_missing_binding() -> Result<()> {
    let rig = rabbit("repaired").await?;
    unbind("repaired", QueueName::RESULTS).await?;
    let broker = RabbitBroker::new(&config("repaired")?)?;
    // The control: a check sees all queues and exchanges, and not that the binding is missing.
    broker.ensure(&QueueName::ALL).await?;
    assert_eq!(
        publish(&rig, QueueName::RESULTS, b"1").await?,
        Confirmed::Unroutable
    );
    broker.declare().await?;
    assert_eq!(
        publish(&rig, QueueName::RESULTS, b"2").await?,
        Confirmed::Stored
    );
    Ok(())
}

#[tokio::test]
async fn groups_have_work_queues_of_their_own() -> Result<()> {
    let rig = rabbit("groups").await?;
    let north = QueueName::work(Group::new("north").map_err(anyhow::Error::msg)?);
    rig.broker.ensure(&[north]).await?;
    assert_eq!(publish(&rig, north, b"north").await?, Confirmed::Stored);
    stored(&rig, QueueName::WORK, &["default"]).await?;
    for (queue, body) in [(north, "north"), (QueueName::WORK, "default")] {
        assert_eq!(rig.broker.depth(queue).await?.ready, 1);
        let mut consumer = rig.broker.consumer(queue, 1).await?;
        assert_eq!(bodies(&mut consumer, 1).await?, [body]);
    }
    Ok(())
}
