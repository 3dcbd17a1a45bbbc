//! Messages over the limit beside a locked database: the writer's memory stays far below their size.

use anyhow::{Context, Result, ensure};
use pingfleet_broker::QueueName;
use pingfleet_faults::{Deployment, actions};
use pingfleet_testbed::Rabbit;
use rusqlite::Connection;

const MESSAGES: usize = 20;

/// Below RabbitMQ 4's limit of 16 MiB.
const MESSAGE_BYTES: usize = 12 << 20;

/// How much more memory the writer may need for all messages than for one. Each is in memory several times while it arrives,
/// and all of them together are 240 MiB.
const MAX_MORE_MIB: u64 = 60;

/// The most memory that a process ever had, in MiB.
fn peak_mib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = peak.and_then(|peak| peak.split_whitespace().next());
    Ok(kib.context("a peak")?.parse::<u64>()? / 1024)
}

#[test]
fn long_messages_beside_a_locked_database_take_no_memory() -> Result<()> {
    let deployment = Deployment::with_shared_broker(Rabbit::start()?, "long")?;
    let writer = actions::start_writer(&deployment)?;
    let long = vec![vec![0x98; MESSAGE_BYTES]; MESSAGES];
    let quarantined = |messages: usize| {
        actions::wait_until("their quarantine", || {
            let refused = deployment.sqlite3("select count(*), min(length) from quarantine")?;
            Ok(refused == format!("{messages}|{MESSAGE_BYTES}"))
        })
    };
    actions::publish_messages(&deployment, QueueName::RESULTS, &long[..1])?;
    quarantined(1)?;
    let with_one = peak_mib(writer.pid())?;
    let lock = Connection::open(deployment.database())?;
    lock.busy_timeout(std::time::Duration::from_mins(1))?;
    lock.execute_batch("BEGIN IMMEDIATE")?;
    actions::publish_messages(&deployment, QueueName::RESULTS, &long)?;
    let results = deployment.queue("results");
    actions::wait_until("their delivery", || {
        Ok(deployment.depth(&results, "messages_unacknowledged")? == MESSAGES as i64)
    })?;
    lock.execute_batch("COMMIT")?;
    quarantined(MESSAGES + 1)?;
    let with_all = peak_mib(writer.pid())?;
    ensure!(
        with_all < with_one + MAX_MORE_MIB,
        "{with_one} MiB, then {with_all} MiB"
    );
    actions::terminate_cleanly(writer)
}
