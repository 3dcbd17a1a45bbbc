//! First visits: the page, everything that it names, and the first event, compressed as a browser asks for it.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::ensure;

/// What a browser loads: the page, and what it names.
const PATHS: [&str; 6] = [
    "/",
    "/assets/style.css",
    "/assets/uplot.css",
    "/assets/uplot.js",
    "/assets/live.js",
    "/assets/icon.svg",
];

/// A first visit.
#[derive(Debug, Default)]
pub(crate) struct FirstVisit {
    /// Until the page was there.
    pub(crate) content: Duration,
    /// Bytes of each answer, with its head.
    pub(crate) parts: Vec<(&'static str, usize)>,
}

impl FirstVisit {
    pub(crate) fn bytes(&self) -> usize {
        self.parts.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// The answer to a request on a connection of its own, as it was sent.
pub(crate) fn get(page: SocketAddr, path: &str) -> anyhow::Result<Vec<u8>> {
    let mut stream = ask(page, path)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    ensure!(
        answer.starts_with(b"HTTP/1.1 200"),
        "{path}: {}",
        String::from_utf8_lossy(&answer)
    );
    Ok(answer)
}

fn ask(page: SocketAddr, path: &str) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(page)?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {page}\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nConnection: close\r\n\r\n"
    )?;
    Ok(stream)
}

/// Visits the page like a browser that has nothing of it.
pub(crate) fn first_visit(page: SocketAddr) -> anyhow::Result<FirstVisit> {
    let mut visit = FirstVisit::default();
    let began = Instant::now();
    for path in PATHS {
        let bytes = get(page, path)?.len();
        if path == "/" {
            visit.content = began.elapsed();
        }
        visit.parts.push((path, bytes));
    }
    visit
        .parts
        .push(("/events, the first one", first_event(page)?));
    Ok(visit)
}

/// The bytes of a stream until a pause: the first event comes at once, the next one when something changed, up to a second
/// later. What comes in the meantime is counted too.
fn first_event(page: SocketAddr) -> anyhow::Result<usize> {
    let mut stream = ask(page, "/events")?;
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut part = [0; 16384];
    let mut bytes = 0;
    let began = Instant::now();
    // A pause fails.
    while let Ok(count @ 1..) = stream.read(&mut part) {
        bytes += count;
        if began.elapsed() > Duration::from_millis(500) {
            break;
        }
    }
    Ok(bytes)
}
