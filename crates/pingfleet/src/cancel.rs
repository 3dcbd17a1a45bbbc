//! `cancel`: nothing more of a run is published.

use std::io::{self, Write};

use pingfleet_settings::{Exit, Failure, printed};
use pingfleet_store::Writer;

pub(crate) fn cancel(wanted: &str, store: &mut Writer, quiet: bool) -> Result<Exit, Failure> {
    let run = store.find_run(wanted)?;
    let open = store.cancel_run(run)?;
    let summary = store.summary(run)?;
    if quiet {
        return Ok(Exit::Complete);
    }
    let mut out = io::stdout().lock();
    printed(if open {
        writeln!(
            out,
            "run {run} is cancelled: {} of {} targets are stored; results that are still queued will be stored too",
            summary.settled(),
            summary.targets
        )
    } else {
        writeln!(
            out,
            "run {run} is {}: nothing to cancel",
            summary.state.name()
        )
    })?;
    Ok(Exit::Complete)
}
