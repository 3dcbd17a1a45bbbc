//! Clients that take more than their share, each beside a request that is answered.

#[expect(
    dead_code,
    unreachable_pub,
    reason = "two test programs use it, each a part"
)]
mod site;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use pingfleet_http::{HttpSettings, Limits, MAX_HEADER_BYTES, ServeError, Server};
use site::{page, settings, site, status, wide};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A timeout that is waited for.
const MOMENT: Duration = Duration::from_millis(10);

#[tokio::test]
async fn large_headers_are_refused() -> Result<()> {
    let site = site(wide(), None).await?;
    // The server reads all of it before it refuses it: what it had not read would end the connection without an answer.
    let start = "GET / HTTP/1.1\r\nHost: localhost\r\nX: ";
    let long = format!("{start}{}", "x".repeat(MAX_HEADER_BYTES - start.len()));
    let answer = site.send(&long).await?;
    assert_eq!(status(&answer), 431, "{answer}");
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
    let site = site(wide(), None).await?;
    let mut held = Vec::new();
    for _ in 0..wide().connections {
        let mut connection = site.connect().await?;
        page(&mut connection).await?;
        held.push(connection);
    }
    let mut byte = [0; 1];
    for _ in 0..3 {
        let mut refused = site.connect().await?;
        assert!(matches!(refused.read(&mut byte).await, Ok(0) | Err(_)));
    }
    // The control: those within the limit are still answered, and when one of them has ended, another one is.
    for connection in &mut held {
        page(connection).await?;
    }
    let mut last = held.pop().context("a connection")?;
    last.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await?;
    last.read_to_end(&mut Vec::new()).await?;
    site.is_well().await
}

#[tokio::test]
async fn event_streams_that_nobody_reads_are_bounded() -> Result<()> {
    let limits = Limits {
        stop_wait: MOMENT,
        ..wide()
    };
    let mut site = site(limits, None).await?;
    let mut held = Vec::new();
    for _ in 0..limits.event_streams {
        let (connection, status) = site.stream().await?;
        assert_eq!(status, 200);
        held.push(connection);
    }
    assert_eq!(site.streams.open(), limits.event_streams);
    // Each of them would send without an end, and none is read. The next one is refused, and pages are still answered.
    let (_refused, status) = site.stream().await?;
    assert_eq!(status, 503);
    site.ended_streams.recv().await.context("the refused one")?;
    site.is_well().await?;
    // The control: a stream whose client is gone makes room for another one.
    drop(held.pop());
    site.ended_streams.recv().await.context("an end")?;
    assert_eq!(site.streams.open(), limits.event_streams - 1);
    assert_eq!(site.stream().await?.1, 200);
    // The server ends although nobody reads.
    site.stop.cancel();
    site.ended.await?;
    Ok(())
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_off() -> Result<()> {
    let limits = Limits {
        write_timeout: MOMENT,
        ..wide()
    };
    let mut site = site(limits, None).await?;
    let (_silent, status) = site.stream().await?;
    assert_eq!(status, 200);
    site.ended_streams.recv().await.context("an end")?;
    assert_eq!(site.streams.open(), 0);
    site.is_well().await
}

#[tokio::test]
async fn a_client_that_sends_half_a_request_is_cut_off() -> Result<()> {
    let limits = Limits {
        request_timeout: MOMENT,
        ..wide()
    };
    let site = site(limits, None).await?;
    for request in ["", "GET / HTTP/1.1\r\nHost: loc"] {
        let answer = site.send(request).await?;
        assert!([0, 408].contains(&status(&answer)), "{answer}");
    }
    // So is one that sends no further request.
    let whole = site
        .send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await?;
    assert_eq!(status(&whole), 200);
    Ok(())
}

#[tokio::test]
async fn an_address_that_cannot_be_served_is_one_clear_message() -> Result<()> {
    let first = Server::bind(&settings(wide())).await?;
    let open_to_all = HttpSettings {
        listen: ([0, 0, 0, 0], 0).into(),
        ..settings(wide())
    };
    let taken = HttpSettings {
        listen: first.address(),
        ..settings(wide())
    };
    let no_file = HttpSettings {
        token_file: Some(PathBuf::from("/nonexistent/token")),
        ..settings(wide())
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
