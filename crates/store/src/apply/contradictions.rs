//! Compares a later result of a chunk with the stored one, which stays. Honest results can differ: a chunk that is delivered
//! again is probed again.

use pingfleet_wire::ResultChunk;

use super::BatchWriter;
use crate::StoreError;

/// Who sent two results of a chunk in which a target has another status.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Contradiction {
    /// The run's number.
    pub run: i64,
    /// The worker of the stored result. From a message, so untrusted.
    pub stored_from: String,
    /// The worker of the later one. Likewise.
    pub later_from: String,
}

impl BatchWriter<'_> {
    /// Notes a result of a done chunk if the status of a target is not the stored one. Reads at most the rows of the chunk.
    pub(super) fn note_contradiction(
        &mut self,
        run: i64,
        later: &ResultChunk,
    ) -> Result<(), StoreError> {
        if !self.differs(run, later)? {
            return Ok(());
        }
        let stored_from: Option<String> = self
            .transaction
            .prepare_cached("SELECT worker FROM chunks WHERE run = ?1 AND chunk = ?2")?
            .query_row((run, later.key.chunk), |row| row.get(0))?;
        let contradiction = Contradiction {
            run,
            stored_from: stored_from.unwrap_or_default(),
            later_from: later.worker.clone(),
        };
        self.changes.entry(run).or_default().contradictions += 1;
        *self.report.contradictions.entry(contradiction).or_default() += 1;
        Ok(())
    }

    /// Whether a target has another status than in the stored rows of its chunk.
    fn differs(&self, run: i64, later: &ResultChunk) -> Result<bool, StoreError> {
        let mut statement = self.transaction.prepare_cached(
            "SELECT status FROM results WHERE run = ?1 AND chunk = ?2 ORDER BY position",
        )?;
        let mut stored = statement.query((run, later.key.chunk))?;
        for outcome in &later.outcomes {
            let Some(row) = stored.next()? else {
                break;
            };
            if row.get::<_, u8>(0)? != outcome.status.code() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
