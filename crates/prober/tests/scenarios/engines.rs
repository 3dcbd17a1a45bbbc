//! The probers with which the scenarios are run. A new one is one more entry in [`ENGINES`].

use std::sync::Arc;

use pingfleet_prober::{linux::LinuxPing, prober::OpenProber, surge::SurgePing};

/// A kind of ICMP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Datagram,
    Raw,
}

impl Kind {
    pub(crate) const ALL: [Self; 2] = [Self::Datagram, Self::Raw];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Datagram => "datagram",
            Self::Raw => "raw",
        }
    }
}

/// A prober, under the name that scenario files use for it.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a promise that a prober makes or not"
)]
pub(crate) struct Engine {
    pub(crate) name: &'static str,
    /// Opens it, with a receive buffer of this size if the prober has such a setting.
    pub(crate) open: fn(Kind, Option<usize>) -> Arc<dyn OpenProber>,
    /// Whether it promises that more than 65,535 requests can be unanswered at once.
    pub(crate) is_wide: bool,
    /// Whether a round trip ends with the kernel's receive timestamp, not when the prober reads the reply.
    pub(crate) is_stamped_by_kernel: bool,
    /// Whether it probes a silent target again after a stall. Otherwise it reports `unknown`.
    pub(crate) repeats_after_stall: bool,
    /// Whether a reply from another address leaves a reason.
    pub(crate) names_who_answered: bool,
}

/// All probers.
pub(crate) const ENGINES: &[Engine] = &[
    Engine {
        name: "linux",
        open: |kind, receive_buffer| {
            let prober = match kind {
                Kind::Datagram => LinuxPing::new(),
                Kind::Raw => LinuxPing::raw(),
            };
            Arc::new(match receive_buffer {
                Some(bytes) => prober.receive_buffer(bytes),
                None => prober,
            })
        },
        is_wide: true,
        is_stamped_by_kernel: true,
        repeats_after_stall: true,
        names_who_answered: true,
    },
    Engine {
        name: "surge",
        open: |kind, _| match kind {
            Kind::Datagram => Arc::new(SurgePing::new()),
            Kind::Raw => Arc::new(SurgePing::raw()),
        },
        is_wide: false,
        is_stamped_by_kernel: false,
        repeats_after_stall: false,
        names_who_answered: false,
    },
];
