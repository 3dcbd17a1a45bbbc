//! What is wrong, in sentences with what to do. No I/O.

use std::time::Duration;

use pingfleet_broker::QueueKind;
use pingfleet_report::words::{Clock, are_several, counted, grouped, length, worker_name};
use pingfleet_store::{RunState, RunSummary, Transport, WorkerState};
use pingfleet_wire::StatusKind;

use super::{
    facts::Facts, missing_chunks::missing_chunks, queues::ProblemKind, shared_names::shared_names,
    workers,
};
use crate::WriterState;

/// What happened longer ago than this is in the tables only.
const RECENT: Duration = Duration::from_hours(24);

/// Quarantined messages that were received longer ago than this are in their table only.
const RECENT_MESSAGE: Duration = Duration::from_hours(1);

/// Lost workers that are named one by one.
const MAX_LOST: usize = 3;

/// Incomplete runs that are named one by one. The table of runs has the others.
const MAX_INCOMPLETE: usize = 3;

/// A line on what is wrong.
#[derive(Debug)]
pub(super) struct Alert {
    pub(super) status: StatusKind,
    pub(super) title: String,
    pub(super) text: String,
    /// The command that helps.
    pub(super) command: Option<String>,
}

impl Alert {
    pub(super) fn new(
        status: StatusKind,
        title: impl Into<String>,
        text: impl Into<String>,
    ) -> Self {
        Self {
            status,
            title: title.into(),
            text: text.into(),
            command: None,
        }
    }

    fn run(mut self, command: String) -> Self {
        self.command = Some(command);
        self
    }
}

/// Everything that is wrong, the worst first.
pub(super) fn alerts(facts: &Facts) -> Vec<Alert> {
    let mut alerts = Vec::new();
    if let Some(error) = &facts.error {
        alerts.push(Alert::new(
            StatusKind::Down,
            "The database cannot be read",
            format!("{error}. The numbers below are the last ones that were read."),
        ));
    }
    broker(facts, &mut alerts);
    writer(facts, &mut alerts);
    lost_workers(facts, &mut alerts);
    no_worker(facts, &mut alerts);
    alerts.extend(shared_names(facts));
    alerts.extend(missing_chunks(facts));
    messages(facts, &mut alerts);
    runs(facts, &mut alerts);
    alerts
}

fn broker(facts: &Facts, alerts: &mut Vec<Alert>) {
    if let Some(problem) = &facts.queues.problem {
        let text = match problem.kind {
            ProblemKind::Away => format!(
                "{} Nothing is lost: all programs try again, and go on by themselves.",
                problem.text
            ),
            _ => problem.text.clone(),
        };
        alerts.push(Alert::new(StatusKind::Down, problem.title(), text));
    }
    if let Some(alarm) = facts.queues.alarm.reason() {
        let scarce = match (alarm.contains("memory"), alarm.contains("disk")) {
            (true, false) => "memory",
            (false, true) => "disk space",
            _ => "memory and disk space",
        };
        alerts.push(
            Alert::new(
                StatusKind::Unreachable,
                "The broker takes no messages",
                format!(
                    "It has an alarm: {alarm}. Nothing is lost. Free {scarce} on its machine; it goes on by itself. Its alarms:"
                ),
            )
            .run("rabbitmq-diagnostics alarms".to_owned()),
        );
    }
}

fn writer(facts: &Facts, alerts: &mut Vec<Alert>) {
    if let Some(reason) = &facts.failure {
        alerts.push(failed_writer(facts, reason));
        return;
    }
    match facts.writer.state {
        WriterState::WaitingForDatabase => alerts.push(Alert::new(
            StatusKind::Unreachable,
            "The writer waits for the database",
            "A commit has taken over a second: another program holds the write lock, or the disk is slow or full. \
             Results wait in their queue, and nothing is lost. End the other program, or free space.",
        )),
        WriterState::WaitingForOtherWriter => alerts.push(Alert::new(
            StatusKind::Unreachable,
            "Another writer has the results queue",
            "This one waits until it leaves, 30 s at most. Only one writer may run for each broker.",
        )),
        WriterState::NoBroker if facts.queues.problem.is_none() => alerts.push(Alert::new(
            StatusKind::Late,
            "The writer is connecting",
            "It has no session with the broker yet.",
        )),
        WriterState::NoBroker | WriterState::Connected => {}
    }
}

/// The writer has ended: what is shown is the last that there will be of it.
fn failed_writer(facts: &Facts, reason: &str) -> Alert {
    let (title, text, command) = match facts.transport {
        Some(Transport::Sweep) => (
            "The sweep has ended",
            match &facts.current {
                Some(_) => "What it has stored stays. Remedy this, then continue it:",
                None => "Remedy this, then start it again.",
            },
            (facts.current.as_ref())
                .map(|run| format!("pingfleet resume{} {}", facts.flags, run.run)),
        ),
        _ => (
            "The writer has ended",
            "Results wait in their queue, and nothing is lost. Remedy this, then start it again:",
            Some(format!("consumer-writer{}", facts.flags)),
        ),
    };
    let reason = reason.trim_end_matches('.');
    let database = facts.database.display();
    let text = format!("{reason}. The database is {database}. {text}");
    Alert {
        command,
        ..Alert::new(StatusKind::Down, title, text)
    }
}

fn lost_workers(facts: &Facts, alerts: &mut Vec<Alert>) {
    let lost: Vec<_> = facts
        .workers
        .iter()
        .filter(|worker| workers::state(worker, facts.heard) == Some(WorkerState::Lost))
        .filter(|worker| worker.age < RECENT && !worker.is_started_again)
        .collect();
    let has_logins = are_several(facts.workers.iter().map(|one| one.login.as_deref()));
    for worker in lost.iter().take(MAX_LOST) {
        let chunks = match worker.in_hand {
            0 => "It had no chunk in hand.".to_owned(),
            count => format!(
                "The broker gives the {} that it had in hand to other workers; none is lost.",
                counted(count, "chunk")
            ),
        };
        let login = worker.login.as_deref().filter(|_| has_logins);
        let title = format!("Worker {} is lost", worker_name(&worker.worker, login));
        let silence = length(worker.age.as_micros() as i64);
        let since = Clock::now().moment(worker.last_seen_us);
        let text = format!("No heartbeat for {silence}, since {since}. {chunks} On its machine:");
        alerts.push(
            Alert::new(StatusKind::Down, title, text)
                .run("systemctl status ping-worker".to_owned()),
        );
    }
    if lost.len() > MAX_LOST {
        let others = counted((lost.len() - MAX_LOST) as i64, "more worker");
        let verb = if lost.len() == MAX_LOST + 1 {
            "is"
        } else {
            "are"
        };
        let text = "The table of workers has since when.";
        alerts.push(Alert::new(
            StatusKind::Down,
            format!("{others} {verb} lost"),
            text,
        ));
    }
}

/// Whether the writer has received for long enough to know that no worker takes chunks.
fn is_without_workers(facts: &Facts) -> bool {
    facts.is_fleet_known
        && facts.workers.iter().all(|worker| {
            matches!(
                workers::state(worker, facts.heard),
                Some(WorkerState::Lost | WorkerState::Draining)
            )
        })
}

fn no_worker(facts: &Facts, alerts: &mut Vec<Alert>) {
    let is_waiting = facts.current.as_ref().is_some_and(|run| {
        let is_unfinished = matches!(run.state, RunState::Running | RunState::Incomplete);
        is_unfinished && run.transport == Transport::Broker && run.outstanding() > 0
    });
    if !is_waiting || !is_without_workers(facts) {
        return;
    }
    let depths = &facts.queues.depths;
    let ready = depths.iter().find(|(kind, _)| *kind == QueueKind::Work);
    let waiting = match ready {
        Some((_, depth)) if depth.ready == 1 => "1 chunk waits in the work queue".to_owned(),
        Some((_, depth)) if depth.ready > 1 => {
            let count = grouped(depth.ready.into());
            format!("{count} chunks wait in the work queue")
        }
        _ => "The run has chunks left".to_owned(),
    };
    let text = format!(
        "{waiting}, and no worker takes them. Start one on any machine that reaches the broker:"
    );
    alerts.push(
        Alert::new(StatusKind::Down, "No worker is live", text).run("ping-worker".to_owned()),
    );
}

/// Messages that were not applied.
fn messages(facts: &Facts, alerts: &mut Vec<Alert>) {
    let dead = &facts.dead;
    if let Some(newest) = dead.newest.first() {
        let title = if dead.total == 1 {
            "1 chunk is dead".to_owned()
        } else {
            format!("{} chunks are dead", grouped(dead.total))
        };
        let mut runs: Vec<_> = dead.newest.iter().map(|chunk| chunk.run).collect();
        runs.sort_unstable_by(|a, b| b.cmp(a));
        runs.dedup();
        runs.retain(|run| *run != newest.run);
        let others = if runs.is_empty() {
            String::new()
        } else {
            let runs: Vec<_> = runs.iter().map(i64::to_string).collect();
            format!(" (the same for {})", runs.join(", "))
        };
        let text = format!(
            "They came back from workers too often ({}), so their targets have no result. Send them again{others}:",
            newest.reason
        );
        let command = format!("pingfleet retry{} {}", facts.flags, newest.run);
        alerts.push(Alert::new(StatusKind::Unreachable, title, text).run(command));
    }
    let quarantine = &facts.quarantine;
    let Some(newest) = quarantine.newest.first() else {
        return;
    };
    let age_us = facts.now_us - newest.received_at_us;
    let login = newest.login.as_deref();
    if age_us < RECENT_MESSAGE.as_micros() as i64 {
        alerts.push(Alert::new(
            StatusKind::Unreachable,
            "Messages go into quarantine",
            format!(
                "The last one {} ago, from {}{}: {}. There are {} in all. They could not be applied: a worker of another \
                 version, or another program, publishes them. Their chunks are probed again.",
                length(age_us.max(0)),
                newest.queue,
                login.map_or_else(String::new, |login| format!(" by {login}")),
                newest.why(),
                grouped(quarantine.total)
            ),
        ));
    }
}

/// The current run and recent others, if their producers ended before them.
fn runs(facts: &Facts, alerts: &mut Vec<Alert>) {
    // Without the database a producer cannot say that it is alive.
    if facts.is_database_stuck {
        return;
    }
    let is_current = |run: &RunSummary| {
        let current = facts.current.as_ref();
        current.is_some_and(|current| current.run == run.run)
    };
    let others = facts.runs.iter();
    let others = others.filter(|run| !is_current(run) && run.elapsed_s < RECENT.as_secs_f64());
    let incomplete = facts.current.iter().chain(others).filter(|run| {
        // The current run needs a worker first, if there is none.
        run.state == RunState::Incomplete
            && !(is_current(run) && run.transport == Transport::Broker && is_without_workers(facts))
            && run.chunks_dead < run.chunks - run.chunks_done
    });
    for run in incomplete.take(MAX_INCOMPLETE) {
        let (flags, number) = (&facts.flags, run.run);
        let text = format!(
            "Its producer ended before the run was done. Give it up with `pingfleet cancel{flags} {number}`, or continue it:"
        );
        let title = format!("Run {} is incomplete", run.run);
        let command = format!("pingfleet resume{flags} {number}");
        alerts.push(Alert::new(StatusKind::Unreachable, title, text).run(command));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use pingfleet_store::{DeadChunk, QuarantinedMessage, WorkerRow};
    use pingfleet_wire::LocalLossCounts;
    use uuid::Uuid;

    use super::{
        super::queues::{Alarm, Problem},
        *,
    };

    /// A writer that is well.
    pub(in super::super) fn well() -> Facts {
        let mut facts = Facts {
            is_fleet_known: true,
            now_us: 1_000_000_000_000_000,
            ..Facts::default()
        };
        facts.writer.state = WriterState::Connected;
        facts
    }

    pub(in super::super) fn lost(name: &str, age: Duration) -> WorkerRow {
        WorkerRow {
            instance: Uuid::nil(),
            state: WorkerState::Lost,
            is_started_again: false,
            worker: name.to_owned(),
            login: None,
            pid: 1,
            version: "1".to_owned(),
            group: "default".to_owned(),
            threads: 1,
            prefetch: 1,
            rate: None,
            draining: false,
            last_seen_us: 0,
            age,
            in_hand: 19,
            oldest_in_hand: None,
            chunks_done: 1,
            targets_done: 1,
            requests_per_s: None,
            requests_sent: 1,
            replies: 1,
            local_losses: LocalLossCounts::default(),
        }
    }

    /// What is wrong, as text.
    pub(in super::super) fn text(facts: &Facts) -> String {
        let alerts = alerts(facts).into_iter();
        let lines = alerts.map(|alert| {
            let command = alert.command.unwrap_or_default();
            format!("{}: {} {command}\n", alert.title, alert.text)
        });
        lines.collect()
    }

    #[test]
    fn a_pipeline_that_is_well_has_no_alert() {
        assert_eq!(text(&well()), "");
    }

    #[test]
    fn every_abnormal_state_says_what_to_do() {
        let mut facts = well();
        facts.error = Some("no such file".to_owned());
        assert!(text(&facts).contains("no such file"));
        facts = well();
        facts.queues.problem = Some(Problem {
            kind: ProblemKind::Away,
            text: "It cannot be reached: start it.".to_owned(),
        });
        assert!(text(&facts).contains("broker is away: It cannot be reached: start it."));
        facts = well();
        facts.queues.alarm = Alarm::Raised("low on disk".to_owned());
        assert!(
            text(&facts).contains("low on disk") && text(&facts).contains("diagnostics alarms")
        );
        facts = well();
        facts.writer.state = WriterState::WaitingForDatabase;
        assert!(text(&facts).contains("End the other program, or free space."));
        facts = well();
        facts.failure = Some("a.db: database or disk is full".to_owned());
        facts.flags = " --db a.db".to_owned();
        let found = text(&facts);
        assert!(
            found
                .contains("The writer has ended: a.db: database or disk is full. The database is ")
                && found.ends_with(" consumer-writer --db a.db\n"),
            "{found}"
        );
        facts = well();
        facts.dead.total = 2;
        facts.dead.newest.push(DeadChunk {
            run: 4,
            chunk: 1,
            targets: 250,
            dead_at_us: 0,
            reason: "delivery_limit".to_owned(),
        });
        assert!(
            text(&facts).contains("2 chunks are dead")
                && text(&facts).contains("Send them again: pingfleet retry 4\n")
        );
        for run in [2, 4, 3] {
            facts.dead.newest.push(DeadChunk {
                run,
                ..facts.dead.newest[0].clone()
            });
        }
        let expected = "Send them again (the same for 3, 2): pingfleet retry 4\n";
        assert!(text(&facts).contains(expected), "{}", text(&facts));
    }

    #[test]
    fn messages_in_quarantine_are_reported_for_an_hour() {
        let mut facts = well();
        facts.quarantine.total = 3;
        facts.quarantine.reasons = vec![("results".to_owned(), "wrong token".to_owned(), 3)];
        facts.quarantine.newest.push(QuarantinedMessage {
            received_at_us: facts.now_us - 1_000_000,
            queue: "results".to_owned(),
            reason: "wrong token".to_owned(),
            detail: "chunk 5 of run 3".to_owned(),
            login: Some("rack-7".to_owned()),
            length: 10,
        });
        assert!(text(&facts).contains(
            "from results by rack-7: wrong token: chunk 5 of run 3. There are 3 in all."
        ));
        facts.now_us += RECENT_MESSAGE.as_micros() as i64;
        assert_eq!(text(&facts), "");
    }

    #[test]
    fn a_silent_worker_is_lost_only_if_the_writer_listened() {
        let mut facts = well();
        facts
            .workers
            .push(lost("berlin-2", Duration::from_secs(118)));
        let found = text(&facts);
        assert!(
            found.contains("Worker berlin-2 is lost: No heartbeat for 1 min, since "),
            "{found}"
        );
        assert!(found.contains("gives the 19 chunks that it had in hand to other workers"));
        // It was heard until a break began.
        facts.heard.break_age = Some(Duration::from_secs(100));
        assert_eq!(text(&facts), "");
        // It was lost before that.
        facts.heard.break_age = Some(Duration::from_secs(80));
        assert!(text(&facts).contains("berlin-2 is lost"));
        facts.heard.break_age = None;
        facts.workers[0].age = RECENT;
        assert_eq!(text(&facts), "");
    }

    #[test]
    fn a_worker_that_was_started_again_makes_no_alert() {
        let mut facts = well();
        facts.workers.push(lost("berlin-2", Duration::from_mins(1)));
        facts.workers[0].is_started_again = true;
        facts.workers.push(WorkerRow {
            state: WorkerState::Live,
            ..lost("berlin-2", Duration::from_mins(1))
        });
        assert_eq!(text(&facts), "");
        facts.workers[0].is_started_again = false;
        assert!(text(&facts).contains("berlin-2 is lost"));
    }

    #[test]
    fn many_lost_workers_are_counted() {
        let mut facts = well();
        for number in 0..9 {
            facts
                .workers
                .push(lost(&format!("w{number}"), Duration::from_mins(1)));
        }
        assert!(text(&facts).contains("6 more workers are lost"));
    }
}
