//! The plan: complete before anything is published, or removed; cut by count and by size.

use std::time::Duration;

use anyhow::Result;
use pingfleet_settings::Exit;
use pingfleet_store::{NewChunk, NewRun, PlannedProbing, Transport};
use pingfleet_wire::{
    MAX_CHUNK_BYTES, MAX_NAME_BYTES, Message as _, StatusKind, Target, WorkChunk,
};
use producer::{EarlierTargets, EndReason, RunRequest};
use uuid::Uuid;

use crate::rig::{Rig, publishes};

/// No row and no lock of a plan is left.
fn assert_nothing_is_left(rig: &Rig) -> Result<()> {
    for table in ["runs", "plan", "chunks", "labels"] {
        assert_eq!(
            rig.number(&format!("SELECT count(*) FROM {table}"))?,
            0,
            "{table}"
        );
    }
    assert_eq!(locks(rig)?, 0);
    assert!(rig.watch.log.events().is_empty());
    Ok(())
}

/// Lock files of runs.
fn locks(rig: &Rig) -> Result<usize> {
    let mut locks = 0;
    for entry in std::fs::read_dir(rig.folder.path())? {
        locks += usize::from(entry?.file_name().to_string_lossy().contains("-run-"));
    }
    Ok(locks)
}

/// The work messages of the plan, in its order.
fn works(rig: &Rig) -> Result<Vec<Vec<u8>>> {
    let connection = rig.connection()?;
    let mut works = connection.prepare("SELECT work FROM plan ORDER BY run, chunk")?;
    let works = works.query_map((), |row| row.get(0))?;
    Ok(works.collect::<Result<_, _>>()?)
}

#[tokio::test]
async fn the_plan_is_committed_before_the_first_publish_and_published_byte_for_byte() -> Result<()>
{
    let mut rig = Rig::new(1)?;
    // More than one transaction of the plan, and more than one page of the outbox.
    let outcome = rig.detached(&["10.0.0.0/24"]).await?;
    assert_eq!(outcome.reason, EndReason::Detached);
    assert_eq!(outcome.exit(false), Exit::Complete);
    rig.assert_published_as_planned();
    let probing: String = rig
        .connection()?
        .query_row("SELECT probing FROM runs", (), |row| row.get(0))?;
    let probing = PlannedProbing::from_json(&probing)?;
    assert_eq!(probing.probing, rig.settings.probing.probing);
    assert_eq!(probing.chunk_size, rig.settings.probing.chunk_size);
    let publishes = publishes(&rig.watch.log.events());
    assert_eq!(publishes.len(), 254);
    assert!(publishes.values().all(|times| *times == 1), "{publishes:?}");
    assert_eq!(
        rig.number("SELECT count(*) FROM chunks WHERE state = 1 AND publishes = 1")?,
        254
    );
    assert_eq!(locks(&rig)?, 0);
    Ok(())
}

#[tokio::test]
async fn interrupted_planning_leaves_nothing() -> Result<()> {
    let rig = Rig::new(1)?;
    let producing = rig.start(Rig::plan(&["10.0.0.0/24"])?).await?;
    *rig.watch
        .cancelled_by_check
        .lock()
        .expect("nothing panics with it") = Some(producing.stop.clone());
    let outcome = producing.ended().await??;
    assert_eq!(outcome.reason, EndReason::Interrupted);
    assert_eq!(outcome.summary, None);
    assert_eq!(outcome.exit(false), Exit::Interrupted);
    assert_nothing_is_left(&rig)
}

#[tokio::test]
async fn planning_that_fails_in_the_middle_leaves_nothing() -> Result<()> {
    let rig = Rig::new(1)?;
    rig.connection()?.execute_batch(
        "CREATE TRIGGER fault BEFORE INSERT ON chunks WHEN NEW.chunk = 150
         BEGIN SELECT RAISE(ABORT, 'injected'); END",
    )?;
    let ended = rig
        .start(Rig::plan(&["10.0.0.0/24"])?)
        .await?
        .ended()
        .await?;
    assert!(ended.is_err(), "{ended:?}");
    assert_nothing_is_left(&rig)
}

#[tokio::test]
async fn the_plan_of_a_producer_that_is_gone_is_removed_at_the_next_start() -> Result<()> {
    let mut rig = Rig::new(10)?;
    let mut store = rig.store()?;
    let abandoned = store.begin_run(&NewRun {
        transport: Transport::Broker,
        source: "gone".to_owned(),
        probing: "{}".to_owned(),
        seed: None,
        worst_chunk: Duration::from_secs(5),
        parent_run: None,
    })?;
    store.add_chunks(
        abandoned.run,
        &[NewChunk {
            chunk: 0,
            token: Uuid::new_v4(),
            targets: 1,
            work: vec![0],
            labels: vec![(0, "{}".to_owned())],
        }],
    )?;
    drop(abandoned);
    rig.detached(&["10.0.0.1"]).await?;
    assert_eq!(rig.number("SELECT count(*) FROM runs")?, 1);
    assert_eq!(
        rig.number("SELECT count(*) FROM runs WHERE source = 'gone'")?,
        0
    );
    assert_eq!(rig.number("SELECT count(*) FROM plan")?, 1);
    assert_eq!(rig.number("SELECT count(*) FROM labels")?, 0);
    rig.assert_published_as_planned();
    Ok(())
}

#[tokio::test]
async fn chunks_are_cut_by_count() -> Result<()> {
    let mut rig = Rig::new(100)?;
    rig.detached(&["10.0.0.0/24"]).await?;
    let mut sizes = Vec::new();
    for work in works(&rig)? {
        sizes.push(WorkChunk::decode(&work)?.targets.len());
    }
    assert_eq!(sizes, [100, 100, 54]);
    assert_eq!(rig.number("SELECT sum(targets) FROM chunks")?, 254);
    Ok(())
}

#[tokio::test]
async fn chunks_of_long_names_are_cut_by_their_bytes() -> Result<()> {
    let mut rig = Rig::new(10_000)?;
    let label = "x".repeat(60);
    let names: Vec<_> = (0..3000)
        .map(|number| format!("{number:05}.{label}.{label}.{label}.{label}"))
        .collect();
    let hosts = rig.folder.path().join("hosts.txt");
    std::fs::write(&hosts, names.join("\n"))?;
    rig.detached(&["--hosts", &hosts.to_string_lossy()]).await?;
    rig.assert_published_as_planned();
    let works = works(&rig)?;
    let mut planned = Vec::new();
    for (number, work) in works.iter().enumerate() {
        assert!(work.len() <= MAX_CHUNK_BYTES, "{}", work.len());
        let targets = WorkChunk::decode(work)?.targets;
        // Only the last chunk has room for another name. The producer counts up to one byte too many for a name.
        let full = work.len() + targets.len() + MAX_NAME_BYTES + 16 > MAX_CHUNK_BYTES;
        assert!(full || number + 1 == works.len(), "{}", work.len());
        for target in targets {
            planned.push(target.to_string());
        }
    }
    assert_eq!(planned, names);
    assert_eq!(works.len(), 3);
    Ok(())
}

/// The targets of a run's plan, in its order.
fn planned_targets(rig: &Rig, run: i64) -> Result<Vec<Target>> {
    let connection = rig.connection()?;
    let mut works = connection.prepare("SELECT work FROM plan WHERE run = ?1 ORDER BY chunk")?;
    let works: Vec<Vec<u8>> = works
        .query_map([run], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let mut targets = Vec::new();
    for work in works {
        targets.extend(WorkChunk::decode(&work)?.targets);
    }
    Ok(targets)
}

#[tokio::test]
async fn a_plan_of_an_earlier_run_has_its_targets_in_its_order() -> Result<()> {
    // Chunks of one: more targets than are read at once.
    let mut rig = Rig::new(1)?;
    rig.detached(&["10.0.0.0/24"]).await?;
    let all = planned_targets(&rig, 1)?;
    // Each second target is down, the others are up, and the last one has no row.
    let connection = rig.connection()?;
    for (chunk, target) in all.iter().enumerate().take(253) {
        let Target::Address(std::net::IpAddr::V4(address)) = target else {
            anyhow::bail!("{target}");
        };
        connection.execute(
            "INSERT INTO results (run, chunk, position, status, sent, received, attempts, probed_after_us, address)
             VALUES (1, ?1, 0, ?2, 1, 0, 1, 0, ?3)",
            (
                chunk as i64,
                if chunk % 2 == 0 { 6 } else { 0 },
                i64::from(address.to_bits()) - (1 << 31),
            ),
        )?;
    }
    connection.execute(
        "INSERT INTO labels VALUES (1, 2, 0, '{\"site\":\"x\"}')",
        (),
    )?;
    let earlier = || {
        RunRequest::PlanAgain(EarlierTargets {
            run: 1,
            statuses: vec![StatusKind::Down, StatusKind::Unknown],
            source: "down of run 1".to_owned(),
        })
    };
    rig.settings.detach = true;
    let outcome = rig.start(earlier()).await?.ended().await??;
    assert_eq!(outcome.reason, EndReason::Detached);
    let down: Vec<_> = all.iter().take(253).step_by(2).cloned().collect();
    assert_eq!(planned_targets(&rig, 2)?, down);
    assert_eq!(down.len(), 127);
    assert_eq!(rig.number("SELECT parent_run FROM runs WHERE run = 2")?, 1);
    assert_eq!(rig.number("SELECT chunk FROM labels WHERE run = 2")?, 1);
    assert_eq!(
        rig.number("SELECT seed IS NULL FROM runs WHERE run = 2")?,
        1
    );
    rig.assert_published_as_planned();
    // Nobody may change the earlier run meanwhile.
    let _lock = pingfleet_store::FileLock::run(&rig.path(), 1)?;
    let refused = rig.start(earlier()).await?.ended().await?;
    assert!(
        refused.is_err_and(|error| error.to_string().contains("run 1 is in use")),
        "the lock is not looked at"
    );
    assert_eq!(rig.number("SELECT count(*) FROM runs")?, 2);
    Ok(())
}
