//! The progress bar of a waiting producer, on standard error, where that is a terminal and `NO_COLOR` is not set.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pingfleet_store::RunSummary;

use crate::summary::counted;

const TEMPLATE: &str = "{elapsed} {percent:>3}% [{wide_bar}] {pos}/{len} eta {eta} {msg}";

/// A bar, or nothing.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    pub(crate) fn start(wanted: bool) -> Self {
        let bar = ProgressBar::hidden();
        if wanted && std::env::var_os("NO_COLOR").is_none() {
            // Hidden by itself where standard error is no terminal.
            bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(4));
        }
        let style = ProgressStyle::with_template(TEMPLATE)
            .expect("the template is a constant that parses")
            .progress_chars("=> ");
        bar.set_style(style);
        bar.enable_steady_tick(Duration::from_millis(500));
        Self(bar)
    }

    pub(crate) fn show(&self, summary: &RunSummary, workers: i64) {
        let settled = summary.settled();
        self.0.set_length(summary.targets.unsigned_abs());
        self.0.set_position(settled.unsigned_abs());
        let up = summary.counts[0] + summary.counts[1];
        let hit = if settled > 0 {
            100.0 * up as f64 / settled as f64
        } else {
            0.0
        };
        // Short, so that the line fits into 80 columns: only what there is of the rarer kinds.
        let rarer = [
            (summary.counts[5], "unknown"),
            (summary.chunks_dead, "dead chunks"),
        ];
        let parts: Vec<_> = std::iter::once(format!("{hit:.1}% up"))
            .chain(
                rarer
                    .iter()
                    .filter(|(count, _)| *count > 0)
                    .map(|(count, what)| format!("{count} {what}")),
            )
            .chain([counted(workers, "worker")])
            .collect();
        self.0.set_message(parts.join(", "));
    }

    /// Runs something that prints, with the bar out of the way.
    pub(crate) fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        self.0.suspend(print)
    }

    pub(crate) fn finish(&self) {
        self.0.finish_and_clear();
    }
}
