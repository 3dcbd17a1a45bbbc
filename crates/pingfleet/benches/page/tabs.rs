//! Open tabs: readers of the event stream, compressed as a browser asks for it.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

/// Text of the events by the name of the section, in bytes.
type Sections = Arc<Mutex<BTreeMap<String, usize>>>;

/// Some tabs. They close when this is dropped.
pub(crate) struct Tabs {
    tabs: Vec<Tab>,
    sections: Sections,
}

struct Tab {
    stream: TcpStream,
    bytes: Arc<AtomicU64>,
    reading: Option<JoinHandle<()>>,
}

/// Counts what is read.
struct Counted {
    stream: TcpStream,
    bytes: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.bytes.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

impl Tabs {
    pub(crate) fn open(page: SocketAddr, count: usize) -> anyhow::Result<Self> {
        let sections = Sections::default();
        let tabs =
            (0..count).map(|number| Tab::open(page, (number == 0).then(|| Arc::clone(&sections))));
        Ok(Self {
            tabs: tabs.collect::<anyhow::Result<_>>()?,
            sections,
        })
    }

    /// The bytes that each has read so far.
    pub(crate) fn bytes(&self) -> Vec<u64> {
        let bytes = self
            .tabs
            .iter()
            .map(|tab| tab.bytes.load(Ordering::Relaxed));
        bytes.collect()
    }

    /// How much text the first tab read of each section, before compression.
    pub(crate) fn by_section(&self) -> String {
        let sections = self.sections.lock().unwrap_or_else(PoisonError::into_inner);
        let texts = sections
            .iter()
            .map(|(name, bytes)| format!("{name} {bytes}"));
        texts.collect::<Vec<_>>().join(", ")
    }
}

impl Tab {
    fn open(page: SocketAddr, sections: Option<Sections>) -> anyhow::Result<Self> {
        let mut stream = TcpStream::connect(page)?;
        write!(
            stream,
            "GET /events HTTP/1.1\r\nHost: {page}\r\nAccept: text/event-stream\r\n\
             Accept-Encoding: gzip, deflate, br, zstd\r\n\r\n"
        )?;
        let bytes = Arc::new(AtomicU64::new(0));
        let mut counted = Counted {
            stream: stream.try_clone()?,
            bytes: Arc::clone(&bytes),
        };
        let reading = thread::spawn(move || {
            // It ends when the tab is closed.
            let read = match sections {
                Some(sections) => read_events(counted, &sections),
                None => io::copy(&mut counted, &mut io::sink()).map(drop),
            };
            drop(read);
        });
        Ok(Self {
            stream,
            bytes,
            reading: Some(reading),
        })
    }
}

impl Drop for Tab {
    fn drop(&mut self) {
        // The server may have closed it already.
        drop(self.stream.shutdown(Shutdown::Both));
        if let Some(reading) = self.reading.take() {
            drop(reading.join());
        }
    }
}

/// Adds the lengths of the sections of each event.
fn read_events(counted: Counted, sections: &Sections) -> io::Result<()> {
    let mut body = Unchunked::new(io::BufReader::new(counted))?;
    let mut decoder = flate2::read::GzDecoder::new(&mut body);
    let mut text = Vec::new();
    let mut part = [0; 16384];
    loop {
        let count = decoder.read(&mut part)?;
        if count == 0 {
            return Ok(());
        }
        text.extend_from_slice(&part[..count]);
        while let Some(end) = text.windows(2).position(|end| end == b"\n\n") {
            let event: Vec<u8> = text.drain(..end + 2).collect();
            let Some(data) = event.strip_prefix(b"data: ") else {
                continue;
            };
            let event: serde_json::Value =
                serde_json::from_slice(data).map_err(io::Error::other)?;
            let mut sections = sections.lock().unwrap_or_else(PoisonError::into_inner);
            for (name, html) in event["parts"].as_object().into_iter().flatten() {
                *sections.entry(name.clone()).or_default() += html.as_str().map_or(0, str::len);
            }
        }
    }
}

/// The body of an answer in chunks (RFC 9112, section 7.1), behind its head.
struct Unchunked<R> {
    input: R,
    left: usize,
}

impl<R: io::BufRead> Unchunked<R> {
    fn new(mut input: R) -> io::Result<Self> {
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            if input.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(Self { input, left: 0 })
    }
}

impl<R: io::BufRead> Read for Unchunked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            let mut line = String::new();
            while line.trim().is_empty() {
                line.clear();
                if self.input.read_line(&mut line)? == 0 {
                    return Ok(0);
                }
            }
            self.left = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
            if self.left == 0 {
                return Ok(0);
            }
        }
        let most = self.left.min(buffer.len());
        let count = self.input.read(&mut buffer[..most])?;
        self.left -= count;
        Ok(count)
    }
}
