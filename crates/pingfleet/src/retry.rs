//! `retry`: sends the dead chunks of a run again.

use pingfleet_settings::{Exit, Failure, Layers};
use producer::RunRequest;

use crate::resume::{ResumeArgs, continue_run};

pub(crate) fn retry(args: &ResumeArgs, layers: Layers, quiet: bool) -> Result<Exit, Failure> {
    continue_run(args, layers, quiet, RunRequest::Retry)
}
