//! Reads parts of rows on threads of their own while others are written. No connection is open between two parts, so an
//! output that waits, such as a pager, holds nothing of the database.

use std::{
    iter,
    sync::{Mutex, mpsc},
    thread,
};

use pingfleet_store::StoreError;
use tokio_util::sync::CancellationToken;

/// Threads that read. More than two read no faster than one thread writes.
const THREADS: usize = 2;

/// The pages that were read, in the order of their parts.
pub(crate) type Pages<'a, P> = &'a mut dyn Iterator<Item = Result<P, StoreError>>;

/// Calls `read` for each part, on threads of their own and in any order, while `write` consumes the pages in the order of
/// the parts. An error is the last page. At most two pages for each thread are in memory, and the one that is written.
/// When `write` has ended, `stop` is cancelled, so that a query that nobody waits for can be interrupted.
///
/// # Panics
/// When `parts` or `read` does: `write` panics then as well, so that what was read before does not look whole.
pub(crate) fn read_ahead<I, P: Send, T>(
    parts: impl Iterator<Item = Result<I, StoreError>> + Send,
    read: impl Fn(I) -> Result<P, StoreError> + Sync,
    stop: &CancellationToken,
    write: impl FnOnce(Pages<'_, P>) -> T,
) -> T {
    let parts = Mutex::new(parts);
    // In the order of the parts: where the page comes, or None at the end.
    let (pages_sender, pages) = mpsc::sync_channel(THREADS);
    let read_parts = |pages: mpsc::SyncSender<Option<mpsc::Receiver<_>>>| {
        loop {
            // A thread that panics with it ends the others as well.
            let mut parts = parts.lock().expect("no thread has panicked");
            let Some(part) = parts.next() else {
                // It fails when the consumer has ended early.
                pages.send(None).ok();
                return;
            };
            let (page_sender, page) = mpsc::sync_channel(1);
            if pages.send(Some(page)).is_err() {
                return;
            }
            drop(parts);
            let page = part.and_then(&read);
            let is_error = page.is_err();
            if page_sender.send(page).is_err() || is_error {
                return;
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..THREADS {
            let pages = pages_sender.clone();
            scope.spawn(|| read_parts(pages));
        }
        drop(pages_sender);
        let mut has_ended = false;
        let mut in_order = iter::from_fn(|| {
            if has_ended {
                return None;
            }
            let received = pages.recv().map(|page| page.map(|page| page.recv()));
            let page = match received {
                Ok(None) => None,
                Ok(Some(Ok(page))) => Some(page),
                Ok(Some(Err(_))) | Err(_) => panic!("a thread that reads has panicked"),
            };
            has_ended = page.as_ref().is_none_or(Result::is_err);
            page
        });
        let written = write(&mut in_order);
        // The threads may wait for room.
        drop(pages);
        stop.cancel();
        written
    })
}
