//! Results for a database that is not there: the writer sets them aside and goes on, and a command lists and returns them.

use anyhow::{Result, ensure};
use pingfleet_broker::QueueName;
use pingfleet_faults::{Deployment, actions};
use pingfleet_testbed::Rabbit;
use pingfleet_wire::{ChunkKey, Message as _, ResultChunk, Token, Version};
use uuid::Uuid;

/// More than a writer has in hand at a time.
const FORGED: usize = 1000;

/// Messages that nobody can read.
const JUNK: usize = 500;

/// The smallest results that there are, for an invented database.
fn forged(database: Uuid) -> Vec<Vec<u8>> {
    let message = |chunk| ResultChunk {
        version: Version,
        database,
        key: ChunkKey {
            run: Uuid::now_v7(),
            chunk,
        },
        token: Token(Uuid::new_v4()),
        worker: "thief".to_owned(),
        redelivered: false,
        started_at_us: 0,
        outcomes: Vec::new(),
    };
    (0..FORGED as u32)
        .map(|chunk| message(chunk).encode())
        .collect()
}

/// What `pingfleet broker foreign` prints with these arguments.
fn foreign(deployment: &Deployment, arguments: &[&str]) -> Result<String> {
    let arguments = [&["broker", "foreign"], arguments].concat();
    let mut command = deployment.start("pingfleet", &arguments)?;
    ensure!(command.wait_for_exit()?.success(), "{}", command.output());
    Ok(command.output())
}

#[test]
fn results_for_an_invented_database_neither_stop_a_writer_nor_hold_it_up() -> Result<()> {
    let deployment = Deployment::with_shared_broker(Rabbit::start()?, "foreign")?;
    let invented = Uuid::new_v4();
    let mut writer = deployment.start("consumer-writer", &[])?;
    writer.wait_for_output("writer ready")?;
    actions::publish_messages(
        &deployment,
        QueueName::RESULTS,
        &vec![b"junk".to_vec(); JUNK],
    )?;
    actions::publish_messages(&deployment, QueueName::RESULTS, &forged(invented))?;
    writer.wait_for_output("are set aside")?;
    // A whole run is stored after them.
    let worker = actions::start_worker(&deployment, "worker", &[])?;
    actions::publish_run(&deployment, 300, 10)?;
    deployment.wait_for_run("the whole run", |run| {
        run.chunks > 0 && run.chunks_done == run.chunks
    })?;
    actions::terminate_cleanly(worker)?;
    let listed = foreign(&deployment, &["--json"])?;
    let counts = format!("\"database\":\"{invented}\",\"results\":{FORGED},\"dead_letters\":0");
    ensure!(listed.contains(&counts), "{listed}");
    // Listing them takes none.
    ensure!(foreign(&deployment, &["--json"])? == listed);
    let refused = deployment.sqlite3("select count(*) from quarantine")?;
    ensure!(refused == JUNK.to_string(), "{refused}");
    writer.signal("TERM")?;
    ensure!(writer.wait_for_exit()?.code() == Some(0));
    // One warning a minute, and one at the end, not a line for each message.
    let output = writer.output();
    let warnings = output.lines().filter(|line| line.contains("were refused"));
    let warnings = warnings.count();
    ensure!((1..20).contains(&warnings), "{warnings}: {output}");

    let returned = foreign(&deployment, &["--return", &invented.to_string()])?;
    ensure!(returned.contains("1,000 messages returned"), "{returned}");
    let results = deployment.queue("results");
    actions::wait_until("the returned results", || {
        Ok(deployment.depth(&results, "messages")? == FORGED as i64)
    })?;
    ensure!(
        foreign(&deployment, &["--json"])?
            .lines()
            .all(|line| !line.starts_with('{'))
    );
    Ok(())
}
