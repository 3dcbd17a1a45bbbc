//! Probing with surge-ping 0.9.1: each thread has one socket for each egress, a datagram socket where the kernel permits
//! it.
//!
//! Its limits follow from what surge-ping shows. Round-trip times are taken in user space, so a reply that is read late
//! counts as `late`. Replies that the kernel drops because the receive buffer is full, and requests that a full interface
//! queue drops silently, look like no answer.

mod chunk;
mod client;
mod meaning;
mod send_room;

use std::{cell::RefCell, io, net::IpAddr, rc::Rc, sync::Arc};

use async_trait::async_trait;
use pingfleet_wire::Probing;
use socket2::Type;
use tracing::debug;

use self::{
    chunk::{ChunkProbing, Shares},
    client::{Client, Share},
};
use crate::{
    prober::{Destination, Finding, OpenProber, ProbeCounters, ProbeError, Prober},
    schedule::pacing::Pace,
    socket::{Egress, LogOnce, NOT_SUPPORTED, errno},
};

/// Clients kept open on a thread. There are more only while chunks need them at the same time.
const MAX_KEPT_CLIENTS: usize = 16;

/// Opens probers that use surge-ping.
#[derive(Debug, Default)]
pub struct SurgePing {
    prefer_raw: bool,
    log_once: Arc<LogOnce>,
}

impl SurgePing {
    /// Datagram sockets where the kernel permits them, raw ones otherwise.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Raw sockets, which also receive ICMP errors.
    #[must_use]
    pub fn raw() -> Self {
        Self {
            prefer_raw: true,
            ..Self::default()
        }
    }
}

impl OpenProber for SurgePing {
    fn open(&self, counters: Arc<ProbeCounters>) -> Result<Box<dyn Prober>, ProbeError> {
        let prober = SurgeProber {
            prefer_raw: self.prefer_raw,
            log_once: Arc::clone(&self.log_once),
            counters,
            clients: RefCell::default(),
        };
        let refused = [false, true].map(|v6| prober.client(&Egress::plain(v6)).err());
        ProbeError::of_families(refused)?;
        Ok(Box::new(prober))
    }
}

struct SurgeProber {
    prefer_raw: bool,
    log_once: Arc<LogOnce>,
    counters: Arc<ProbeCounters>,
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
        ChunkProbing::new(probing, destinations, &shares, &self.counters)
            .run(pace)
            .await
    }
}

impl SurgeProber {
    /// A share of the client for one egress, or the errno with which the kernel refused the socket.
    fn share(&self, egress: &Egress) -> Result<Share, i32> {
        self.client(egress).map(Share::of).map_err(|error| {
            debug!(%error, %egress, "no socket for a chunk: its targets end as send_failed");
            errno(&error)
        })
    }

    fn client(&self, egress: &Egress) -> io::Result<Rc<Client>> {
        let mut clients = self.clients.borrow_mut();
        // A client whose replies are no longer read gets no new chunks.
        clients.retain(|(_, client)| !client.is_stuck());
        if let Some((_, client)) = clients.iter().find(|(known, _)| known == egress) {
            return Ok(Rc::clone(client));
        }
        if clients.len() >= MAX_KEPT_CLIENTS {
            clients.retain(|(_, client)| Rc::strong_count(client) > 1);
        }
        if egress.interface().is_some() && !cfg!(target_os = "linux") {
            return Err(io::Error::from_raw_os_error(NOT_SUPPORTED));
        }
        let preferred = if self.prefer_raw {
            Type::RAW
        } else {
            Type::DGRAM
        };
        let client = Rc::new(Client::open(egress, preferred)?);
        self.log_once.log_socket(
            client.kind(),
            preferred,
            client.buffers(),
            "replies may be lost at high rates",
        );
        clients.push((egress.clone(), Rc::clone(&client)));
        Ok(client)
    }
}

/// Whether an address is one of this machine.
fn is_own(address: IpAddr) -> bool {
    std::net::UdpSocket::bind((address, 0)).is_ok()
}

#[cfg(test)]
mod tests;
