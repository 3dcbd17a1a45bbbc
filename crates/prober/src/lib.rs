//! Probing: destinations in, one finding for each of them out. No broker, no database, no settings files.
//!
//! | module | job |
//! |---|---|
//! | [`mod@probe_threads`] | the threads that probe; a chunk in, its outcomes out. Start reading here |
//! | [`mod@prober`] | the seam: what every prober does |
//! | [`resolve`] | from a target's text to its address |
//! | [`route`] | whether this machine has a route to an address |
//! | [`schedule`] | when requests leave and when a target is settled: pure rules, the same for every prober |
//! | [`linux`] | the prober that uses the kernel's own means; the default on Linux |
//! | [`surge`] | the prober that uses surge-ping; the default elsewhere, and the reference on Linux |
//! | [`scripted`] | the prober without a network, for tests |

#[cfg(target_os = "linux")]
pub mod linux;
pub mod probe_threads;
pub mod prober;
pub mod resolve;
pub mod route;
pub mod schedule;
pub mod scripted;
mod socket;
pub mod surge;

use std::{num::NonZeroUsize, sync::Arc};

pub use crate::socket::{UnusableEgress, check_egress};
use crate::{
    probe_threads::ProbeThreads,
    prober::{OpenProber, ProbeError},
    resolve::Resolver,
};

/// The prober of this system: [`linux`] on Linux, [`surge`] elsewhere.
#[must_use]
pub fn default_prober() -> Arc<dyn OpenProber> {
    #[cfg(target_os = "linux")]
    return Arc::new(linux::LinuxPing::new());
    #[cfg(not(target_os = "linux"))]
    Arc::new(surge::SurgePing::new())
}

/// Checks whether this process may probe: opens a prober and closes it again.
///
/// # Errors
/// [`ProbeError`], with what is missing.
pub fn check(opener: &Arc<dyn OpenProber>) -> Result<(), ProbeError> {
    let resolver = Resolver::from_system();
    ProbeThreads::start(NonZeroUsize::MIN, opener, None, resolver).map(ProbeThreads::close)
}
