//! The prober of one thread: it deals the destinations of a chunk out to sockets, and collects their findings.

use std::{cell::RefCell, io, rc::Rc, sync::Arc, time::Instant};

use async_trait::async_trait;
use nix::net::if_::if_nametoindex;
use pingfleet_wire::Probing;
use socket2::Type;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use super::{
    LinuxPing, SocketKey, ThreadCount,
    driver::DrivenSocket,
    engine::Engine,
    local_loss::LossDetector,
    network::NextHop,
    probes::ChunkFindings,
    socket::{Opened, open},
};
use crate::{
    prober::{Destination, Finding, ProbeCounters, ProbeError, Prober},
    schedule::{pacing::Pace, target_state::Schedule},
    socket::{Egress, LogOnce, errno},
};

/// Sockets kept open on a thread. There are more only while chunks need them at the same time.
const MAX_KEPT_SOCKETS: usize = 16;

pub(super) struct LinuxProber {
    preferred: Type,
    receive_buffer: Option<usize>,
    log_once: Arc<LogOnce>,
    threads: ThreadCount,
    counters: Arc<ProbeCounters>,
    sockets: RefCell<Vec<KeptSocket>>,
    drivers: RefCell<JoinSet<()>>,
    /// Cancelled when a driver fails: the targets of its socket get no findings any more.
    driver_failed: CancellationToken,
    detector: Rc<LossDetector>,
}

/// Destinations that need the same socket, each with its position in the chunk.
struct SocketGroup {
    v6: bool,
    next_hop: NextHop,
    members: Vec<(u32, Destination)>,
}

/// A socket that is kept.
struct KeptSocket {
    key: SocketKey,
    /// Index of its interface when it was opened.
    interface_index: Option<u32>,
    driven: Rc<DrivenSocket>,
}

impl KeptSocket {
    fn is(&self, key: &SocketKey, interface_index: Option<u32>) -> bool {
        self.key == *key && self.interface_index == interface_index
    }
}

#[async_trait(?Send)]
impl Prober for LinuxProber {
    async fn probe(
        &self,
        probing: &Probing,
        destinations: &[Destination],
        pace: &Pace,
    ) -> Vec<Finding> {
        if destinations.is_empty() {
            return Vec::new();
        }
        let findings = Rc::new(ChunkFindings::new(destinations.len()));
        let schedule = Schedule::of(probing);
        let mut parts = Vec::new();
        for group in self.groups(destinations, probing.interface.as_deref()) {
            let key = SocketKey {
                egress: Egress::of(probing, group.v6),
                next_hop: group.next_hop,
            };
            match self.socket(&key) {
                Ok(driven) => {
                    self.drive(&driven);
                    let mut engine = driven.engine();
                    engine.expect_size(probing.size.into());
                    let members = group.members.into_iter();
                    engine
                        .probes()
                        .enter(&findings, &schedule, probing, pace, members);
                    drop(engine);
                    driven.wake();
                    parts.push(PartInHand {
                        driven,
                        findings: Rc::clone(&findings),
                    });
                }
                Err(error) => {
                    let SocketKey { egress, .. } = key;
                    debug!(%error, %egress, "no socket for a chunk: its targets end as send_failed");
                    let now = Instant::now();
                    for (position, _) in group.members {
                        findings.put(position, Finding::refused(errno(&error), now));
                    }
                }
            }
        }
        tokio::select! {
            biased;
            findings = findings.complete() => findings,
            () = self.driver_failed.cancelled() => panic!("the driver of a socket has failed"),
        }
    }
}

impl LinuxProber {
    /// Opens a prober on the calling thread.
    pub(super) fn open(
        opener: &LinuxPing,
        counters: Arc<ProbeCounters>,
    ) -> Result<Self, ProbeError> {
        let preferred = opener.preferred();
        let prober = Self {
            preferred,
            receive_buffer: opener.receive_buffer,
            log_once: Arc::clone(&opener.log_once),
            threads: ThreadCount::enter(&opener.threads),
            counters,
            sockets: RefCell::default(),
            drivers: RefCell::default(),
            driver_failed: CancellationToken::new(),
            detector: LossDetector::watch(preferred),
        };
        // These two only show whether sockets can be opened. Those that probe are opened when they are needed.
        let refused = [false, true].map(|v6| prober.open_socket(&Egress::plain(v6)).err());
        ProbeError::of_families(refused)?;
        Ok(prober)
    }

    fn open_socket(&self, egress: &Egress) -> io::Result<Opened> {
        let opened = open(egress, self.preferred, self.receive_buffer)?;
        self.log_once.log_socket(
            opened.kind,
            self.preferred,
            opened.buffers,
            "targets may have to be probed again",
        );
        Ok(opened)
    }

    /// The destinations, grouped by the socket that they need.
    fn groups(&self, destinations: &[Destination], interface: Option<&str>) -> Vec<SocketGroup> {
        let mut network = self.detector.network_mut();
        network.check(Instant::now());
        let mut groups: Vec<SocketGroup> = Vec::new();
        for (position, to) in (0..).zip(destinations) {
            let v6 = to.address.is_ipv6();
            let next_hop = network.next_hop(to.address, interface);
            let member = (position, *to);
            match groups
                .iter_mut()
                .find(|group| group.v6 == v6 && group.next_hop == next_hop)
            {
                Some(group) => group.members.push(member),
                None => groups.push(SocketGroup {
                    v6,
                    next_hop,
                    members: vec![member],
                }),
            }
        }
        groups
    }

    /// The socket for a key: one that is kept, or a new one.
    fn socket(&self, key: &SocketKey) -> io::Result<Rc<DrivenSocket>> {
        let mut sockets = self.sockets.borrow_mut();
        // A socket stays bound to its interface even if another interface gets the name.
        let index = key.egress.interface().map(if_nametoindex);
        let index = index.transpose().map_err(io::Error::from)?;
        if let Some(kept) = sockets.iter().find(|kept| kept.is(key, index)) {
            return Ok(Rc::clone(&kept.driven));
        }
        let is_full = sockets.len() >= MAX_KEPT_SOCKETS;
        sockets.retain(|kept| {
            let has_old_interface = kept.key == *key;
            let is_in_use = kept.driven.engine().in_hand() > 0;
            let stays = is_in_use || !is_full && !has_old_interface;
            kept.driven.retire(!stays);
            stays
        });
        let opened = self.open_socket(&key.egress)?;
        let engine = Engine::new(
            &opened,
            key,
            &self.detector,
            Arc::clone(&self.counters),
            self.threads.get(),
        )?;
        let driven = Rc::new(DrivenSocket::new(opened.socket, engine)?);
        sockets.push(KeptSocket {
            key: key.clone(),
            interface_index: index,
            driven: Rc::clone(&driven),
        });
        Ok(driven)
    }

    /// Starts the driver of a socket that has none.
    fn drive(&self, driven: &Rc<DrivenSocket>) {
        if driven.take_driver() {
            return;
        }
        let guard = self.driver_failed.clone().drop_guard();
        let driven = Rc::clone(driven);
        self.drivers.borrow_mut().spawn_local(async move {
            match driven.drive().await {
                Ok(()) => drop(guard.disarm()),
                Err(error) => error!(%error, "cannot wait for a socket any more"),
            }
        });
    }
}

/// The part of a chunk that a socket has in hand. Dropping it gives up what is unsettled.
struct PartInHand {
    driven: Rc<DrivenSocket>,
    findings: Rc<ChunkFindings>,
}

impl Drop for PartInHand {
    fn drop(&mut self) {
        if !self.findings.is_complete() {
            self.driven.engine().probes().give_up(&self.findings);
            self.driven.wake();
        }
    }
}
