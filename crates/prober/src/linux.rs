//! Probing on Linux with the kernel's own means: many messages in one system call, the kernel's receive timestamps, ICMP
//! errors from the error queue, and the socket's drop counter.
//!
//! What it promises beyond surge-ping: a reply counts only with the payload of its request; a reply that is read late
//! counts by its arrival; and a target whose answer this machine may have lost is probed again, and is `unknown` if that is
//! lost too, never `down`. surge-ping opens its sockets.
//!
//! Each thread has one `engine` for each socket, and a socket for each egress and next hop. Tasks of the thread drive the
//! engines, so the prober must run in a [`LocalSet`](tokio::task::LocalSet).

#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod any_bytes;
mod clocks;
mod driver;
mod engine;
mod local_loss;
mod message;
mod network;
mod prober;
mod probes;
mod send_times;
mod socket;
mod syscall;

use std::{
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use socket2::Type;

use self::{network::NextHop, prober::LinuxProber};
use crate::{
    prober::{OpenProber, ProbeCounters, ProbeError, Prober},
    socket::{Egress, LogOnce},
};

/// Opens the probers of this module.
#[derive(Debug, Default)]
pub struct LinuxPing {
    prefer_raw: bool,
    receive_buffer: Option<usize>,
    log_once: Arc<LogOnce>,
    threads: Arc<AtomicUsize>,
}

impl LinuxPing {
    /// Datagram sockets where the kernel permits them, raw ones otherwise.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Raw sockets where the kernel permits them, datagram ones otherwise.
    #[must_use]
    pub fn raw() -> Self {
        Self {
            prefer_raw: true,
            ..Self::default()
        }
    }

    /// Asks for a receive buffer of `bytes` instead of a large one. What does not fit is lost, and counts as a local loss.
    #[must_use]
    pub fn receive_buffer(self, bytes: usize) -> Self {
        Self {
            receive_buffer: Some(bytes),
            ..self
        }
    }

    /// The preferred kind of socket.
    fn preferred(&self) -> Type {
        if self.prefer_raw {
            Type::RAW
        } else {
            Type::DGRAM
        }
    }
}

impl OpenProber for LinuxPing {
    fn open(&self, counters: Arc<ProbeCounters>) -> Result<Box<dyn Prober>, ProbeError> {
        Ok(Box::new(LinuxProber::open(self, counters)?))
    }
}

/// What makes one socket differ from another. Each next hop has a socket of its own: requests that wait for one link
/// address must not delay the others.
#[derive(Debug, Clone, PartialEq, Eq)]
struct SocketKey {
    egress: Egress,
    next_hop: NextHop,
}

/// Counts the probing threads, which share what the machine has only once. A thread counts as long as this exists.
struct ThreadCount(Arc<AtomicUsize>);

impl ThreadCount {
    fn enter(threads: &Arc<AtomicUsize>) -> Self {
        threads.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(threads))
    }

    /// The number of threads, with this one.
    fn get(&self) -> NonZeroUsize {
        NonZeroUsize::new(self.0.load(Ordering::Relaxed)).unwrap_or(NonZeroUsize::MIN)
    }
}

impl Drop for ThreadCount {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
