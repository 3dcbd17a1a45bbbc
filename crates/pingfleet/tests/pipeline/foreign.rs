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
fn forged(database: Uuid, count: usize) -> Vec<Vec<u8>> {
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
    (0..count as u32)
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
    actions::publish_messages(&deployment, QueueName::RESULTS, &forged(invented, FORGED))?;
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

    // Several databases begin with the same digits, and a digit that none has.
    let mut other = *invented.as_bytes();
    other[15] ^= 0xff;
    let other = Uuid::from_bytes(other);
    actions::publish_messages(&deployment, QueueName::FOREIGN, &forged(other, 1))?;
    let beginning = &invented.to_string()[..13];
    for (beginning, problem) in [
        (beginning, "is the beginning of several databases"),
        (
            "00000000",
            "nothing is set aside for a database that begins",
        ),
    ] {
        let mut refused =
            deployment.start("pingfleet", &["broker", "foreign", "--return", beginning])?;
        ensure!(refused.wait_for_exit()?.code() == Some(3));
        let output = refused.output();
        ensure!(output.contains(problem), "{output}");
    }
    let one = deployment.depth(&deployment.queue("foreign"), "messages")?;
    ensure!(one == FORGED as i64 + 1, "{one}");
    let returned = foreign(&deployment, &["--return", &invented.to_string()])?;
    ensure!(returned.contains("1,000 messages returned"), "{returned}");
    let results = deployment.queue("results");
    actions::wait_until("the returned results", || {
        Ok(deployment.depth(&results, "messages")? == FORGED as i64)
    })?;
    let left = foreign(&deployment, &["--json"])?;
    ensure!(
        left.contains(&other.to_string()) && !left.contains(&invented.to_string()),
        "{left}"
    );
    // The beginning of its UUID is enough for the only one.
    let returned = foreign(&deployment, &["--return", &beginning[..8]])?;
    ensure!(returned.contains("1 message returned"), "{returned}");
    let left = foreign(&deployment, &["--json"])?;
    ensure!(left.lines().all(|line| !line.starts_with('{')), "{left}");
    Ok(())
}

/// A writer that closes its session on request settles the results for others first: none comes again.
#[test]
fn a_new_session_on_request_costs_no_delivery_of_foreign_results() -> Result<()> {
    const ROUNDS: usize = 3;
    let deployment = Deployment::with_shared_broker(Rabbit::start()?, "sessions")?;
    // Without a terminal: with one SIGHUP stops it.
    let mut writer = deployment.start_with_wrapper(&["setsid"], "consumer-writer", &[])?;
    writer.wait_for_output("writer ready")?;
    let closed = "a new one follows session=\"results, dead letters and heartbeats\"";
    for round in 1..=ROUNDS {
        let messages = forged(Uuid::new_v4(), FORGED);
        actions::publish_messages(&deployment, QueueName::RESULTS, &messages)?;
        writer.signal("HUP")?;
        actions::wait_until("the end of the session", || {
            Ok(writer.output().matches(closed).count() == round)
        })?;
    }
    let foreign = deployment.queue("foreign");
    actions::wait_until("the results in their queue", || {
        Ok(deployment.depth(&foreign, "messages")? >= (ROUNDS * FORGED) as i64)
    })?;
    deployment.wait_for_empty_queue(&deployment.queue("results"))?;
    let again = deployment.broker()?.redelivered()?;
    ensure!(
        again == 0,
        "{again} deliveries came again: {}",
        writer.output()
    );
    let stored = deployment.depth(&foreign, "messages")?;
    ensure!(stored == (ROUNDS * FORGED) as i64, "{stored}");
    Ok(())
}

#[test]
fn a_full_queue_of_foreign_results_neither_fills_the_log_nor_holds_a_delivery() -> Result<()> {
    let deployment = Deployment::with_shared_broker(Rabbit::start()?, "full")?;
    let mut writer = deployment.start("consumer-writer", &[])?;
    writer.wait_for_output("writer ready")?;
    let queue = deployment.queue("foreign");
    let pattern = format!("^{}$", queue.replace('.', r"\."));
    let short = ["set_policy", "short", &pattern, r#"{"max-length": 20}"#];
    deployment.broker()?.ctl(&short)?;
    let invented = Uuid::new_v4();
    actions::publish_messages(&deployment, QueueName::RESULTS, &forged(invented, FORGED))?;
    let results = deployment.queue("results");
    actions::wait_until("every forged result", || {
        Ok(deployment.depth(&results, "messages")? == 0)
    })?;
    let kept = deployment.depth(&queue, "messages")?;
    let refused = deployment.sqlite3(
        "select count(*), count(distinct reason), min(detail) from quarantine
         where reason = 'for another database, and the queue `foreign` takes no more'",
    )?;
    // The broker may take a few more than its limit at once.
    ensure!((20..200).contains(&kept), "{kept}");
    let expected = format!("{}|1|database {invented}", FORGED as i64 - kept);
    ensure!(refused == expected, "{refused} instead of {expected}");
    writer.signal("TERM")?;
    ensure!(writer.wait_for_exit()?.code() == Some(0));
    let lines = writer.output().lines().count();
    ensure!(lines < 30, "{}", writer.output());
    Ok(())
}

#[test]
fn an_expired_chunk_of_another_database_is_returned_as_an_expired_one() -> Result<()> {
    let deployment = Deployment::with_shared_broker(Rabbit::start()?, "letters")?;
    // The producer keeps its run, and nobody takes its chunks.
    let hosts = deployment.hosts(10)?.to_string_lossy().into_owned();
    let mut producer = deployment.start("producer", &["--hosts", &hosts])?;
    let work = deployment.queue("work");
    actions::wait_until(
        "the chunk",
        || Ok(deployment.depth(&work, "messages")? == 1),
    )?;
    let body = deployment.sqlite3("select hex(work) from plan")?;
    let body: Result<Vec<u8>, _> = (0..body.len() / 2)
        .map(|byte| u8::from_str_radix(&body[2 * byte..2 * byte + 2], 16))
        .collect();
    actions::publish_dead_letter(&deployment, &body?, "expired")?;
    // The wrong writer sets it aside, and it is returned.
    let wrong = deployment.start("consumer-writer", &["--db", "wrong.db"])?;
    let set_aside = deployment.queue("foreign");
    actions::wait_until("the dead letter", || {
        Ok(deployment.depth(&set_aside, "messages")? == 1)
    })?;
    actions::terminate_cleanly(wrong)?;
    let database = deployment.sqlite3("select lower(hex(uuid)) from database")?;
    foreign(&deployment, &["--return", &database])?;
    let mut writer = actions::start_writer(&deployment)?;
    // An expired chunk is published again. One with an unknown reason would be dead.
    writer.wait_for_output("a policy of the broker")?;
    ensure!(
        deployment.sqlite3("select count(*) from chunks where dead_reason is not null")? == "0"
    );
    producer.signal("INT")?;
    producer.wait_for_exit()?;
    Ok(())
}
