//! A thief with the permissions of a worker rejects chunks (`basic.reject`). None is dead: they are published again, and the
//! writer warns.

use anyhow::{Context as _, Result, ensure};
use futures_util::StreamExt as _;
use lapin::{
    Connection, ConnectionProperties,
    options::{BasicConsumeOptions, BasicRejectOptions},
    types::FieldTable,
};
use pingfleet_faults::{Deployment, actions};
use pingfleet_testbed::Rabbit;

/// More than a run has chunks.
const REJECTED: usize = 60;

/// Rejects so many chunks.
fn reject(deployment: &Deployment) -> Result<()> {
    let rabbit = deployment.broker()?;
    rabbit.ctl(&["add_user", "thief", "pass"])?;
    let write = r"^rejected\.x\.(results|heartbeats)$";
    let read = r"^rejected\.work$";
    rabbit.ctl(&["set_permissions", "-p", "/", "thief", "^$", write, read])?;
    let url = format!("{}%2f", rabbit.url().replace("guest:guest@", "thief:pass@"));
    let queue = deployment.queue("work");
    let rejecting = async {
        let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let options = BasicConsumeOptions::default();
        let mut thief = channel
            .basic_consume(queue.into(), "".into(), options, FieldTable::default())
            .await?;
        for _ in 0..REJECTED {
            let delivery = thief.next().await.context("a delivery")??;
            delivery
                .reject(BasicRejectOptions { requeue: false })
                .await?;
        }
        channel.close(200, "OK".into()).await?;
        connection.close(200, "OK".into()).await?;
        Ok(())
    };
    tokio::runtime::Runtime::new()?.block_on(rejecting)
}

#[test]
fn chunks_that_a_thief_rejects_are_published_again_and_none_is_dead() -> Result<()> {
    let deployment = Deployment::with_shared_broker(Rabbit::start()?, "rejected")?;
    let mut init = deployment.start("pingfleet", &["broker", "init"])?;
    ensure!(init.wait_for_exit()?.success(), "{}", init.output());
    let mut writer = actions::start_writer(&deployment)?;
    let mut producer = actions::start_producer(&deployment, 200, 5, &[])?;
    reject(&deployment)?;
    writer.wait_for_output("rejects chunks")?;
    let dead = || deployment.sqlite3("select count(*) from chunks where dead_reason is not null");
    ensure!(dead()? == "0", "{}", dead()?);
    let worker = actions::start_worker(&deployment, "worker", &[])?;
    let status = producer.wait_for_exit()?;
    ensure!(status.success(), "{status}: {}", producer.output());
    actions::terminate_cleanly(worker)?;
    let run = deployment.sqlite3("select state from run_summary")?;
    ensure!(run == "complete" && dead()? == "0", "{run}, {}", dead()?);
    Ok(())
}
