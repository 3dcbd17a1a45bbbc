//! Clients that abuse the live page of a `consumer-writer` that stores results meanwhile: a run is complete while they hold
//! on, and what they can hold of the writer is bounded. `cargo bench -p pingfleet --bench page` compares the rates.

mod flood;
mod site;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use pingfleet_faults::MAX_WAIT;

use self::{
    flood::{Attack, Flood},
    site::{Site, status},
};

const TOKEN: &str = "0123456789abcdef-token";
const WITH_TOKEN: &str = "Authorization: Bearer 0123456789abcdef-token";

/// Every route, when there is a run 1.
const ROUTES: [&str; 14] = [
    "/",
    "/events",
    "/metrics",
    "/assets/style.css",
    "/assets/live.js",
    "/assets/uplot.css",
    "/assets/uplot.js",
    "/assets/icon.svg",
    "/runs/1/report",
    "/api/v1/runs",
    "/api/v1/runs?limit=1",
    "/api/v1/runs/1",
    "/api/v1/workers",
    "/api/v1/queues",
];

/// The most connections of the page, and what else a writer has open: queues, database, event loops.
const MAX_SOCKETS: usize = 256 + 64;

/// How much more memory the writer may need under an attack, in KiB. What the page keeps of a tab is the text of its sections
/// and a compressor, and there are at most 64.
const MAX_MORE_KIB: u64 = 96 * 1024;

/// Runs a sweep to its end while `abuse` goes on again and again.
fn beside_a_run(site: &Site, mut abuse: impl FnMut() -> Result<()>) -> Result<()> {
    let mut producer = site.start_run()?;
    let began = Instant::now();
    loop {
        abuse()?;
        ensure!(began.elapsed() < MAX_WAIT, "the run does not end");
        if let Some(status) = producer.try_wait()? {
            ensure!(status.success(), "the producer ended: {status}");
            break;
        }
    }
    site.assert_complete()
}

#[test]
fn no_route_answers_foreign_hosts_origins_and_tokens_while_results_are_stored() -> Result<()> {
    let site = Site::start(Some(TOKEN))?;
    site.run()?;
    let own = format!("Host: {}", site.address);
    let own_origin = format!("{own}\r\nOrigin: http://{}\r\n{WITH_TOKEN}", site.address);
    let refused = [
        (421, format!("Host: evil.example\r\n{WITH_TOKEN}")),
        (421, format!("Host: 127.0.0.1.evil.example\r\n{WITH_TOKEN}")),
        (
            403,
            format!("{own}\r\n{WITH_TOKEN}\r\nOrigin: http://evil.example"),
        ),
        (403, format!("{own}\r\n{WITH_TOKEN}\r\nOrigin: null")),
        (
            403,
            format!("{own}\r\n{WITH_TOKEN}\r\nSec-Fetch-Site: cross-site"),
        ),
        (401, own.clone()),
        (
            401,
            format!("{own}\r\nAuthorization: Bearer 0123456789abcdef-tokeN"),
        ),
        (
            401,
            format!("{own}\r\nCookie: pingfleet_00000000=0123456789abcdef-token"),
        ),
    ];
    beside_a_run(&site, || {
        for path in ROUTES {
            for (expected, headers) in &refused {
                let answer = site.ask(path, headers)?;
                ensure!(status(&answer) == *expected, "{path} {headers}: {answer}");
                // Neither a name of the run nor a part of the page.
                let shows = ["127.1.", "class=", "pingfleet_", "\"run\""];
                ensure!(
                    !shows.iter().any(|part| answer.contains(part)),
                    "{path}: {answer}"
                );
            }
            // The control: the same path with the own host and the token.
            for headers in [&format!("{own}\r\n{WITH_TOKEN}"), &own_origin] {
                let answer = site.ask(path, headers)?;
                ensure!(status(&answer) == 200, "{path} {headers}: {answer}");
            }
        }
        Ok(())
    })
}

#[test]
fn no_path_leads_to_a_file_while_results_are_stored() -> Result<()> {
    let site = Site::start(None)?;
    site.run()?;
    let own = format!("Host: {}", site.address);
    beside_a_run(&site, || {
        for path in [
            "/../../../../etc/passwd",
            "/assets/../../../../etc/passwd",
            "/assets/..%2f..%2f..%2fetc%2fpasswd",
            "/assets/%2e%2e/%2e%2e/pingfleet.db",
            "/assets/pingfleet.db",
            "/pingfleet.db",
            "/runs/..%2f..%2fpingfleet.db/report",
            "/runs/1/../../pingfleet.db",
            "/runs/1%00/report",
            "/runs/-1/report",
            "/runs/99999999999999999999/report",
            "/api/v1/runs/..%2f..%2f..%2fetc%2fpasswd",
            "/api/v1/runs/1'%20or%201=1",
            "//etc/passwd",
            "file:///etc/passwd",
        ] {
            let answer = site.ask(path, &own)?;
            ensure!(
                [400, 404, 421].contains(&status(&answer)),
                "{path}: {answer}"
            );
            let is_file = answer.contains("root:") || answer.contains("SQLite format 3");
            ensure!(!is_file, "{path}: {answer}");
        }
        // The control: paths of the page.
        for path in ["/assets/style.css", "/runs/1/report", "/api/v1/runs/1"] {
            let answer = site.ask(path, &own)?;
            ensure!(status(&answer) == 200, "{path}: {answer}");
        }
        Ok(())
    })
}

/// A run is complete while the attack goes on, and the writer's sockets and memory stay within their bounds.
fn withstands(attack: &Attack) -> Result<()> {
    let site = Site::start(None)?;
    site.run()?;
    let own = format!("Host: {}", site.address);
    ensure!(status(&site.ask("/", &own)?) == 200);
    let before_kib = site.memory_kib()?;
    let flood = Flood::start(attack, &site)?;
    // The run begins when the attack has taken what it can get, and it goes on longer than the run.
    flood.wait_until_at_limit()?;
    beside_a_run(&site, || {
        std::thread::sleep(Duration::from_millis(50));
        flood.goes_on()
    })?;
    let seen = flood.stop()?;
    let more_kib = seen.most_kib.saturating_sub(before_kib);
    ensure!(seen.most_sockets <= MAX_SOCKETS, "{seen:?}");
    ensure!(more_kib <= MAX_MORE_KIB, "{more_kib} KiB more: {seen:?}");
    // The control: the same measure of this process, which holds the other ends, is beyond the bound; and what was sent
    // would fill more memory than the writer may need.
    ensure!(seen.most_own_sockets > MAX_SOCKETS, "{seen:?}");
    ensure!(seen.sent_kib >= attack.least_sent_kib, "{seen:?}");
    // The page is there again after the attack.
    site.wait_until_answered()
}

#[test]
fn five_hundred_connections_at_once_lose_no_result() -> Result<()> {
    withstands(&Attack::connections(500))
}

#[test]
fn a_thousand_event_streams_that_nobody_reads_lose_no_result() -> Result<()> {
    withstands(&Attack::stuck_streams(1000))
}

#[test]
fn clients_that_read_nothing_lose_no_result() -> Result<()> {
    withstands(&Attack::slow_readers(500))
}

#[test]
fn clients_that_send_byte_by_byte_lose_no_result() -> Result<()> {
    withstands(&Attack::slow_writers(500))
}

#[test]
fn headers_of_a_megabyte_fill_no_memory() -> Result<()> {
    withstands(&Attack::large_headers(500).sending(2 * MAX_MORE_KIB))
}
