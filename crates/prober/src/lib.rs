//! Probing: destinations in, one finding for each of them out. No broker, no database, no settings files.
//!
//! Start at [`prober`], the seam, and at [`mod@lanes`], the threads that probe.

pub mod course;
pub mod lanes;
#[cfg(target_os = "linux")]
pub mod linux;
pub mod pacing;
pub mod prober;
pub mod resolve;
pub mod scripted;
mod socket;
pub mod surge;
pub mod window;

use std::{num::NonZeroUsize, sync::Arc};

use crate::{
    lanes::Lanes,
    prober::{OpenProber, ProbeError},
    resolve::Resolver,
};

/// The prober of this system: the kernel's own means on Linux, surge-ping elsewhere.
#[must_use]
pub fn default_prober() -> Arc<dyn OpenProber> {
    #[cfg(target_os = "linux")]
    return Arc::new(linux::LinuxPing::new());
    #[cfg(not(target_os = "linux"))]
    Arc::new(surge::SurgePing::new())
}

/// Tries whether this process may probe at all, and opens nothing for longer than that.
///
/// # Errors
/// [`ProbeError`], with what is missing.
pub fn check(opener: &Arc<dyn OpenProber>) -> Result<(), ProbeError> {
    let resolver = Resolver::from_system();
    Lanes::start(NonZeroUsize::MIN, opener, None, resolver).map(Lanes::close)
}
