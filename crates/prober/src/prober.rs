//! The seam between the probing threads and the probers, which send the echo requests. Invariant: every destination that
//! goes in comes out as exactly one [`Finding`], in the same order. No I/O here.
//!
//! A prober belongs to one thread. Several chunks are probed on it at once, so its methods take `&self`.

use std::{
    borrow::Cow,
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use async_trait::async_trait;
use pingfleet_wire::{LocalLoss, LocalLossCounts, Probing, Rtt, Status};
use thiserror::Error;

use crate::schedule::pacing::Pace;

/// "Protocol not available" (ENOPROTOOPT): the system does not have an option of a socket.
const NO_OPTION: i32 = if cfg!(windows) { 10042 } else { 92 };

/// Where echo requests are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Destination {
    /// The address.
    pub address: IpAddr,
    /// Index of the interface for a link-local IPv6 address (RFC 4007, section 11); 0 when none is named.
    pub scope_id: u32,
}

impl From<IpAddr> for Destination {
    /// Of an IPv4-mapped address (RFC 4291, section 2.5.5.2) the IPv4 address: as IPv6 the kernel refuses it.
    fn from(address: IpAddr) -> Self {
        Self {
            address: address.to_canonical(),
            scope_id: 0,
        }
    }
}

/// What a prober found out about one destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The final state.
    pub status: Status,
    /// Requests that the kernel accepted: in the last attempt, or in that of the ICMP error that decides the status.
    pub sent: u16,
    /// Distinct requests that were answered.
    pub received: u16,
    /// Round-trip times, when anything was answered.
    pub rtt: Option<Rtt>,
    /// How often the target was probed; 1 unless this machine may have lost an answer.
    pub attempts: u8,
    /// When the first request left, or the kernel refused it.
    pub first_request: Instant,
}

impl Finding {
    /// The finding of a destination for which no socket could be opened.
    #[must_use]
    pub fn refused(errno: i32, at: Instant) -> Self {
        Self {
            status: Status::SendFailed { errno },
            sent: 0,
            received: 0,
            rtt: None,
            attempts: 1,
            first_request: at,
        }
    }
}

/// Sends echo requests from one thread and receives what comes back.
#[async_trait(?Send)]
pub trait Prober {
    /// Probes all destinations with the settings `probing`; each request waits for `pace`. The findings are in the order
    /// of the destinations. An error that concerns only this chunk, such as a source address that this machine does not
    /// have, becomes the finding of its destinations. Dropping the future gives up its requests and nothing else.
    async fn probe(
        &self,
        probing: &Probing,
        destinations: &[Destination],
        pace: &Pace,
    ) -> Vec<Finding>;
}

/// Opens one prober on each probing thread.
pub trait OpenProber: Send + Sync {
    /// Opens a prober on the calling thread, within that thread's tokio runtime. The prober adds each request that the
    /// kernel accepts to `counters`, and each attempt that it repeats because of a local loss.
    ///
    /// # Errors
    /// [`ProbeError`] when this process cannot probe at all.
    fn open(&self, counters: Arc<ProbeCounters>) -> Result<Box<dyn Prober>, ProbeError>;
}

/// Counts over all probers of one owner, since its start.
#[derive(Debug, Default)]
pub struct ProbeCounters {
    requests: AtomicU64,
    replies: AtomicU64,
    /// By cause, in the order of the bits of [`LocalLoss`].
    local_losses: [AtomicU64; LocalLossCounts::CAUSES],
}

impl ProbeCounters {
    /// Adds requests that the kernel accepted.
    pub fn add_requests(&self, requests: u64) {
        self.requests.fetch_add(requests, Ordering::Relaxed);
    }

    /// Requests that the kernel accepted.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Adds replies.
    pub fn add_replies(&self, replies: u64) {
        self.replies.fetch_add(replies, Ordering::Relaxed);
    }

    /// Replies to requests of settled targets.
    #[must_use]
    pub fn replies(&self) -> u64 {
        self.replies.load(Ordering::Relaxed)
    }

    /// Adds one attempt that may have been lost on this machine.
    pub fn add_local_loss(&self, causes: LocalLoss) {
        for (bit, count) in self.local_losses.iter().enumerate() {
            if causes.has(LocalLoss(1 << bit)) {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Attempts that may have been lost on this machine, by cause.
    #[must_use]
    pub fn local_losses(&self) -> LocalLossCounts {
        let counts = self.local_losses.each_ref();
        LocalLossCounts::from_causes(counts.map(|count| count.load(Ordering::Relaxed)))
    }
}

/// Why this process cannot probe. No retry helps.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// Neither a datagram nor a raw ICMP socket is permitted.
    #[error(
        "ICMP sockets are not permitted: run `sysctl -w net.ipv4.ping_group_range=\"0 2147483647\"`, or `setcap \
         cap_net_raw+ep {}`, as root",
        quoted(binary)
    )]
    NoPermission {
        /// The running binary, which needs the capability.
        binary: PathBuf,
    },
    /// The kernel's ICMP sockets lack an option.
    #[error(
        "this kernel's ICMP sockets lack an option that is needed: Linux has all of them since 4.12, an emulated kernel \
         may not"
    )]
    MissingOption(#[source] io::Error),
    /// The system refused an ICMP socket for another reason.
    #[error("cannot open an ICMP socket")]
    Socket(#[source] io::Error),
    /// The system refused a thread or a runtime.
    #[error("cannot start a probing thread")]
    Thread(#[source] io::Error),
    /// A probing thread ended before it was ready.
    #[error("a probing thread ended while it was starting")]
    Ended,
}

/// A path as the shell reads it.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    shlex::try_quote(&text).map_or_else(|_| text.to_string(), Cow::into_owned)
}

impl ProbeError {
    /// From the error of opening an ICMP socket.
    #[must_use]
    pub fn from_socket(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::PermissionDenied {
            Self::NoPermission {
                binary: std::env::current_exe().unwrap_or_else(|_| PathBuf::from("ping-worker")),
            }
        } else if error.raw_os_error() == Some(NO_OPTION) {
            Self::MissingOption(error)
        } else {
            Self::Socket(error)
        }
    }

    /// Whether this process can probe at all, from the errors of opening a socket of IPv4 and one of IPv6. One family is
    /// enough, unless the other one only lacks an option: then each of its targets would end as `send_failed`.
    ///
    /// # Errors
    /// [`ProbeError`] if it cannot.
    pub(crate) fn of_families(refused: [Option<io::Error>; 2]) -> Result<(), Self> {
        match refused {
            [Some(error), Some(_)] => Err(Self::from_socket(error)),
            [Some(error), None] | [None, Some(error)]
                if error.raw_os_error() == Some(NO_OPTION) =>
            {
                Err(Self::from_socket(error))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_may_be_missing_but_no_option_of_it() {
        let error = |errno| Some(io::Error::from_raw_os_error(errno));
        let is_refused = |refused| ProbeError::of_families(refused).is_err();
        assert!(!is_refused([None, None]) && !is_refused([None, error(97)]));
        assert!(is_refused([error(97), error(97)]));
        for refused in [[error(NO_OPTION), None], [None, error(NO_OPTION)]] {
            assert!(matches!(
                ProbeError::of_families(refused),
                Err(ProbeError::MissingOption(_))
            ));
        }
    }

    #[test]
    fn an_attempt_counts_for_each_of_its_causes() {
        let counters = ProbeCounters::default();
        counters.add_local_loss(LocalLoss::SOCKET_DROPS.and(LocalLoss::CANARY));
        counters.add_local_loss(LocalLoss::CANARY);
        counters.add_local_loss(LocalLoss::INTERRUPTED);
        assert_eq!(
            counters.local_losses(),
            LocalLossCounts {
                socket_drops: 1,
                canary: 2,
                interrupted: 1,
                ..LocalLossCounts::default()
            }
        );
    }
}
