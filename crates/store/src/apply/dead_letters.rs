//! Applies dead letters: chunks that killed their workers, and chunks whose message a policy of the broker or a foreign
//! consumer removed.

use pingfleet_wire::WorkChunk;

use super::{BatchWriter, Disposition, RawMessage};
use crate::{ChunkState, StoreError, chunk_state::chunk_state, liveness};

impl BatchWriter<'_> {
    /// Applies one dead letter: its chunk is dead, or due to be published again.
    pub(super) fn take_dead<'b>(
        &mut self,
        message: &WorkChunk,
        raw: &'b RawMessage,
        reason: &str,
    ) -> Result<Disposition<'b>, StoreError> {
        let planned = match self.planned_chunk(message.database, message.key, message.token.0)? {
            Ok(planned) => planned,
            Err(refusal) => return Ok(Disposition::Quarantined { raw, refusal }),
        };
        let changes = self.changes.entry(planned.run).or_default();
        if planned.state == ChunkState::Done
            || (planned.state == ChunkState::Dead && !planned.retrying)
        {
            changes.duplicates += 1;
            return Ok(Disposition::Duplicate);
        }
        if let Some(removed) = removed(reason)
            && self.take_removed(planned.run, message.key.chunk, removed)?
        {
            return Ok(Disposition::Applied { rows: 0 });
        }
        let changes = self.changes.entry(planned.run).or_default();
        changes.dead += 1;
        changes.newly_dead.get_or_insert((message.key.run, 0)).1 += 1;
        self.transaction
            .prepare_cached(concat!(
                "UPDATE chunks SET state = ",
                chunk_state!(Dead),
                ", retrying = 0, dead_reason = ?3, settled_at_us = ?4
                     WHERE run = ?1 AND chunk = ?2"
            ))?
            .execute((planned.run, message.key.chunk, reason, self.now))?;
        liveness::forget_claims(self.transaction, planned.run, message.key.chunk)?;
        Ok(Disposition::Applied { rows: 0 })
    }

    /// The chunk's message is gone, and no worker is to blame: it is due to be published again, as if the last publish had
    /// never been. See [`crate::Writer::removed_chunks`]. What a policy removed from a run that no producer supervises is not,
    /// and this returns false: nobody would publish it. One `basic.reject` makes no chunk dead: `--resume` publishes it then.
    fn take_removed(&mut self, run: i64, chunk: u32, by: RemovedBy) -> Result<bool, StoreError> {
        let changed = self
            .transaction
            .prepare_cached(
                "UPDATE chunks SET published_at_us = -?3, publishes = max(publishes - 1, 0), published_round = -1
                 WHERE run = ?1 AND chunk = ?2
                   AND EXISTS (SELECT 1 FROM runs n
                               WHERE n.run = ?1 AND n.state = 'running' AND (?4 OR n.lease_renewed_us IS NOT NULL))",
            )?
            .execute((run, chunk, self.now, matches!(by, RemovedBy::Rejection)))?;
        let removed = &mut self.report.removed;
        match by {
            RemovedBy::Policy => removed.by_policy += changed as u64,
            RemovedBy::Rejection => removed.by_rejection += changed as u64,
        }
        Ok(changed > 0)
    }
}

/// Who removed a message from its queue.
#[derive(Debug, Clone, Copy)]
enum RemovedBy {
    /// A policy: the message was older than `message-ttl`, or the queue longer than `max-length`.
    Policy,
    /// A consumer that is no worker of ours: those give back what they cannot do.
    Rejection,
}

/// Who removed a message, by its reason in `x-death` (RabbitMQ's guide to dead letter exchanges). None for `delivery_limit`: the
/// chunk came back too often.
fn removed(reason: &str) -> Option<RemovedBy> {
    match reason {
        "expired" | "maxlen" => Some(RemovedBy::Policy),
        "rejected" => Some(RemovedBy::Rejection),
        _ => None,
    }
}
