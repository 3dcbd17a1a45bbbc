//! A writer of an older setup, which may set nothing aside, says what it needs now.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use pingfleet_faults::Deployment;
use pingfleet_testbed::Rabbit;

/// The words of a command, as a shell reads it.
fn words(command: &str) -> Result<Vec<String>> {
    let line = format!("printf '%s\\0' {command}");
    let printed = Command::new("sh").args(["-c", &line]).output()?;
    let words = String::from_utf8(printed.stdout)?;
    Ok(words.split_terminator('\0').map(str::to_owned).collect())
}

fn init(deployment: &Deployment) -> Result<()> {
    let mut init = deployment.start("pingfleet", &["broker", "init"])?;
    ensure!(init.wait_for_exit()?.success(), "{}", init.output());
    Ok(())
}

#[test]
fn a_writer_without_the_queue_and_then_without_the_permission_says_what_it_needs() -> Result<()> {
    let deployment = Deployment::with_shared_broker(Rabbit::start()?, "older")?;
    init(&deployment)?;
    // The four queues that an older version had, and a writer that may publish nothing.
    let rabbit = deployment.broker()?;
    rabbit.ctl(&["delete_queue", "older.foreign"])?;
    rabbit.ctl(&["add_user", "writer", "pass"])?;
    let read = r"^older\.(results|dead|heartbeats)$";
    rabbit.ctl(&["set_permissions", "-p", "/", "writer", "^$", "^$", read])?;
    let url = rabbit.url().replace("guest:guest@", "writer:pass@");
    deployment.set_env("PINGFLEET_BROKER__URL", &url);
    let mut writer = deployment.start("consumer-writer", &[])?;
    writer.wait_for_output("queue older.foreign is missing")?;
    ensure!(writer.output().contains("pingfleet broker init"));

    // It goes on when the queue is there, and then lacks the permission.
    deployment.set_env("PINGFLEET_BROKER__URL", "");
    init(&deployment)?;
    let status = writer.wait_for_exit()?;
    let output = writer.output();
    ensure!(status.code() == Some(4), "{status}: {output}");
    ensure!(
        output.contains("access to exchange 'older.x.foreign'"),
        "{output}"
    );
    // The command works as it is printed.
    let (_, command) = output.rsplit_once("rabbitmqctl ").context("a command")?;
    let command = words(command.trim_end())?;
    ensure!(command[..4] == ["set_permissions", "-p", "/", "writer"]);
    let command: Vec<_> = command.iter().map(String::as_str).collect();
    rabbit.ctl(&command)?;
    deployment.set_env("PINGFLEET_BROKER__URL", &url);
    deployment
        .start("consumer-writer", &[])?
        .wait_for_output("writer ready")
}
