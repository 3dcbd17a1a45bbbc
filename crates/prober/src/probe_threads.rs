//! The threads that probe. Each is one OS thread with a current-thread runtime and a prober of its own, so that neither
//! the broker's connection nor another probing thread delays its answers. Names are resolved on the caller's runtime
//! before their targets come here.
//!
//! Invariant: a chunk that goes in comes out as one outcome for each target, or as [`ProbeThreadFailed`].

mod chunk_outcomes;
mod refusal_log;
mod thread;

use std::{
    num::{NonZeroU32, NonZeroUsize},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use futures_util::future;
use pingfleet_wire::{LocalLossCounts, MAX_STARTED_AT_US, Outcome, Probing, Status, WorkChunk};
use thiserror::Error;
use tokio::sync::oneshot;
use tracing::{Span, error};

use self::{
    chunk_outcomes::{ChunkOutcomes, Positioned},
    refusal_log::RefusalLog,
    thread::{Assignment, ProbeThread},
};
use crate::{
    prober::{Destination, Finding, OpenProber, ProbeCounters, ProbeError},
    resolve::{Resolver, Unresolved},
    schedule::pacing::Paces,
};

/// A panic ended the prober that had the chunk; the log names the panic. The chunk was not probed as a whole. The thread
/// continues with a new prober, or ends if it cannot open one.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("the prober of this chunk has failed")]
pub struct ProbeThreadFailed;

/// A chunk that was probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    /// When the probing began, by the wall clock, in microseconds since 1970-01-01 UTC.
    pub started_at_us: u64,
    /// The n-th outcome belongs to the n-th target of the chunk.
    pub outcomes: Vec<Outcome>,
}

/// All probing threads of this process.
#[derive(Debug)]
pub struct ProbeThreads {
    threads: Vec<ProbeThread>,
    paces: Paces,
    resolver: Resolver,
    counters: Arc<ProbeCounters>,
    targets_done: AtomicU64,
    refusals: RefusalLog,
}

impl ProbeThreads {
    /// Starts `count` threads, each with a prober that `opener` opens there. All of them together send at most
    /// `machine_rate` requests a second. Returns when every prober is open.
    ///
    /// # Errors
    /// [`ProbeError`] when one of them cannot be opened; the other threads have ended then.
    pub fn start(
        count: NonZeroUsize,
        opener: &Arc<dyn OpenProber>,
        machine_rate: Option<NonZeroU32>,
        resolver: Resolver,
    ) -> Result<Self, ProbeError> {
        let counters = Arc::new(ProbeCounters::default());
        let mut all = Self {
            threads: Vec::with_capacity(count.get()),
            paces: Paces::new(count.get(), machine_rate),
            resolver,
            counters: Arc::clone(&counters),
            targets_done: AtomicU64::new(0),
            refusals: RefusalLog::default(),
        };
        // They open their probers at the same time. After an error, dropping `all` ends those that have started.
        let mut starting = Vec::with_capacity(count.get());
        for number in 0..count.get() {
            let (thread, started) =
                ProbeThread::start(number, Arc::clone(opener), Arc::clone(&counters))?;
            all.threads.push(thread);
            starting.push(started);
        }
        for started in starting {
            started.recv().unwrap_or(Err(ProbeError::Ended))?;
        }
        Ok(all)
    }

    /// Probes a chunk on the thread that has the fewest destinations in hand. Addresses are sent at once; names follow
    /// when all of them are resolved. Dropping the future gives the chunk up, on the thread as well. What is logged is in the
    /// caller's span, on all threads: it names the chunk.
    ///
    /// # Errors
    /// [`ProbeThreadFailed`] when the prober failed.
    pub async fn probe(&self, chunk: Arc<WorkChunk>) -> Result<Probed, ProbeThreadFailed> {
        let started_at_us = started_at_us(SystemTime::now());
        let mut outcomes = ChunkOutcomes::new(&chunk.targets, Instant::now());
        let (known, names) = outcomes.split_targets();
        let probing_names = async {
            let answers = self.resolve(&names, &chunk.probing).await;
            let resolved = answers
                .iter()
                .filter_map(|(position, answer)| Some((*position, answer.ok()?)));
            let resolved: Vec<_> = resolved.collect();
            let findings = self.dispatch(&chunk, &resolved).await?;
            Ok((answers, resolved, findings))
        };
        let (findings, (answers, resolved, later_findings)) =
            future::try_join(self.dispatch(&chunk, &known), probing_names).await?;
        for (position, answer) in answers {
            if let Err(unresolved) = answer {
                outcomes.not_probed(position, unresolved);
            }
        }
        outcomes.found(&known, &findings);
        outcomes.found(&resolved, &later_findings);
        let Some(outcomes) = outcomes.complete() else {
            error!("the prober did not report every target");
            return Err(ProbeThreadFailed);
        };
        self.count(&outcomes);
        self.refusals.look(&chunk, &outcomes);
        Ok(Probed {
            started_at_us,
            outcomes,
        })
    }

    /// Whether all threads have ended, because none could open a prober again: no chunk can be probed any more.
    #[must_use]
    pub fn have_ended(&self) -> bool {
        !self.threads.iter().any(ProbeThread::is_open)
    }

    /// Requests that the kernel accepted since the start.
    #[must_use]
    pub fn requests_sent(&self) -> u64 {
        self.counters.requests()
    }

    /// Whether more names would only wait for those that are being resolved.
    #[must_use]
    pub fn is_resolver_at_limit(&self) -> bool {
        self.resolver.is_at_limit()
    }

    /// Replies to requests of settled targets since the start.
    #[must_use]
    pub fn replies(&self) -> u64 {
        self.counters.replies()
    }

    /// Attempts that may have been lost on this machine since the start, by cause.
    #[must_use]
    pub fn local_losses(&self) -> LocalLossCounts {
        self.counters.local_losses()
    }

    /// Targets of probed chunks since the start.
    #[must_use]
    pub fn targets_done(&self) -> u64 {
        self.targets_done.load(Ordering::Relaxed)
    }

    /// Gives up what is in hand and waits for the threads to end.
    pub fn close(self) {
        drop(self);
    }

    fn count(&self, outcomes: &[Outcome]) {
        let replies = outcomes.iter().map(|outcome| u64::from(outcome.received));
        self.counters.add_replies(replies.sum());
        for outcome in outcomes {
            if let Status::Unknown(causes) = outcome.status {
                self.counters.add_local_loss(causes);
            }
        }
        self.targets_done
            .fetch_add(outcomes.len() as u64, Ordering::Relaxed);
    }

    /// Resolves the names of a chunk, all at once and in bounded time. Each keeps its position.
    async fn resolve(
        &self,
        names: &[Positioned<&str>],
        probing: &Probing,
    ) -> Vec<Positioned<Result<Destination, Unresolved>>> {
        if names.is_empty() {
            return Vec::new();
        }
        let positions = names.iter().map(|(position, _)| *position);
        let texts = names.iter().map(|(_, name)| *name);
        let answers = self.resolver.resolve_chunk(texts, probing).await;
        positions.zip(answers).collect()
    }

    /// Has destinations of a chunk probed. The n-th finding belongs to the n-th destination.
    async fn dispatch(
        &self,
        chunk: &Arc<WorkChunk>,
        destinations: &[Positioned<Destination>],
    ) -> Result<Vec<Finding>, ProbeThreadFailed> {
        if destinations.is_empty() {
            return Ok(Vec::new());
        }
        let (number, thread) = self
            .threads
            .iter()
            .enumerate()
            .filter(|(_, thread)| thread.is_open())
            .min_by_key(|(_, thread)| (!thread.has_prober(), thread.load()))
            .ok_or(ProbeThreadFailed)?;
        let (findings, answer) = oneshot::channel();
        let assignment = Assignment {
            chunk: Arc::clone(chunk),
            destinations: destinations.iter().map(|(_, to)| *to).collect(),
            pace: self.paces.pace(chunk.key.run, chunk.probing.rate, number),
            span: Span::current(),
            findings,
        };
        let _load = thread.assign(assignment).await?;
        answer.await.map_err(|_| ProbeThreadFailed)
    }
}

/// When a chunk begins, in microseconds since 1970-01-01 UTC, within what a result may say: a wrong clock costs no chunk.
fn started_at_us(clock: SystemTime) -> u64 {
    let since = clock.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).map_or(MAX_STARTED_AT_US, |at| at.min(MAX_STARTED_AT_US))
}

impl Drop for ProbeThreads {
    fn drop(&mut self) {
        for thread in &mut self.threads {
            thread.close();
        }
        for thread in &mut self.threads {
            thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
