//! `quarantine`: the messages that a writer refused, and why.

use std::io::{self, Write as _};

use clap::Args;
use jiff::Timestamp;
use pingfleet_report::words::{Clock, grouped};
use pingfleet_settings::{DatabaseArgs, Exit, Failure, Layers, printed};
use pingfleet_store::{DatabaseSettings, QuarantineList, Reader};
use serde_json::{Value, json};

use crate::report::{
    layout::{self, Block, Screen, cut},
    write_json,
};

/// A reason gets at least this many columns.
const MIN_REASON: usize = 20;

/// Arguments of `pingfleet quarantine`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pingfleet quarantine
  pingfleet quarantine --json | jq '.reasons'

A message in quarantine changed nothing: its chunk still waits for its result.
The newest 10,000 are kept, with the first 4 KiB of each.")]
pub(crate) struct QuarantineArgs {
    /// JSON, one object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub(crate) database: DatabaseArgs,
}

pub(crate) fn quarantine(
    args: &QuarantineArgs,
    mut layers: Layers,
    quiet: bool,
) -> Result<Exit, Failure> {
    let database = DatabaseSettings::resolve(&args.database, &mut layers);
    layers.finish()?;
    let list = Reader::open(&database.path)?.quarantine()?;
    if args.json {
        printed(write_json(&mut io::stdout().lock(), fields(&list)))?;
    } else {
        layout::print(&blocks(&list, Screen::of_stdout(), &Clock::now()))?;
    }
    if list.total == 0 && !quiet {
        // If standard error is closed, nobody can read it.
        drop(writeln!(io::stderr(), "no message is in quarantine"));
    }
    Ok(Exit::Complete)
}

fn fields(list: &QuarantineList) -> [(&'static str, Value); 3] {
    let reasons = list.reasons.iter();
    let reasons = reasons
        .map(|(queue, reason, count)| json!({"queue": queue, "reason": reason, "messages": count}));
    let newest = list.newest.iter().map(|message| {
        let time = Timestamp::from_microsecond(message.received_at_us).ok();
        json!({
            "received_at": time.map(|time| format!("{time:.3}")),
            "queue": message.queue,
            "reason": message.reason,
            "detail": message.detail,
            "bytes": message.length,
            "login": message.login,
        })
    });
    [
        ("messages", json!(list.total)),
        ("reasons", reasons.collect()),
        ("newest", newest.collect()),
    ]
}

/// How many for each reason, and the newest ones.
fn blocks(list: &QuarantineList, screen: Screen, clock: &Clock) -> Vec<Block> {
    if list.total == 0 {
        return Vec::new();
    }
    let reasons = list.reasons.iter();
    let reasons =
        reasons.map(|(queue, reason, count)| vec![queue.clone(), grouped(*count), reason.clone()]);
    // Also if all are the same: then it is the one to look at.
    let has_logins = list.newest.iter().any(|one| one.login.is_some());
    let newest = list.newest.iter().map(|message| {
        let mut cells = vec![
            clock.moment(message.received_at_us),
            message.queue.clone(),
            grouped(message.length),
            message.why(),
        ];
        if has_logins {
            let login = message.login.clone();
            cells.insert(3, login.unwrap_or_else(|| "-".to_owned()));
        }
        cells
    });
    vec![
        table(
            &["QUEUE", "MESSAGES", "REASON"],
            1,
            reasons.collect(),
            screen,
        ),
        table(
            if has_logins {
                &["NEWEST", "QUEUE", "BYTES", "LOGIN", "REASON"]
            } else {
                &["NEWEST", "QUEUE", "BYTES", "REASON"]
            },
            2,
            newest.collect(),
            screen,
        ),
    ]
}

/// A table whose column `number` is aligned to the right, and whose last column is cut to what a terminal has left.
fn table(heading: &[&str], number: usize, mut rows: Vec<Vec<String>>, screen: Screen) -> Block {
    let last = heading.len() - 1;
    if screen.has_bars {
        let widest = |at: usize| {
            let cells = rows.iter().map(|row| layout::width(&row[at]));
            let indent = if at == 0 { 2 } else { 0 };
            (cells.max().unwrap_or(0) + indent).max(heading[at].len()) + 2
        };
        let used: usize = (0..last).map(widest).sum();
        let room = screen.width.saturating_sub(used).max(MIN_REASON);
        for row in &mut rows {
            row[last] = cut(&layout::escaped(&row[last]), room);
        }
    }
    let right: Vec<_> = (0..=last).map(|at| at == number).collect();
    layout::columns(heading, &right, &rows)
}
