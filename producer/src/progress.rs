//! The progress of a run, as [`crate::run`] publishes it.

use pingfleet_store::{RunState, StatusCounts, Transport, run_span};
use tracing::Span;
use uuid::Uuid;

/// How far a run is. A page or a progress bar can follow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunProgress {
    /// The run's number; absent until its plan is complete.
    pub run: Option<i64>,
    /// The run's id, with its number.
    pub run_id: Option<Uuid>,
    /// What carries its messages.
    pub transport: Option<Transport>,
    /// The run's state.
    pub state: RunState,
    /// Targets of the run.
    pub targets: i64,
    /// Chunks of the run.
    pub chunks: i64,
    /// Chunks whose rows are stored.
    pub chunks_done: i64,
    /// Chunks that are dead, and not retried.
    pub chunks_dead: i64,
    /// Settled targets with each status.
    pub counts: StatusCounts,
    /// Chunks that are published and unsettled.
    pub published: u64,
    /// How many of them there may be.
    pub window: u64,
    /// Workers that are alive.
    pub workers: i64,
    /// Whether somebody consumes the queue of work. Asked only while no worker is alive.
    pub work_consumers: WorkConsumers,
}

/// Whether the broker has consumers of the queue of work.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum WorkConsumers {
    /// None, or it was not asked.
    #[default]
    None,
    /// At least one.
    Some,
    /// The broker did not answer; why, and what to do about it.
    NotKnown(String),
}

impl Default for RunProgress {
    /// A run that is being planned.
    fn default() -> Self {
        Self {
            run: None,
            run_id: None,
            transport: None,
            state: RunState::Planning,
            targets: 0,
            chunks: 0,
            chunks_done: 0,
            chunks_dead: 0,
            counts: StatusCounts::default(),
            published: 0,
            window: 0,
            workers: 0,
            work_consumers: WorkConsumers::None,
        }
    }
}

impl RunProgress {
    /// The span of what is logged about the run.
    pub(crate) fn span(&self) -> Span {
        let named = self.run.zip(self.run_id);
        named.map_or_else(Span::none, |(run, run_id)| run_span(run, run_id))
    }

    /// Targets that are settled.
    #[must_use]
    pub fn settled(&self) -> i64 {
        self.counts.total()
    }
}
