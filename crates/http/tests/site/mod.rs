//! A server with a page, an API and event streams, and clients of it.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use axum::{Router, extract::Request, routing::get};
use futures_util::{StreamExt as _, stream};
use pingfleet_http::{EventStreams, HttpSettings, Limits, Server};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

pub const PAGE: &str = "the page";

/// A running server.
pub struct Site {
    pub address: SocketAddr,
    pub streams: EventStreams,
    /// Has one item for each event stream that ended.
    pub ended_streams: mpsc::UnboundedReceiver<()>,
    pub stop: CancellationToken,
    pub ended: JoinHandle<()>,
}

/// Notes the end of the event stream that owns it.
struct NotesEnd(mpsc::UnboundedSender<()>);

impl Drop for NotesEnd {
    fn drop(&mut self) {
        // The test may not look at the ends.
        self.0.send(()).ok();
    }
}

/// Limits that no test reaches in its time.
pub fn wide() -> Limits {
    let hour = Duration::from_hours(1);
    Limits {
        connections: 8,
        connections_per_peer: 8,
        event_streams: 4,
        request_timeout: hour,
        write_timeout: hour,
        stream_silence: hour,
        stop_wait: hour,
    }
}

pub fn settings(limits: Limits) -> HttpSettings {
    HttpSettings {
        listen: ([127, 0, 0, 1], 0).into(),
        flag: "--dashboard",
        section: "dashboard",
        name: Some("fleet.example".to_owned()),
        token_file: None,
        limits,
    }
}

/// A server with a page, streams that never end, and an API. The runtime of a test has one thread: what the server does
/// at the end of a connection is done before the client sees that end.
pub async fn site(limits: Limits, token: Option<&str>) -> Result<Site> {
    let folder = tempfile::tempdir()?;
    let mut settings = settings(limits);
    if let Some(token) = token {
        let file = folder.path().join("token");
        std::fs::write(&file, format!("{token}\n"))?;
        settings.token_file = Some(file);
    }
    let server = Server::bind(&settings).await?;
    let address = server.address();
    let stop = CancellationToken::new();
    let streams = EventStreams::new(server.limits(), stop.clone());
    let (ends, ended_streams) = mpsc::unbounded_channel();
    let open = streams.clone();
    let events = move |request: Request| {
        let notes = NotesEnd(ends.clone());
        let events = stream::repeat("x".repeat(4000)).inspect(move |_| {
            let _: &NotesEnd = &notes;
        });
        let answer = open.answer(request.headers(), request.uri().path(), events);
        async move { answer }
    };
    let routes = Router::new()
        .route("/", get(|| async { PAGE }))
        .route("/api/v1/runs", get(|| async { "[]" }))
        .route("/events", get(events));
    let ended = tokio::spawn(server.serve(routes, stop.clone()));
    Ok(Site {
        address,
        streams,
        ended_streams,
        stop,
        ended,
    })
}

impl Site {
    pub async fn connect(&self) -> Result<TcpStream> {
        Ok(TcpStream::connect(self.address).await?)
    }

    /// Sends these bytes, and reads until the server closes the connection.
    pub async fn send(&self, request: &str) -> Result<String> {
        let mut stream = self.connect().await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// Asks for a path with these headers besides.
    pub async fn get(&self, path: &str, headers: &[&str]) -> Result<String> {
        let headers = headers.join("\r\n");
        self.send(&format!(
            "GET {path} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n\r\n"
        ))
        .await
    }

    pub async fn is_well(&self) -> Result<()> {
        let answer = self.get("/", &["Host: 127.0.0.1"]).await?;
        ensure!(status(&answer) == 200 && answer.ends_with(PAGE), "{answer}");
        Ok(())
    }

    /// A connection that holds an event stream. It has been answered.
    pub async fn stream(&self) -> Result<(TcpStream, u16)> {
        let mut connection = self.connect().await?;
        connection
            .write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .await?;
        let mut head = [0; 12];
        connection.read_exact(&mut head).await?;
        Ok((connection, status(std::str::from_utf8(&head)?)))
    }
}

/// Asks for the page on an open connection, and keeps it.
pub async fn page(connection: &mut TcpStream) -> Result<String> {
    connection
        .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await?;
    let mut answer = Vec::new();
    while !answer.ends_with(PAGE.as_bytes()) {
        ensure!(connection.read_buf(&mut answer).await? > 0, "closed");
    }
    Ok(String::from_utf8(answer)?)
}

/// The status of an answer; 0 if there is none.
pub fn status(answer: &str) -> u16 {
    let code = answer
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3));
    code.and_then(|code| code.parse().ok()).unwrap_or(0)
}

/// The value of a header of an answer.
pub fn header<'a>(answer: &'a str, name: &str) -> Result<&'a str> {
    let line = answer
        .lines()
        .find(|line| line.starts_with(&format!("{name}: ")));
    let line = line.with_context(|| format!("no {name} in {answer}"))?;
    Ok(&line[name.len() + 2..])
}
