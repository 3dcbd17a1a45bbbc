//! What a worker claims to have in hand keeps a chunk from being published again, within limits. A chunk of these plans may
//! be published again 12 s after its first publish, and a claim counts for four times as long.

use anyhow::{Result, ensure};
use pingfleet_store::{DecodedDelivery, Overdue, PlannedRun, Transport, Writer, now_us};
use pingfleet_wire::{ChunkInHand, ChunkKey, Heartbeat, Status, WorkChunk};
use rusqlite::Connection;
use tempfile::TempDir;
use uuid::Uuid;

use crate::sample::{dead_letter, delivery, options, reader, result, sent, start};

/// Seconds for which a claim counts after the first publish.
const LIMIT: i64 = 48;

/// A run of two chunks, both published and, without a claim, both overdue.
struct Claiming {
    store: Writer,
    planned: PlannedRun,
    works: Vec<WorkChunk>,
    clock: Connection,
    _folder: TempDir,
}

impl Claiming {
    fn new() -> Result<Self> {
        let folder = TempDir::new()?;
        let mut store = options(&folder.path().join("fleet.db")).open()?;
        let (planned, works) = start(&mut store, Transport::Broker, &[1, 1])?;
        store.mark_published(planned.run, &sent(&[0, 1]))?;
        store.note_writer_alive(Transport::Broker, "test")?;
        let claiming = Self {
            clock: Connection::open(store.path())?,
            planned,
            store,
            works,
            _folder: folder,
        };
        claiming.pass(1000, "chunks", "published_at_us")?;
        ensure!(claiming.overdue()? == [0, 1], "not overdue to begin with");
        Ok(claiming)
    }

    /// Lets time pass for one column.
    fn pass(&self, seconds: i64, table: &str, column: &str) -> Result<()> {
        let sql = format!("UPDATE {table} SET {column} = {column} - {seconds} * 1000000");
        Ok(self.clock.execute_batch(&sql)?)
    }

    /// Lets time pass for the claims, while the workers are still heard.
    fn pass_for_claims(&self, seconds: i64) -> Result<()> {
        self.pass(seconds, "claims", "first_us")?;
        self.pass(seconds, "in_hand", "counts_until_us")
    }

    /// The heartbeat of a worker that claims these chunks.
    fn claim(&mut self, login: &str, instance: u128, chunks: &[u32]) -> Result<()> {
        let keys = chunks.iter().map(|chunk| ChunkKey {
            run: self.planned.run_id,
            chunk: *chunk,
        });
        let heartbeat = Heartbeat {
            in_hand: keys.map(ChunkInHand::just_taken).collect(),
            ..Heartbeat::new(login, Uuid::from_u128(instance))
        };
        let login = Some(login.to_owned());
        let heartbeat = DecodedDelivery::Heartbeat { heartbeat, login };
        self.store.apply(Transport::Broker, &[heartbeat])?;
        Ok(())
    }

    fn overdue(&self) -> Result<Vec<u32>> {
        match self
            .store
            .overdue(self.planned.run, Transport::Broker, 100)?
        {
            Overdue::Chunks(chunks) => {
                // What is found by overtaking looks at the same claims.
                let facts =
                    self.store
                        .overtaking_facts(self.planned.run, Transport::Broker, 100)?;
                let is_heard = |worker| {
                    let silent_us = 30 * 1_000_000;
                    let mut workers = facts.workers.iter();
                    workers.any(|(one, seen)| one == worker && *seen > now_us() - silent_us)
                };
                let listed = |chunk: &u32| {
                    let mut in_hand = facts.in_hand.iter();
                    in_hand.any(|(worker, listed)| listed == chunk && is_heard(worker))
                };
                ensure!(!chunks.iter().any(listed), "{chunks:?} {facts:?}");
                Ok(chunks)
            }
            Overdue::WriterSilent => anyhow::bail!("the writer is silent"),
        }
    }

    /// Who has a chunk in hand.
    fn holders(&self) -> Result<Vec<(u32, String)>> {
        let sql = "SELECT chunk, login FROM in_hand ORDER BY chunk";
        let mut statement = self.clock.prepare(sql)?;
        let rows = statement.query_map((), |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn rows(&self, table: &str) -> Result<i64> {
        let sql = format!("SELECT count(*) FROM {table}");
        Ok(self.clock.query_row(&sql, (), |row| row.get(0))?)
    }
}

#[test]
fn a_claim_counts_until_its_limit_however_it_is_repeated() -> Result<()> {
    let mut claiming = Claiming::new()?;
    claiming.claim("thief", 1, &[0])?;
    ensure!(claiming.overdue()? == [1]);
    claiming.pass_for_claims(LIMIT - 2)?;
    claiming.claim("thief", 1, &[0])?;
    ensure!(claiming.overdue()? == [1], "it counts until the limit");
    claiming.pass_for_claims(4)?;
    ensure!(claiming.overdue()? == [0, 1], "without another heartbeat");
    claiming.claim("thief", 1, &[0])?;
    ensure!(claiming.overdue()? == [0, 1], "repeated");
    claiming.claim("thief", 2, &[0])?;
    ensure!(claiming.overdue()? == [0, 1], "by another instance");
    claiming.claim("thief", 1, &[])?;
    claiming.claim("thief", 2, &[])?;
    claiming.claim("thief", 1, &[0])?;
    ensure!(claiming.overdue()? == [0, 1], "after it was given up");
    // The control: its first claim of the other chunk counts.
    claiming.claim("thief", 1, &[0, 1])?;
    ensure!(claiming.overdue()? == [0]);
    Ok(())
}

#[test]
fn after_a_publish_the_limit_is_a_new_one_and_longer() -> Result<()> {
    let mut claiming = Claiming::new()?;
    claiming.claim("slow", 1, &[0])?;
    claiming.pass_for_claims(LIMIT + 2)?;
    ensure!(claiming.overdue()? == [0, 1]);
    claiming
        .store
        .mark_published(claiming.planned.run, &sent(&[0]))?;
    claiming.claim("slow", 1, &[0])?;
    claiming.pass(1000, "chunks", "published_at_us")?;
    claiming.pass(1000, "claims", "published_at_us")?;
    ensure!(claiming.overdue()? == [1]);
    claiming.pass_for_claims(2 * LIMIT - 4)?;
    claiming.claim("slow", 1, &[0])?;
    ensure!(claiming.overdue()? == [1]);
    claiming.pass_for_claims(8)?;
    ensure!(claiming.overdue()? == [0, 1]);
    Ok(())
}

#[test]
fn a_true_worker_that_takes_a_chunk_late_is_not_cut_by_an_older_claim() -> Result<()> {
    let mut claiming = Claiming::new()?;
    // Both chunks waited in the queue for 1,000 s, and somebody claimed them before.
    claiming.claim("thief", 1, &[0, 1])?;
    claiming.pass_for_claims(LIMIT + 2)?;
    claiming.claim("thief", 1, &[0, 1])?;
    ensure!(claiming.overdue()? == [0, 1]);
    claiming.claim("true", 1, &[0])?;
    ensure!(claiming.overdue()? == [1]);
    ensure!(claiming.holders()? == [(0, "true".to_owned()), (1, "thief".to_owned())]);
    // A claim whose limit has passed displaces none that counts.
    claiming.claim("thief", 1, &[0, 1])?;
    ensure!(claiming.overdue()? == [1]);
    ensure!(claiming.holders()? == [(0, "true".to_owned()), (1, "thief".to_owned())]);
    Ok(())
}

#[test]
fn a_claim_of_another_login_counts_when_the_first_worker_is_silent() -> Result<()> {
    let mut claiming = Claiming::new()?;
    claiming.claim("first", 1, &[0])?;
    claiming.claim("second", 1, &[0])?;
    ensure!(claiming.holders()? == [(0, "first".to_owned())]);
    claiming.pass(10, "workers", "last_seen_us")?;
    claiming.claim("second", 1, &[0])?;
    ensure!(claiming.holders()? == [(0, "first".to_owned())]);
    claiming.pass(10, "workers", "last_seen_us")?;
    claiming.claim("second", 1, &[0])?;
    ensure!(claiming.holders()? == [(0, "second".to_owned())]);
    ensure!(claiming.overdue()? == [1]);
    // The worker of the second login stops being heard: nobody has it.
    claiming.pass(31, "workers", "last_seen_us")?;
    ensure!(claiming.overdue()? == [0, 1]);
    Ok(())
}

#[test]
fn only_chunks_that_are_published_and_not_settled_can_be_claimed() -> Result<()> {
    let mut claiming = Claiming::new()?;
    let (unpublished, _) = start(&mut claiming.store, Transport::Broker, &[1])?;
    claiming.claim("w", 1, &[0, 1, 2, 77])?;
    ensure!(claiming.rows("in_hand")? == 2 && claiming.rows("claims")? == 2);
    for run in [unpublished.run_id, Uuid::now_v7()] {
        let heartbeat = Heartbeat {
            in_hand: vec![ChunkInHand::just_taken(ChunkKey { run, chunk: 0 })],
            ..Heartbeat::new("w", Uuid::from_u128(2))
        };
        let login = Some("w".to_owned());
        let heartbeat = DecodedDelivery::Heartbeat { heartbeat, login };
        claiming.store.apply(Transport::Broker, &[heartbeat])?;
    }
    ensure!(claiming.rows("in_hand")? == 2);
    // Settled ones are forgotten, and cannot be claimed again.
    let done = delivery(result(&claiming.works[0], &[Status::Up]));
    let dead = dead_letter(&claiming.works[1]);
    claiming.store.apply(Transport::Broker, &[done, dead])?;
    ensure!(claiming.rows("claims")? == 0);
    claiming.claim("w", 1, &[0, 1])?;
    ensure!(claiming.rows("in_hand")? == 0 && claiming.rows("claims")? == 0);
    Ok(())
}

#[test]
fn fifteen_hundred_heartbeats_of_512_claims_leave_a_row_for_each_chunk() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = options(&folder.path().join("fleet.db")).open()?;
    let (planned, _works) = start(&mut store, Transport::Broker, &[1; 100])?;
    let chunks: Vec<u32> = (0..100).collect();
    store.mark_published(planned.run, &sent(&chunks))?;
    let claimed = (0..512).map(|chunk| {
        ChunkInHand::just_taken(ChunkKey {
            run: planned.run_id,
            chunk,
        })
    });
    let claimed: Vec<_> = claimed.collect();
    for instance in 0..1500 {
        let heartbeat = Heartbeat {
            in_hand: claimed.clone(),
            ..Heartbeat::new(instance.to_string(), Uuid::from_u128(instance))
        };
        let login = Some(format!("thief-{}", instance % 3));
        let heartbeat = DecodedDelivery::Heartbeat { heartbeat, login };
        store.apply(Transport::Broker, &[heartbeat])?;
    }
    let connection = Connection::open(store.path())?;
    let rows = |table: &str| -> Result<i64> {
        let sql = format!("SELECT count(*) FROM {table}");
        Ok(connection.query_row(&sql, (), |row| row.get(0))?)
    };
    ensure!(rows("in_hand")? == 100, "{}", rows("in_hand")?);
    ensure!(rows("claims")? == 300, "{}", rows("claims")?);
    let in_hand: i64 = reader(&store)?
        .workers()?
        .iter()
        .map(|one| one.in_hand)
        .sum();
    ensure!(in_hand == 100, "{in_hand}");
    Ok(())
}
