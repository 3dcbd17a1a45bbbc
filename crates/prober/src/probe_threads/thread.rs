//! One probing thread: its prober, the chunks that it has in hand, and its restart after a panic.

use std::{
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use pingfleet_wire::WorkChunk;
use tokio::{
    runtime::{self, Runtime},
    sync::{mpsc, oneshot},
    task::{JoinSet, LocalSet},
};
use tracing::{Instrument as _, Span, debug, error};

use super::ProbeThreadFailed;
use crate::{
    prober::{Destination, Finding, OpenProber, ProbeCounters, ProbeError, Prober},
    schedule::pacing::Pace,
};

/// Assignments that wait to be taken. A thread takes them at once; the caller bounds how many chunks are in hand.
const MAX_WAITING_ASSIGNMENTS: usize = 64;

/// The pause before the next try to open a prober, after a panic ended the previous one.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);

/// A thread ends after so many tries. Until then its chunks wait, and a heartbeat lists them as in hand.
const REOPEN_TRIES: u32 = 5;

/// Sent once by a new thread: it has its prober, or cannot have one.
pub(super) type Started = Receiver<Result<(), ProbeError>>;

/// Destinations of one chunk, to be probed on one thread.
pub(super) struct Assignment {
    pub(super) chunk: Arc<WorkChunk>,
    pub(super) destinations: Vec<Destination>,
    pub(super) pace: Pace,
    /// The span of what is logged about it.
    pub(super) span: Span,
    /// Where the findings go. Closing it gives the chunk up.
    pub(super) findings: oneshot::Sender<Vec<Finding>>,
}

/// The caller's handle of a probing thread.
#[derive(Debug)]
pub(super) struct ProbeThread {
    /// `None` once it is closed.
    assignments: Option<mpsc::Sender<Assignment>>,
    /// Whether it has a prober now.
    has_prober: Arc<AtomicBool>,
    /// Destinations in hand.
    load: AtomicUsize,
    handle: Option<JoinHandle<()>>,
}

impl ProbeThread {
    /// Starts a thread. It reports through [`Started`] whether it has its prober.
    pub(super) fn start(
        number: usize,
        opener: Arc<dyn OpenProber>,
        counters: Arc<ProbeCounters>,
    ) -> Result<(Self, Started), ProbeError> {
        let (assignments, incoming) = mpsc::channel(MAX_WAITING_ASSIGNMENTS);
        let (ready, started) = sync_channel(1);
        let has_prober = Arc::new(AtomicBool::new(true));
        let has = Arc::clone(&has_prober);
        let handle = thread::Builder::new()
            .name(format!("probe-{number}"))
            .spawn(move || run(opener.as_ref(), &counters, incoming, &ready, &has))
            .map_err(ProbeError::Thread)?;
        let thread = Self {
            assignments: Some(assignments),
            has_prober,
            load: AtomicUsize::new(0),
            handle: Some(handle),
        };
        Ok((thread, started))
    }

    /// Whether it has a prober now. Without one its assignments wait.
    pub(super) fn has_prober(&self) -> bool {
        self.has_prober.load(Ordering::Relaxed)
    }

    /// Whether it takes assignments.
    pub(super) fn is_open(&self) -> bool {
        self.assignments
            .as_ref()
            .is_some_and(|assignments| !assignments.is_closed())
    }

    /// Destinations in hand.
    pub(super) fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }

    /// Hands over an assignment. It counts as load until the returned value is dropped.
    pub(super) async fn assign(
        &self,
        assignment: Assignment,
    ) -> Result<Load<'_>, ProbeThreadFailed> {
        let assignments = self.assignments.as_ref().ok_or(ProbeThreadFailed)?;
        let load = Load::add(&self.load, assignment.destinations.len());
        assignments
            .send(assignment)
            .await
            .map_err(|_| ProbeThreadFailed)?;
        Ok(load)
    }

    /// Lets the thread give up what it has in hand and end.
    pub(super) fn close(&mut self) {
        self.assignments = None;
    }

    /// Waits for the end of a closed thread.
    pub(super) fn join(&mut self) {
        if let Some(handle) = self.handle.take()
            && handle.join().is_err()
        {
            error!("a probing thread panicked");
        }
    }
}

/// Load of a thread, as long as this value exists.
pub(super) struct Load<'a> {
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

/// What a probing thread does from its start to its end.
fn run(
    opener: &dyn OpenProber,
    counters: &Arc<ProbeCounters>,
    mut assignments: mpsc::Receiver<Assignment>,
    ready: &SyncSender<Result<(), ProbeError>>,
    has_prober: &AtomicBool,
) {
    let (report, started) = match start_runtime(opener, counters) {
        Ok(started) => (Ok(()), Some(started)),
        Err(error) => (Err(error), None),
    };
    if ready.send(report).is_err() {
        return;
    }
    let Some((runtime, mut prober)) = started else {
        return;
    };
    loop {
        // Dropping the set ends the tasks of the last prober.
        match LocalSet::new().block_on(&runtime, serve(prober.into(), &mut assignments)) {
            Served::Closed => return,
            Served::Panicked => {}
        }
        has_prober.store(false, Ordering::Relaxed);
        match reopen(opener, counters, &runtime, &assignments) {
            Some(reopened) => prober = reopened,
            None => return,
        }
        has_prober.store(true, Ordering::Relaxed);
    }
}

fn start_runtime(
    opener: &dyn OpenProber,
    counters: &Arc<ProbeCounters>,
) -> Result<(Runtime, Box<dyn Prober>), ProbeError> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ProbeError::Thread)?;
    let prober = {
        let _context = runtime.enter();
        opener.open(Arc::clone(counters))?
    };
    Ok((runtime, prober))
}

/// Opens a new prober after a panic, with a few tries. `None` when none succeeded, or the thread was closed meanwhile.
fn reopen(
    opener: &dyn OpenProber,
    counters: &Arc<ProbeCounters>,
    runtime: &Runtime,
    assignments: &mpsc::Receiver<Assignment>,
) -> Option<Box<dyn Prober>> {
    let _context = runtime.enter();
    for tries in 1.. {
        match opener.open(Arc::clone(counters)) {
            Ok(prober) => return Some(prober),
            Err(error) if assignments.is_closed() || tries == REOPEN_TRIES => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                error!(%error, cause, "a probing thread ends without a prober");
                break;
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                error!(%error, cause, "a probing thread cannot open a new prober, trying again");
                thread::sleep(REOPEN_PAUSE);
            }
        }
    }
    None
}

/// Why [`serve`] has ended.
enum Served {
    /// The thread was closed.
    Closed,
    /// A chunk panicked; the thread continues with a new prober.
    Panicked,
}

/// Probes what is assigned until the thread is closed. All chunks of a thread share its prober, and a panic may leave it
/// in a wrong state. So a panic ends the prober and gives up every chunk in hand.
async fn serve(prober: Rc<dyn Prober>, assignments: &mut mpsc::Receiver<Assignment>) -> Served {
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
            assignment = assignments.recv() => match assignment {
                Some(assignment) => {
                    let span = assignment.span.clone();
                    chunks.spawn_local(probe(Rc::clone(&prober), assignment).instrument(span));
                }
                None => return Served::Closed,
            },
        }
    }
}

async fn probe(prober: Rc<dyn Prober>, assignment: Assignment) {
    let Assignment {
        chunk,
        destinations,
        pace,
        mut findings,
        ..
    } = assignment;
    tokio::select! {
        biased;
        () = findings.closed() => debug!("chunk given up"),
        found = prober.probe(&chunk.probing, &destinations, &pace) => {
            if findings.send(found).is_err() {
                debug!("chunk given up");
            }
        }
    }
}
