//! Shows the progress of a run on standard error: a bar that counts targets, and a warning when no worker is alive.
//!
//! The bar reads only [`RunProgress`]. It is hidden when standard error is no terminal or `NO_COLOR` is set.

use std::{
    io::{self, Write},
    mem::{self, Discriminant},
    pin::pin,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pingfleet_store::{RunState, Transport};
use pingfleet_wire::StatusKind;
use tokio::{sync::watch, time::Instant};

use crate::{RunProgress, WorkConsumers, summary::counted};

const TEMPLATE: &str = "{elapsed} {percent:>3}% [{wide_bar}] {pos}/{len} eta {eta} {msg}";

/// After this time without a live worker a warning says what to do. It is repeated at the interval, and after the first time
/// when its cause is another.
const NO_WORKER_WARNING: Duration = Duration::from_secs(10);
const NO_WORKER_INTERVAL: Duration = Duration::from_mins(1);

/// The progress bar of a run; it may be hidden.
pub struct RunProgressBar(ProgressBar);

/// An output that hides the bar while it is written to.
pub struct BesideBar<W> {
    bar: ProgressBar,
    output: W,
}

impl RunProgressBar {
    /// A bar; hidden unless it is to be `visible`.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "the template is a constant")]
    pub fn start(visible: bool) -> Self {
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

    /// An output for the printed targets.
    pub fn output<W: Write>(&self, output: W) -> BesideBar<W> {
        BesideBar {
            bar: self.0.clone(),
            output,
        }
    }

    /// Shows progress as long as `work` runs, then removes the bar.
    pub async fn follow<T>(
        &self,
        mut progress: watch::Receiver<RunProgress>,
        work: impl Future<Output = T>,
    ) -> T {
        let mut work = pin!(work);
        let mut warning = NoWorkerWarning::new();
        let done = loop {
            tokio::select! {
                biased;
                done = &mut work => break done,
                Ok(()) = progress.changed() => {
                    let progress = progress.borrow_and_update().clone();
                    self.show(&progress);
                    if let Some(silent) = warning.is_due(Instant::now(), &progress) {
                        let span = progress.span();
                        self.0.suspend(|| {
                            span.in_scope(|| warn_without_worker(silent, &progress.work_consumers));
                        });
                    }
                }
            }
        };
        self.0.finish_and_clear();
        done
    }

    fn show(&self, progress: &RunProgress) {
        let settled = progress.settled();
        self.0.set_length(progress.targets.unsigned_abs());
        self.0.set_position(settled.unsigned_abs());
        self.0.set_message(message(progress));
    }
}

/// What stands behind the bar.
fn message(progress: &RunProgress) -> String {
    let settled = progress.settled();
    let up = progress.counts.answered();
    let hit = if settled > 0 {
        100.0 * up as f64 / settled as f64
    } else {
        0.0
    };
    // Rare kinds only when there are any, so that the line fits into 80 columns.
    let rarer = [
        (progress.counts[StatusKind::Unknown], "unknown"),
        (progress.chunks_dead, "dead chunks"),
    ];
    let parts: Vec<_> = std::iter::once(format!("{hit:.1}% up"))
        .chain(
            rarer
                .iter()
                .filter(|(count, _)| *count > 0)
                .map(|(count, what)| format!("{count} {what}")),
        )
        .chain([counted(progress.workers, "worker")])
        .collect();
    parts.join(", ")
}

fn warn_without_worker(silent: Duration, consumers: &WorkConsumers) {
    let seconds = silent.as_secs();
    match consumers {
        WorkConsumers::NotKnown(reason) => {
            tracing::warn!(
                "no worker seen for {seconds} s: {reason}; the run goes on when the broker is back"
            );
        }
        WorkConsumers::Some => tracing::warn!(
            "a worker is connected, and no heartbeat was stored for {seconds} s: `consumer-writer` must run here, and the \
             broker may have an alarm, see `pingfleet doctor`; the run waits"
        ),
        WorkConsumers::None => tracing::warn!(
            "no worker seen for {seconds} s: start `ping-worker` on a machine that reaches this broker, and \
             `consumer-writer` here; the run waits"
        ),
    }
}

/// When to warn that no worker is alive.
struct NoWorkerWarning {
    worker_seen: Instant,
    /// When it was warned last, and of what.
    warned: Option<(Instant, Discriminant<WorkConsumers>)>,
}

impl NoWorkerWarning {
    fn new() -> Self {
        Self {
            worker_seen: Instant::now(),
            warned: None,
        }
    }

    /// Whether a warning is due now, and how long no worker was alive.
    fn is_due(&mut self, now: Instant, progress: &RunProgress) -> Option<Duration> {
        let waits =
            progress.state == RunState::Running && progress.transport == Some(Transport::Broker);
        if progress.workers > 0 || !waits {
            self.worker_seen = now;
            return None;
        }
        let silent = now.duration_since(self.worker_seen);
        let cause = mem::discriminant(&progress.work_consumers);
        let is_repeated = self.warned.is_some_and(|(warned, before)| {
            let interval = if before == cause {
                NO_WORKER_INTERVAL
            } else {
                NO_WORKER_WARNING
            };
            now.duration_since(warned) < interval
        });
        if silent < NO_WORKER_WARNING || is_repeated {
            return None;
        }
        self.warned = Some((now, cause));
        Some(silent)
    }
}

impl<W: Write> Write for BesideBar<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Self { bar, output } = self;
        bar.suspend(|| output.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress() -> RunProgress {
        RunProgress {
            run: Some(1),
            transport: Some(Transport::Broker),
            state: RunState::Running,
            targets: 1000,
            chunks: 4,
            chunks_done: 1,
            counts: [100, 50, 0, 0, 0, 0, 100].into(),
            ..RunProgress::default()
        }
    }

    #[test]
    fn the_bar_counts_targets_and_names_rare_kinds_only_when_there_are_any() {
        let bar = RunProgressBar::start(false);
        let mut progress = progress();
        bar.show(&progress);
        assert_eq!((bar.0.position(), bar.0.length()), (250, Some(1000)));
        assert_eq!(message(&progress), "60.0% up, 0 workers");
        progress.counts = [100, 50, 0, 0, 0, 7, 100].into();
        progress.chunks_dead = 2;
        progress.workers = 1;
        assert_eq!(
            message(&progress),
            "58.4% up, 7 unknown, 2 dead chunks, 1 worker"
        );
    }

    #[test]
    fn without_a_worker_a_warning_is_due_and_repeated() {
        let mut warning = NoWorkerWarning::new();
        let start = warning.worker_seen;
        let progress = progress();
        let mut due = Vec::new();
        for seconds in 0..150 {
            let now = start + Duration::from_secs(seconds);
            if warning.is_due(now, &progress).is_some() {
                due.push(seconds);
            }
        }
        assert_eq!(due, [10, 70, 130]);
        // The broker is away: another cause.
        let away = RunProgress {
            work_consumers: WorkConsumers::NotKnown("away".to_owned()),
            ..progress.clone()
        };
        let later = |seconds| start + Duration::from_secs(seconds);
        assert!(warning.is_due(later(139), &away).is_none());
        assert!(warning.is_due(later(140), &away).is_some());
        assert!(warning.is_due(later(199), &away).is_none());
        // The control: with a worker, or in one process, none is due.
        for quiet in [
            RunProgress {
                workers: 1,
                ..progress.clone()
            },
            RunProgress {
                transport: Some(Transport::Sweep),
                ..progress.clone()
            },
        ] {
            let mut warning = NoWorkerWarning::new();
            let later = warning.worker_seen + Duration::from_mins(5);
            assert_eq!(warning.is_due(later, &quiet), None);
        }
    }
}
