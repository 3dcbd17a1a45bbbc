//! Reads pages of rows on a thread of their own while others are written. No connection is open between two pages, so an
//! output that waits, such as a pager, holds nothing of the database.

use std::{sync::mpsc, thread};

use pingfleet_store::StoreError;
use tokio_util::sync::CancellationToken;

/// Pages that wait to be written; one more is being read.
const PAGES_AHEAD: usize = 1;

/// The pages that were read.
pub(crate) type Pages<'a, P> = &'a mut dyn Iterator<Item = Result<P, StoreError>>;

/// Calls `next_page` on a thread of its own until a page `is_last` or an error, while `write` consumes the pages. When
/// `write` has ended, `stop` is cancelled, so that a query that nobody waits for can be interrupted.
pub(crate) fn read_ahead<P: Send, T>(
    mut next_page: impl FnMut() -> Result<P, StoreError> + Send,
    is_last: impl Fn(&P) -> bool + Send,
    stop: &CancellationToken,
    write: impl FnOnce(Pages<'_, P>) -> T,
) -> T {
    let (sender, receiver) = mpsc::sync_channel(PAGES_AHEAD);
    thread::scope(|scope| {
        scope.spawn(move || {
            loop {
                let page = next_page();
                let is_end = page.as_ref().map_or(true, &is_last);
                // It fails when the consumer has ended early.
                if sender.send(page).is_err() || is_end {
                    return;
                }
            }
        });
        let written = write(&mut receiver.into_iter());
        stop.cancel();
        written
    })
}
