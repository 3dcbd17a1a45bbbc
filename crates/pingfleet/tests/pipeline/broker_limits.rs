//! What an operator's policy and the broker's alarms do to a run.

use anyhow::{Result, ensure};
use pingfleet_faults::Deployment;

use crate::assert_all_up;

#[test]
fn chunks_that_a_policy_expires_are_published_again() -> Result<()> {
    let mut deployment = Deployment::new()?;
    let policy = r#"{"message-ttl":500}"#;
    let set = [
        "set_policy",
        "ttl",
        "^pingfleet[.]work$",
        policy,
        "--apply-to",
        "queues",
    ];
    deployment.broker_mut()?.ctl(&set)?;
    let mut writer = deployment.start("consumer-writer", &[])?;
    writer.wait_for_output("writer ready")?;
    let arguments = ["10.0.0.1-10.0.0.40", "--chunk-size", "1"];
    let producer = deployment.start("producer", &arguments)?;
    writer.wait_for_output("a policy of the broker")?;
    let _worker = deployment.start("ping-worker", &[])?;
    assert_eq!(producer.wait()?.code(), Some(0));
    assert_all_up(&deployment, 40)
}

/// A producer that waits has no session, so no session is lost when the broker goes away.
#[test]
fn a_producer_that_waits_without_a_worker_names_the_broker_that_is_away() -> Result<()> {
    let mut deployment = Deployment::new()?;
    let mut producer = deployment.start("producer", &["10.0.0.1-10.0.0.40"])?;
    // The control: the broker is there, and no worker.
    producer.wait_for_output("start `ping-worker` on a machine that reaches this broker")?;
    deployment.broker_mut()?.stop()?;
    producer.wait_for_output("the run goes on when the broker is back")?;
    let log = producer.output();
    let warning = log.lines().find(|line| line.contains("broker is back"));
    ensure!(
        warning.is_some_and(|line| line.contains("docker-compose up")),
        "{log}"
    );
    Ok(())
}

#[test]
fn an_alarm_is_reported_and_no_worker_is_called_absent() -> Result<()> {
    let mut deployment = Deployment::new()?;
    let mut writer = deployment.start("consumer-writer", &[])?;
    let mut worker = deployment.start("ping-worker", &[])?;
    writer.wait_for_output("writer ready")?;
    worker.wait_for_output("worker ready")?;
    let watermark = "set_vm_memory_high_watermark";
    deployment
        .broker_mut()?
        .ctl(&[watermark, "absolute", "1"])?;
    let mut producer = deployment.start("producer", &["10.0.0.1-10.0.0.40"])?;
    for program in [&mut worker, &mut producer] {
        program.wait_for_output("the broker has an alarm")?;
    }
    producer.wait_for_output("a worker is connected, and no heartbeat")?;
    let log = producer.output();
    ensure!(!log.contains("no worker seen"), "{log}");
    deployment.broker_mut()?.ctl(&[watermark, "0.8"])?;
    assert_eq!(producer.wait()?.code(), Some(0));
    worker.wait_for_output("the broker takes messages again")?;
    assert_all_up(&deployment, 40)
}
