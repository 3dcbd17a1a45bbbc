//! What `producer` and `pingfleet sweep` do alike around [`crate::run`]: read the targets, tell the end.

use std::io::{self, Write};

use pingfleet_settings::{Exit, Failure, printed};
use pingfleet_targets::{Targets, TargetsError};

use crate::{Ended, OutputArgs, PlanArgs, Produced, Settings, dry_run, print_summary};

/// Reads the targets and tells what the user should know of them. With `--dry-run` it tells the plan and returns
/// `None`: there is nothing more to do.
///
/// # Errors
/// A [`Failure`] with every bad target.
pub fn read_targets(plan: &PlanArgs, settings: &Settings) -> Result<Option<Targets>, Failure> {
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
            "targets mentioned again are probed once"
        );
    }
    if plan.dry_run {
        printed(dry_run(&mut io::stdout().lock(), &targets, settings))?;
        return Ok(None);
    }
    Ok(Some(targets))
}

/// Tells how producing ended: the summary on `out`, and on standard error how to go on, where there is a way.
/// `resume` is the command that takes a run up again. Returns the exit code.
///
/// # Errors
/// A [`Failure`] when it cannot be written.
pub fn conclude(produced: &Produced, output: &OutputArgs, resume: &str) -> Result<Exit, Failure> {
    match (&produced.summary, produced.ended) {
        (None, _) => eprintln_quietly("interrupted before the plan stood; nothing was stored"),
        (Some(summary), Ended::Settled) => {
            if output.wants_summary() {
                // Printed targets are the data then, and the summary is not one of them.
                let stdout = output.printed().is_none();
                let mut text = Vec::new();
                printed(print_summary(&mut text, summary))?;
                printed(if stdout {
                    io::stdout().write_all(&text)
                } else {
                    io::stderr().write_all(&text)
                })?;
            }
        }
        (Some(summary), Ended::Detached) => eprintln_quietly(&format!(
            "run {0} is published; `pingfleet runs` and `pingfleet verify {0}` tell how far it is",
            summary.run
        )),
        (Some(summary), Ended::Interrupted) => eprintln_quietly(&format!(
            "interrupted; {} of {} targets are stored. Go on with: {resume} {}",
            summary.settled(),
            summary.targets,
            summary.run
        )),
        (Some(_), Ended::Unread) => {}
    }
    Ok(produced.exit(output.fail_down))
}

/// Tells something on standard error. Nobody is left to tell when that is closed.
fn eprintln_quietly(text: &str) {
    drop(writeln!(io::stderr(), "{text}"));
}
