//! `report`: what a person wants to know of a run, on one screen, as one JSON object or as an HTML page, and the list of its
//! targets.

mod json;
pub(crate) mod layout;
mod named_targets;
mod sections;
mod summary;
mod targets;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use pingfleet_settings::{DatabaseArgs, Exit, Failure, Layers};
use pingfleet_store::{DatabaseSettings, Reader, RowOrder};

pub(crate) use self::{
    json::settings,
    sections::push_status,
    targets::{table, values, write_json},
};
use crate::{filter::FilterArgs, page};

/// Arguments of `pingfleet report`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pingfleet report
  pingfleet report 3 --json | jq .statuses
  pingfleet report --html report.html
  pingfleet report --targets --sort rtt
  pingfleet report 3 --status down --status unknown
  pingfleet report --subnet 10.0.5.0/24 --label site=berlin
  pingfleet report --where 'rtt_avg_ms > 50 AND attempts > 1'")]
pub(crate) struct ReportArgs {
    /// A number, the beginning of a UUID, or `latest`
    #[arg(value_name = "RUN", default_value = "latest")]
    run: String,
    /// List every target instead of the summary. A filter and --sort list targets, too
    #[arg(long)]
    targets: bool,
    /// The order of the list: slowest first, most loss first, or by address and name
    #[arg(long, value_name = "COLUMN")]
    sort: Option<Sort>,
    /// The summary as one JSON object; null for what was not measured. Rows as JSON: pingfleet export
    #[arg(long)]
    json: bool,
    /// Write the summary with charts and a map to one HTML file; - is standard output
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    html: Option<PathBuf>,
    /// What `export` does now
    #[arg(long, hide = true)]
    csv: bool,
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    pub(crate) database: DatabaseArgs,
}

/// What a list of targets is sorted by.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Sort {
    Rtt,
    Loss,
    Target,
}

impl From<Sort> for RowOrder {
    fn from(sort: Sort) -> Self {
        match sort {
            Sort::Rtt => Self::Rtt,
            Sort::Loss => Self::Loss,
            Sort::Target => Self::Target,
        }
    }
}

pub(crate) fn report(args: &ReportArgs, mut layers: Layers) -> Result<Exit, Failure> {
    let lists = args.targets || args.sort.is_some() || args.filter.is_given();
    if args.csv || (args.json && lists) {
        return Err(Failure::new(
            Exit::Usage,
            "rows for other programs are written by `pingfleet export`, such as `pingfleet export --format csv`",
        ));
    }
    if args.html.is_some() && lists {
        return Err(Failure::new(
            Exit::Usage,
            "--html shows the whole run: it has no --targets, no --sort and no filters. Rows for other programs are written by \
             `pingfleet export`",
        ));
    }
    let database = DatabaseSettings::resolve(&args.database, &mut layers);
    layers.finish()?;
    let reader = Reader::open(&database.path)?;
    let flags = database.as_flags();
    if args.run == "latest" && reader.summaries()?.is_empty() {
        return Err(Failure::new(
            Exit::Usage,
            format!(
                "no run is in {} yet. Start one: pingfleet sweep{flags} 127.0.0.0/24",
                reader.path().display()
            ),
        ));
    }
    let run = reader.find_run(&args.run)?;
    if lists {
        reader.summary(run)?.refuse_pruned()?;
        targets::list(args, &reader, run)?;
    } else if let Some(path) = &args.html {
        page::write(reader, path, |reader| {
            Ok((pingfleet_report::page(reader, run, flags)?, ()))
        })?;
    } else if args.json {
        json::print(&reader.overview(run)?)?;
    } else {
        summary::print(&reader, run, flags)?;
    }
    Ok(Exit::Complete)
}
