//! Who sent what: a worker's login is what the broker checked, whatever name or header its messages have, and what a login
//! claims to have in hand does not keep the chunks of others lost.

use std::{thread, time::Duration};

use anyhow::{Result, ensure};
use lapin::{
    BasicProperties, Confirmation, Connection, ConnectionProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::{AMQPValue, FieldTable},
};
use pingfleet_broker::QueueName;
use pingfleet_faults::{Deployment, actions};
use pingfleet_testbed::Rabbit;
use pingfleet_wire::{ChunkInHand, ChunkKey, Heartbeat, Message as _, Status};
use uuid::Uuid;

use crate::contradictions::results;

const THIEF: &str = "thief";

/// A broker with the login of a worker, beside the one that the programs use.
fn deployment(prefix: &str) -> Result<Deployment> {
    let deployment = Deployment::with_shared_broker(Rabbit::start()?, prefix)?;
    let rabbit = deployment.broker()?;
    let write = format!("^{prefix}[.]x[.](results|heartbeats)$");
    let read = format!("^{prefix}[.]work$");
    for login in [THIEF, "rack-7"] {
        rabbit.ctl(&["add_user", login, "secret"])?;
        rabbit.ctl(&["set_permissions", "-p", "/", login, "^$", &write, &read])?;
    }
    Ok(deployment)
}

fn url(deployment: &Deployment, login: &str) -> Result<String> {
    let port = deployment.broker()?.port();
    Ok(format!("amqp://{login}:secret@127.0.0.1:{port}/%2f"))
}

fn login(login: &str) -> BasicProperties {
    BasicProperties::default().with_user_id(login.into())
}

/// Publishes messages with these properties under a login. Fails with the broker's refusal.
fn publish_by(
    deployment: &Deployment,
    user: &str,
    queue: QueueName,
    properties: &BasicProperties,
    bodies: &[Vec<u8>],
) -> Result<()> {
    let url = url(deployment, user)?;
    let exchange = format!("{}.x.{}", deployment.prefix(), queue.kind.name());
    let key = deployment.queue(queue.kind.name());
    let publishing = async {
        let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let select = ConfirmSelectOptions::default();
        channel.confirm_select(select).await?;
        for some in bodies.chunks(500) {
            let mut confirms = Vec::new();
            for body in some {
                let (exchange, key) = (exchange.as_str().into(), key.as_str().into());
                let options = BasicPublishOptions::default();
                let publish =
                    channel.basic_publish(exchange, key, options, body, properties.clone());
                confirms.push(publish.await?);
            }
            for confirm in confirms {
                let confirmed = confirm.await?;
                ensure!(
                    matches!(confirmed, Confirmation::Ack(None)),
                    "{confirmed:?}"
                );
            }
        }
        connection.close(200, "done".into()).await?;
        Ok(())
    };
    tokio::runtime::Runtime::new()?.block_on(publishing)
}

/// What a command prints.
fn printed(deployment: &Deployment, arguments: &[&str]) -> Result<String> {
    let mut command = deployment.start("pingfleet", arguments)?;
    ensure!(command.wait_for_exit()?.success(), "{}", command.output());
    Ok(command.output())
}

fn wait_for(deployment: &Deployment, what: &str, sql: &str, expected: &str) -> Result<()> {
    actions::wait_until(what, || Ok(deployment.sqlite3(sql)? == expected))
}

#[test]
fn a_result_is_stored_with_the_login_that_the_broker_checked_or_not_at_all() -> Result<()> {
    let deployment = deployment("logins")?;
    let mut writer = actions::start_writer(&deployment)?;
    actions::publish_run(&deployment, 40, 10)?;
    let forged = results(&deployment, "rack-7", Status::Up)?;
    let to_results = |user, properties: &BasicProperties, chunk: usize| -> Result<()> {
        let bodies = &forged[chunk..=chunk];
        publish_by(&deployment, user, QueueName::RESULTS, properties, bodies)
    };
    // Without a login: refused, and the chunk still waits.
    to_results(THIEF, &BasicProperties::default(), 0)?;
    let refused = "select count(*), min(reason), count(login) from quarantine";
    let reason = "1|without the login of its worker (property user_id)|0";
    wait_for(&deployment, "the refused result", refused, reason)?;
    ensure!(deployment.sqlite3("select chunks_done from runs")? == "0");
    // With that of another one: the broker refuses it.
    let Err(error) = to_results(THIEF, &login("rack-7"), 1) else {
        anyhow::bail!("the broker took a message with the login of another user");
    };
    ensure!(
        format!("{error:#}").contains("user_id property set to 'rack-7'"),
        "{error:#}"
    );
    // With another one in a header, and another name: stored with its own.
    let mut headers = FieldTable::default();
    let header = AMQPValue::LongString("rack-7".into());
    headers.insert("x-pingfleet-login".into(), header);
    to_results(THIEF, &login(THIEF).with_headers(headers), 2)?;
    // The control: the same name under its own login.
    to_results("rack-7", &login("rack-7"), 3)?;
    let stored = "select group_concat(c, ' ') from (select distinct worker || '/' || login c from report order by login)";
    wait_for(
        &deployment,
        "two chunks",
        stored,
        "rack-7/rack-7 rack-7/thief",
    )?;
    // A later result that differs: the log names both logins.
    let other = results(&deployment, "rack-7", Status::DOWN)?;
    publish_by(
        &deployment,
        "rack-7",
        QueueName::RESULTS,
        &login("rack-7"),
        &other[2..3],
    )?;
    let contradictions = "select contradictions from runs";
    wait_for(&deployment, "the contradiction", contradictions, "1")?;
    let report = printed(&deployment, &["report", "1", "--json"])?;
    ensure!(report.contains("\"login\":\"thief\""), "{report}");
    let quarantine = printed(&deployment, &["quarantine", "--json"])?;
    ensure!(quarantine.contains("\"login\":null"), "{quarantine}");
    writer.signal("TERM")?;
    ensure!(writer.wait_for_exit()?.code() == Some(0));
    let output = writer.output();
    let named = "of rack-7 (login rack-7) after rack-7 (login thief) in run 1";
    ensure!(output.contains(named), "{output}");
    Ok(())
}

#[test]
fn a_heartbeat_counts_for_its_login_and_floods_leave_others_as_they_are() -> Result<()> {
    let deployment = deployment("beats")?;
    let writer = actions::start_writer(&deployment)?;
    actions::publish_run(&deployment, 50, 1)?;
    let run = Uuid::try_parse(&deployment.sqlite3("select run_id from runs")?)?;
    let claims = |first: u32| -> Vec<_> {
        let keys = (first..first + 512).map(|chunk| ChunkKey { run, chunk });
        keys.map(ChunkInHand::just_taken).collect()
    };
    let beat = |name: &str, instance: u128, in_hand| {
        let heartbeat = Heartbeat {
            in_hand,
            ..Heartbeat::new(name, Uuid::from_u128(instance))
        };
        heartbeat.encode()
    };
    let heartbeats = |user: &str, properties: &BasicProperties, bodies: &[Vec<u8>]| {
        publish_by(&deployment, user, QueueName::HEARTBEATS, properties, bodies)
    };
    let workers = "select count(*), count(distinct worker) from workers where login = ";
    heartbeats("rack-7", &login("rack-7"), &[beat("rack-7", 1, Vec::new())])?;
    wait_for(
        &deployment,
        "the true worker",
        &format!("{workers} 'rack-7'"),
        "1|1",
    )?;
    // One name under two logins is said where the workers are listed.
    heartbeats(THIEF, &login(THIEF), &[beat("rack-7", 1, Vec::new())])?;
    wait_for(
        &deployment,
        "the other one",
        &format!("{workers} 'thief'"),
        "1|1",
    )?;
    let listed = printed(&deployment, &["workers"])?;
    ensure!(
        listed.contains("rack-7, thief all have a worker of the name rack-7"),
        "{listed}"
    );
    ensure!(listed.contains("LOGIN"), "{listed}");
    // 1,500 messages of 512 claims. There are 50 chunks.
    let rows = |sql: &str| -> Result<i64> { Ok(deployment.sqlite3(sql)?.parse()?) };
    // The queue is first in, first out: when the last one is there, the others were taken. It is sent again, because a
    // heartbeat expires after 30 s.
    let are_taken = |last: &str, instance| {
        let is_taken = format!("select count(*) from workers where worker = '{last}'");
        actions::wait_until(last, || {
            let bodies = [beat(last, instance, Vec::new())];
            heartbeats("rack-7", &login("rack-7"), &bodies)?;
            thread::sleep(Duration::from_secs(1));
            Ok(deployment.sqlite3(&is_taken)? == "1")
        })
    };
    let many: Vec<_> = (0..1500)
        .map(|number| {
            let name = format!("claim-{number}");
            beat(&name, number + 10, claims(number as u32 % 50))
        })
        .collect();
    heartbeats(THIEF, &login(THIEF), &many)?;
    are_taken("end of claims", 2)?;
    let claimed = rows("select count(*) from in_hand")?;
    ensure!((1..=50).contains(&claimed), "{claimed}");
    ensure!(rows("select count(*) from claims")? == 50);
    // 10,000 names, and one without a login.
    let names: Vec<_> = (0..10_000)
        .map(|number| beat(&format!("name-{number}"), number + 10_000, Vec::new()))
        .collect();
    heartbeats(THIEF, &login(THIEF), &names)?;
    let none = [beat("none", 3, Vec::new())];
    heartbeats(THIEF, &BasicProperties::default(), &none)?;
    are_taken("end of names", 3)?;
    let of_thief = rows("select count(*) from workers where login = 'thief'")?;
    ensure!((500..=1000).contains(&of_thief), "{of_thief}");
    let others = "select count(*), count(distinct login), sum(worker = 'rack-7') from workers where login <> 'thief'";
    ensure!(deployment.sqlite3(others)? == "3|1|1");
    actions::terminate_cleanly(writer)
}

#[test]
fn a_lost_chunk_is_published_again_although_another_login_claims_it() -> Result<()> {
    let deployment = deployment("claims")?;
    let _writer = actions::start_writer(&deployment)?;
    let producer = actions::start_producer(&deployment, 10, 10, &[])?;
    let work = deployment.queue("work");
    actions::wait_until(
        "the chunk",
        || Ok(deployment.depth(&work, "messages")? == 1),
    )?;
    wait_for(
        &deployment,
        "its confirm",
        "select count(published_at_us) from chunks",
        "1",
    )?;
    deployment.broker()?.purge(&work)?;
    let run = Uuid::try_parse(&deployment.sqlite3("select run_id from runs")?)?;
    let heartbeat = Heartbeat {
        in_hand: vec![ChunkInHand::just_taken(ChunkKey { run, chunk: 0 })],
        ..Heartbeat::new("thief", Uuid::from_u128(7))
    };
    let claim = || {
        let bodies = [heartbeat.encode()];
        publish_by(
            &deployment,
            THIEF,
            QueueName::HEARTBEATS,
            &login(THIEF),
            &bodies,
        )
    };
    claim()?;
    wait_for(
        &deployment,
        "the claim",
        "select count(*) from in_hand",
        "1",
    )?;
    // An hour later, in which the thief never stopped claiming.
    actions::edit_database(
        &deployment,
        "begin immediate;
         update chunks set published_at_us = published_at_us - 3600000000;
         update claims set published_at_us = published_at_us - 3600000000, first_us = first_us - 3600000000;
         commit",
    )?;
    claim()?;
    let is_over = "select counts_until_us < unixepoch() * 1000000 from in_hand";
    wait_for(&deployment, "the end of the claim", is_over, "1")?;
    actions::wait_until("the chunk again", || {
        claim()?;
        thread::sleep(Duration::from_secs(1));
        Ok(deployment.depth(&work, "messages")? == 1)
    })?;
    drop(producer);
    Ok(())
}

#[test]
fn a_result_that_was_set_aside_and_returned_keeps_the_login_of_its_worker() -> Result<()> {
    let deployment = deployment("aside")?;
    let writer = actions::start_writer(&deployment)?;
    actions::publish_run(&deployment, 10, 10)?;
    actions::terminate_cleanly(writer)?;
    // The writer of another database sets it aside.
    let wrong = deployment.start("consumer-writer", &["--db", "wrong.db"])?;
    let result = results(&deployment, "rack-7", Status::Up)?;
    publish_by(
        &deployment,
        "rack-7",
        QueueName::RESULTS,
        &login("rack-7"),
        &result,
    )?;
    let foreign = deployment.queue("foreign");
    actions::wait_until("the result", || {
        Ok(deployment.depth(&foreign, "messages")? == 1)
    })?;
    actions::terminate_cleanly(wrong)?;
    let database = deployment.sqlite3("select lower(hex(uuid)) from database")?;
    printed(&deployment, &["broker", "foreign", "--return", &database])?;
    let _writer = actions::start_writer(&deployment)?;
    let login = "select max(login) from chunks where state = 3";
    actions::wait_until("the returned result", || {
        Ok(!deployment.sqlite3(login)?.is_empty())
    })?;
    let stored = deployment.sqlite3(login)?;
    ensure!(stored == "rack-7", "{stored}");
    Ok(())
}
