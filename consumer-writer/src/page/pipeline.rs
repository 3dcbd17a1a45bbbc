//! The fragments of the pipeline: queues, writer, messages that were not applied, and the list of runs. No I/O.

use askama::Template;
use pingfleet_broker::QueueKind;
use pingfleet_report::{
    PageError,
    parts::status_of,
    table::{Cell, Moment, StatusText, Table, number, text},
    words::{Clock, counted, duration, grouped, millis},
};
use pingfleet_store::RunSummary;

use super::{
    facts::Facts,
    queues::{Alarm, ProblemKind},
    view::{ListPart, UNKNOWN, draw},
};

/// The newest runs that are listed.
const MAX_RUNS: usize = 20;

#[derive(Template)]
#[template(path = "pipeline.html")]
struct PipelinePart {
    items: Vec<(&'static str, String)>,
    database: String,
}

pub(super) fn pipeline(facts: &Facts) -> Result<String, PageError> {
    let writer = &facts.writer;
    let depths = facts.queues.depths.iter();
    let depths = depths.map(|(kind, depth)| (queue_name(*kind), grouped(depth.ready.into())));
    let missing = facts.queues.missing.iter().map(|kind| {
        let who = match kind {
            QueueKind::Work => "not there yet; a worker or a producer declares it when it starts",
            _ => "not there yet; the writer declares it when it connects",
        };
        (queue_name(*kind), who.to_owned())
    });
    let mut items: Vec<_> = depths.chain(missing).collect();
    items.extend(facts.current.iter().flat_map(run_items));
    let milliseconds = |time: std::time::Duration| format!("{} ms", millis(time.as_nanos() as i64));
    let commit = writer.last_commit;
    let last = if writer.batches == 0 {
        "none yet".to_owned()
    } else {
        let rows = counted(commit.rows as i64, "row");
        format!("{rows} in {}", milliseconds(commit.duration))
    };
    let lag = if writer.batches == 0 {
        UNKNOWN.to_owned()
    } else {
        milliseconds(writer.lag(tokio::time::Instant::now()))
    };
    let (duplicates, quarantined) = facts
        .liveness
        .as_ref()
        .map_or((0, 0), |writer| (writer.duplicates, writer.quarantined));
    items.extend([
        ("writer", writer.state.text().to_owned()),
        ("writer, behind", lag),
        ("last commit", last),
        ("rows since its start", grouped(writer.rows as i64)),
        ("duplicates", grouped(duplicates)),
        ("put into quarantine", grouped(quarantined)),
        ("dead chunks", grouped(facts.dead.total)),
        ("broker", broker_state(facts)),
    ]);
    draw(&PipelinePart {
        items,
        database: facts.database.display().to_string(),
    })
}

/// What is shown of the run itself: only what there is.
fn run_items(run: &RunSummary) -> Vec<(&'static str, String)> {
    let mut items = Vec::new();
    if let Some(window) = run.window {
        let used = grouped(window.in_use);
        let used = if window.in_use > window.size {
            // Its producer was to return at once, or fewer workers have smaller windows.
            format!(
                "{used} chunks, more than its size of {}",
                grouped(window.size)
            )
        } else {
            format!("{used} of {} chunks", grouped(window.size))
        };
        items.push(("publish window", used));
    }
    if run.republished > 0 {
        let chunks = counted(run.republished, "chunk");
        items.push(("published again", format!("{chunks} of run {}", run.run)));
    }
    if run.contradictions > 0 {
        let results = counted(run.contradictions, "result");
        items.push((
            "differ from those stored before",
            format!("{results} of run {}", run.run),
        ));
    }
    items
}

fn queue_name(kind: QueueKind) -> &'static str {
    match kind.name() {
        "work" => "work queue, ready",
        "results" => "results queue, ready",
        "dead" => "dead letters, ready",
        "foreign" => "for other databases, set aside",
        _ => "heartbeats, ready",
    }
}

fn broker_state(facts: &Facts) -> String {
    let queues = &facts.queues;
    if facts.transport == Some(pingfleet_store::Transport::Sweep) {
        return "none: one process".to_owned();
    }
    match (&queues.problem, &queues.alarm) {
        (Some(problem), _) if problem.kind == ProblemKind::Away => "\u{2715} away".to_owned(),
        (Some(problem), _) => format!("\u{2715} {}", problem.title()),
        (None, Alarm::Raised(_)) => "\u{25b2} alarm".to_owned(),
        (None, Alarm::Clear(_)) => "\u{25cf} no alarm".to_owned(),
        (None, Alarm::NotKnown(None)) => "? not known yet".to_owned(),
        (None, Alarm::NotKnown(Some(reason))) => {
            format!("? whether it has an alarm is not known: {reason}")
        }
    }
}

fn time(micros: i64, clock: &Clock) -> Cell {
    Cell::Time(Moment {
        local: clock.moment(micros),
        utc: Clock::utc(micros),
    })
}

pub(super) fn quarantine(facts: &Facts, clock: &Clock) -> Result<String, PageError> {
    let found = &facts.quarantine;
    if found.newest.is_empty() {
        return Ok(String::new());
    }
    let rows = found.newest.iter().map(|message| {
        vec![
            time(message.received_at_us, clock),
            Cell::Text(message.queue.clone()),
            Cell::Text(message.login.clone().unwrap_or_default()),
            Cell::Text(message.why()),
            Cell::count(message.length),
        ]
    });
    draw(&ListPart {
        title: "Quarantine",
        note: format!(
            "the newest of {}; a program of another version, or a foreign one, published them; their chunks are probed \
             again",
            counted(found.total, "message")
        ),
        is_tall: true,
        is_filtered: false,
        table: Table {
            caption: "Messages in quarantine",
            class: "sortable",
            columns: vec![
                text("received"),
                text("queue"),
                text("login"),
                text("reason"),
                number("bytes"),
            ],
            rows: rows.collect(),
        },
    })
}

pub(super) fn dead(facts: &Facts, clock: &Clock) -> Result<String, PageError> {
    let found = &facts.dead;
    if found.newest.is_empty() {
        return Ok(String::new());
    }
    let rows = found.newest.iter().map(|chunk| {
        vec![
            time(chunk.dead_at_us, clock),
            Cell::count(chunk.run),
            Cell::count(chunk.chunk.into()),
            Cell::count(chunk.targets),
            Cell::Text(chunk.reason.clone()),
        ]
    });
    draw(&ListPart {
        title: "Dead chunks",
        note: format!("the newest of {}", counted(found.total, "chunk")),
        is_tall: true,
        is_filtered: false,
        table: Table {
            caption: "Dead chunks",
            class: "sortable",
            columns: vec![
                text("dead since"),
                number("run"),
                number("chunk"),
                number("targets"),
                text("reason"),
            ],
            rows: rows.collect(),
        },
    })
}

pub(super) fn runs(facts: &Facts, clock: &Clock) -> Result<String, PageError> {
    if facts.runs.is_empty() {
        return Ok(String::new());
    }
    let rows = facts.runs.iter().take(MAX_RUNS).map(|run| {
        let state = StatusText {
            word: run.state.name(),
            ..status_of(run.state)
        };
        let not_up = run.settled() - run.counts.answered();
        vec![
            Cell::Link(
                format!("run {}", run.run),
                format!("/runs/{}/report", run.run),
            ),
            Cell::Status(state),
            Cell::Time(Moment::new(&run.started_at, clock)),
            Cell::Number(duration(run.elapsed_s), run.elapsed_s),
            Cell::count(run.targets),
            Cell::count(run.counts.answered()),
            Cell::count(not_up),
            Cell::Text(run.source.clone()),
        ]
    });
    let shown = facts.runs.len().min(MAX_RUNS) as i64;
    draw(&ListPart {
        title: "Runs",
        note: format!(
            "the last {} of {}, each with its report",
            grouped(shown),
            grouped(facts.runs.len() as i64)
        ),
        is_tall: false,
        is_filtered: false,
        table: Table {
            caption: "Runs",
            class: "sortable",
            columns: vec![
                text("report"),
                text("state"),
                text("started"),
                number("time"),
                number("targets"),
                number("answered"),
                number("not up"),
                text("targets as given"),
            ],
            rows: rows.collect(),
        },
    })
}

#[cfg(test)]
mod tests {
    use pingfleet_store::{PublishedChunk, now_us};
    use tempfile::TempDir;

    use super::{super::missing_chunks::tests::empty_queues, *};

    #[test]
    fn chunks_that_were_published_again_leave_a_line() {
        let folder = TempDir::new().unwrap();
        // All three chunks were published once.
        let (mut store, planned, mut facts) = empty_queues(&folder);
        let run = planned.run;
        let part = |facts: &Facts| pipeline(facts).unwrap();
        facts.current = Some(store.summary(run).unwrap());
        assert!(!part(&facts).contains("published again"));
        let sent = [0, 2].map(|chunk| PublishedChunk {
            chunk,
            sent_at_us: now_us(),
            round: 0,
        });
        store.mark_published(run, &sent).unwrap();
        facts.current = Some(store.summary(run).unwrap());
        let line = format!("<dt>published again</dt><dd>2 chunks of run {run}</dd>");
        assert!(part(&facts).contains(&line), "{}", part(&facts));
        store.close().unwrap();
    }

    #[test]
    fn results_that_differ_from_those_stored_before_are_shown() {
        let folder = TempDir::new().unwrap();
        let (store, planned, mut facts) = empty_queues(&folder);
        let run = planned.run;
        facts.current = Some(store.summary(run).unwrap());
        let name = "<dt>differ from those stored before</dt>";
        assert!(!pipeline(&facts).unwrap().contains(name));
        facts.current.as_mut().unwrap().contradictions = 1;
        let line = format!("{name}<dd>1 result of run {run}</dd>");
        let part = pipeline(&facts).unwrap();
        assert!(part.contains(&line), "{part}");
    }
}
