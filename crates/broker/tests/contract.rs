//! The promises of the seam: each function here runs over RabbitMQ and in process.
//!
//! A test shows that something does not happen by what happens instead: the next message arrives, or another consumer
//! gets it.

mod rig;
#[macro_use]
#[path = "rig/over_both_brokers.rs"]
mod over_both_brokers;

use anyhow::Result;
use pingfleet_broker::{BrokerError, Confirmed, Origin, QueueName, REPLY_TIMEOUT};
use tokio::time::timeout;

use crate::rig::{Rig, bodies, next, publish, stored};

over_both_brokers!(
    a_stored_message_is_delivered,
    unsettled_deliveries_return_in_order_when_the_consumer_is_dropped,
    an_ack_settles_that_delivery_alone,
    acks_of_several_settle_these_and_no_others,
    acks_after_a_raised_prefetch_settle_nothing_that_was_not_handed_out,
    a_second_ack_is_refused_and_harms_no_other_delivery,
    no_consumer_holds_more_than_its_prefetch,
    raising_the_prefetch_returns_nothing_and_delivers_as_many_as_were_asked_for,
    stop_returns_what_was_not_handed_out_and_keeps_the_rest,
    stop_returns_what_a_raised_prefetch_buffered,
    a_session_that_is_dropped_returns_each_delivery_once,
    a_requeued_delivery_returns,
    a_chunk_that_always_returns_becomes_a_dead_letter,
    a_dead_letter_that_is_published_again_keeps_its_reason,
    results_have_no_practical_delivery_limit,
    results_have_one_active_consumer,
    a_purged_queue_delivers_later_messages,
    depth_counts_ready_messages_and_consumers,
    a_message_of_the_largest_size_arrives_whole,
    waiting_for_a_delivery_can_be_cancelled,
);

async fn a_stored_message_is_delivered(rig: &Rig) -> Result<()> {
    for queue in QueueName::ALL {
        assert_eq!(publish(rig, queue, b"x").await?, Confirmed::Stored);
        let mut consumer = rig.broker.consumer(queue, 1).await?;
        let delivery = next(&mut consumer).await?;
        assert_eq!(delivery.body, b"x");
        assert!(!delivery.redelivered);
        assert_eq!(delivery.dead_letter_reason, None);
        consumer.ack(&[delivery.tag]).await?;
        consumer.close().await;
        assert_eq!(rig.broker.depth(queue).await?.ready, 0);
    }
    Ok(())
}

async fn unsettled_deliveries_return_in_order_when_the_consumer_is_dropped(
    rig: &Rig,
) -> Result<()> {
    stored(rig, QueueName::WORK, &["1", "2", "3"]).await?;
    let mut first = rig.broker.consumer(QueueName::WORK, 10).await?;
    assert_eq!(bodies(&mut first, 3).await?, ["1", "2", "3"]);
    drop(first);
    let mut second = rig.broker.consumer(QueueName::WORK, 10).await?;
    for body in ["1", "2", "3"] {
        let delivery = next(&mut second).await?;
        assert_eq!(delivery.body, body.as_bytes());
        assert!(delivery.redelivered);
    }
    Ok(())
}

async fn an_ack_settles_that_delivery_alone(rig: &Rig) -> Result<()> {
    stored(rig, QueueName::WORK, &["1", "2", "3"]).await?;
    let mut first = rig.broker.consumer(QueueName::WORK, 10).await?;
    next(&mut first).await?;
    let second = next(&mut first).await?;
    next(&mut first).await?;
    first.ack(&[second.tag]).await?;
    first.close().await;
    let mut other = rig.broker.consumer(QueueName::WORK, 10).await?;
    assert_eq!(bodies(&mut other, 2).await?, ["1", "3"]);
    Ok(())
}

async fn acks_of_several_settle_these_and_no_others(rig: &Rig) -> Result<()> {
    stored(rig, QueueName::RESULTS, &["1", "2", "3", "4"]).await?;
    let mut first = rig.broker.consumer(QueueName::RESULTS, 10).await?;
    let mut tags = Vec::new();
    for _ in 0..4 {
        tags.push(next(&mut first).await?.tag);
    }
    first.ack(&[]).await?;
    // The last of them is not the oldest unsettled one; and then it is.
    first.ack(&[tags[3], tags[1]]).await?;
    first.ack(&[tags[0]]).await?;
    first.close().await;
    let mut second = rig.broker.consumer(QueueName::RESULTS, 10).await?;
    assert_eq!(bodies(&mut second, 1).await?, ["3"]);
    Ok(())
}

async fn acks_after_a_raised_prefetch_settle_nothing_that_was_not_handed_out(
    rig: &Rig,
) -> Result<()> {
    let all: Vec<_> = (1..=12).map(|number| number.to_string()).collect();
    let texts: Vec<_> = all.iter().map(String::as_str).collect();
    stored(rig, QueueName::WORK, &texts).await?;
    let mut first = rig.broker.consumer(QueueName::WORK, 2).await?;
    let mut acked = Vec::new();
    // What comes in the place of the settled ones can be handed out before what a further consumer has buffered.
    for prefetch in [2, 6, 6] {
        first.raise_prefetch(prefetch).await?;
        let (one, two) = (next(&mut first).await?, next(&mut first).await?);
        first.ack(&[one.tag, two.tag]).await?;
        acked.extend([one.body, two.body]);
    }
    first.close().await;
    let mut second = rig.broker.consumer(QueueName::WORK, 12).await?;
    let mut left = bodies(&mut second, 6).await?;
    for body in acked {
        left.push(String::from_utf8(body)?);
    }
    left.sort_by_key(|body| body.parse::<u32>().unwrap_or_default());
    assert_eq!(left, all);
    Ok(())
}

async fn a_second_ack_is_refused_and_harms_no_other_delivery(rig: &Rig) -> Result<()> {
    stored(rig, QueueName::WORK, &["1", "2"]).await?;
    let mut consumer = rig.broker.consumer(QueueName::WORK, 10).await?;
    let (one, two) = (next(&mut consumer).await?, next(&mut consumer).await?);
    consumer.ack(&[one.tag]).await?;
    for tags in [vec![one.tag], vec![two.tag, one.tag]] {
        let again = consumer.ack(&tags).await;
        assert!(matches!(again, Err(BrokerError::Lost(_))), "{again:?}");
    }
    consumer.ack(&[two.tag]).await?;
    consumer.close().await;
    stored(rig, QueueName::WORK, &["end"]).await?;
    let mut other = rig.broker.consumer(QueueName::WORK, 10).await?;
    assert_eq!(bodies(&mut other, 1).await?, ["end"]);
    Ok(())
}

async fn no_consumer_holds_more_than_its_prefetch(rig: &Rig) -> Result<()> {
    stored(rig, QueueName::WORK, &["1", "2", "3", "4", "5"]).await?;
    let mut narrow = rig.broker.consumer(QueueName::WORK, 2).await?;
    let one = next(&mut narrow).await?;
    assert_eq!(bodies(&mut narrow, 1).await?, ["2"]);
    // Another consumer gets all the others until the first one settles something.
    let mut wide = rig.broker.consumer(QueueName::WORK, 10).await?;
    assert_eq!(bodies(&mut wide, 3).await?, ["3", "4", "5"]);
    wide.stop().await?;
    narrow.ack(&[one.tag]).await?;
    stored(rig, QueueName::WORK, &["6"]).await?;
    assert_eq!(bodies(&mut narrow, 1).await?, ["6"]);
    Ok(())
}

async fn raising_the_prefetch_returns_nothing_and_delivers_as_many_as_were_asked_for(
    rig: &Rig,
) -> Result<()> {
    stored(rig, QueueName::WORK, &["1", "2", "3", "4", "5", "6"]).await?;
    let mut consumer = rig.broker.consumer(QueueName::WORK, 2).await?;
    let one = next(&mut consumer).await?;
    // "2" may be on its way.
    consumer.raise_prefetch(4).await?;
    let mut tags = vec![one.tag];
    for body in ["2", "3", "4"] {
        let delivery = next(&mut consumer).await?;
        assert_eq!(delivery.body, body.as_bytes());
        assert!(!delivery.redelivered);
        tags.push(delivery.tag);
    }
    assert!(tags.is_sorted());
    // A lower value changes nothing.
    consumer.raise_prefetch(3).await?;
    let mut other = rig.broker.consumer(QueueName::WORK, 10).await?;
    assert_eq!(bodies(&mut other, 2).await?, ["5", "6"]);
    other.stop().await?;
    // Deliveries from before and after are settled, singly and together, and that makes room for as many.
    consumer.ack(&[tags[1]]).await?;
    consumer.ack(&[tags[0], tags[2], tags[3]]).await?;
    stored(rig, QueueName::WORK, &["7", "8", "9", "10", "11"]).await?;
    let mut taken = bodies(&mut consumer, 4).await?;
    taken.sort();
    assert_eq!(taken, ["10", "7", "8", "9"]);
    let mut other = rig.broker.consumer(QueueName::WORK, 10).await?;
    assert_eq!(bodies(&mut other, 1).await?, ["11"]);
    Ok(())
}

async fn stop_returns_what_was_not_handed_out_and_keeps_the_rest(rig: &Rig) -> Result<()> {
    stored(rig, QueueName::WORK, &["1", "2", "3", "4"]).await?;
    let mut stopped = rig.broker.consumer(QueueName::WORK, 10).await?;
    let one = next(&mut stopped).await?;
    stopped.stop().await?;
    let mut other = rig.broker.consumer(QueueName::WORK, 10).await?;
    assert_eq!(bodies(&mut other, 3).await?, ["2", "3", "4"]);
    stopped.ack(&[one.tag]).await?;
    stopped.close().await;
    stored(rig, QueueName::WORK, &["end"]).await?;
    assert_eq!(bodies(&mut other, 1).await?, ["end"]);
    Ok(())
}

async fn stop_returns_what_a_raised_prefetch_buffered(rig: &Rig) -> Result<()> {
    stored(rig, QueueName::WORK, &["1", "2", "3"]).await?;
    let mut stopped = rig.broker.consumer(QueueName::WORK, 1).await?;
    let one = next(&mut stopped).await?;
    stopped.raise_prefetch(10).await?;
    let two = next(&mut stopped).await?;
    assert_eq!(two.body, b"2");
    timeout(REPLY_TIMEOUT, stopped.stop()).await??;
    let mut other = rig.broker.consumer(QueueName::WORK, 10).await?;
    assert_eq!(bodies(&mut other, 1).await?, ["3"]);
    stopped.ack(&[one.tag]).await?;
    stopped.ack(&[two.tag]).await?;
    stopped.close().await;
    stored(rig, QueueName::WORK, &["end"]).await?;
    assert_eq!(bodies(&mut other, 1).await?, ["end"]);
    Ok(())
}

async fn a_session_that_is_dropped_returns_each_delivery_once(rig: &Rig) -> Result<()> {
    stored(rig, QueueName::WORK, &["killer", "other"]).await?;
    // Delivered once, and once more for each of the 20 returns that the limit allows, by any consumer.
    for start in 0..21 {
        let mut consumer = rig.broker.consumer(QueueName::WORK, 1).await?;
        let first = next(&mut consumer).await?;
        consumer.raise_prefetch(4).await?;
        let second = next(&mut consumer).await?;
        let both = [first.body, second.body];
        assert!(
            both.contains(&b"killer".to_vec()),
            "start {start}: {both:?}"
        );
    }
    let mut dead = rig.broker.consumer(QueueName::DEAD, 2).await?;
    let mut letters = bodies(&mut dead, 2).await?;
    letters.sort();
    assert_eq!(letters, ["killer", "other"]);
    Ok(())
}

async fn a_requeued_delivery_returns(rig: &Rig) -> Result<()> {
    stored(rig, QueueName::WORK, &["1"]).await?;
    let mut consumer = rig.broker.consumer(QueueName::WORK, 1).await?;
    let once = next(&mut consumer).await?;
    consumer.requeue(once.tag).await?;
    let twice = next(&mut consumer).await?;
    assert_eq!(twice.body, b"1");
    assert!(twice.redelivered);
    assert!(twice.tag > once.tag);
    Ok(())
}

async fn a_chunk_that_always_returns_becomes_a_dead_letter(rig: &Rig) -> Result<()> {
    stored(rig, QueueName::WORK, &["killer"]).await?;
    let mut consumer = rig.broker.consumer(QueueName::WORK, 1).await?;
    // Delivered once, and once more for each of the 20 returns that the limit allows.
    for _ in 0..21 {
        let delivery = next(&mut consumer).await?;
        assert_eq!(delivery.body, b"killer");
        consumer.requeue(delivery.tag).await?;
    }
    let mut dead = rig.broker.consumer(QueueName::DEAD, 1).await?;
    let delivery = next(&mut dead).await?;
    assert_eq!(delivery.body, b"killer");
    assert_eq!(
        delivery.dead_letter_reason.as_deref(),
        Some("delivery_limit")
    );
    // The dead letter keeps its reason when it returns to its own queue.
    dead.requeue(delivery.tag).await?;
    let again = next(&mut dead).await?;
    assert_eq!(again.dead_letter_reason.as_deref(), Some("delivery_limit"));
    stored(rig, QueueName::WORK, &["next"]).await?;
    assert_eq!(bodies(&mut consumer, 1).await?, ["next"]);
    Ok(())
}

async fn a_dead_letter_that_is_published_again_keeps_its_reason(rig: &Rig) -> Result<()> {
    let mut publisher = rig.broker.publisher().await?;
    for reason in [Some("expired"), None] {
        let origin = Origin {
            dead_letter_reason: reason,
            login: None,
        };
        let confirm = publisher.publish_again(QueueName::DEAD, b"x", origin);
        assert_eq!(confirm.await?.await?, Confirmed::Stored);
        let mut dead = rig.broker.consumer(QueueName::DEAD, 1).await?;
        let delivery = next(&mut dead).await?;
        assert_eq!(delivery.dead_letter_reason.as_deref(), reason);
        dead.ack(&[delivery.tag]).await?;
        dead.close().await;
    }
    Ok(())
}

async fn results_have_no_practical_delivery_limit(rig: &Rig) -> Result<()> {
    stored(rig, QueueName::RESULTS, &["result"]).await?;
    let mut consumer = rig.broker.consumer(QueueName::RESULTS, 1).await?;
    for _ in 0..50 {
        let delivery = next(&mut consumer).await?;
        assert_eq!(delivery.body, b"result");
        consumer.requeue(delivery.tag).await?;
    }
    Ok(())
}

async fn results_have_one_active_consumer(rig: &Rig) -> Result<()> {
    let mut active = rig.broker.consumer(QueueName::RESULTS, 10).await?;
    let mut waiting = rig.broker.consumer(QueueName::RESULTS, 10).await?;
    stored(rig, QueueName::RESULTS, &["1", "2", "3"]).await?;
    assert_eq!(bodies(&mut active, 3).await?, ["1", "2", "3"]);
    active.close().await;
    assert_eq!(bodies(&mut waiting, 3).await?, ["1", "2", "3"]);
    Ok(())
}

async fn a_purged_queue_delivers_later_messages(rig: &Rig) -> Result<()> {
    stored(rig, QueueName::WORK, &["1", "2"]).await?;
    rig.purge(QueueName::WORK)?;
    stored(rig, QueueName::WORK, &["3"]).await?;
    let mut consumer = rig.broker.consumer(QueueName::WORK, 10).await?;
    assert_eq!(bodies(&mut consumer, 1).await?, ["3"]);
    Ok(())
}

async fn depth_counts_ready_messages_and_consumers(rig: &Rig) -> Result<()> {
    stored(rig, QueueName::WORK, &["1", "2", "3"]).await?;
    let depth = rig.broker.depth(QueueName::WORK).await?;
    assert_eq!((depth.ready, depth.consumers), (3, 0));
    let mut consumer = rig.broker.consumer(QueueName::WORK, 1).await?;
    next(&mut consumer).await?;
    let depth = rig.broker.depth(QueueName::WORK).await?;
    assert_eq!((depth.ready, depth.consumers), (2, 1));
    Ok(())
}

async fn a_message_of_the_largest_size_arrives_whole(rig: &Rig) -> Result<()> {
    let body: Vec<u8> = (0..1 << 20).map(|byte: u32| byte as u8).collect();
    assert_eq!(
        publish(rig, QueueName::RESULTS, &body).await?,
        Confirmed::Stored
    );
    let mut consumer = rig.broker.consumer(QueueName::RESULTS, 1).await?;
    assert!(next(&mut consumer).await?.body == body);
    Ok(())
}

async fn waiting_for_a_delivery_can_be_cancelled(rig: &Rig) -> Result<()> {
    let mut consumer = rig.broker.consumer(QueueName::WORK, 1).await?;
    for body in ["1", "2", "3"] {
        let published = stored(rig, QueueName::WORK, std::slice::from_ref(&body));
        let mut published = std::pin::pin!(published);
        // Most waits are cancelled while the message is on its way: the message must not be lost with them.
        let early = tokio::select! {
            biased;
            early = consumer.next() => Some(early?),
            stored = &mut published => stored.map(|()| None)?,
        };
        let delivery = match early {
            Some(delivery) => published.await.map(|()| delivery)?,
            None => next(&mut consumer).await?,
        };
        assert_eq!(delivery.body, body.as_bytes());
        consumer.ack(&[delivery.tag]).await?;
    }
    Ok(())
}
