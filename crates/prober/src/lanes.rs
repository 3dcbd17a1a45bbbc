//! The probing threads. Each lane is one OS thread with a current-thread runtime and a prober of its own, so that
//! neither the broker's connection nor another lane can hold up its answers. Names are resolved on the caller's
//! runtime before their targets come here.
//!
//! Invariant: a chunk that goes in comes out as one outcome for each target, or as [`LaneGone`]; never as silence.

use std::{
    iter,
    num::{NonZeroU32, NonZeroUsize},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use futures_util::future;
use pingfleet_wire::{Outcome, Probing, Target, WorkChunk};
use thiserror::Error;
use tokio::{
    runtime,
    sync::{mpsc, oneshot},
    task::{JoinSet, LocalSet},
};
use tracing::{debug, error};

use crate::{
    pacing::{Pace, Paces},
    prober::{Destination, Finding, OpenProber, ProbeError, Prober, RequestsSent},
    resolve::{Resolver, Unresolved, literal},
};

/// Errands that wait for a lane to take them. The lane takes them at once; what is in hand is bounded by the caller.
const WAITING_ERRANDS: usize = 64;

/// The pause before another try to open a prober for a lane that lost its own.
const OPEN_AGAIN: Duration = Duration::from_secs(1);

/// A fault ended the prober that had the chunk, and the log says which. The chunk was not probed as a whole; the lane
/// goes on with another prober.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("the probing thread of this chunk has ended")]
pub struct LaneGone;

/// A chunk that was probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    /// When the probing began, by the wall clock, in microseconds since 1970-01-01 UTC.
    pub started_at_us: u64,
    /// The n-th outcome belongs to the n-th target of the chunk.
    pub outcomes: Vec<Outcome>,
}

/// All probing threads of this process.
#[derive(Debug)]
pub struct Lanes {
    all: Vec<Lane>,
    paces: Paces,
    resolver: Resolver,
    requests_sent: Arc<RequestsSent>,
    targets_done: AtomicU64,
}

#[derive(Debug)]
struct Lane {
    /// Taken when the lanes are closed.
    errands: Option<mpsc::Sender<Errand>>,
    /// Destinations in hand.
    load: AtomicUsize,
    thread: Option<JoinHandle<()>>,
}

/// What a lane says once it has a prober, or cannot have one.
type Started = Receiver<Result<(), ProbeError>>;

/// Destinations of one chunk for one lane.
struct Errand {
    chunk: Arc<WorkChunk>,
    destinations: Vec<Destination>,
    pace: Pace,
    found: oneshot::Sender<Vec<Finding>>,
}

impl Lanes {
    /// Starts `threads` lanes, each with a prober that `opener` opens there. All of them together send at most
    /// `box_rate` requests a second. Returns when every prober is open.
    ///
    /// # Errors
    /// [`ProbeError`] when one of them cannot be had; the others have ended then.
    pub fn start(
        threads: NonZeroUsize,
        opener: &Arc<dyn OpenProber>,
        box_rate: Option<NonZeroU32>,
        resolver: Resolver,
    ) -> Result<Self, ProbeError> {
        let requests_sent = Arc::new(RequestsSent::default());
        let mut lanes = Self {
            all: Vec::with_capacity(threads.get()),
            paces: Paces::new(threads.get(), box_rate),
            resolver,
            requests_sent: Arc::clone(&requests_sent),
            targets_done: AtomicU64::new(0),
        };
        // All at once; what has started by the time of an error is closed with the lanes.
        let mut starting = Vec::with_capacity(threads.get());
        for number in 0..threads.get() {
            let (lane, started) =
                Lane::start(number, Arc::clone(opener), Arc::clone(&requests_sent))?;
            lanes.all.push(lane);
            starting.push(started);
        }
        for started in starting {
            started.recv().unwrap_or(Err(ProbeError::Ended))?;
        }
        Ok(lanes)
    }

    /// Probes a chunk: resolves its names, sends its addresses to the lane that has the least in hand, and those of
    /// its names as soon as all of them are resolved. Dropping the future gives the chunk up, on the lane too.
    ///
    /// # Errors
    /// [`LaneGone`] when a fault ended the lane.
    pub async fn probe(&self, chunk: Arc<WorkChunk>) -> Result<Probed, LaneGone> {
        let started = Instant::now();
        let started_at_us = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_micros() as u64);
        let mut outcomes: Vec<Option<Outcome>> = vec![None; chunk.targets.len()];
        let mut known = Vec::with_capacity(chunk.targets.len());
        let mut names = Vec::new();
        for (place, target) in chunk.targets.iter().enumerate() {
            match target {
                Target::Address(address) => known.push((place, (*address).into())),
                Target::Text(text) => match literal(text) {
                    Some(Ok(destination)) => known.push((place, destination)),
                    Some(Err(unresolved)) => {
                        outcomes[place] = Some(not_probed(unresolved, started));
                    }
                    None => names.push((place, text)),
                },
            }
        }
        let (found, (resolved, found_later)) =
            future::try_join(self.dispatch(&chunk, &known), async {
                let mut resolved = Vec::with_capacity(names.len());
                let family = chunk.probing.family;
                let asked = names
                    .iter()
                    .map(|(_, name)| self.resolver.resolve(name, family));
                let answers = future::join_all(asked).await;
                for ((place, _), answer) in iter::zip(&names, answers) {
                    match answer {
                        Ok(destination) => resolved.push((*place, destination)),
                        Err(unresolved) => {
                            outcomes[*place] = Some(not_probed(unresolved, started));
                        }
                    }
                }
                let found = self.dispatch(&chunk, &resolved).await?;
                Ok((resolved, found))
            })
            .await?;
        let placed = iter::zip(known, found).chain(iter::zip(resolved, found_later));
        for ((place, destination), finding) in placed {
            outcomes[place] = Some(outcome(
                &chunk.targets[place],
                destination,
                &finding,
                started,
            ));
        }
        let outcomes: Vec<_> = outcomes.into_iter().flatten().collect();
        if outcomes.len() != chunk.targets.len() {
            error!(chunk = ?chunk.key, "the prober did not report every target");
            return Err(LaneGone);
        }
        self.targets_done
            .fetch_add(outcomes.len() as u64, Ordering::Relaxed);
        Ok(Probed {
            started_at_us,
            outcomes,
        })
    }

    /// Requests that the kernel took since the start.
    #[must_use]
    pub fn requests_sent(&self) -> u64 {
        self.requests_sent.get()
    }

    /// Targets of probed chunks since the start.
    #[must_use]
    pub fn targets_done(&self) -> u64 {
        self.targets_done.load(Ordering::Relaxed)
    }

    /// Gives up what is in hand and waits for the threads to end.
    pub fn close(self) {
        drop(self);
    }

    async fn dispatch(
        &self,
        chunk: &Arc<WorkChunk>,
        places: &[(usize, Destination)],
    ) -> Result<Vec<Finding>, LaneGone> {
        if places.is_empty() {
            return Ok(Vec::new());
        }
        let (number, lane, errands) = self
            .all
            .iter()
            .enumerate()
            .filter_map(|(number, lane)| Some((number, lane, lane.errands.as_ref()?)))
            .filter(|(_, _, errands)| !errands.is_closed())
            .min_by_key(|(_, lane, _)| lane.load.load(Ordering::Relaxed))
            .ok_or(LaneGone)?;
        let _load = Load::add(&lane.load, places.len());
        let (found, finding) = oneshot::channel();
        let errand = Errand {
            chunk: Arc::clone(chunk),
            destinations: places.iter().map(|(_, destination)| *destination).collect(),
            pace: self.paces.pace(chunk.key.run, chunk.probing.rate, number),
            found,
        };
        errands.send(errand).await.map_err(|_| LaneGone)?;
        finding.await.map_err(|_| LaneGone)
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        for lane in &mut self.all {
            lane.errands = None;
        }
        for lane in &mut self.all {
            lane.join();
        }
    }
}

/// What a lane has in hand because of one errand, for as long as the caller waits for it.
struct Load<'a> {
    of: &'a AtomicUsize,
    destinations: usize,
}

impl<'a> Load<'a> {
    fn add(of: &'a AtomicUsize, destinations: usize) -> Self {
        of.fetch_add(destinations, Ordering::Relaxed);
        Self { of, destinations }
    }
}

impl Drop for Load<'_> {
    fn drop(&mut self) {
        self.of.fetch_sub(self.destinations, Ordering::Relaxed);
    }
}

impl Lane {
    /// Starts a lane, which tells later whether it has its prober.
    fn start(
        number: usize,
        opener: Arc<dyn OpenProber>,
        requests_sent: Arc<RequestsSent>,
    ) -> Result<(Self, Started), ProbeError> {
        let (errands, incoming) = mpsc::channel(WAITING_ERRANDS);
        let (ready, started) = sync_channel(1);
        let thread = thread::Builder::new()
            .name(format!("lane-{number}"))
            .spawn(move || run(opener.as_ref(), &requests_sent, incoming, &ready))
            .map_err(ProbeError::Thread)?;
        let lane = Self {
            errands: Some(errands),
            load: AtomicUsize::new(0),
            thread: Some(thread),
        };
        Ok((lane, started))
    }

    fn join(&mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("a probing thread panicked");
        }
    }
}

/// The life of a lane's thread.
fn run(
    opener: &dyn OpenProber,
    requests_sent: &Arc<RequestsSent>,
    mut errands: mpsc::Receiver<Errand>,
    ready: &SyncSender<Result<(), ProbeError>>,
) {
    let started = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ProbeError::Thread)
        .and_then(|runtime| {
            let prober = {
                let _context = runtime.enter();
                opener.open(Arc::clone(requests_sent))?
            };
            Ok((runtime, prober))
        });
    let (report, lane) = match started {
        Ok(lane) => (Ok(()), Some(lane)),
        Err(error) => (Err(error), None),
    };
    if ready.send(report).is_err() {
        return;
    }
    let Some((runtime, mut prober)) = lane else {
        return;
    };
    loop {
        // Tasks of the last prober end with their set.
        match LocalSet::new().block_on(&runtime, serve(prober.into(), &mut errands)) {
            Served::Closed => return,
            Served::Panicked => {}
        }
        prober = loop {
            let _context = runtime.enter();
            match opener.open(Arc::clone(requests_sent)) {
                Ok(prober) => break prober,
                Err(error) if errands.is_closed() => {
                    error!(%error, "a probing thread has no prober any more");
                    return;
                }
                Err(error) => {
                    error!(%error, "a probing thread cannot open a prober again, trying on");
                    thread::sleep(OPEN_AGAIN);
                }
            }
        };
    }
}

/// Why a lane's prober is no longer served.
enum Served {
    /// The lanes are closed.
    Closed,
    /// A panic; the lane goes on with another prober.
    Panicked,
}

/// Probes what comes in until the lanes are closed. A panic while a chunk is probed may have spoilt the prober that
/// all chunks of the lane share, so it ends the prober, and gives up every chunk that it has.
async fn serve(prober: Rc<dyn Prober>, errands: &mut mpsc::Receiver<Errand>) -> Served {
    let mut chunks = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(ended) = chunks.join_next() => {
                if let Err(error) = ended && error.is_panic() {
                    error!(%error, chunks = chunks.len() + 1, "a probing thread gives up its chunks after a panic");
                    return Served::Panicked;
                }
            }
            errand = errands.recv() => match errand {
                Some(errand) => {
                    chunks.spawn_local(probe(Rc::clone(&prober), errand));
                }
                None => return Served::Closed,
            },
        }
    }
}

async fn probe(prober: Rc<dyn Prober>, errand: Errand) {
    let Errand {
        chunk,
        destinations,
        pace,
        mut found,
    } = errand;
    let probing: &Probing = &chunk.probing;
    tokio::select! {
        biased;
        () = found.closed() => debug!(chunk = ?chunk.key, "chunk given up"),
        findings = prober.probe(probing, &destinations, &pace) => {
            if found.send(findings).is_err() {
                debug!(chunk = ?chunk.key, "chunk given up");
            }
        }
    }
}

fn not_probed(unresolved: Unresolved, started: Instant) -> Outcome {
    Outcome {
        status: unresolved.status(),
        address: None,
        sent: 0,
        received: 0,
        rtt: None,
        attempts: 1,
        probed_after_us: since(started, Instant::now()),
    }
}

fn outcome(
    target: &Target,
    destination: Destination,
    finding: &Finding,
    started: Instant,
) -> Outcome {
    Outcome {
        status: finding.status,
        address: match target {
            Target::Address(_) => None,
            Target::Text(_) => Some(destination.address),
        },
        sent: finding.sent,
        received: finding.received,
        rtt: finding.rtt,
        attempts: finding.attempts,
        probed_after_us: since(started, finding.first_request),
    }
}

fn since(started: Instant, moment: Instant) -> u64 {
    moment.saturating_duration_since(started).as_micros() as u64
}

#[cfg(test)]
mod tests;
