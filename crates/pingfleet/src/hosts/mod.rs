//! `hosts`: the newest row of each target.

mod text;

use std::{
    io::{self, BufWriter, Write as _},
    time::Duration,
};

use clap::{Args, ValueEnum};
use pingfleet_settings::{DatabaseArgs, Exit, Failure, Layers, printed};
use pingfleet_store::{
    DatabaseSettings, HostFilter, HostOrder, HostPage, HostPart, HostRow, LATEST_COLUMNS,
    REPORT_COLUMNS, Reader, now_us, view_time,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

pub(crate) use self::text::labels;
use crate::{
    ended_run::no_run_yet,
    filter::FilterArgs,
    read_ahead::{Pages, read_ahead},
    report::{values, write_json},
};

/// The pages of a list of targets.
type HostPages<'a> = Pages<'a, HostPage>;

/// Arguments of `pingfleet hosts`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pingfleet hosts
  pingfleet hosts --status down --sort changed
  pingfleet hosts --subnet 10.0.5.0/24 --label site=berlin
  pingfleet hosts --stale 7d
  pingfleet hosts --where 'changes_30d > 5' --sort changes
  pingfleet hosts --json | jq -r 'select(.last_up == null) | .target'")]
pub(crate) struct HostsArgs {
    /// Only targets that no run has probed for this long, such as 7d or 12h
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    stale: Option<Duration>,
    /// The order: slowest first, newest change first, most changes first, or by
    /// address and name
    #[arg(long, value_name = "COLUMN", default_value = "target")]
    sort: Sort,
    /// JSON, one target per line: the columns of the view `latest`
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    pub(crate) database: DatabaseArgs,
}

/// What the list is sorted by.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Sort {
    Target,
    Rtt,
    Changed,
    Changes,
}

impl From<Sort> for HostOrder {
    fn from(sort: Sort) -> Self {
        match sort {
            Sort::Target => Self::Target,
            Sort::Rtt => Self::Rtt,
            Sort::Changed => Self::Changed,
            Sort::Changes => Self::Changes,
        }
    }
}

pub(crate) fn hosts(args: &HostsArgs, mut layers: Layers, quiet: bool) -> Result<Exit, Failure> {
    let database = DatabaseSettings::resolve(&args.database, &mut layers);
    layers.finish()?;
    let stop = CancellationToken::new();
    let reader = Reader::open(&database.path)?.interrupted_by(stop.clone());
    if reader.summaries()?.is_empty() {
        return Err(no_run_yet(&reader, database.as_flags()));
    }
    let probed_before_us = args
        .stale
        .map(|age| now_us().saturating_sub(i64::try_from(age.as_micros()).unwrap_or(i64::MAX)));
    let filter = HostFilter {
        rows: args.filter.resolve_for_latest(&reader)?,
        probed_before_us,
    };
    let parts = reader.hosts(&filter, args.sort.into())?;
    let listed = read_ahead(parts, HostPart::read, &stop, |pages| {
        if args.json {
            print_json(pages)
        } else {
            text::print(pages)
        }
    })?;
    if listed == 0 && !quiet {
        // What it prints needs a reader that is not interrupted.
        let reader = Reader::open(&database.path)?;
        // If standard error is closed, nobody can read it.
        drop(writeln!(
            io::stderr(),
            "{}",
            nothing(args, &reader, database.as_flags())?
        ));
    }
    Ok(Exit::Complete)
}

/// What an empty list means.
fn nothing(args: &HostsArgs, reader: &Reader, flags: &str) -> Result<String, Failure> {
    let is_selected = args.filter.is_given() || args.stale.is_some();
    let mut parts = reader.hosts(&HostFilter::default(), HostOrder::Target)?;
    let has_hosts = match parts.next().transpose()? {
        Some(part) => !part.read()?.is_empty(),
        None => false,
    };
    Ok(if is_selected && has_hosts {
        format!("no target is like this: pingfleet hosts{flags} lists all")
    } else {
        format!(
            "no run has ended yet, and hosts come from runs that have. What is known so far: pingfleet report{flags}"
        )
    })
}

/// Prints the rows, and returns how many there are.
fn print_json(pages: HostPages<'_>) -> Result<usize, Failure> {
    let mut out = BufWriter::new(io::stdout().lock());
    let mut listed = 0;
    for page in pages {
        let page = page?;
        listed += page.len();
        let written = page
            .hosts()
            .try_for_each(|host| write_json(&mut out, fields(&host)));
        if written.is_err() {
            printed(written)?;
            return Ok(listed);
        }
    }
    printed(out.flush())?;
    Ok(listed)
}

/// The columns of the view `latest`.
pub(crate) fn fields(host: &HostRow) -> impl Iterator<Item = (&'static str, Value)> {
    let further = [
        json!(view_time(host.first_seen_us)),
        json!(host.last_up_us.and_then(view_time)),
        json!(view_time(host.changed_at_us)),
        json!(host.changes_30d),
    ];
    let columns = REPORT_COLUMNS.into_iter().zip(values(&host.row));
    columns.chain(LATEST_COLUMNS.into_iter().zip(further))
}
