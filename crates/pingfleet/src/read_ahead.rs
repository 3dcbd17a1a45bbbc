//! Reads pages of rows on a thread of their own while others are written. No connection is open between two pages, so an
//! output that waits, such as a pager, holds nothing of the database.

use std::{iter, sync::mpsc, thread};

use pingfleet_store::StoreError;
use tokio_util::sync::CancellationToken;

/// Pages that wait to be written; one more is being read.
const PAGES_AHEAD: usize = 1;

/// The pages that were read.
pub(crate) type Pages<'a, P> = &'a mut dyn Iterator<Item = Result<P, StoreError>>;

/// Calls `next_page` on a thread of its own until a page `is_last` or an error, while `write` consumes the pages. When
/// `write` has ended, `stop` is cancelled, so that a query that nobody waits for can be interrupted.
///
/// # Panics
/// When `next_page` does: `write` panics then as well, so that what was read before does not look whole.
pub(crate) fn read_ahead<P: Send, T>(
    mut next_page: impl FnMut() -> Result<P, StoreError> + Send,
    is_last: impl Fn(&P) -> bool + Sync,
    stop: &CancellationToken,
    write: impl FnOnce(Pages<'_, P>) -> T,
) -> T {
    let (sender, receiver) = mpsc::sync_channel(PAGES_AHEAD);
    let ends = |page: &Result<P, StoreError>| page.as_ref().map_or(true, &is_last);
    thread::scope(|scope| {
        scope.spawn(|| {
            let sender = sender;
            loop {
                let page = next_page();
                let is_end = ends(&page);
                // It fails when the consumer has ended early.
                if sender.send(page).is_err() || is_end {
                    return;
                }
            }
        });
        let mut has_ended = false;
        let mut pages = iter::from_fn(|| {
            let Ok(page) = receiver.recv() else {
                assert!(has_ended, "the thread that reads pages has panicked");
                return None;
            };
            has_ended = ends(&page);
            Some(page)
        });
        let written = write(&mut pages);
        // The thread may wait for room.
        drop(receiver);
        stop.cancel();
        written
    })
}
