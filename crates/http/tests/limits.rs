//! Foreign sites, missing tokens, and clients that take more than their share, each beside a request that is answered.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use axum::{Router, extract::Request, routing::get};
use futures_util::stream;
use pingfleet_http::{
    EventStreams, HttpSettings, MAX_CONNECTIONS, MAX_EVENT_STREAMS, ServeError, Server,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

const TOKEN: &str = "0123456789abcdef-token";

/// A running server.
struct Site {
    address: SocketAddr,
    streams: EventStreams,
    stop: CancellationToken,
    ended: JoinHandle<()>,
    _folder: tempfile::TempDir,
}

fn settings() -> HttpSettings {
    HttpSettings {
        listen: ([127, 0, 0, 1], 0).into(),
        flag: "--dashboard",
        name: Some("fleet.example".to_owned()),
        token_file: None,
    }
}

/// A server with a page, a stream that never ends, and an API.
async fn site(with_token: bool) -> Result<Site> {
    let folder = tempfile::tempdir()?;
    let mut settings = settings();
    if with_token {
        let file = folder.path().join("token");
        std::fs::write(&file, format!("{TOKEN}\n"))?;
        settings.token_file = Some(file);
    }
    let server = Server::bind(&settings).await?;
    let address = server.address();
    let stop = CancellationToken::new();
    let streams = EventStreams::new(stop.clone());
    let open = streams.clone();
    let events = move |request: Request| {
        let events = stream::repeat("x".repeat(4000));
        let answer = open.answer(request.headers(), request.uri().path(), events);
        async move { answer }
    };
    let routes = Router::new()
        .route("/", get(|| async { "the page" }))
        .route("/api/v1/runs", get(|| async { "[]" }))
        .route("/events", get(events));
    let ended = tokio::spawn(server.serve(routes, stop.clone()));
    Ok(Site {
        address,
        streams,
        stop,
        ended,
        _folder: folder,
    })
}

impl Site {
    /// Sends these bytes, and reads until the server closes the connection.
    async fn send(&self, request: &str) -> Result<String> {
        let mut stream = TcpStream::connect(self.address).await?;
        // It may close before it has read all.
        drop(stream.write_all(request.as_bytes()).await);
        let mut answer = Vec::new();
        drop(stream.read_to_end(&mut answer).await);
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// Asks for a path with these headers besides.
    async fn get(&self, path: &str, headers: &[&str]) -> Result<String> {
        let headers = [headers, &[""]].concat().join("\r\n");
        self.send(&format!(
            "GET {path} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n"
        ))
        .await
    }

    async fn is_well(&self) -> Result<()> {
        let answer = self.get("/", &["Host: 127.0.0.1"]).await?;
        ensure!(
            status(&answer) == 200 && answer.ends_with("the page"),
            "{answer}"
        );
        Ok(())
    }

    /// A connection that holds an event stream. It has been answered.
    async fn stream(&self) -> Result<(TcpStream, u16)> {
        let mut connection = TcpStream::connect(self.address).await?;
        connection
            .write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .await?;
        let mut head = [0; 12];
        connection.read_exact(&mut head).await?;
        Ok((connection, status(std::str::from_utf8(&head)?)))
    }
}

/// The status of an answer; 0 if there is none.
fn status(answer: &str) -> u16 {
    let code = answer
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3));
    code.and_then(|code| code.parse().ok()).unwrap_or(0)
}

/// The value of a header of an answer.
fn header<'a>(answer: &'a str, name: &str) -> Result<&'a str> {
    let line = answer
        .lines()
        .find(|line| line.starts_with(&format!("{name}: ")));
    let line = line.with_context(|| format!("no {name} in {answer}"))?;
    Ok(&line[name.len() + 2..])
}

#[tokio::test]
async fn only_an_address_localhost_and_the_own_name_are_hosts() -> Result<()> {
    let site = site(false).await?;
    for path in ["/", "/events", "/api/v1/runs", "/nothing"] {
        for host in [
            "Host: evil.example",
            "Host: evil.example:8787",
            "Host: localhost.evil.example",
            "Host: 127.0.0.1.evil.example",
            "Host: user@127.0.0.1",
            "Host: ",
            "X: y",
            "Host: 127.0.0.1\r\nHost: 127.0.0.1",
        ] {
            let answer = site.get(path, &[host]).await?;
            assert!(
                [400, 421].contains(&status(&answer)),
                "{path} {host}: {answer}"
            );
        }
    }
    // A request may name its host in its first line as well.
    let line = "GET http://evil.example/ HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
    assert_eq!(status(&site.send(line).await?), 421);
    // The control: the same with hosts that are allowed.
    for host in [
        "127.0.0.1:8787",
        "[::1]:8787",
        "LOCALHOST",
        "10.0.0.7",
        "fleet.example:80",
    ] {
        let answer = site.get("/", &[&format!("Host: {host}")]).await?;
        assert_eq!(status(&answer), 200, "{host}: {answer}");
    }
    Ok(())
}

#[tokio::test]
async fn another_origin_gets_nothing() -> Result<()> {
    let site = site(false).await?;
    for origin in [
        "http://evil.example",
        "null",
        "http://127.0.0.1:1",
        "http://localhost:8787",
    ] {
        let origin = format!("Origin: {origin}");
        let answer = site
            .get("/api/v1/runs", &["Host: 127.0.0.1:8787", &origin])
            .await?;
        assert_eq!(status(&answer), 403, "{origin}: {answer}");
        assert!(answer.contains("{\"error\":"), "{answer}");
    }
    let own = ["Host: 127.0.0.1:8787", "Origin: http://127.0.0.1:8787"];
    let answer = site.get("/api/v1/runs", &own).await?;
    assert_eq!(status(&answer), 200);
    // No other site may read it.
    assert!(!answer.to_lowercase().contains("access-control"));
    Ok(())
}

#[tokio::test]
async fn only_get_and_head_are_answered_and_bodies_are_refused() -> Result<()> {
    let site = site(false).await?;
    for method in [
        "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "X",
    ] {
        let line = format!("{method} / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let answer = site.send(&line).await?;
        // CONNECT names a host only, which is not one of these.
        assert!(
            [400, 405, 421].contains(&status(&answer)),
            "{method}: {answer}"
        );
    }
    for body in ["Content-Length: 1000000000", "Transfer-Encoding: chunked"] {
        assert_eq!(
            status(&site.get("/", &["Host: localhost", body]).await?),
            413,
            "{body}"
        );
    }
    let head = "HEAD / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    assert_eq!(status(&site.send(head).await?), 200);
    site.is_well().await
}

#[tokio::test]
async fn every_answer_has_the_headers_that_bind_a_browser() -> Result<()> {
    let site = site(false).await?;
    for (path, host) in [
        ("/", "localhost"),
        ("/none", "localhost"),
        ("/", "evil.example"),
    ] {
        let answer = site.get(path, &[&format!("Host: {host}")]).await?;
        assert!(header(&answer, "content-security-policy")?.starts_with("default-src 'self';"));
        assert_eq!(header(&answer, "x-content-type-options")?, "nosniff");
        assert_eq!(header(&answer, "referrer-policy")?, "no-referrer");
        assert_eq!(header(&answer, "cache-control")?, "no-store");
    }
    Ok(())
}

#[tokio::test]
async fn no_path_leads_out_of_the_routes() -> Result<()> {
    let site = site(false).await?;
    for path in [
        "/../../../../etc/passwd",
        "/..%2f..%2f..%2fetc/passwd",
        "/assets/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/events/../nothing",
    ] {
        let answer = site.get(path, &["Host: localhost"]).await?;
        assert_eq!(status(&answer), 404, "{path}: {answer}");
        assert!(!answer.contains("root:"));
    }
    site.is_well().await
}

#[tokio::test]
async fn a_token_is_asked_for_once() -> Result<()> {
    let site = site(true).await?;
    let host = "Host: localhost";
    for (path, headers) in [
        ("/", vec![host]),
        ("/events", vec![host]),
        ("/?token=", vec![host]),
        ("/?token=0123456789abcdef-tokeN", vec![host]),
        ("/", vec![host, "Authorization: Bearer 0123456789abcdef"]),
        ("/", vec![host, "Cookie: pingfleet_1=x; y"]),
    ] {
        let answer = site.get(path, &headers).await?;
        assert_eq!(status(&answer), 401, "{path} {headers:?}: {answer}");
        assert!(answer.contains("needs a token") && !answer.contains(TOKEN));
    }
    let bearer = format!("Authorization: Bearer {TOKEN}");
    assert_eq!(status(&site.get("/", &[host, &bearer]).await?), 200);
    let visit = site.get(&format!("/?run=4&token={TOKEN}"), &[host]).await?;
    assert_eq!(
        (status(&visit), header(&visit, "location")?),
        (303, "/?run=4")
    );
    let cookie = header(&visit, "set-cookie")?;
    assert!(cookie.ends_with("; Path=/; HttpOnly; SameSite=Strict") && !cookie.contains(TOKEN));
    let cookie = cookie.split(';').next().context("a cookie")?;
    let with_cookie = format!("Cookie: other=1; {cookie}");
    assert_eq!(status(&site.get("/", &[host, &with_cookie]).await?), 200);
    // The control: a digit more.
    let wrong = format!("Cookie: {cookie}0");
    assert_eq!(status(&site.get("/", &[host, &wrong]).await?), 401);
    // The address cannot lead to another site.
    let away = site
        .get(&format!("//evil.example/?token={TOKEN}"), &[host])
        .await?;
    assert_eq!(header(&away, "location")?, "/evil.example/");
    // The token does not help another host.
    let path = format!("/?token={TOKEN}");
    assert_eq!(
        status(&site.get(&path, &["Host: evil.example"]).await?),
        421
    );
    Ok(())
}

#[tokio::test]
async fn large_headers_are_refused() -> Result<()> {
    let site = site(false).await?;
    let long = format!("X: {}", "x".repeat(1_000_000));
    let answer = site.get("/", &["Host: localhost", &long]).await?;
    assert!([0, 431].contains(&status(&answer)), "{answer}");
    let many: Vec<String> = (0..100).map(|at| format!("X-{at}: 1")).collect();
    let many: Vec<&str> = ["Host: localhost"]
        .into_iter()
        .chain(many.iter().map(String::as_str))
        .collect();
    assert_eq!(status(&site.get("/", &many).await?), 431);
    // The control: a header of a usual size.
    let usual = format!("X: {}", "x".repeat(4000));
    assert_eq!(
        status(&site.get("/", &["Host: localhost", &usual]).await?),
        200
    );
    Ok(())
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_and_the_next_ones_are_answered() -> Result<()> {
    let site = site(false).await?;
    let mut held = Vec::new();
    for _ in 0..500 {
        held.push(TcpStream::connect(site.address).await?);
    }
    // The server closes what is beyond the limit, so reading ends there. They were accepted in order.
    let mut byte = [0; 1];
    for connection in &mut held[MAX_CONNECTIONS..] {
        assert!(matches!(connection.read(&mut byte).await, Ok(0) | Err(_)));
    }
    // The control: one within the limit is answered.
    let first = &mut held[0];
    first
        .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await?;
    let mut answer = String::new();
    first.read_to_string(&mut answer).await?;
    assert_eq!(status(&answer), 200);
    drop(held);
    // The server learns of each end in its own time.
    while site.is_well().await.is_err() {
        tokio::task::yield_now().await;
    }
    Ok(())
}

#[tokio::test]
async fn event_streams_that_nobody_reads_are_bounded() -> Result<()> {
    let site = site(false).await?;
    let mut held = Vec::new();
    for _ in 0..MAX_EVENT_STREAMS {
        let (connection, status) = site.stream().await?;
        assert_eq!(status, 200);
        held.push(connection);
    }
    assert_eq!(site.streams.open(), MAX_EVENT_STREAMS);
    // Each of them would send without an end, and none is read. The next one is refused, and pages are still answered.
    let (_refused, status) = site.stream().await?;
    assert_eq!(status, 503);
    site.is_well().await?;
    // The control: a stream that ends makes room for another one.
    drop(held.pop());
    while site.streams.open() == MAX_EVENT_STREAMS {
        tokio::task::yield_now().await;
    }
    assert_eq!(site.stream().await?.1, 200);
    // The server ends although nobody reads.
    site.stop.cancel();
    site.ended.await?;
    Ok(())
}

#[tokio::test]
async fn an_address_that_cannot_be_served_is_one_clear_message() -> Result<()> {
    let first = Server::bind(&settings()).await?;
    let open_to_all = HttpSettings {
        listen: ([0, 0, 0, 0], 0).into(),
        ..settings()
    };
    let taken = HttpSettings {
        listen: first.address(),
        ..settings()
    };
    let no_file = HttpSettings {
        token_file: Some(PathBuf::from("/nonexistent/token")),
        ..settings()
    };
    for (settings, part) in [
        (open_to_all, "visitors need a token"),
        (
            taken,
            "another program uses it; choose another address with --dashboard",
        ),
        (no_file, "dashboard.token_file: /nonexistent/token"),
    ] {
        let error = Server::bind(&settings).await.err().context("refused")?;
        assert!(error.to_string().contains(part), "{error}");
        assert_eq!(
            matches!(error, ServeError::Listen { .. }),
            part.starts_with("another"),
        );
    }
    Ok(())
}
