//! Foreign hosts and sites, other methods, and missing tokens, each beside a request that is answered.

#[expect(
    dead_code,
    unreachable_pub,
    reason = "two test programs use it, each a part"
)]
mod site;

use anyhow::{Context as _, Result};
use site::{header, page, site, status, wide};

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
async fn a_page_of_another_site_can_lead_here_and_use_nothing() -> Result<()> {
    let site = site(wide(), None).await?;
    let get = async |headers: &str| {
        let lines = ["Host: localhost", headers];
        site.get("/", &lines).await.map(|answer| status(&answer))
    };
    for foreign in ["cross-site", "same-site", "unknown"] {
        for (mode, destination) in [
            ("no-cors", "image"),
            ("no-cors", "script"),
            ("navigate", "iframe"),
            ("navigate", "object"),
            ("cors", "document"),
        ] {
            let headers = format!(
                "Sec-Fetch-Site: {foreign}\r\nSec-Fetch-Mode: {mode}\r\nSec-Fetch-Dest: {destination}"
            );
            assert_eq!(get(&headers).await?, 403, "{headers}");
        }
        let bare = format!("Sec-Fetch-Site: {foreign}");
        assert_eq!(get(&bare).await?, 403, "{bare}");
        // The control: a link.
        let link = format!("{bare}\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document");
        assert_eq!(get(&link).await?, 200, "{link}");
    }
    assert_eq!(
        get("Sec-Fetch-Site: none\r\nSec-Fetch-Site: cross-site").await?,
        403
    );
    // The control: a page of this server, a typed address, and a program.
    for own in [
        "Sec-Fetch-Site: same-origin",
        "Sec-Fetch-Site: none",
        "X: y",
    ] {
        assert_eq!(get(own).await?, 200, "{own}");
    }
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
        for name in ["cross-origin-resource-policy", "cross-origin-opener-policy"] {
            assert_eq!(header(&answer, name)?, "same-origin");
        }
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
    assert_eq!((status(&visit), leads_to(&visit)?), (200, "/?run=4"));
    let cookie = header(&visit, "set-cookie")?;
    assert!(cookie.ends_with("; Path=/; HttpOnly; SameSite=Strict") && !cookie.contains(TOKEN));
    let cookie = cookie.split(';').next().context("a cookie")?;
    let with_cookie = format!("Cookie: other=1; {cookie}");
    assert_eq!(status(&site.get("/", &[host, &with_cookie]).await?), 200);
    // The control: a digit more.
    let wrong = format!("Cookie: {cookie}0");
    assert_eq!(status(&site.get("/", &[host, &wrong]).await?), 401);
    // The token does not help another host.
    let path = format!("/?token={TOKEN}");
    assert_eq!(
        status(&site.get(&path, &["Host: evil.example"]).await?),
        421
    );
    Ok(())
}

/// Where the answer to a first visit leads: by itself, and by its link.
fn leads_to(answer: &str) -> Result<&str> {
    let between = |start: &str| {
        let rest = answer.split_once(start)?.1;
        rest.split_once('"').map(|(address, _)| address)
    };
    let address = between("content=\"0;url=").with_context(|| answer.to_owned())?;
    assert_eq!(between("href=\""), Some(address));
    Ok(address)
}

#[tokio::test]
async fn the_first_visit_leads_to_the_same_address_of_this_server() -> Result<()> {
    let site = site(wide(), Some(TOKEN)).await?;
    for (before, after) in [
        ("/?token=TOKEN", "/"),
        ("/runs?a=1+2&token=TOKEN&b=%26", "/runs?a=1+2&#38;b=%26"),
        ("/?token=wrong&token=TOKEN&&c", "/?&#38;c"),
        ("/a\"b?a='&token=TOKEN", "/a&#34;b?a=&#39;"),
        // Browsers would read each of these as another host.
        ("//evil.example/?token=TOKEN", "/evil.example/"),
        ("/\\evil.example/?token=TOKEN", "/evil.example/"),
        ("/\\/\\evil.example/?token=TOKEN", "/evil.example/"),
        ("/a\\b?c\\d&token=TOKEN", "/a%5Cb?c%5Cd"),
    ] {
        let path = before.replace("TOKEN", TOKEN);
        let answer = site.get(&path, &["Host: localhost"]).await?;
        assert_eq!(
            (status(&answer), leads_to(&answer)?),
            (200, after),
            "{before}"
        );
        assert!(!answer.contains(TOKEN) && header(&answer, "set-cookie").is_ok());
        // The control: without the token it leads nowhere.
        let answer = site
            .get(&before.replace("TOKEN", "no"), &["Host: localhost"])
            .await?;
        assert_eq!(status(&answer), 401, "{answer}");
        assert!(!answer.contains("url=") && header(&answer, "set-cookie").is_err());
    }
    Ok(())
}

#[tokio::test]
async fn a_token_of_base64_is_right_as_it_is_and_encoded() -> Result<()> {
    let token = "ab+/cd+efghijklmnopq+w==";
    let site = site(wide(), Some(token)).await?;
    for (given, expected) in [
        (token, 200),
        ("ab%2B%2Fcd%2Befghijklmnopq%2Bw%3D%3D", 200),
        ("ab%2b/cd+efghijklmnopq+w==", 200),
        // The controls: other characters, and one less.
        ("ab%20/cd%20efghijklmnopq%20w==", 401),
        ("ab-/cd-efghijklmnopq-w==", 401),
        ("ab+/cd+efghijklmnopq+w=", 401),
        ("ab%252B%252Fcd%252Befghijklmnopq%252Bw==", 401),
    ] {
        let answer = site
            .get(&format!("/?token={given}"), &["Host: localhost"])
            .await?;
        assert_eq!(status(&answer), expected, "{given}");
    }
    let bearer = format!("Authorization: Bearer {token}");
    assert_eq!(
        status(&site.get("/", &["Host: localhost", &bearer]).await?),
        200
    );
    Ok(())
}

#[tokio::test]
async fn a_client_who_may_see_nothing_keeps_no_connection() -> Result<()> {
    let with_token = site(wide(), Some(TOKEN)).await?;
    let open = site(wide(), None).await?;
    for (site, request, expected) in [
        (&with_token, "GET / HTTP/1.1\r\nHost: localhost", 401),
        (
            &open,
            "GET / HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example",
            403,
        ),
        (&open, "POST / HTTP/1.1\r\nHost: localhost", 405),
        (&open, "GET / HTTP/1.1\r\nHost: evil.example", 421),
    ] {
        // It is read until the server closes the connection, which it would not do for an hour.
        let answer = site.send(&format!("{request}\r\n\r\n")).await?;
        assert_eq!(status(&answer), expected, "{answer}");
        assert_eq!(header(&answer, "connection")?, "close");
    }
    // The control: who may see the page can ask again.
    let mut connection = open.connect().await?;
    for _ in 0..3 {
        assert_eq!(status(&page(&mut connection).await?), 200);
    }
    Ok(())
}
