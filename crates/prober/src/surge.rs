//! Probing with surge-ping 0.9.1: one socket for each thread and each way out, datagram where the kernel permits it.
//!
//! Its limits, which follow from what surge-ping shows: round-trip times are taken in user space, so a reply that is
//! read late counts as `late`; replies that the kernel drops because the receive buffer is full, and requests that a
//! full queue of an interface drops in silence, look like no answer.

mod chunk;
mod client;

use std::{
    cell::RefCell,
    io,
    net::IpAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use pingfleet_wire::Probing;
use socket2::Type;
use tracing::{info, warn};

use crate::{
    prober::{Destination, Finding, OpenProber, ProbeError, Prober, RequestsSent},
    schedule::pacing::Pace,
};
use chunk::{Chunk, Shares};
use client::{Client, Egress, Share};

/// Clients kept open on a thread; more only while chunks need them at once.
const KEPT_CLIENTS: usize = 16;

/// A receive buffer below this holds fewer replies than may arrive at once.
const SMALL_RECEIVE_BUFFER: usize = 8 << 20;

/// The errno of an address family or an option that this system does not have (EOPNOTSUPP).
const NOT_SUPPORTED: i32 = 95;

/// Opens probers that use surge-ping.
#[derive(Debug, Default)]
pub struct SurgePing {
    prefer_raw: bool,
    log_once: Arc<LogOnce>,
}

/// What is told once for all threads.
#[derive(Debug, Default)]
struct LogOnce {
    sockets: AtomicBool,
    small_buffer: AtomicBool,
}

impl SurgePing {
    /// Datagram sockets where the kernel permits them, raw ones as a fallback.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Raw sockets, which also see ICMP errors.
    #[must_use]
    pub fn raw() -> Self {
        Self {
            prefer_raw: true,
            ..Self::default()
        }
    }
}

impl OpenProber for SurgePing {
    fn open(&self, requests_sent: Arc<RequestsSent>) -> Result<Box<dyn Prober>, ProbeError> {
        let prober = SurgeProber {
            prefer_raw: self.prefer_raw,
            log_once: Arc::clone(&self.log_once),
            requests_sent,
            clients: RefCell::default(),
        };
        let [v4, v6] = [false, true].map(|v6| prober.client(&Egress::plain(v6)));
        match (v4, v6) {
            (Err(error), Err(_)) => Err(ProbeError::from_socket(error)),
            _ => Ok(Box::new(prober)),
        }
    }
}

struct SurgeProber {
    prefer_raw: bool,
    log_once: Arc<LogOnce>,
    requests_sent: Arc<RequestsSent>,
    clients: RefCell<Vec<(Egress, Rc<Client>)>>,
}

#[async_trait(?Send)]
impl Prober for SurgeProber {
    async fn probe(
        &self,
        probing: &Probing,
        destinations: &[Destination],
        pace: &Pace,
    ) -> Vec<Finding> {
        let shares = [false, true].map(|v6| {
            let needed = destinations
                .iter()
                .any(|destination| destination.address.is_ipv6() == v6);
            needed.then(|| self.share(&Egress::of(probing, v6)))
        });
        let shares = Shares(shares);
        Chunk::new(probing, destinations, &shares, &self.requests_sent)
            .run(pace)
            .await
    }
}

impl SurgeProber {
    /// A share of the client for one way out, or the errno with which the kernel refused it.
    fn share(&self, egress: &Egress) -> Result<Share, i32> {
        self.client(egress).map(Share::of).map_err(|error| {
            warn!(%error, %egress, "no socket for a chunk: its targets end as send_failed");
            errno(&error)
        })
    }

    fn client(&self, egress: &Egress) -> io::Result<Rc<Client>> {
        let mut clients = self.clients.borrow_mut();
        // A client that reads nothing any more is left to the chunks that have it.
        clients.retain(|(_, client)| !client.is_stuck());
        if let Some((_, client)) = clients.iter().find(|(known, _)| known == egress) {
            return Ok(Rc::clone(client));
        }
        if clients.len() >= KEPT_CLIENTS {
            clients.retain(|(_, client)| Rc::strong_count(client) > 1);
        }
        if egress.interface.is_some() && !cfg!(target_os = "linux") {
            return Err(io::Error::from_raw_os_error(NOT_SUPPORTED));
        }
        let hint = if self.prefer_raw {
            Type::RAW
        } else {
            Type::DGRAM
        };
        let client = Rc::new(Client::open(egress, hint)?);
        self.log_socket(&client, hint);
        clients.push((egress.clone(), Rc::clone(&client)));
        Ok(client)
    }

    fn log_socket(&self, client: &Client, hint: Type) {
        let (kind, buffers) = (client.kind(), client.buffers());
        if !self.log_once.sockets.swap(true, Ordering::Relaxed) {
            let (receive_buffer, send_buffer) = (buffers.receive, buffers.send);
            if kind == hint {
                info!(?kind, receive_buffer, send_buffer, "ICMP sockets open");
            } else {
                info!(
                    ?kind,
                    receive_buffer,
                    send_buffer,
                    "ICMP sockets open, of another kind than preferred: that one is not permitted"
                );
            }
        }
        if buffers.receive < SMALL_RECEIVE_BUFFER
            && !self.log_once.small_buffer.swap(true, Ordering::Relaxed)
        {
            warn!(
                receive_buffer = buffers.receive,
                "small receive buffer, replies may be lost at high rates: run `sysctl -w \
                 net.core.rmem_max=67108864` as root"
            );
        }
    }
}

/// The errno of an error; EPERM for surge-ping's own text about permissions.
fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(match error.kind() {
        io::ErrorKind::PermissionDenied => 1,
        // EINVAL, as the kernel says it of what it cannot make sense of.
        _ => 22,
    })
}

/// Whether an address is one of this box.
fn is_own(address: IpAddr) -> bool {
    std::net::UdpSocket::bind((address, 0)).is_ok()
}

#[cfg(test)]
mod tests;
