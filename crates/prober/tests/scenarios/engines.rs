//! The probers that the scenarios are run with. A new one is one more line in [`ENGINES`].

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
pub(crate) struct Engine {
    pub(crate) name: &'static str,
    /// With a receive buffer of so many bytes, where it can be told how large that shall be.
    pub(crate) open: fn(Kind, Option<usize>) -> Arc<dyn OpenProber>,
    /// Whether it promises that more than 65,535 requests can be unanswered at once.
    pub(crate) is_wide: bool,
    /// Whether a round trip ends when the kernel received the reply, and not when the prober looked at it.
    pub(crate) is_stamped_by_kernel: bool,
    /// Whether it probes a silent target again after its thread stood still. One that does not says `unknown`.
    pub(crate) repeats_after_stall: bool,
}

/// All of them.
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
    },
];
