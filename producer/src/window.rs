//! The publish window: how many chunks of a run may be published and unsettled. Pure.
//!
//! A small window lets `cancel` reach nearly the whole run, and lets runs share the workers. A large window keeps the
//! workers busy between two looks at the database. So it follows from what the workers take and from what was settled
//! lately.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// The window is never smaller.
const MIN_WINDOW: u64 = 64;

/// The window of an unlimited run in one process: the size of the in-process queues.
const UNLIMITED_LOCAL_WINDOW: u64 = 512;

/// The window covers what was settled in this time.
const COVERED: Duration = Duration::from_secs(2);

/// While the window is full, the database is looked at this many times within the time in which the whole window is
/// settled, within these limits.
const LOOKS_PER_WINDOW: f64 = 8.0;
const MIN_TOP_UP_INTERVAL: Duration = Duration::from_millis(5);
const MAX_TOP_UP_INTERVAL: Duration = Duration::from_millis(20);

/// The publish window of one run.
#[derive(Debug)]
pub(crate) struct PublishWindow {
    /// A lower limit.
    floor: u64,
    /// Published and unsettled when supervision began.
    published_before: u64,
    /// Settled when supervision began, and now.
    settled_before: i64,
    settled: i64,
    /// How many chunks were settled at earlier looks: the last one that is older than [`COVERED`], and all younger ones.
    history: VecDeque<(Instant, i64)>,
    /// The sum of the prefetch of the live workers.
    prefetch: u64,
}

impl PublishWindow {
    /// A window of a run of which `published` chunks are published and unsettled, and `settled` are settled.
    /// `is_unlimited_local`: its worker runs in this process, at an unlimited rate.
    pub(crate) fn new(
        now: Instant,
        published: u64,
        settled: i64,
        is_unlimited_local: bool,
    ) -> Self {
        Self {
            floor: if is_unlimited_local {
                UNLIMITED_LOCAL_WINDOW
            } else {
                MIN_WINDOW
            },
            published_before: published,
            settled_before: settled,
            settled,
            history: VecDeque::from([(now, settled)]),
            prefetch: 0,
        }
    }

    /// Notes how many chunks of the run are settled.
    pub(crate) fn note_settled(&mut self, now: Instant, settled: i64) {
        self.settled = settled;
        self.history.push_back((now, settled));
        while let Some((next, _)) = self.history.get(1)
            && now.duration_since(*next) >= COVERED
        {
            self.history.pop_front();
        }
    }

    /// Notes the sum of the prefetch of the live workers.
    pub(crate) fn set_prefetch(&mut self, prefetch: u64) {
        self.prefetch = prefetch;
    }

    /// How many chunks may be published and unsettled.
    pub(crate) fn size(&self) -> u64 {
        let lately = self.settled_lately();
        self.floor.max(2 * self.prefetch).max(lately)
    }

    /// The largest number of publishes that is permitted since supervision began.
    pub(crate) fn allowed(&self) -> u64 {
        (self.size() + self.settled_since()).saturating_sub(self.published_before)
    }

    /// How many chunks are published and unsettled, when `sent` were published since supervision began.
    pub(crate) fn in_use(&self, sent: u64) -> u64 {
        (self.published_before + sent).saturating_sub(self.settled_since())
    }

    /// When to look again while the window is full.
    pub(crate) fn top_up_interval(&self) -> Duration {
        let lately = self.settled_lately();
        if lately == 0 {
            return MAX_TOP_UP_INTERVAL;
        }
        let elapsed = match (self.history.front(), self.history.back()) {
            (Some((first, _)), Some((last, _))) => last.duration_since(*first),
            _ => COVERED,
        };
        elapsed
            .mul_f64(self.size() as f64 / lately as f64)
            .div_f64(LOOKS_PER_WINDOW)
            .clamp(MIN_TOP_UP_INTERVAL, MAX_TOP_UP_INTERVAL)
    }

    fn settled_since(&self) -> u64 {
        u64::try_from(self.settled - self.settled_before).unwrap_or(0)
    }

    fn settled_lately(&self) -> u64 {
        let before = self
            .history
            .front()
            .map_or(self.settled, |(_, settled)| *settled);
        u64::try_from(self.settled - before).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_the_largest_of_its_three_bounds() {
        let start = Instant::now();
        let mut window = PublishWindow::new(start, 0, 0, false);
        assert_eq!(window.size(), MIN_WINDOW);
        window.set_prefetch(100);
        assert_eq!(window.size(), 200);
        window.note_settled(start + Duration::from_secs(1), 300);
        assert_eq!(window.size(), 300);
        // What was settled more than two seconds ago no longer counts.
        window.note_settled(start + Duration::from_secs(3), 310);
        assert_eq!(window.size(), 200);
        window.note_settled(start + Duration::from_millis(3500), 310);
        assert_eq!(window.size(), 200);
    }

    #[test]
    fn settled_chunks_are_replaced_one_by_one() {
        let start = Instant::now();
        let mut window = PublishWindow::new(start, 0, 0, false);
        assert_eq!(window.allowed(), MIN_WINDOW);
        window.note_settled(start, 5);
        assert_eq!(window.allowed(), MIN_WINDOW + 5);
        assert_eq!(window.in_use(MIN_WINDOW + 5), MIN_WINDOW);
    }

    #[test]
    fn chunks_of_an_earlier_producer_count() {
        let start = Instant::now();
        // More are in the queue than the window allows, because the run was detached.
        let mut window = PublishWindow::new(start, 1000, 2000, false);
        assert_eq!(window.allowed(), 0);
        let later = start + 10 * COVERED;
        window.note_settled(later, 2936);
        window.note_settled(later + 2 * COVERED, 2936);
        assert_eq!(window.allowed(), 0);
        assert_eq!(window.in_use(0), MIN_WINDOW);
        window.note_settled(later + 4 * COVERED, 2937);
        assert_eq!(window.allowed(), 1);
    }

    #[test]
    fn an_unlimited_run_in_one_process_fills_the_queues() {
        let window = PublishWindow::new(Instant::now(), 0, 0, true);
        assert_eq!(window.size(), UNLIMITED_LOCAL_WINDOW);
    }

    #[test]
    fn a_faster_run_is_looked_at_more_often() {
        let start = Instant::now();
        let mut window = PublishWindow::new(start, 0, 0, false);
        assert_eq!(window.top_up_interval(), MAX_TOP_UP_INTERVAL);
        // A window of 64 takes 106 ms, an eighth of it 13 ms.
        window.note_settled(start + Duration::from_millis(100), 60);
        let interval = window.top_up_interval();
        assert!(
            MIN_TOP_UP_INTERVAL < interval && interval < MAX_TOP_UP_INTERVAL,
            "{interval:?}"
        );
        let mut window = PublishWindow::new(start, 0, 0, false);
        window.note_settled(start + Duration::from_millis(10), 60);
        assert_eq!(window.top_up_interval(), MIN_TOP_UP_INTERVAL);
    }
}
