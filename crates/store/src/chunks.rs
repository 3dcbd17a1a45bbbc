//! The outbox: chunks to publish, and chunks that are overdue. Chunks are read in pages by key.

use std::time::Duration;

use pingfleet_wire::timing::{WORKER_TIMEOUT, WRITER_TIMEOUT};
use rusqlite::{Connection, OptionalExtension, Row};
use uuid::Uuid;

use crate::{StoreError, Transport, Writer, chunk_state::chunk_state, now_us};

/// [`AGE_LIMIT`].
macro_rules! age_limit {
    () => {
        "(?3 + 2 * n.worst_chunk_us) * (1 << min(max(c.publishes - 1, 0), 10))"
    };
}

/// A chunk is past its age this long, plus twice its worst case, after its last publish. Each further publish doubles the
/// sum.
pub(crate) const GRACE: Duration = Duration::from_secs(10);

/// A chunk to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxChunk {
    /// Its number in the run.
    pub chunk: u32,
    /// The encoded work message, byte for byte as it was planned.
    pub work: Vec<u8>,
    /// The publish round of the run's transport when it was read: a number that grows, see [`OvertakingFacts`].
    pub round: i64,
}

/// A chunk that the broker confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishedChunk {
    /// Its number in the run.
    pub chunk: u32,
    /// When it was sent for the last time, in microseconds since 1970-01-01 UTC. Its message is not older.
    pub sent_at_us: i64,
    /// The round in which it was sent; 0 when it was sent more than once.
    pub round: i64,
}

/// A producer has at most this many chunks sent and not recorded by [`Writer::mark_published`]. They come first among the
/// unpublished ones, because chunks are sent in the order of the plan.
pub const MAX_UNRECORDED: usize = 600;

/// What the database shows of the chunks of one run that are past their age, and of those who may have them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OvertakingFacts {
    /// The last update of the writer; absent when there never was one.
    pub writer_seen_us: Option<i64>,
    /// The largest publish round of a settled chunk of which exactly one message was sent.
    pub settled_round: i64,
    /// Published and unsettled chunks that are past their age, in ascending order.
    pub past_age: Vec<u32>,
    /// All workers that did not take their leave, with their last heartbeat.
    pub workers: Vec<(WorkerKey, i64)>,
    /// Chunks of this run that a worker listed in its last heartbeat, if that still counts.
    pub in_hand: Vec<(WorkerKey, u32)>,
}

/// One process of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerKey {
    /// Its login; empty within one process.
    pub login: String,
    /// Random for each start of the process. The worker chose it.
    pub instance: Uuid,
}

impl WorkerKey {
    /// The columns `login` and `instance`, which come first.
    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            login: row.get(0)?,
            instance: row.get(1)?,
        })
    }
}

/// The chunks that may be overdue: they are past their age, and no live worker has them in hand. The caller decides by
/// the queues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Overdue {
    /// No writer is alive. Results may be waiting for it, so nothing is overdue.
    WriterSilent,
    /// The chunks by number, at most `limit` of them.
    Chunks(Vec<u32>),
}

/// What [`Writer::take_over_run`] does with chunks that are published already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Republish {
    /// Publish them again: the queues were in a process that has ended.
    All,
    /// Leave them: their messages are in the broker's queues.
    None,
}

/// The SQL condition of a chunk that is planned or published, or dead and to be retried.
const OUTSTANDING: &str = concat!(
    "(c.state IN (",
    chunk_state!(Planned),
    ", ",
    chunk_state!(Published),
    ") OR (c.state = ",
    chunk_state!(Dead),
    " AND c.retrying = 1))"
);

/// The SQL condition of an outstanding chunk that may have been published.
pub(crate) const MAYBE_PUBLISHED: &str = concat!(
    "(c.state = ",
    chunk_state!(Published),
    " OR (c.state = ",
    chunk_state!(Dead),
    " AND c.retrying = 1))"
);

/// The publish round of the transport of run ?1.
const PUBLISH_ROUND: &str =
    "coalesce((SELECT w.publish_round FROM writers w JOIN runs n ON n.transport = w.transport
                   WHERE n.run = ?1), 0)";

/// The SQL condition of a chunk `c` of a run `n` whose last publish is older than ?3 and twice the worst case at ?2,
/// doubled with each publishing again.
const PAST_AGE: &str = concat!("c.published_at_us < ?2 - ", age_limit!());

/// The SQL expression of how old the last publish of a chunk `c` of a run `n` may be, in microseconds.
pub(crate) const AGE_LIMIT: &str = age_limit!();

/// Whether chunk ?2 was published before what is sent at ?3, and whether nothing of it was sent before. After a policy
/// removed its message, the chunk counts no publish, and its time is negative.
const EARLIER_PUBLISH: &str =
    "SELECT publishes > 0 OR coalesce(published_at_us < 0 AND ?3 > -published_at_us, 0),
           publishes = 0 AND published_round >= 0
    FROM chunks WHERE run = ?1 AND chunk = ?2";

fn count_republished(
    connection: &Connection,
    run: i64,
    republished: i64,
) -> Result<(), StoreError> {
    if republished > 0 {
        connection.execute(
            "UPDATE runs SET republished = republished + ?2 WHERE run = ?1",
            (run, republished),
        )?;
    }
    Ok(())
}

/// How many chunks of a run were sent before a time, are not settled, and are in the hand of no worker that was heard since
/// another time.
pub(crate) fn unclaimed(
    connection: &Connection,
    run: i64,
    sent_before_us: i64,
    heard_since_us: i64,
) -> Result<i64, StoreError> {
    let mut statement = connection.prepare(&format!(
        "SELECT count(*) FROM chunks c JOIN runs n ON n.run = c.run
         WHERE c.run = ?1 AND n.state = 'running' AND {MAYBE_PUBLISHED} AND c.published_at_us < ?2
           AND NOT EXISTS (
               SELECT 1 FROM in_hand h CROSS JOIN workers w ON w.login = h.login AND w.instance = h.instance
               WHERE h.run = c.run AND h.chunk = c.chunk AND h.counts_until_us > ?4 AND w.last_seen_us > ?3)"
    ))?;
    let parameters = (run, sent_before_us, heard_since_us, now_us());
    Ok(statement.query_row(parameters, |row| row.get(0))?)
}

impl Writer {
    /// The next chunks of a run to publish, in the order of the plan: at most `limit`, after chunk `after`.
    /// Empty when the run is not open.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn unpublished_chunks(
        &self,
        run: i64,
        after: Option<u32>,
        limit: usize,
    ) -> Result<Vec<OutboxChunk>, StoreError> {
        let sql = format!(
            "SELECT c.chunk, p.work, {PUBLISH_ROUND} FROM chunks c JOIN plan p ON p.run = c.run AND p.chunk = c.chunk
             WHERE c.run = ?1 AND c.chunk > ?2 AND c.published_at_us IS NULL AND {OUTSTANDING}
               AND EXISTS (SELECT 1 FROM runs n WHERE n.run = ?1 AND n.state = 'running')
             ORDER BY c.chunk LIMIT ?3"
        );
        let mut statement = self.connection.prepare_cached(&sql)?;
        let rows =
            statement.query_map((run, after.map_or(-1, i64::from), limit as i64), |row| {
                Ok(OutboxChunk {
                    chunk: row.get(0)?,
                    work: row.get(1)?,
                    round: row.get(2)?,
                })
            })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The work message of one chunk that is still outstanding, for publishing it again.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn outstanding_work(
        &self,
        run: i64,
        chunk: u32,
    ) -> Result<Option<OutboxChunk>, StoreError> {
        Ok(self
            .connection
            .prepare_cached(&format!(
                "SELECT p.work, {PUBLISH_ROUND} FROM chunks c JOIN plan p ON p.run = c.run AND p.chunk = c.chunk
                 WHERE c.run = ?1 AND c.chunk = ?2 AND {OUTSTANDING}
                   AND EXISTS (SELECT 1 FROM runs n WHERE n.run = ?1 AND n.state = 'running')"
            ))?
            .query_row((run, chunk), |row| {
                Ok(OutboxChunk {
                    chunk,
                    work: row.get(0)?,
                    round: row.get(1)?,
                })
            })
            .optional()?)
    }

    /// Records that chunks were published and confirmed. A chunk that is done already stays done. Counts those that were
    /// published before in the run's `republished`.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn mark_published(
        &mut self,
        run: i64,
        chunks: &[PublishedChunk],
    ) -> Result<(), StoreError> {
        self.write(|transaction| {
            let mut publish = transaction.prepare_cached(concat!(
                "UPDATE chunks SET state = max(state, ",
                chunk_state!(Published),
                "), publishes = publishes + 1,
                        published_at_us = iif(?3 <= -published_at_us, published_at_us, ?3),
                        published_round = iif(published_round < 0, -1, ?4)
                 WHERE run = ?1 AND chunk = ?2 AND state <> ",
                chunk_state!(Done)
            ))?;
            let mut earlier = transaction.prepare_cached(EARLIER_PUBLISH)?;
            let mut settled_round = 0;
            let mut republished = 0;
            for published in chunks {
                let (chunk, sent_at_us) = (published.chunk, published.sent_at_us);
                // There are no chunks of a pruned run.
                let (is_again, is_first): (bool, bool) = earlier
                    .query_row((run, chunk, sent_at_us), |row| {
                        Ok((row.get(0)?, row.get(1)?))
                    })
                    .optional()?
                    .unwrap_or_default();
                republished += i64::from(is_again);
                let changed = publish.execute((run, chunk, sent_at_us, published.round))?;
                // It was settled before it was recorded.
                if changed == 0 && is_first {
                    settled_round = settled_round.max(published.round);
                }
            }
            count_republished(transaction, run, republished)?;
            if settled_round > 0 {
                transaction.execute(
                    "UPDATE writers SET settled_round = max(settled_round, ?2)
                     WHERE transport = (SELECT transport FROM runs WHERE run = ?1)",
                    (run, settled_round),
                )?;
            }
            Ok(())
        })
    }

    /// The chunks of a run whose message a policy of the broker or a foreign consumer removed, and which were not published since: at most
    /// `limit` of them. Empty when the run is not open.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn removed_chunks(&self, run: i64, limit: usize) -> Result<Vec<u32>, StoreError> {
        let mut statement = self.connection.prepare_cached(&format!(
            "SELECT c.chunk FROM chunks c
             WHERE c.run = ?1 AND c.published_at_us < 0 AND {OUTSTANDING}
               AND EXISTS (SELECT 1 FROM runs n WHERE n.run = ?1 AND n.state = 'running')
             ORDER BY c.chunk LIMIT ?2"
        ))?;
        let rows = statement.query_map((run, limit as i64), |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// How many chunks of a run are published and unsettled. Reads all chunks of the run.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn published_unsettled(&self, run: i64) -> Result<u64, StoreError> {
        let count: i64 = self.connection.query_row(
            &format!(
                "SELECT count(*) FROM chunks c
                 WHERE c.run = ?1 AND c.published_at_us IS NOT NULL AND {MAYBE_PUBLISHED}"
            ),
            [run],
            |row| row.get(0),
        )?;
        Ok(count.unsigned_abs())
    }

    /// How many chunks of a run are settled: done or dead. One row by its key.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn settled_chunks(&self, run: i64) -> Result<i64, StoreError> {
        Ok(self
            .connection
            .prepare_cached("SELECT chunks_done + chunks_dead FROM runs WHERE run = ?1")?
            .query_row([run], |row| row.get(0))?)
    }

    /// Takes over a run from an earlier producer: renews its lease, and with [`Republish::All`] marks every outstanding
    /// chunk as not published. What the earlier producer may have sent without recording it gets no publish round.
    /// Returns whether the run is open (state `running`).
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn take_over_run(&mut self, run: i64, republish: Republish) -> Result<bool, StoreError> {
        let now = now_us();
        self.write(|transaction| {
            let open = transaction.execute(
                "UPDATE runs SET lease_renewed_us = ?2, publish_window = NULL, chunks_in_window = NULL
                 WHERE run = ?1 AND state = 'running'",
                (run, now),
            )? > 0;
            if open && republish == Republish::All {
                transaction.execute(
                    &format!("UPDATE chunks AS c SET published_at_us = NULL WHERE c.run = ?1 AND {MAYBE_PUBLISHED}"),
                    [run],
                )?;
            }
            if open {
                // The earlier producer may have sent these without recording it.
                transaction.execute(
                    concat!(
                        "UPDATE chunks SET published_round = -1
                         WHERE run = ?1 AND chunk IN (
                            SELECT chunk FROM chunks
                            WHERE run = ?1 AND state IN (",
                        chunk_state!(Planned),
                        ", ",
                        chunk_state!(Published),
                        ") AND published_at_us IS NULL
                            ORDER BY chunk LIMIT ?2)"
                    ),
                    (run, MAX_UNRECORDED as i64),
                )?;
            }
            Ok(open)
        })
    }

    /// The published chunks of a run that are overdue by what the database knows: the last publish is older than 10 s
    /// and twice the worst case, doubled with each publishing again; the writer is alive; and no live worker has
    /// the chunk in hand.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn overdue(
        &self,
        run: i64,
        transport: Transport,
        limit: usize,
    ) -> Result<Overdue, StoreError> {
        let now = now_us();
        let alive: Option<i64> = self
            .connection
            .prepare_cached("SELECT seen_us FROM writers WHERE transport = ?1")?
            .query_row([transport.name()], |row| row.get(0))
            .optional()?;
        if alive.is_none_or(|seen| seen < now - WRITER_TIMEOUT.as_micros() as i64) {
            return Ok(Overdue::WriterSilent);
        }
        // CROSS JOIN forces this order: two searches by key.
        let mut statement = self.connection.prepare_cached(&format!(
            "SELECT c.chunk FROM chunks c JOIN runs n ON n.run = c.run
             WHERE c.run = ?1 AND n.state = 'running'
               AND {MAYBE_PUBLISHED} AND {PAST_AGE}
               AND NOT EXISTS (
                   SELECT 1 FROM in_hand h CROSS JOIN workers w ON w.login = h.login AND w.instance = h.instance
                   WHERE h.run = c.run AND h.chunk = c.chunk AND h.counts_until_us > ?2 AND w.last_seen_us > ?4)
             ORDER BY c.chunk LIMIT ?5"
        ))?;
        let rows = statement.query_map(
            (
                run,
                now,
                GRACE.as_micros() as i64,
                now - WORKER_TIMEOUT.as_micros() as i64,
                limit as i64,
            ),
            |row| row.get(0),
        )?;
        Ok(Overdue::Chunks(rows.collect::<Result<_, _>>()?))
    }

    /// What the database shows of the chunks of a run that are past their age, at most `limit` of them.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn overtaking_facts(
        &self,
        run: i64,
        transport: Transport,
        limit: usize,
    ) -> Result<OvertakingFacts, StoreError> {
        let connection = &self.connection;
        let writer: Option<(i64, i64)> = connection
            .prepare_cached("SELECT seen_us, settled_round FROM writers WHERE transport = ?1")?
            .query_row([transport.name()], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let past_age = connection
            .prepare_cached(&format!(
                "SELECT c.chunk FROM chunks c JOIN runs n ON n.run = c.run
                 WHERE c.run = ?1 AND n.state = 'running' AND {MAYBE_PUBLISHED} AND {PAST_AGE} ORDER BY c.chunk LIMIT ?4"
            ))?
            .query_map(
                (run, now_us(), GRACE.as_micros() as i64, limit as i64),
                |row| row.get(0),
            )?
            .collect::<Result<Vec<u32>, _>>()?;
        let workers = connection
            .prepare_cached("SELECT login, instance, last_seen_us FROM workers")?
            .query_map((), |row| Ok((WorkerKey::from_row(row)?, row.get(2)?)))?
            .collect::<Result<_, _>>()?;
        let in_hand = connection
            .prepare_cached(
                "SELECT login, instance, chunk FROM in_hand WHERE run = ?1 AND counts_until_us > ?2",
            )?
            .query_map((run, now_us()), |row| {
                Ok((WorkerKey::from_row(row)?, row.get(2)?))
            })?
            .collect::<Result<_, _>>()?;
        Ok(OvertakingFacts {
            writer_seen_us: writer.map(|(seen_us, _)| seen_us),
            settled_round: writer.map_or(0, |(_, round)| round),
            past_age,
            workers,
            in_hand,
        })
    }

    /// Begins a publish round of a transport: chunks that are sent from now on carry its number, which is returned.
    /// `None` when there never was a writer.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn begin_publish_round(&mut self, transport: Transport) -> Result<Option<i64>, StoreError> {
        self.write(|transaction| {
            Ok(transaction
                .prepare_cached(
                    "UPDATE writers SET publish_round = publish_round + 1 WHERE transport = ?1
                     RETURNING publish_round",
                )?
                .query_row([transport.name()], |row| row.get(0))
                .optional()?)
        })
    }
}
