//! A server between a browser and a live page. It decides when the page is loaded: after the script has taken an event.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex},
    thread,
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::live::DEADLINE;

/// The data of the first event of a page's stream.
pub(crate) fn first_event(address: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    write!(stream, "GET /events HTTP/1.1\r\nHost: {address}\r\n\r\n")?;
    for line in BufReader::new(stream).lines() {
        if let Some(data) = line?.strip_prefix("data: ") {
            return Ok(data.to_owned());
        }
    }
    anyhow::bail!("the stream ended without an event")
}

/// What the connections of the browser share.
pub(crate) struct Relay {
    /// The live page, for its assets.
    behind: String,
    /// The answer with the page.
    page: String,
    /// The event of the stream, if there is one.
    event: Option<String>,
    /// Whether the page may be loaded now.
    open: (Mutex<bool>, Condvar),
}

impl Relay {
    /// Serves a page that is loaded when its script has taken the event; without an event, when it has asked for one.
    /// The page is that of the answer with a picture more, for which the browser waits. The event brings another picture:
    /// the browser asks for it when it takes the event.
    pub(crate) fn start(behind: &str, answer: &str, event: Option<&str>) -> Result<String> {
        let (head, body) = answer.split_once("\r\n\r\n").context("a body")?;
        let head = head.to_ascii_lowercase();
        let mut lines = head.lines();
        let policy = lines.find(|line| line.starts_with("content-security-policy:"));
        let page = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n{}\r\nConnection: close\r\n\r\n{}",
            policy.context("the policy of the page")?,
            body.replace("</main>", "</main><img src=\"/wait.png\">")
        );
        let relay = Arc::new(Self {
            behind: behind.to_owned(),
            page,
            event: event.map(with_a_picture).transpose()?,
            open: <(Mutex<bool>, Condvar)>::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        // They end with the process of the test.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let relay = Arc::clone(&relay);
                // A browser that leaves early is no fault.
                thread::spawn(move || drop(relay.serve(stream)));
            }
        });
        Ok(address)
    }

    fn serve(&self, mut stream: TcpStream) -> Result<()> {
        let mut request = String::new();
        let mut lines = BufReader::new(stream.try_clone()?);
        lines.read_line(&mut request)?;
        let path = request.split(' ').nth(1).context("a path")?.to_owned();
        while lines.read_line(&mut request)? > 2 {}
        match path.as_str() {
            "/" => stream.write_all(self.page.as_bytes())?,
            "/events" => self.serve_events(&mut stream)?,
            "/taken.png" => self.let_it_load(),
            "/wait.png" => drop(self.wait()),
            _ => {
                let mut behind = TcpStream::connect(&self.behind)?;
                let host = &self.behind;
                write!(
                    behind,
                    "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
                )?;
                let mut answer = Vec::new();
                behind.read_to_end(&mut answer)?;
                stream.write_all(&answer)?;
            }
        }
        Ok(())
    }

    fn serve_events(&self, stream: &mut TcpStream) -> Result<()> {
        let Some(event) = &self.event else {
            self.let_it_load();
            return Ok(());
        };
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: {event}\n\n"
        )?;
        drop(self.wait());
        Ok(())
    }

    fn let_it_load(&self) {
        let (open, changed) = &self.open;
        *open.lock().expect("no thread panics with it") = true;
        changed.notify_all();
    }

    /// Waits until the page may be loaded.
    fn wait(&self) -> std::sync::MutexGuard<'_, bool> {
        let (open, changed) = &self.open;
        let guard = open.lock().expect("no thread panics with it");
        let waited = changed.wait_timeout_while(guard, DEADLINE, |open| !*open);
        waited.expect("no thread panics with it").0
    }
}

/// The event with a picture at the end of the section of the run.
fn with_a_picture(event: &str) -> Result<String> {
    let mut event: Value = serde_json::from_str(event)?;
    let run = &mut event["parts"]["run"];
    let html = run.as_str().context("the section of the run")?;
    *run = format!("{html}<img src=\"/taken.png\">").into();
    Ok(event.to_string())
}
