//! What the `producer` and `pingfleet sweep` programs do before and after [`crate::run`]: read the targets, report the
//! outcome.

use std::{
    io::{self, Write},
    net::IpAddr,
};

use pingfleet_settings::{Exit, Failure, printed};
use pingfleet_targets::{LinkLocalTargets, Targets, TargetsError};
use pingfleet_wire::Probing;

use crate::{
    EndReason, OutputArgs, PlanArgs, ProducerSettings, RunOutcome, dry_run, print_summary,
};

/// At most as many pieces of the list of targets are looked at for a route.
const MAX_ROUTES_CHECKED: usize = 1000;

/// Checks whether this machine has a route to an address, by the given interface if there is one; an error says why it
/// has none.
pub type CheckRoute = fn(IpAddr, Option<&str>) -> io::Result<()>;

/// Reads the targets and logs what the user should know of them. With `--dry-run` it prints the plan and returns
/// `None`: there is nothing more to do.
///
/// # Errors
/// A [`Failure`] with every bad target.
pub fn read_targets(
    plan: &PlanArgs,
    settings: &ProducerSettings,
) -> Result<Option<Targets>, Failure> {
    read(plan, settings, None)
}

/// The same where the targets are probed from this machine: what it has no route to is logged as well.
///
/// # Errors
/// As [`read_targets`].
pub fn read_targets_of_this_machine(
    plan: &PlanArgs,
    settings: &ProducerSettings,
    check_route: CheckRoute,
) -> Result<Option<Targets>, Failure> {
    read(plan, settings, Some(check_route))
}

fn read(
    plan: &PlanArgs,
    settings: &ProducerSettings,
    check_route: Option<CheckRoute>,
) -> Result<Option<Targets>, Failure> {
    let family = settings.probing.probing.family;
    let targets =
        pingfleet_targets::read(&plan.targets, family, io::stdin().lock()).map_err(|error| {
            let exit = match error {
                TargetsError::TextSpool(_) => Exit::System,
                _ => Exit::BadTargets,
            };
            Failure {
                exit,
                ..Failure::system(&error)
            }
        })?;
    for note in targets.notes() {
        tracing::warn!("{note}");
    }
    if targets.skipped_bad() > 0 {
        tracing::warn!("bad targets skipped:\n{}", targets.skipped());
    }
    if targets.duplicates() > 0 {
        tracing::warn!(
            duplicates = targets.duplicates(),
            "targets given more than once are probed once"
        );
    }
    let probing = &settings.probing.probing;
    if let Some(found) = targets.link_local_without_zone() {
        warn_of_link_local(found, probing);
    }
    if let Some(check_route) = check_route {
        warn_of_missing_routes(&targets, probing, check_route)?;
    }
    if plan.dry_run {
        printed(dry_run(&mut io::stdout().lock(), &targets, settings))?;
        return Ok(None);
    }
    // -q leaves out both.
    if settings.progress_bar {
        for line in read_lines(&targets) {
            eprintln_quietly(&line);
        }
    }
    Ok(Some(targets))
}

/// Warns of link-local addresses that no worker can probe.
fn warn_of_link_local(found: LinkLocalTargets, probing: &Probing) {
    if probing.interface.is_some() {
        return;
    }
    let LinkLocalTargets { first, count } = found;
    let more = match count {
        1 => String::new(),
        count => format!(" and {} more", count - 1),
    };
    tracing::warn!(
        "{first}{more}: a link-local address needs its zone, and ends as send_failed without it: write {first}%eth0 with \
         the interface's name, or choose one for all requests with -I"
    );
}

/// Warns of targets to which this machine has no route, as far as a sample of them shows it.
fn warn_of_missing_routes(
    targets: &Targets,
    probing: &Probing,
    check_route: CheckRoute,
) -> Result<(), Failure> {
    let sample = targets.sample(MAX_ROUTES_CHECKED);
    let sample = sample.map_err(|error| Failure::system(&crate::ProducerError::Spool(error)))?;
    let mut missing = None;
    let mut more = 0_u64;
    for address in sample {
        // Those have a warning of their own.
        let is_link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        if is_link_local && probing.interface.is_none() {
            continue;
        }
        match check_route(address, probing.interface.as_deref()) {
            Ok(()) => {}
            Err(error) if missing.is_none() => missing = Some((address, error)),
            Err(_) => more += 1,
        }
    }
    if let Some((address, error)) = missing {
        let more = match more {
            0 => String::new(),
            more => format!(" and to at least {more} more"),
        };
        tracing::warn!(
            "this machine cannot send to {address}{more} ({error}): without a route targets end as send_failed"
        );
    }
    Ok(())
}

/// What became of every line of the files, in one line for hosts files and one for exclude files.
pub(crate) fn read_lines(targets: &Targets) -> impl Iterator<Item = String> {
    let hosts = targets.lines().map(|lines| lines.to_string());
    let excludes = targets
        .exclude_lines()
        .map(|lines| format!("excludes: {lines}"));
    hosts.into_iter().chain(excludes)
}

/// The commands that the messages at the end of a run name. They can be typed as they stand.
#[derive(Debug, Clone)]
pub struct NextCommands {
    /// Resumes a run, with its number behind it: `producer --resume`, or `pingfleet resume`.
    pub resume: String,
    /// Flags of the other commands, each behind a space: settings file and database.
    pub flags: String,
    /// The flag that names the broker, behind a space, for commands that use it.
    pub broker: String,
}

/// Reports the outcome: the summary, or how to resume the run. With `is_quiet` only what was asked for, and how to
/// resume. Returns the exit code.
///
/// # Errors
/// A [`Failure`] when it cannot be written.
pub fn conclude(
    outcome: &RunOutcome,
    output: &OutputArgs,
    next: &NextCommands,
    is_quiet: bool,
) -> Result<Exit, Failure> {
    match (&outcome.summary, outcome.reason) {
        (None, _) => {
            eprintln_quietly("interrupted before the plan was complete; nothing was stored");
        }
        (Some(summary), EndReason::Settled) => {
            if output.summary || output.wants_summary() && !is_quiet {
                // With -a or -u standard output carries targets only.
                let stdout = output.print_filter().is_none();
                let mut text = Vec::new();
                printed(print_summary(&mut text, summary, next))?;
                printed(if stdout {
                    io::stdout().write_all(&text)
                } else {
                    io::stderr().write_all(&text)
                })?;
            }
        }
        (Some(summary), EndReason::Detached) if !is_quiet => eprintln_quietly(&format!(
            "run {run} is published; `pingfleet runs{flags}` and `pingfleet verify{flags} {run}` show its progress",
            run = summary.run,
            flags = next.flags,
        )),
        (Some(summary), EndReason::Interrupted) => eprintln_quietly(&format!(
            "interrupted; {} of {} targets are stored. Continue with: {} {}",
            summary.settled(),
            summary.targets,
            next.resume,
            summary.run
        )),
        (Some(_), EndReason::Detached | EndReason::OutputClosed) => {}
    }
    Ok(outcome.exit(output.fail_down))
}

/// Prints to standard error. An error is ignored: there is no other place to report it.
fn eprintln_quietly(text: &str) {
    drop(writeln!(io::stderr(), "{text}"));
}
