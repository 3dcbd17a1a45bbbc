//! The alert about a name that workers of several logins use. No I/O.

use pingfleet_report::words::counted;
use pingfleet_wire::StatusKind;

use super::{alerts::Alert, facts::Facts};

/// Names that several logins use at the same time.
pub(super) fn shared_names(facts: &Facts) -> Option<Alert> {
    let shared = pingfleet_store::shared_names(&facts.workers);
    let (name, logins) = shared.first()?;
    let others = match shared.len() {
        1 => String::new(),
        more => format!(" So have {}.", counted(more as i64 - 1, "more name")),
    };
    let title = format!("Several logins have a worker of the name {name}");
    let text = format!(
        "They are {}.{others} A worker chooses its name itself, and the broker checks its login: give each another name \
         (worker.name), and look for a worker that is not yours.",
        logins.join(", ")
    );
    Some(Alert::new(StatusKind::Unreachable, title, text))
}
