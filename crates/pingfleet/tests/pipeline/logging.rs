//! What the three roles log of a run.

use anyhow::{Context, ensure};
use pingfleet_faults::{ChildProcess, Deployment, actions};
use serde_json::Value;

use crate::text;

/// The lines that a program has logged in JSON. The summary of the producer is no log.
fn lines(program: &ChildProcess) -> anyhow::Result<Vec<Value>> {
    let output = program.output();
    let logged = output.lines().filter(|line| line.starts_with('{'));
    logged
        .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
        .collect()
}

/// What a program logged at info. Which role declares the queues depends on which is first.
fn at_info(lines: &[Value]) -> Vec<&str> {
    let infos = lines.iter().filter(|line| line["level"] == "INFO");
    let messages = infos.filter_map(|line| line["message"].as_str());
    messages
        .filter(|message| *message != "declaring broker topology")
        .collect()
}

#[test]
fn each_role_logs_its_changes_of_state_once_and_names_runs_and_chunks() -> anyhow::Result<()> {
    let deployment = Deployment::new()?;
    deployment.set_env(
        "PINGFLEET_LOG",
        "pingfleet=debug,producer=debug,ping_worker=debug,consumer_writer=debug",
    );
    let hosts = deployment.hosts(50)?;
    let json = ["--log-format", "json"];
    let mut writer = deployment.start("consumer-writer", &json)?;
    let mut worker = deployment.start("ping-worker", &json)?;
    writer.wait_for_output("writer ready")?;
    worker.wait_for_output("worker ready")?;
    let plan = ["--chunk-size", "10", "--hosts", text(&hosts)];
    let mut producer = deployment.start("producer", &[json.as_slice(), &plan].concat())?;
    ensure!(producer.wait_for_exit()?.success(), "{}", producer.output());
    for program in [&mut worker, &mut writer] {
        program.signal("TERM")?;
        ensure!(program.wait_for_exit()?.success(), "{}", program.output());
    }
    let [producer, worker, writer] = [lines(&producer)?, lines(&worker)?, lines(&writer)?];
    let planned = ["planning a run", "run started", "producer stopped"];
    assert_eq!(at_info(&producer), planned);
    let closed = ["writer ready", "run closed", "writer stopped"];
    assert_eq!(at_info(&writer), closed);
    let probed = at_info(&worker);
    ensure!(probed[0].starts_with("ICMP sockets open"), "{probed:?}");
    assert_eq!(probed[1..], ["worker ready", "draining", "worker stopped"]);

    let has = |line: &Value, field| line.get(field).is_some();
    for line in producer.iter().chain(&writer) {
        ensure!(has(line, "run") == has(line, "run_id"), "{line}");
        ensure!(has(line, "run") || !has(line, "chunk"), "{line}");
    }
    for line in &worker {
        ensure!(!has(line, "run"), "{line}");
        ensure!(has(line, "chunk") == has(line, "run_id"), "{line}");
    }
    // The controls: there are lines with each of the fields.
    for (lines, field) in [(&producer, "run"), (&writer, "run"), (&worker, "chunk")] {
        ensure!(lines.iter().any(|line| has(line, field)), "{field}");
    }
    Ok(())
}

/// Every connection of a run is closed in order: neither side has an error or a warning about it.
#[test]
fn connections_are_closed_in_order() -> anyhow::Result<()> {
    const ABRUPT: &str = "client unexpectedly closed TCP connection";
    let deployment = Deployment::new()?;
    let hosts = deployment.hosts(50)?;
    // Declared before, because a queue that is missing is an error of its channel.
    let mut init = deployment.start("pingfleet", &["broker", "init", "-v"])?;
    ensure!(init.wait_for_exit()?.success(), "{}", init.output());
    let mut writer = deployment.start("consumer-writer", &["-v"])?;
    let mut worker = deployment.start("ping-worker", &["-v"])?;
    writer.wait_for_output("writer ready")?;
    worker.wait_for_output("worker ready")?;
    let plan = ["-v", "--chunk-size", "10", "--hosts", text(&hosts)];
    let mut producer = deployment.start("producer", &plan)?;
    ensure!(producer.wait_for_exit()?.success(), "{}", producer.output());
    for arguments in [["doctor", "-v"].as_slice(), &["broker", "foreign", "-v"]] {
        let mut command = deployment.start("pingfleet", arguments)?;
        command.wait_for_exit()?;
        ensure!(
            !command.output().contains(" ERROR "),
            "{}",
            command.output()
        );
    }
    for program in [&mut worker, &mut writer] {
        program.signal("TERM")?;
        ensure!(program.wait_for_exit()?.success(), "{}", program.output());
    }
    for program in [&producer, &worker, &writer] {
        ensure!(
            !program.output().contains(" ERROR "),
            "{}",
            program.output()
        );
    }
    let log = deployment.broker()?.log()?;
    ensure!(!log.contains(ABRUPT), "{log}");

    // The control: a worker that is killed.
    let mut worker = deployment.start("ping-worker", &[])?;
    worker.wait_for_output("worker ready")?;
    worker.kill()?;
    actions::wait_until("the broker's warning", || {
        Ok(deployment.broker()?.log()?.contains(ABRUPT))
    })?;
    Ok(())
}
