//! Behaviour that only the in-process broker has: a full queue makes publishers wait instead of refusing.

use futures_util::FutureExt;
use pingfleet_broker::{Broker, BrokerError, MemoryBroker, QueueName};

#[tokio::test]
async fn a_full_queue_makes_the_publisher_wait_for_an_ack() -> Result<(), BrokerError> {
    let broker = MemoryBroker::new(2);
    let mut publisher = broker.publisher().await?;
    for body in [b"1", b"2"] {
        publisher.publish(QueueName::WORK, body).await?.await?;
    }
    let mut consumer = broker.consumer(QueueName::WORK, 10).await?;
    let delivery = consumer.next().await?;
    let mut third = publisher.publish(QueueName::WORK, b"3");
    // An unsettled delivery counts towards the capacity.
    assert!((&mut third).now_or_never().is_none());
    consumer.ack(&[delivery.tag]).await?;
    third.await?.await?;
    assert_eq!(broker.depth(QueueName::WORK).await?.ready, 2);
    Ok(())
}

#[tokio::test]
async fn a_full_heartbeats_queue_never_makes_a_publisher_wait() -> Result<(), BrokerError> {
    let broker = MemoryBroker::new(2);
    let mut publisher = broker.publisher().await?;
    for number in 0..10 {
        publisher
            .publish(QueueName::HEARTBEATS, &[number])
            .await?
            .await?;
    }
    let mut consumer = broker.consumer(QueueName::HEARTBEATS, 10).await?;
    assert_eq!(consumer.next().await?.body, [8]);
    assert_eq!(consumer.next().await?.body, [9]);
    Ok(())
}

#[tokio::test]
async fn consumers_of_work_share_it_and_all_of_it_arrives_once() -> Result<(), BrokerError> {
    const MESSAGES: u16 = 1000;
    let broker = MemoryBroker::new(16);
    let mut publisher = broker.publisher().await?;
    let publish = async {
        for number in 0..MESSAGES {
            publisher
                .publish(QueueName::WORK, &number.to_be_bytes())
                .await?
                .await?;
        }
        Ok::<_, BrokerError>(())
    };
    let mut left = broker.consumer(QueueName::WORK, 3).await?;
    let mut right = broker.consumer(QueueName::WORK, 3).await?;
    let consume = async {
        let mut numbers = Vec::new();
        while numbers.len() < usize::from(MESSAGES) {
            let (body, settled) = tokio::select! {
                delivery = left.next() => {
                    let delivery = delivery?;
                    (delivery.body, left.ack(&[delivery.tag]).await)
                }
                delivery = right.next() => {
                    let delivery = delivery?;
                    (delivery.body, right.ack(&[delivery.tag]).await)
                }
            };
            settled?;
            numbers.push(body);
        }
        Ok::<_, BrokerError>(numbers)
    };
    let (published, numbers) = tokio::join!(publish, consume);
    published?;
    let mut numbers = numbers?;
    numbers.sort();
    numbers.dedup();
    assert_eq!(numbers.len(), usize::from(MESSAGES));
    Ok(())
}
