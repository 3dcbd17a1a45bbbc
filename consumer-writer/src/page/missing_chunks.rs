//! Whether chunks of the run in progress are in no queue and in no worker's hand.

use std::time::Duration;

use pingfleet_broker::QueueKind;
use pingfleet_report::words::counted;
use pingfleet_store::{Reader, RunState, RunSummary, StoreError};
use pingfleet_wire::{StatusKind, timing::HEARTBEAT_INTERVAL};

use super::{alerts::Alert, facts::Facts};
use crate::WriterState;

/// How long ago a chunk must have been sent: longer than it takes from an empty queue to a worker, and from there to the
/// database.
const SENT: Duration = Duration::from_secs(20);

/// How long there must be such chunks: a worker says what it took with its next heartbeat, which may be on its way.
const UNCLAIMED: Duration = HEARTBEAT_INTERVAL
    .saturating_mul(2)
    .saturating_add(Duration::from_secs(2));

/// How long the broker may take to notice that a worker is gone, and to return its chunks to the queue: some heartbeats of
/// AMQP.
const RETURNED: Duration = Duration::from_mins(5);

/// The alert about chunks of a run in progress that were purged, or whose queue was deleted.
pub(super) fn missing_chunks(facts: &Facts) -> Option<Alert> {
    let is_unclaimed = facts.unclaimed_for.is_some_and(|time| time >= UNCLAIMED);
    if facts.unclaimed == 0 || !is_unclaimed {
        return None;
    }
    let title = format!("{} missing", counted(facts.unclaimed, "chunk"));
    let text = "They are published, and neither in a queue nor in a worker's hand: somebody has purged or deleted a \
         queue. Nothing is lost: the producer publishes them again by itself, within minutes.";
    Some(Alert::new(StatusKind::Unreachable, title, text))
}

/// How many chunks of the current run are in no queue and in no worker's hand, as far as that is known.
pub(super) fn count(facts: &Facts, reader: &Reader) -> Result<i64, StoreError> {
    let run = facts
        .current
        .as_ref()
        .filter(|run| are_all_taken(facts, run));
    run.map_or(Ok(0), |run| {
        reader.unclaimed_chunks(run.run, SENT, RETURNED)
    })
}

/// Whether a run has published chunks, and none is in a queue or with the writer.
fn are_all_taken(facts: &Facts, run: &RunSummary) -> bool {
    let is_empty = |wanted| {
        let depths = &facts.queues.depths;
        depths
            .iter()
            .any(|(kind, depth)| *kind == wanted && depth.ready == 0)
    };
    // The queues of a writer say nothing of a run without a broker.
    run.state == RunState::Running
        && Some(run.transport) == facts.transport
        && run.window.is_some_and(|window| window.in_use > 0)
        // What workers have in hand is known, the broker takes messages, and the writer stores results.
        && facts.is_fleet_known
        && facts.writer.state == WriterState::Connected
        && is_empty(QueueKind::Work)
        && is_empty(QueueKind::Results)
}

#[cfg(test)]
pub(super) mod tests {
    use pingfleet_broker::QueueDepth;
    use pingfleet_store::{
        DecodedDelivery, Durability, FileMode, NewChunk, NewRun, OpenOptions, PlannedRun,
        PublishedChunk, Reader, Transport, WindowUse, Writer, now_us,
    };
    use pingfleet_wire::{ChunkInHand, ChunkKey, Heartbeat};
    use tempfile::TempDir;
    use uuid::Uuid;

    use super::{
        super::alerts::tests::{text, well},
        *,
    };

    /// A running run of three chunks whose producer has this window.
    fn run(folder: &TempDir, window: Option<WindowUse>) -> (Writer, PlannedRun, RunSummary) {
        let options = OpenOptions {
            path: folder.path().join("fleet.db"),
            durability: Durability::Off,
            create: true,
            mode: FileMode::User,
            check: false,
        };
        let mut store = options.open().unwrap();
        let planned = store
            .begin_run(&NewRun {
                transport: Transport::Broker,
                source: "test".to_owned(),
                probing: "{}".to_owned(),
                seed: None,
                worst_chunk: Duration::from_secs(5),
                parent_run: None,
            })
            .unwrap();
        let chunk = |chunk| NewChunk {
            chunk,
            token: Uuid::nil(),
            targets: 1,
            work: Vec::new(),
            labels: Vec::new(),
        };
        let chunks: Vec<_> = (0..3).map(chunk).collect();
        store.add_chunks(planned.run, &chunks).unwrap();
        store.start_run(planned.run).unwrap();
        store.renew_lease(planned.run, window).unwrap();
        let summary = Reader::open(&options.path).unwrap().summary(planned.run);
        (store, planned, summary.unwrap())
    }

    /// A pipeline whose queues are empty, with a run of three published chunks.
    pub(in super::super) fn empty_queues(folder: &TempDir) -> (Writer, PlannedRun, Facts) {
        let (mut store, planned, summary) = run(
            folder,
            Some(WindowUse {
                size: 64,
                in_use: 3,
            }),
        );
        let sent: Vec<_> = (0..3)
            .map(|chunk| PublishedChunk {
                chunk,
                sent_at_us: now_us() - 2 * SENT.as_micros() as i64,
                round: 0,
            })
            .collect();
        store.mark_published(planned.run, &sent).unwrap();
        let mut facts = well();
        let empty = QueueDepth {
            ready: 0,
            consumers: 1,
        };
        facts.queues.depths = [QueueKind::Work, QueueKind::Results]
            .map(|kind| (kind, empty))
            .to_vec();
        facts.transport = Some(Transport::Broker);
        facts.current = Some(summary);
        (store, planned, facts)
    }

    #[test]
    fn chunks_are_missing_when_they_are_in_no_queue_and_in_no_hand() {
        let folder = TempDir::new().unwrap();
        let (mut store, planned, mut facts) = empty_queues(&folder);
        let reader = Reader::open(store.path()).unwrap();
        assert_eq!(count(&facts, &reader).unwrap(), 3);
        // A worker says that it has one of them.
        let key = ChunkKey {
            run: planned.run_id,
            chunk: 1,
        };
        let heartbeat = Heartbeat {
            in_hand: vec![ChunkInHand::just_taken(key)],
            ..Heartbeat::new("berlin-1", Uuid::max())
        };
        store
            .apply(
                Transport::Broker,
                &[DecodedDelivery::Heartbeat {
                    heartbeat,
                    login: None,
                }],
            )
            .unwrap();
        assert_eq!(count(&facts, &reader).unwrap(), 2);
        for queue in 0..2 {
            facts.queues.depths[queue].1.ready = 1;
            assert_eq!(count(&facts, &reader).unwrap(), 0, "they are in a queue");
            facts.queues.depths[queue].1.ready = 0;
        }
        facts.is_fleet_known = false;
        assert_eq!(
            count(&facts, &reader).unwrap(),
            0,
            "the broker has an alarm"
        );
        facts.is_fleet_known = true;
        facts.writer.state = WriterState::WaitingForDatabase;
        assert_eq!(count(&facts, &reader).unwrap(), 0, "the writer has them");
        facts.writer.state = WriterState::Connected;
        facts.transport = Some(Transport::Sweep);
        assert_eq!(
            count(&facts, &reader).unwrap(),
            0,
            "a writer of a broker sees a sweep"
        );
        facts.transport = Some(Transport::Broker);
        for state in [RunState::Complete, RunState::Incomplete, RunState::Planning] {
            facts.current.as_mut().unwrap().state = state;
            assert_eq!(count(&facts, &reader).unwrap(), 0, "{state:?}");
        }
        facts.current.as_mut().unwrap().state = RunState::Running;
        facts.queues.depths.clear();
        assert_eq!(
            count(&facts, &reader).unwrap(),
            0,
            "the depths are not known"
        );
    }

    #[test]
    fn missing_chunks_are_reported_when_no_heartbeat_can_claim_them() {
        let mut facts = well();
        facts.unclaimed = 2;
        facts.unclaimed_for = Some(UNCLAIMED);
        let found = text(&facts);
        assert!(
            found.contains("2 chunks missing: They are published"),
            "{found}"
        );
        assert!(found.contains("the producer publishes them again by itself"));
        // A new worker took them all, and has not said so yet.
        for unclaimed_for in [None, Some(HEARTBEAT_INTERVAL)] {
            facts.unclaimed_for = unclaimed_for;
            assert!(!text(&facts).contains("missing"), "{unclaimed_for:?}");
        }
    }
}
