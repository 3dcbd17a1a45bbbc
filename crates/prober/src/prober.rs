//! The seam between lanes and whatever sends echo requests. Its invariant: every destination that goes in comes out
//! as exactly one [`Finding`], in order. No I/O here.
//!
//! A prober belongs to one thread. Several chunks are probed on it at once, so its methods take `&self`.

use std::{
    io,
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use async_trait::async_trait;
use pingfleet_wire::{Probing, Rtt, Status};
use thiserror::Error;

use crate::pacing::Pace;

/// Where echo requests are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Destination {
    /// The address.
    pub address: IpAddr,
    /// The interface's index for a link-local IPv6 address (RFC 4007, section 11); 0 where none is named.
    pub scope_id: u32,
}

impl From<IpAddr> for Destination {
    fn from(address: IpAddr) -> Self {
        Self {
            address,
            scope_id: 0,
        }
    }
}

/// What a prober found out about one destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The final state.
    pub status: Status,
    /// Requests that the kernel took, in the pass that counts.
    pub sent: u16,
    /// Distinct requests that were answered.
    pub received: u16,
    /// Round-trip times, when anything was answered.
    pub rtt: Option<Rtt>,
    /// Passes of probing; 1 unless our own box may have lost an answer.
    pub attempts: u8,
    /// When the first request left, or was first refused.
    pub first_request: Instant,
}

impl Finding {
    /// A destination for which no socket could be had: the kernel refused whatever would have been sent.
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

/// Sends echo requests from one thread and listens to what comes back.
#[async_trait(?Send)]
pub trait Prober {
    /// Probes all destinations as `probing` asks, each request no sooner than `pace` lets it. The findings are in
    /// the order of the destinations. What goes wrong for a chunk only, such as a source address that this box does
    /// not have, is the finding of its destinations. Dropping the future gives its requests up; nothing else is
    /// touched by that.
    async fn probe(
        &self,
        probing: &Probing,
        destinations: &[Destination],
        pace: &Pace,
    ) -> Vec<Finding>;
}

/// Opens one prober on each probing thread.
pub trait OpenProber: Send + Sync {
    /// Opens a prober on the calling thread, within that thread's tokio runtime. The prober counts into
    /// `requests_sent` what the kernel takes.
    ///
    /// # Errors
    /// [`ProbeError`] when this process cannot probe at all.
    fn open(&self, requests_sent: Arc<RequestsSent>) -> Result<Box<dyn Prober>, ProbeError>;
}

/// Counts the requests that the kernel took, over all probers of one owner.
#[derive(Debug, Default)]
pub struct RequestsSent(AtomicU64);

impl RequestsSent {
    /// Counts `requests` more.
    pub fn add(&self, requests: u64) {
        self.0.fetch_add(requests, Ordering::Relaxed);
    }

    /// How many so far.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why this process cannot probe. All of them are final for its start.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// Neither a datagram nor a raw ICMP socket is permitted.
    #[error(
        "ICMP sockets are not permitted: run `sysctl -w net.ipv4.ping_group_range=\"0 2147483647\"`, or `setcap \
         cap_net_raw+ep {}`, as root",
        binary.display()
    )]
    NoPermission {
        /// The running binary, which the capability is for.
        binary: PathBuf,
    },
    /// The system gave no ICMP socket for another reason.
    #[error("no ICMP socket")]
    Socket(#[source] io::Error),
    /// The system gave no thread or no runtime.
    #[error("no probing thread")]
    Thread(#[source] io::Error),
    /// A probing thread ended before it could say that it is ready.
    #[error("a probing thread ended while it was starting")]
    Ended,
}

impl ProbeError {
    /// What the refusal of an ICMP socket means.
    #[must_use]
    pub fn from_socket(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::PermissionDenied {
            Self::NoPermission {
                binary: std::env::current_exe().unwrap_or_else(|_| PathBuf::from("ping-worker")),
            }
        } else {
            Self::Socket(error)
        }
    }
}
