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
/// the parts. An error is the last page. At most `THREADS + 1` pages are in memory, and the one that is written.
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
    let read_parts = |pages: mpsc::SyncSender<mpsc::Receiver<_>>| {
        loop {
            // A thread that panics with it ends the others as well.
            let mut parts = parts.lock().expect("no thread has panicked");
            let (page_sender, page) = mpsc::sync_channel(1);
            // First, because it may wait for long, and a part is what it is when it is taken.
            if pages.send(page).is_err() {
                // The consumer has ended early.
                return;
            }
            let part = parts.next();
            drop(parts);
            let page = part.map(|part| part.and_then(&read));
            let is_last = page.as_ref().is_none_or(Result::is_err);
            if page_sender.send(page).is_err() || is_last {
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
            let received = pages.recv().and_then(|page| page.recv());
            let page = received.expect("no thread that reads has panicked");
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

#[cfg(test)]
mod tests {
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        sync::{
            Condvar,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use super::*;

    /// The numbers of the pages that `write` gets, and whether an error was the last one.
    fn collect(pages: Pages<'_, usize>) -> (Vec<usize>, bool) {
        let mut numbers = Vec::new();
        for page in pages {
            match page {
                Ok(number) => numbers.push(number),
                Err(_) => return (numbers, true),
            }
        }
        (numbers, false)
    }

    fn parts(count: usize) -> impl Iterator<Item = Result<usize, StoreError>> + Send {
        (0..count).map(Ok)
    }

    #[test]
    fn pages_come_in_the_order_of_their_parts_also_when_a_later_one_is_read_first() {
        // Part 0 is read when part 1 has been.
        let (done, changed) = (Mutex::new(false), Condvar::new());
        let read = |part: usize| {
            let mut is_done = done.lock().unwrap();
            if part == 0 {
                drop(changed.wait_while(is_done, |is_done| !*is_done).unwrap());
            } else {
                *is_done = true;
                changed.notify_all();
            }
            Ok(part)
        };
        let stop = CancellationToken::new();
        let (numbers, has_failed) = read_ahead(parts(50), read, &stop, collect);
        assert!(numbers.into_iter().eq(0..50) && !has_failed);
        assert!(stop.is_cancelled());
        let none = read_ahead(parts(0), Ok, &stop, collect);
        assert_eq!(none, (Vec::new(), false));
    }

    #[test]
    fn an_error_is_the_last_page() {
        let stop = CancellationToken::new();
        let read = |part| {
            if part == 7 {
                Err(StoreError::Interrupted)
            } else {
                Ok(part)
            }
        };
        let found = read_ahead(parts(50), read, &stop, collect);
        assert_eq!(found, ((0..7).collect(), true));
        let broken = parts(3)
            .chain([Err(StoreError::Interrupted)])
            .chain(parts(9));
        let found = read_ahead(broken, Ok, &stop, collect);
        assert_eq!(found, (vec![0, 1, 2], true));
    }

    #[test]
    fn a_panic_while_a_part_is_read_or_made_does_not_look_like_the_end() {
        let stop = CancellationToken::new();
        let read = |part| {
            assert!(part < 5, "part 5");
            Ok(part)
        };
        let caught = catch_unwind(AssertUnwindSafe(|| {
            read_ahead(parts(50), read, &stop, collect)
        }));
        assert!(caught.is_err());
        let made = parts(50).inspect(|part| assert!(part.as_ref().is_ok_and(|part| *part < 5)));
        let caught = catch_unwind(AssertUnwindSafe(|| read_ahead(made, Ok, &stop, collect)));
        assert!(caught.is_err());
    }

    #[test]
    fn who_takes_one_page_waits_for_no_other_and_little_is_read_ahead() {
        let stop = CancellationToken::new();
        let begun = AtomicUsize::new(0);
        let read = |part| {
            begun.fetch_add(1, Ordering::Relaxed);
            Ok(part)
        };
        let first = read_ahead(parts(50), read, &stop, |pages| {
            pages.next().unwrap().unwrap()
        });
        assert_eq!(first, 0);
        assert!(begun.into_inner() <= THREADS + 1);
    }
}
