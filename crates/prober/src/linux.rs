//! Probing on Linux, by the kernel's own means: many messages in one system call, the kernel's receive stamps, ICMP
//! errors from the error queue, and the socket's counter of what it had to drop.
//!
//! What it promises beyond surge-ping: a reply counts only with the payload of its request; a reply that is read late
//! counts by when it arrived; and a target whose answer our own box may have lost is probed again, and `unknown` if
//! that is lost too, never `down`. surge-ping opens its sockets.
//!
//! One engine for each thread and each way out, driven by a task of the thread: it must run in a
//! [`LocalSet`](tokio::task::LocalSet).

mod canary;
mod discards;
mod engine;
mod links;
mod local_loss;
mod message;
mod probes;
mod routes;
mod sequence;
mod socket;
mod syscall;
mod target_table;
mod timer_wheel;

use std::{
    cell::{Cell, RefCell},
    io,
    num::NonZeroUsize,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Instant,
};

use async_trait::async_trait;
use nix::net::if_::if_nametoindex;
use pingfleet_wire::Probing;
use socket2::{Socket, Type};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Notify,
    task::{JoinSet, yield_now},
    time::sleep_until,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::{
    canary::Canary,
    discards::Discards,
    engine::{Engine, Wake},
    routes::{NextHop, RouteTable},
    socket::{Egress, Opened, open},
    target_table::ChunkFindings,
};
use crate::{
    prober::{Destination, Finding, OpenProber, ProbeError, Prober, RequestsSent},
    schedule::pacing::Pace,
    schedule::target_state::Schedule,
};

/// Sockets kept open on a thread, of all next hops that are told apart; more only while chunks need them at once.
const MAX_KEPT_SOCKETS: usize = 16;

/// A receive buffer below this holds fewer replies than may arrive at once.
const SMALL_RECEIVE_BUFFER: usize = 8 << 20;

/// The errno of what the kernel can make no sense of (EINVAL).
const INVALID: i32 = 22;

/// Opens probers that drive their sockets themselves.
#[derive(Debug, Default)]
pub struct LinuxPing {
    prefer_raw: bool,
    receive_buffer: Option<usize>,
    log_once: Arc<LogOnce>,
    lanes: Arc<AtomicUsize>,
}

/// Counts a prober among the lanes that share what is there once for the box, as long as it is there.
struct ProbeThread(Arc<AtomicUsize>);

impl ProbeThread {
    fn enter(lanes: &Arc<AtomicUsize>) -> Self {
        lanes.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(lanes))
    }

    /// How many lanes there are, with this one.
    fn count(&self) -> NonZeroUsize {
        NonZeroUsize::new(self.0.load(Ordering::Relaxed)).unwrap_or(NonZeroUsize::MIN)
    }
}

impl Drop for ProbeThread {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is told once for all threads.
#[derive(Debug, Default)]
struct LogOnce {
    sockets: AtomicBool,
    small_buffer: AtomicBool,
}

impl LinuxPing {
    /// Datagram sockets where the kernel permits them, raw ones as a fallback.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Raw sockets where the kernel permits them, datagram ones as a fallback.
    #[must_use]
    pub fn raw() -> Self {
        Self {
            prefer_raw: true,
            ..Self::default()
        }
    }

    /// Asks for a receive buffer of `bytes` instead of a large one. What does not fit it is lost, and noticed.
    #[must_use]
    pub fn receive_buffer(self, bytes: usize) -> Self {
        Self {
            receive_buffer: Some(bytes),
            ..self
        }
    }
}

impl OpenProber for LinuxPing {
    fn open(&self, requests_sent: Arc<RequestsSent>) -> Result<Box<dyn Prober>, ProbeError> {
        let hint = if self.prefer_raw {
            Type::RAW
        } else {
            Type::DGRAM
        };
        let prober = LinuxProber {
            hint,
            receive_buffer: self.receive_buffer,
            log_once: Arc::clone(&self.log_once),
            lane: ProbeThread::enter(&self.lanes),
            requests_sent,
            sockets: RefCell::default(),
            drivers: RefCell::default(),
            fault: CancellationToken::new(),
            routes: Rc::new(RefCell::new(RouteTable::watch())),
            canary: Rc::new(RefCell::new(Canary::new(hint))),
            discards: Rc::new(RefCell::new(Discards::watch())),
        };
        // Only to know that they can be had: nobody reads a socket before something is probed by it.
        let [v4, v6] = [false, true].map(|v6| {
            let opened = open(&Egress::plain(v6), hint, prober.receive_buffer);
            opened.inspect(|opened| prober.log_socket(opened))
        });
        match (v4, v6) {
            (Err(error), Err(_)) => Err(ProbeError::from_socket(error)),
            _ => Ok(Box::new(prober)),
        }
    }
}

struct LinuxProber {
    /// The kind of socket that is preferred.
    hint: Type,
    receive_buffer: Option<usize>,
    log_once: Arc<LogOnce>,
    lane: ProbeThread,
    requests_sent: Arc<RequestsSent>,
    sockets: RefCell<Vec<KeptSocket>>,
    drivers: RefCell<JoinSet<()>>,
    /// Cancelled when a driver ends in disorder: nothing more comes of what its socket has in hand.
    fault: CancellationToken,
    routes: Rc<RefCell<RouteTable>>,
    canary: Rc<RefCell<Canary>>,
    discards: Rc<RefCell<Discards>>,
}

/// Destinations that need one socket, each with its number.
struct Group {
    v6: bool,
    next_hop: NextHop,
    members: Vec<(u32, Destination)>,
}

/// A socket that is kept.
struct KeptSocket {
    egress: Egress,
    /// Of its interface, when it was opened.
    index: Option<u32>,
    driven: Rc<DrivenSocket>,
}

impl KeptSocket {
    fn is(&self, egress: &Egress, index: Option<u32>) -> bool {
        self.egress == *egress && self.index == index
    }
}

/// A socket, its engine, and what its driver waits for.
struct DrivenSocket {
    socket: AsyncFd<Socket>,
    engine: RefCell<Engine>,
    /// Something was entered or given up.
    changed: Notify,
    has_driver: Cell<bool>,
    is_retired: Cell<bool>,
}

#[async_trait(?Send)]
impl Prober for LinuxProber {
    async fn probe(
        &self,
        probing: &Probing,
        destinations: &[Destination],
        pace: &Pace,
    ) -> Vec<Finding> {
        let findings = ChunkFindings::new(destinations.len());
        let schedule = Schedule::of(probing);
        let mut parts = Vec::new();
        for Group {
            v6,
            next_hop,
            members,
        } in self.groups(destinations, probing.interface.as_deref())
        {
            let members = members.into_iter();
            let egress = Egress::of(probing, v6, next_hop);
            match self.socket(&egress) {
                Ok(driven) => {
                    self.drive(&driven);
                    let mut engine = driven.engine.borrow_mut();
                    engine.expect_size(probing.size.into());
                    engine
                        .probes
                        .enter(&findings, &schedule, probing, pace, members);
                    drop(engine);
                    driven.changed.notify_one();
                    parts.push(PartInHand {
                        driven,
                        findings: Rc::clone(&findings),
                    });
                }
                Err(error) => {
                    warn!(%error, ?egress, "no socket for a chunk");
                    let now = Instant::now();
                    for (number, _) in members {
                        findings.put(number, Finding::refused(errno(&error), now));
                    }
                }
            }
        }
        if destinations.is_empty() {
            return Vec::new();
        }
        tokio::select! {
            biased;
            findings = findings.complete() => findings,
            () = self.fault.cancelled() => panic!("the driver of a socket has ended"),
        }
    }
}

impl LinuxProber {
    /// The destinations by the socket that they need.
    fn groups(&self, destinations: &[Destination], interface: Option<&str>) -> Vec<Group> {
        let mut routes = self.routes.borrow_mut();
        routes.refresh(Instant::now());
        let mut groups: Vec<Group> = Vec::new();
        for (number, to) in (0..).zip(destinations) {
            let v6 = to.address.is_ipv6();
            let next_hop = routes.next_hop(to.address, interface);
            let member = (number, *to);
            match groups
                .iter_mut()
                .find(|group| group.v6 == v6 && group.next_hop == next_hop)
            {
                Some(group) => group.members.push(member),
                None => groups.push(Group {
                    v6,
                    next_hop,
                    members: vec![member],
                }),
            }
        }
        groups
    }

    /// The socket for one way out.
    fn socket(&self, egress: &Egress) -> io::Result<Rc<DrivenSocket>> {
        let mut sockets = self.sockets.borrow_mut();
        // A socket stays bound to the interface that it was opened for, when another one has its name.
        let index = egress.interface.as_deref().map(if_nametoindex);
        let index = index.transpose().map_err(io::Error::from)?;
        if let Some(known) = sockets.iter().find(|known| known.is(egress, index)) {
            return Ok(Rc::clone(&known.driven));
        }
        let is_full = sockets.len() >= MAX_KEPT_SOCKETS;
        sockets.retain(|known| {
            let is_outlived = known.egress == *egress;
            let in_use = known.driven.engine.borrow().probes.in_hand() > 0;
            let stays = in_use || !is_full && !is_outlived;
            known.driven.is_retired.set(!stays);
            known.driven.changed.notify_one();
            stays
        });
        let opened = open(egress, self.hint, self.receive_buffer)?;
        self.log_socket(&opened);
        let engine = Engine::new(
            &opened,
            egress,
            &self.routes,
            &self.canary,
            &self.discards,
            Arc::clone(&self.requests_sent),
            self.lane.count(),
        )?;
        let driven = Rc::new(DrivenSocket {
            engine: RefCell::new(engine),
            socket: syscall::watch(opened.socket)?,
            changed: Notify::new(),
            has_driver: Cell::new(false),
            is_retired: Cell::new(false),
        });
        sockets.push(KeptSocket {
            egress: egress.clone(),
            index,
            driven: Rc::clone(&driven),
        });
        Ok(driven)
    }

    /// Makes sure that a socket has a driver.
    fn drive(&self, driven: &Rc<DrivenSocket>) {
        if driven.has_driver.replace(true) {
            return;
        }
        let guard = self.fault.clone().drop_guard();
        let driven = Rc::clone(driven);
        self.drivers.borrow_mut().spawn_local(async move {
            match driven.run().await {
                Ok(()) => drop(guard.disarm()),
                Err(error) => error!(%error, "a socket cannot be watched any more"),
            }
        });
    }

    fn log_socket(&self, opened: &Opened) {
        let Opened { kind, buffers, .. } = opened;
        if !self.log_once.sockets.swap(true, Ordering::Relaxed) {
            let (receive_buffer, send_buffer) = (buffers.receive, buffers.send);
            if *kind == self.hint {
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
                "small receive buffer, targets may have to be probed again: run `sysctl -w \
                 net.core.rmem_max=67108864` as root"
            );
        }
    }
}

impl DrivenSocket {
    /// Gives the engine its turns until the socket is retired.
    async fn run(&self) -> io::Result<()> {
        while !self.is_retired.get() {
            let next = self.engine.borrow_mut().run_once(self.socket.get_ref());
            let deadline = match next {
                Wake::Immediately => {
                    yield_now().await;
                    continue;
                }
                Wake::At(at) => Some(at),
                Wake::OnInput => None,
            };
            tokio::select! {
                biased;
                // Forgotten before it is read, so that what arrives in between is not missed.
                ready = self.socket.ready(Interest::READABLE | Interest::ERROR) => {
                    ready?.clear_ready();
                }
                () = self.changed.notified() => {}
                () = sleep_until(deadline.unwrap_or_else(Instant::now).into()), if deadline.is_some() => {}
            }
        }
        Ok(())
    }
}

/// A part of a chunk on a socket. What is left of it when it is dropped is given up.
struct PartInHand {
    driven: Rc<DrivenSocket>,
    findings: Rc<ChunkFindings>,
}

impl Drop for PartInHand {
    fn drop(&mut self) {
        if !self.findings.is_complete() {
            self.driven
                .engine
                .borrow_mut()
                .probes
                .give_up(&self.findings);
            self.driven.changed.notify_one();
        }
    }
}

/// The errno of an error; EPERM for surge-ping's own text about permissions.
fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(match error.kind() {
        io::ErrorKind::PermissionDenied => 1,
        _ => INVALID,
    })
}
