//! Probes a chunk in this process, and runs a test in a network of its own.

use std::{process::Command, sync::Arc, time::Duration};

use pingfleet_prober::probe_threads::{ProbeThreads, Probed};
use pingfleet_wire::{
    ChunkKey, Message, Outcome, Probing, ResultChunk, Target, Token, Version, WorkChunk,
};
use uuid::Uuid;

pub(crate) fn chunk(probing: Probing, targets: Vec<Target>) -> Arc<WorkChunk> {
    Arc::new(WorkChunk {
        version: Version,
        database: Uuid::new_v4(),
        key: ChunkKey {
            run: Uuid::new_v4(),
            chunk: 0,
        },
        token: Token(Uuid::new_v4()),
        probing,
        targets,
    })
}

/// One request with a short timeout, without pacing.
pub(crate) fn quick() -> Probing {
    Probing {
        retries: 0,
        timeout: Duration::from_millis(300),
        rate: None,
        ..Probing::default()
    }
}

/// The outcomes of a chunk.
pub(crate) async fn probe(threads: &ProbeThreads, chunk: Arc<WorkChunk>) -> Vec<Outcome> {
    let expected = chunk.targets.len();
    let Probed {
        started_at_us,
        outcomes,
    } = threads
        .probe(Arc::clone(&chunk))
        .await
        .expect("the prober does not panic");
    assert_eq!(outcomes.len(), expected);
    // The codec checks that the outcomes are consistent.
    let result = ResultChunk {
        version: Version,
        database: chunk.database,
        key: chunk.key,
        token: chunk.token,
        worker: "test".to_owned(),
        redelivered: false,
        started_at_us,
        outcomes,
    };
    let read = ResultChunk::decode(&result.encode());
    read.expect("the outcomes are consistent").outcomes
}

/// Runs the ignored test `inner` with a command that enters a network.
pub(crate) fn run_inner(mut enter: Command, inner: &str) {
    let output = enter
        .arg(std::env::current_exe().expect("a test has a binary"))
        .args(["--exact", inner, "--ignored", "--nocapture"])
        .output()
        .expect("the command that enters the network runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    // A test filter without a match also succeeds.
    assert!(text.contains("1 passed"), "{text}{errors}");
}
