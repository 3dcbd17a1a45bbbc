//! Compares a later result of a chunk with the stored one, which stays. Honest results can differ: a chunk that is delivered
//! again is probed again.

use std::fmt;

use pingfleet_wire::ResultChunk;

use super::BatchWriter;
use crate::StoreError;

/// Who sent two results of a chunk in which a target has another status.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Contradiction {
    /// The run's number.
    pub run: i64,
    /// Who sent the stored result.
    pub stored_from: Sender,
    /// Who sent the later one.
    pub later_from: Sender,
}

/// Who sent a result.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sender {
    /// The name of the worker. From the message, so untrusted.
    pub worker: String,
    /// The login, which the broker checked. None within one process, and for results that an older version stored.
    pub login: Option<String>,
}

/// `rack-7 (login pingfleet-worker-rack-7)`, not escaped.
impl fmt::Display for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.worker)?;
        match &self.login {
            Some(login) => write!(f, " (login {login})"),
            None => Ok(()),
        }
    }
}

impl BatchWriter<'_> {
    /// Notes a result of a done chunk if the status of a target is not the stored one. Reads at most the rows of the chunk.
    pub(super) fn note_contradiction(
        &mut self,
        run: i64,
        later: &ResultChunk,
        login: Option<&str>,
    ) -> Result<(), StoreError> {
        if !self.differs(run, later)? {
            return Ok(());
        }
        let stored_from = self
            .transaction
            .prepare_cached("SELECT worker, login FROM chunks WHERE run = ?1 AND chunk = ?2")?
            .query_row((run, later.key.chunk), |row| {
                Ok(Sender {
                    worker: row.get::<_, Option<String>>(0)?.unwrap_or_default(),
                    login: row.get(1)?,
                })
            })?;
        let contradiction = Contradiction {
            run,
            stored_from,
            later_from: Sender {
                worker: later.worker.clone(),
                login: login.map(str::to_owned),
            },
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
