//! A result that differs from the stored one: it changes nothing, and the writer says so once, with both workers.

use anyhow::{Context, Result, ensure};
use pingfleet_broker::QueueName;
use pingfleet_faults::{Deployment, actions};
use pingfleet_store::now_us;
use pingfleet_testbed::Rabbit;
use pingfleet_wire::{Message as _, Outcome, ResultChunk, Rtt, Status, Token, Version, WorkChunk};
use rusqlite::Connection;

/// Results of another worker for all chunks of a plan, in which every target has one status.
pub(crate) fn results(
    deployment: &Deployment,
    worker: &str,
    status: Status,
) -> Result<Vec<Vec<u8>>> {
    let connection = Connection::open(deployment.database())?;
    let mut plan = connection.prepare("SELECT work FROM plan ORDER BY chunk")?;
    let works: Vec<Vec<u8>> = plan
        .query_map((), |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let has_answered = status == Status::Up;
    let outcome = Outcome {
        status,
        address: None,
        sent: 1,
        received: has_answered.into(),
        rtt: has_answered.then_some(Rtt {
            min_ns: 1_000_000,
            avg_ns: 1_000_000,
            max_ns: 1_000_000,
            stddev_ns: 0,
        }),
        attempts: 1,
        probed_after_us: 0,
    };
    let result = |work: &Vec<u8>| {
        let work = WorkChunk::decode(work).context("a work message")?;
        let message = ResultChunk {
            version: Version,
            database: work.database,
            key: work.key,
            token: Token(work.token.0),
            worker: worker.to_owned(),
            redelivered: false,
            started_at_us: now_us().unsigned_abs(),
            outcomes: vec![outcome.clone(); work.targets.len()],
        };
        Ok(message.encode())
    };
    works.iter().map(result).collect()
}

#[test]
fn results_that_differ_from_the_stored_ones_change_nothing_and_are_in_the_log() -> Result<()> {
    const CHUNKS: i64 = 30;
    let deployment = Deployment::with_shared_broker(Rabbit::start()?, "differ")?;
    let mut writer = actions::start_writer(&deployment)?;
    actions::publish_run(&deployment, 300, 10)?;
    let stored = || {
        deployment.sqlite3("select status, count(*), sum(rtt_avg_ns) from results group by status")
    };
    let counts = || deployment.sqlite3("select duplicates, contradictions from runs");
    let publish = |worker: &str, status| {
        let results = results(&deployment, worker, status)?;
        actions::publish_messages(&deployment, QueueName::RESULTS, &results)
    };
    let counted =
        |expected: &str| actions::wait_until("the counters", || Ok(counts()? == expected));
    publish("one", Status::Up)?;
    deployment.wait_for_run("the whole run", |run| run.chunks_done == CHUNKS)?;
    let first = stored()?;
    // The control: the same statuses of another worker are duplicates, and nothing else.
    publish("same", Status::Up)?;
    counted("30|0")?;
    publish("other", Status::DOWN)?;
    counted("60|30")?;
    ensure!(stored()? == first, "{} instead of {first}", stored()?);
    let listed = {
        let mut runs = deployment.start("pingfleet", &["runs", "--json"])?;
        ensure!(runs.wait_for_exit()?.success(), "{}", runs.output());
        runs.output()
    };
    ensure!(listed.contains("\"contradictions\":30"), "{listed}");
    writer.signal("TERM")?;
    ensure!(writer.wait_for_exit()?.code() == Some(0));
    let output = writer.output();
    let warnings: Vec<_> = output
        .lines()
        .filter(|line| line.contains("results differ from those stored before"))
        .collect();
    ensure!((1..10).contains(&warnings.len()), "{output}");
    ensure!(
        warnings
            .iter()
            .all(|line| line.contains("of other after one in run 1")),
        "{warnings:?}"
    );
    ensure!(!output.contains("of same after"), "{output}");
    Ok(())
}
