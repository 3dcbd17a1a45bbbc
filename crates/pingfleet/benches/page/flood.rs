//! An attack on the page: 500 connections that send nothing and 1,000 event streams that nobody reads. What the server
//! closes is opened again, once a second.

use std::{
    io::{self, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::anyhow;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const SILENT: usize = 500;
const STREAMS: usize = 1000;

/// Connections of the attack at once, if the server admits them.
pub(crate) const CONNECTIONS: usize = SILENT + STREAMS;

/// What each kind of connection sends, and how many there are of it.
const KINDS: [(usize, &str); 2] = [
    (STREAMS, "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    (SILENT, ""),
];

const TURN: Duration = Duration::from_secs(1);

/// How many files this process may open for an attack.
const MAX_FILES: u64 = 4096;

/// A running attack.
pub(crate) struct Flood {
    stop: Arc<AtomicBool>,
    running: JoinHandle<anyhow::Result<usize>>,
}

impl Flood {
    pub(crate) fn start(page: SocketAddr) -> anyhow::Result<Self> {
        let maximum = getrlimit(Resource::Nofile).maximum;
        // No more than it needs: programs that are started later inherit it, and some have a table of that size.
        let current = maximum.map_or(Some(MAX_FILES), |maximum| Some(maximum.min(MAX_FILES)));
        let limit = Rlimit { current, maximum };
        setrlimit(Resource::Nofile, limit)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let running = thread::spawn(move || {
            let mut opened = 0;
            let mut held = KINDS.map(|_| Vec::new());
            while !stopped.load(Ordering::Relaxed) {
                for ((most, request), held) in KINDS.iter().zip(&mut held) {
                    held.retain(is_open);
                    while held.len() < *most {
                        let mut stream = TcpStream::connect(page)?;
                        stream.set_nonblocking(true)?;
                        // The server may have closed it already.
                        stream.write_all(request.as_bytes()).ok();
                        held.push(stream);
                        opened += 1;
                    }
                }
                thread::sleep(TURN);
            }
            Ok(opened)
        });
        Ok(Self { stop, running })
    }

    /// Ends it. Returns how many connections it opened.
    pub(crate) fn stop(self) -> anyhow::Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        self.running
            .join()
            .map_err(|_| anyhow!("the attack panicked"))?
    }
}

/// Whether the server has not closed it, or not yet behind what it sent.
fn is_open(stream: &TcpStream) -> bool {
    match stream.peek(&mut [0]) {
        Ok(count) => count > 0,
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    }
}
