//! Foreign hosts and sites, other methods, and missing tokens, each beside a request that is answered.

#[expect(
    dead_code,
    unreachable_pub,
    reason = "two test programs use it, each a part"
)]
mod site;

use anyhow::{Context as _, Result};
use site::{header, site, status, wide};

const TOKEN: &str = "0123456789abcdef-token";

#[tokio::test]
async fn only_an_address_localhost_and_the_own_name_are_hosts() -> Result<()> {
    let site = site(wide(), None).await?;
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
    let site = site(wide(), None).await?;
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
    let site = site(wide(), None).await?;
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
    let site = site(wide(), None).await?;
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
    let site = site(wide(), None).await?;
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
    let site = site(wide(), Some(TOKEN)).await?;
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
