//! Whether chunks of the run in progress are in no queue and in no worker's hand. No I/O.

use std::time::Duration;

use pingfleet_broker::QueueKind;
use pingfleet_report::words::counted;
use pingfleet_store::{RunState, RunSummary, WorkerRow};
use pingfleet_wire::{StatusKind, timing::HEARTBEAT_INTERVAL};

use super::{alerts::Alert, facts::Facts};

/// How long nothing must be settled until chunks that are nowhere count as missing: longer than a result takes from a
/// worker's hand to the database, and shorter than it takes until the producer publishes them again.
const MISSING: Duration = Duration::from_secs(15);

/// How long both queues must have been empty and no worker must have said that it has a chunk: a worker says it with its next
/// heartbeat, which may be on its way.
const UNCLAIMED: Duration = HEARTBEAT_INTERVAL
    .saturating_mul(2)
    .saturating_add(Duration::from_secs(2));

/// How long the broker may take to notice that a worker is gone, and to return its chunks to the queue: some heartbeats of
/// AMQP.
const RETURNED: Duration = Duration::from_mins(5);

/// The alert about chunks of a run in progress that were purged, or whose queue was deleted.
pub(super) fn missing_chunks(facts: &Facts) -> Option<Alert> {
    // The queues of a writer say nothing of a run without a broker.
    let is_running = |run: &&RunSummary| {
        run.state == RunState::Running && Some(run.transport) == facts.transport
    };
    let window = facts.current.as_ref().filter(is_running)?.window?;
    let is_unclaimed = facts.unclaimed_for.is_some_and(|time| time >= UNCLAIMED);
    let is_still = facts.pace.is_some_and(|pace| pace.still >= MISSING);
    if window.in_use == 0 || !is_unclaimed || !is_still {
        return None;
    }
    let title = format!("{} missing", counted(window.in_use, "chunk"));
    let text = "They are published, and neither in a queue nor in a worker's hand: somebody has purged or deleted a \
         queue. Nothing is lost: the producer publishes them again by itself.";
    Some(Alert::new(StatusKind::Unreachable, title, text))
}

/// Whether both queues are empty and no worker has said that it has a chunk in hand.
pub(super) fn are_unclaimed(facts: &Facts) -> bool {
    let is_empty = |wanted| {
        let depths = &facts.queues.depths;
        depths
            .iter()
            .any(|(kind, depth)| *kind == wanted && depth.ready == 0)
    };
    let has_none = |worker: &WorkerRow| worker.in_hand == 0 || worker.age >= RETURNED;
    // What workers have in hand is known, and the broker takes messages.
    facts.is_fleet_known
        && is_empty(QueueKind::Work)
        && is_empty(QueueKind::Results)
        && facts.workers.iter().all(has_none)
}

#[cfg(test)]
mod tests {
    use pingfleet_broker::QueueDepth;
    use pingfleet_store::{
        Durability, NewChunk, NewRun, OpenOptions, PlannedRun, Reader, Transport, WindowUse, Writer,
    };
    use tempfile::TempDir;
    use uuid::Uuid;

    use super::{
        super::{
            alerts::tests::{lost, text, well},
            rates::Pace,
        },
        *,
    };

    /// A running run of three chunks whose producer has this window.
    fn run(folder: &TempDir, window: Option<WindowUse>) -> (Writer, PlannedRun, RunSummary) {
        let options = OpenOptions {
            path: folder.path().join("fleet.db"),
            durability: Durability::Off,
            create: true,
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

    /// Chunks are nowhere, as far as everything but the run says.
    fn nowhere() -> Facts {
        let mut facts = well();
        let empty = QueueDepth {
            ready: 0,
            consumers: 1,
        };
        facts.queues.depths = [QueueKind::Work, QueueKind::Results]
            .map(|kind| (kind, empty))
            .to_vec();
        facts.pace = Some(Pace {
            settled_per_s: 100.0,
            over: 4 * MISSING,
            still: MISSING,
        });
        facts.workers.push(lost("berlin-2", RETURNED));
        facts.unclaimed_for = Some(UNCLAIMED);
        facts.transport = Some(Transport::Broker);
        facts
    }

    #[test]
    fn missing_chunks_are_reported_with_their_number_and_what_happens() {
        let (size, folder) = (64, TempDir::new().unwrap());
        let mut facts = nowhere();
        // What is settled in the rest of the last minute hides nothing.
        let (_store, _planned, summary) = run(&folder, Some(WindowUse { size, in_use: 2 }));
        facts.current = Some(summary);
        let found = text(&facts);
        assert!(
            found.contains("2 chunks missing: They are published"),
            "{found}"
        );
        assert!(found.contains("the producer publishes them again by itself"));
        // The controls: none is published, a run that has ended, and one that nobody produces.
        for (in_use, state) in [
            (0, RunState::Running),
            (2, RunState::Complete),
            (2, RunState::Incomplete),
            (2, RunState::Planning),
        ] {
            let run = facts.current.as_mut().unwrap();
            (run.window, run.state) = (Some(WindowUse { size, in_use }), state);
            assert!(!text(&facts).contains("missing"), "{in_use} {state:?}");
        }
        let run = facts.current.as_mut().unwrap();
        (run.window, run.state) = (None, RunState::Running);
        assert!(!text(&facts).contains("missing"));
        let run = facts.current.as_mut().unwrap();
        run.window = Some(WindowUse { size, in_use: 2 });
        assert!(text(&facts).contains("missing"));
        // A new worker took them all, and has not said so yet.
        for unclaimed_for in [None, Some(HEARTBEAT_INTERVAL)] {
            facts.unclaimed_for = unclaimed_for;
            assert!(!text(&facts).contains("missing"), "{unclaimed_for:?}");
        }
        facts.unclaimed_for = Some(UNCLAIMED);
        let still = facts.pace;
        for pace in [
            None,
            still.map(|pace| Pace {
                still: MISSING / 2,
                ..pace
            }),
        ] {
            facts.pace = pace;
            assert!(!text(&facts).contains("missing"), "it goes on");
        }
        facts.pace = still;
        // A writer of a broker sees a sweep.
        facts.transport = Some(Transport::Sweep);
        assert!(!text(&facts).contains("missing"));
    }

    #[test]
    fn chunks_are_missing_when_they_are_in_no_queue_and_in_no_hand() {
        let mut facts = nowhere();
        assert!(are_unclaimed(&facts));
        facts.workers[0].age = RETURNED / 2;
        assert!(!are_unclaimed(&facts), "a worker has them");
        facts.is_fleet_known = false;
        facts.workers.clear();
        assert!(!are_unclaimed(&facts), "the broker has an alarm");
        facts.is_fleet_known = true;
        for queue in 0..2 {
            facts.queues.depths[queue].1.ready = 1;
            assert!(!are_unclaimed(&facts), "they are in a queue");
            facts.queues.depths[queue].1.ready = 0;
        }
        assert!(are_unclaimed(&facts));
        facts.queues.depths.clear();
        assert!(!are_unclaimed(&facts), "the depths are not known");
    }
}
