//! The progress bar of a supervised run, on standard error. Hidden when that is no terminal or `NO_COLOR` is set.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pingfleet_store::RunSummary;

use crate::summary::counted;

const TEMPLATE: &str = "{elapsed} {percent:>3}% [{wide_bar}] {pos}/{len} eta {eta} {msg}";

/// The progress bar of a run; it may be hidden.
pub(crate) struct RunProgressBar(ProgressBar);

impl RunProgressBar {
    pub(crate) fn start(visible: bool) -> Self {
        let bar = ProgressBar::hidden();
        if visible && std::env::var_os("NO_COLOR").is_none() {
            // indicatif hides it when standard error is no terminal.
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
        // Rare kinds only when there are any, so that the line fits into 80 columns.
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

    /// Runs a function that prints while the bar is hidden.
    pub(crate) fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        self.0.suspend(print)
    }

    pub(crate) fn finish(&self) {
        self.0.finish_and_clear();
    }
}
