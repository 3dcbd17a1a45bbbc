//! The findings of one chunk, collected from all sockets that it uses.

use std::cell::{Cell, RefCell};

use tokio::sync::Notify;

use crate::prober::Finding;

/// Collects the findings of a chunk.
#[derive(Debug)]
pub(in crate::linux) struct ChunkFindings {
    findings: RefCell<Vec<Option<Finding>>>,
    missing: Cell<usize>,
    complete: Notify,
}

impl ChunkFindings {
    /// For a chunk of `targets` targets.
    pub(in crate::linux) fn new(targets: usize) -> Self {
        Self {
            findings: RefCell::new(vec![None; targets]),
            missing: Cell::new(targets),
            complete: Notify::new(),
        }
    }

    /// The finding of the target at `position`. Must be called once for each.
    pub(in crate::linux) fn put(&self, position: u32, finding: Finding) {
        let before = self.findings.borrow_mut()[position as usize].replace(finding);
        debug_assert!(before.is_none(), "a target is settled once");
        self.missing.set(self.missing.get() - 1);
        if self.is_complete() {
            self.complete.notify_one();
        }
    }

    /// Whether no finding is missing.
    pub(in crate::linux) fn is_complete(&self) -> bool {
        self.missing.get() == 0
    }

    /// Waits until no finding is missing. Cancel-safe.
    pub(in crate::linux) async fn complete(&self) -> Vec<Finding> {
        while !self.is_complete() {
            self.complete.notified().await;
        }
        self.findings.take().into_iter().flatten().collect()
    }
}
