//! An attack: many connections at once, of which each that the server ends is opened again.

use std::{
    io::{self, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use pingfleet_faults::MAX_WAIT;
use rustix::{
    net::sockopt::set_socket_recv_buffer_size,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

use super::site::{Site, memory_kib, sockets};

/// How often each connection gets its next bytes, and ended ones are opened again.
const TURN: Duration = Duration::from_millis(500);

/// A client that reads nothing has so small a buffer that the server's fills soon.
const SMALL_BUFFER: usize = 4096;

/// How many files this process may open for an attack.
const MAX_FILES: u64 = 4096;

/// What the page admits at once.
const MAX_CONNECTIONS: usize = 256;

/// What each connection of an attack does. None reads.
#[derive(Debug, Clone)]
pub(super) struct Attack {
    /// Connections at once, if the server admitted all.
    pub(super) connections: usize,
    /// What all of them must have sent for the attack to be one, in KiB.
    pub(super) least_sent_kib: u64,
    /// What is sent again and again, this many bytes in a turn.
    bytes: Vec<u8>,
    in_a_turn: usize,
}

impl Attack {
    fn new(connections: usize, bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self {
            connections,
            least_sent_kib: 0,
            in_a_turn: bytes.len(),
            bytes,
        }
    }

    /// The same, which is an attack only if this many KiB were sent in all.
    pub(super) fn sending(self, least_sent_kib: u64) -> Self {
        Self {
            least_sent_kib,
            ..self
        }
    }

    /// Connections that send nothing.
    pub(super) fn connections(connections: usize) -> Self {
        Self::new(connections, "")
    }

    /// Event streams.
    pub(super) fn stuck_streams(connections: usize) -> Self {
        Self::new(
            connections,
            "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n",
        )
    }

    /// Many requests for the largest asset on each connection.
    pub(super) fn slow_readers(connections: usize) -> Self {
        let request = "GET /assets/uplot.js HTTP/1.1\r\nHost: localhost\r\n\r\n";
        Self::new(connections, request.repeat(20))
    }

    /// A byte of a request in each turn.
    pub(super) fn slow_writers(connections: usize) -> Self {
        let request = format!(
            "GET / HTTP/1.1\r\nHost: localhost\r\nX: {}",
            "x".repeat(4096)
        );
        Self {
            in_a_turn: 1,
            ..Self::new(connections, request)
        }
    }

    /// A header of 1 MiB.
    pub(super) fn large_headers(connections: usize) -> Self {
        let header = "x".repeat(1 << 20);
        Self::new(
            connections,
            format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {header}"),
        )
    }
}

/// What was seen of an attack.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Seen {
    /// The most sockets of this process, which attacks.
    pub(super) most_own_sockets: usize,
    /// The most sockets and the most memory of the writer.
    pub(super) most_sockets: usize,
    pub(super) most_kib: u64,
    /// Connections that the server ended.
    ended_by_server: usize,
    /// What this process's kernel took to send.
    pub(super) sent_kib: u64,
}

/// A running attack. It ends when it is dropped.
pub(super) struct Flood {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    running: Option<JoinHandle<Result<()>>>,
}

/// A connection of an attack.
struct Client {
    stream: TcpStream,
    sent: usize,
}

impl Client {
    fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        set_socket_recv_buffer_size(&stream, SMALL_BUFFER)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, sent: 0 })
    }

    /// Sends the bytes of a turn, as far as the kernel takes them. Returns whether the connection is there.
    fn turn(&mut self, attack: &Attack, sent: &mut usize) -> bool {
        let end = attack.bytes.len().min(self.sent + attack.in_a_turn);
        while self.sent < end {
            match self.stream.write(&attack.bytes[self.sent..end]) {
                Ok(count) => {
                    self.sent += count;
                    *sent += count;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return false,
            }
        }
        // It has an end behind what it did not read only if the server ended the connection.
        !matches!(self.stream.take_error(), Ok(Some(_)) | Err(_)) && !self.is_ended()
    }

    /// Whether the server closed it. What it sent is not taken.
    fn is_ended(&self) -> bool {
        match self.stream.peek(&mut [0]) {
            Ok(count) => count == 0,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }
}

impl Flood {
    pub(super) fn start(attack: &Attack, site: &Site) -> Result<Self> {
        raise_limit()?;
        let (attack, address, writer) = (attack.clone(), site.address, site.writer());
        let seen = Arc::new(Mutex::new(Seen::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let (noted, stopped) = (Arc::clone(&seen), Arc::clone(&stop));
        let running = thread::spawn(move || {
            let mut clients: Vec<Client> = Vec::new();
            let mut sent = 0;
            while !stopped.load(Ordering::Relaxed) {
                while clients.len() < attack.connections {
                    let client = Client::open(address).context("the page does not listen")?;
                    clients.push(client);
                }
                let own_sockets = sockets(std::process::id())?;
                let before = clients.len();
                clients.retain_mut(|client| client.turn(&attack, &mut sent));
                let mut seen = locked(&noted);
                seen.sent_kib = sent as u64 / 1024;
                seen.most_own_sockets = seen.most_own_sockets.max(own_sockets);
                seen.ended_by_server += before - clients.len();
                seen.most_sockets = seen.most_sockets.max(sockets(writer)?);
                seen.most_kib = seen.most_kib.max(memory_kib(writer)?);
                drop(seen);
                thread::sleep(TURN);
            }
            Ok(())
        });
        Ok(Self {
            seen,
            stop,
            running: Some(running),
        })
    }

    fn now(&self) -> Seen {
        *locked(&self.seen)
    }

    /// Waits until the writer has had as many connections as it admits, or has ended more than that.
    pub(super) fn wait_until_at_limit(&self) -> Result<()> {
        let began = Instant::now();
        loop {
            let seen = self.now();
            if seen.most_sockets >= MAX_CONNECTIONS || seen.ended_by_server >= 2 * MAX_CONNECTIONS {
                return Ok(());
            }
            self.goes_on()?;
            ensure!(
                began.elapsed() < MAX_WAIT,
                "the attack is too weak: {seen:?}"
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Fails when the attack has ended.
    pub(super) fn goes_on(&self) -> Result<()> {
        let is_running = self.running.as_ref().is_some_and(|it| !it.is_finished());
        ensure!(is_running, "the attack ended: {:?}", self.now());
        Ok(())
    }

    /// Ends it, and returns what was seen.
    pub(super) fn stop(mut self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        let running = self.running.take().context("it runs until here")?;
        match running.join() {
            Ok(ended) => ended?,
            Err(_) => bail!("the attack panicked"),
        }
        Ok(self.now())
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn locked(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets this process open the files of an attack.
fn raise_limit() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    // No more than it needs: programs that are started later inherit it, and some have a table of that size.
    let needed = limit.current.max(Some(MAX_FILES));
    let current = limit
        .maximum
        .map_or(needed, |maximum| needed.min(Some(maximum)));
    ensure!(current >= Some(MAX_FILES), "ulimit -n: {:?}", limit.maximum);
    let maximum = limit.maximum;
    setrlimit(Resource::Nofile, Rlimit { current, maximum })?;
    Ok(())
}
