//! The summary of a run on one screen. What is wrong comes before what is normal.

use pingfleet_report::{few_targets, sentences, words::Clock};
use pingfleet_settings::Failure;
use pingfleet_store::{Reader, ReportRow, RunOverview};

use super::{
    layout::{self, Block, Screen, beside, wrapped},
    named_targets, sections,
};

/// Prints the summary of a run. `flags` are those of the commands that it names.
pub(super) fn print(reader: &Reader, run: i64, flags: &str) -> Result<(), Failure> {
    let overview = reader.overview(run)?;
    let few = few_targets(reader, &overview)?;
    let earlier = reader.runs_to_compare(Some(run))?.map(|(before, _)| before);
    let screen = Screen::of_stdout();
    let blocks = blocks(&overview, few.as_deref(), earlier, flags, screen);
    layout::print(&blocks)
}

fn blocks(
    overview: &RunOverview,
    few: Option<&[ReportRow]>,
    earlier: Option<i64>,
    flags: &str,
    screen: Screen,
) -> Vec<Block> {
    let clock = Clock::now();
    let width = screen.width;
    let mut blocks = vec![
        sections::head(overview, &clock, screen),
        sections::advice(sentences::progress(overview, flags).as_ref(), width),
        sections::advice(sentences::pruned(overview, &clock).as_ref(), width),
        sections::advice(sentences::cause(overview, flags).as_ref(), width),
    ];
    if let Some(rows) = few {
        blocks.push(named_targets::targets(rows, screen));
        return blocks;
    }
    blocks.push(sections::totals(overview, flags, screen));
    if overview.summary.pruned.is_some() {
        return blocks;
    }
    blocks.push(sections::round_trips(overview, width));
    let mut changes = sections::changes(overview, width);
    if let Some(before) = earlier.filter(|_| !changes.is_empty()) {
        let run = overview.summary.run;
        let what = format!("  Compare with run {before}: pingfleet diff{flags} {before} {run}");
        changes.extend(wrapped(&what, 4, width));
    }
    blocks.push(changes);
    blocks.extend(beside(sections::small_tables(overview, width), width));
    blocks.push(named_targets::subnets_not_up(overview, &clock, screen));
    blocks.push(named_targets::not_up(overview, &clock, flags, screen));
    blocks
}
