//! Command line arguments that `producer` and `pingfleet sweep` share, and the settings that they resolve to.

use clap::Args;
use pingfleet_settings::{Layers, ProbingArgs, ProbingSettings};
use pingfleet_store::Transport;
use pingfleet_targets::TargetArgs;

/// What to probe, and how.
#[derive(Debug, Clone, Default, Args)]
pub struct PlanArgs {
    #[command(flatten)]
    /// What to probe.
    pub targets: TargetArgs,
    #[command(flatten)]
    /// How to probe.
    pub probing: ProbingArgs,
    /// Print counts, order and time, and probe nothing
    #[arg(long, help_heading = "Output")]
    pub dry_run: bool,
}

/// What is printed.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Output")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of the command line that stands alone"
)]
pub struct OutputArgs {
    /// Print the targets that answered
    #[arg(short = 'a', long, conflicts_with = "unanswered")]
    pub answered: bool,
    /// Print the targets that did not answer
    #[arg(short = 'u', long)]
    pub unanswered: bool,
    /// Print the summary, also with -a or -u
    #[arg(short = 's', long)]
    pub summary: bool,
    /// End with 1 when a target is neither up nor late
    #[arg(long)]
    pub fail_down: bool,
}

/// Which targets are printed when their chunks are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrintFilter {
    /// Those that answered.
    Answered,
    /// Those that did not.
    Unanswered,
}

/// What the producer's settings resolve to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProducerSettings {
    /// The transport of the chunks.
    pub transport: Transport,
    /// How targets are probed, and how large chunks are.
    pub probing: ProbingSettings,
    /// Seed of the order; absent when targets are probed in the given order.
    pub seed: Option<u64>,
    /// Whether to exit when everything is published.
    pub detach: bool,
    /// Targets to print when their chunks are stored.
    pub print: Option<PrintFilter>,
    /// Whether to draw a progress bar, where standard error is a terminal.
    pub progress_bar: bool,
    /// Whether lost chunks are looked for while the queues are busy. Always true; a control of the tests changes it.
    pub finds_overtaken: bool,
}

impl OutputArgs {
    /// Which targets are printed.
    #[must_use]
    pub fn print_filter(&self) -> Option<PrintFilter> {
        match (self.answered, self.unanswered) {
            (true, _) => Some(PrintFilter::Answered),
            (_, true) => Some(PrintFilter::Unanswered),
            _ => None,
        }
    }

    /// Whether the summary is printed. With -a or -u it is printed only on request.
    #[must_use]
    pub fn wants_summary(&self) -> bool {
        self.summary || self.print_filter().is_none()
    }
}

impl ProducerSettings {
    /// Resolves the settings of a plan; problems are collected in `layers`.
    pub fn resolve(
        plan: &PlanArgs,
        output: &OutputArgs,
        layers: &mut Layers,
        transport: Transport,
        detach: bool,
        quiet: bool,
    ) -> Self {
        let seed = if plan.targets.no_shuffle {
            None
        } else {
            Some(plan.targets.seed.unwrap_or_else(|| fastrand::u64(..)))
        };
        Self {
            transport,
            probing: plan.probing.resolve(layers),
            seed,
            detach,
            print: output.print_filter(),
            progress_bar: !quiet,
            finds_overtaken: true,
        }
    }
}
