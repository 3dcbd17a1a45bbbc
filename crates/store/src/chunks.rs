//! The outbox: chunks to publish, and chunks that are overdue. Chunks are read in pages by key.

use std::time::Duration;

use pingfleet_wire::timing::{WORKER_TIMEOUT, WRITER_TIMEOUT};
use rusqlite::OptionalExtension;

use crate::{StoreError, Transport, Writer, chunk_state::chunk_state, now_us};

/// A chunk is overdue this long, plus twice its worst case, after its last publish.
const GRACE: Duration = Duration::from_secs(10);

/// A chunk to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxChunk {
    /// Its number in the run.
    pub chunk: u32,
    /// The encoded work message, byte for byte as it was planned.
    pub work: Vec<u8>,
}

/// The chunks that are overdue as far as the database knows. The caller checks the depth of the queues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Overdue {
    /// No writer is alive. Results may be waiting for it, so nothing is overdue.
    WriterSilent,
    /// The overdue chunks by number, at most `limit` of them.
    Chunks(Vec<u32>),
}

/// What [`Writer::reopen_published`] does with chunks that are published already.
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
const MAYBE_PUBLISHED: &str = concat!(
    "(c.state = ",
    chunk_state!(Published),
    " OR (c.state = ",
    chunk_state!(Dead),
    " AND c.retrying = 1))"
);

impl Writer {
    /// The next chunks of a run to publish, in the order of the plan: at most `limit`, after chunk `after`.
    /// None when the run is not open.
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
            "SELECT c.chunk, p.work FROM chunks c JOIN plan p ON p.run = c.run AND p.chunk = c.chunk
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
                "SELECT p.work FROM chunks c JOIN plan p ON p.run = c.run AND p.chunk = c.chunk
                 WHERE c.run = ?1 AND c.chunk = ?2 AND {OUTSTANDING}
                   AND EXISTS (SELECT 1 FROM runs n WHERE n.run = ?1 AND n.state = 'running')"
            ))?
            .query_row((run, chunk), |row| {
                Ok(OutboxChunk {
                    chunk,
                    work: row.get(0)?,
                })
            })
            .optional()?)
    }

    /// Records that the broker confirmed these chunks now. A chunk that is done already stays done.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn mark_published(&mut self, run: i64, chunks: &[u32]) -> Result<(), StoreError> {
        let now = now_us();
        self.write(|transaction| {
            let mut statement = transaction.prepare_cached(concat!(
                "UPDATE chunks SET state = max(state, ",
                chunk_state!(Published),
                "), publishes = publishes + 1, published_at_us = ?3
                 WHERE run = ?1 AND chunk = ?2 AND state <> ",
                chunk_state!(Done)
            ))?;
            for chunk in chunks {
                statement.execute((run, chunk, now))?;
            }
            Ok(())
        })
    }

    /// Resumes a run: renews its lease, and with [`Republish::All`] marks every outstanding chunk as not published.
    /// Returns whether the run is open (state `running`).
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn reopen_published(&mut self, run: i64, republish: Republish) -> Result<bool, StoreError> {
        let now = now_us();
        self.write(|transaction| {
            let open = transaction.execute(
                "UPDATE runs SET lease_renewed_us = ?2 WHERE run = ?1 AND state = 'running'",
                (run, now),
            )? > 0;
            if open && republish == Republish::All {
                transaction.execute(
                    &format!("UPDATE chunks AS c SET published_at_us = NULL WHERE c.run = ?1 AND {MAYBE_PUBLISHED}"),
                    [run],
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
        // CROSS JOIN forces this order: one search by key for each worker instead of a scan of the table `in_hand`.
        let mut statement = self.connection.prepare_cached(&format!(
            "SELECT c.chunk FROM chunks c JOIN runs n ON n.run = c.run
             WHERE c.run = ?1 AND n.state = 'running'
               AND {MAYBE_PUBLISHED}
               AND c.published_at_us < ?2 - (?3 + 2 * n.worst_chunk_us) * (1 << min(max(c.publishes - 1, 0), 10))
               AND NOT EXISTS (
                   SELECT 1 FROM workers w CROSS JOIN in_hand h ON h.instance = w.instance
                   WHERE h.run_id = n.run_id AND h.chunk = c.chunk AND w.last_seen_us > ?4)
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
}
