//! The live page of `consumer-writer` and of `pingfleet sweep`, with a real browser and without a script.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use pingfleet_wire::StatusKind;
use rusqlite::Connection;
use serde_json::Value;

use crate::{
    live_relay::{Relay, first_event},
    rig::{Started, TestDir},
    screens::generated,
};

/// Text that would run if it were not escaped.
const HOSTILE: &str = "<script>document.title='owned'</script>'\"&amp;";

/// How long a test waits for what has to come. No assertion depends on how soon it comes.
pub(crate) const DEADLINE: Duration = Duration::from_mins(2);

/// Asks again and again until there is an answer.
pub(crate) fn until<T>(awaited: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        ensure!(began.elapsed() < DEADLINE, "waited in vain for {awaited}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// What a browser shows of an address when everything that the page names has been loaded; its script has run by then.
pub(crate) fn in_a_browser(dir: &TestDir, address: &str) -> Result<String> {
    let line = format!(
        "exec chromium --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run \
         --disable-background-networking --disable-component-update --disable-sync \
         --user-data-dir=profile --dump-dom http://{address}/"
    );
    let finished = dir.shell(&line)?;
    ensure!(
        finished.code == Some(0) && finished.stdout.contains("</html>"),
        "no page from chromium (apt-get install chromium): {finished:#?}"
    );
    Ok(finished.stdout)
}

/// A running page, or the metrics of a worker.
pub(crate) struct Live<'a> {
    dir: &'a TestDir,
    pub(crate) address: String,
    pub(crate) program: Started,
}

impl<'a> Live<'a> {
    /// Starts a program that serves a page on a free port, and waits until it does.
    pub(crate) fn start(
        dir: &'a TestDir,
        program: &str,
        arguments: &[&str],
        log: &str,
    ) -> Result<Self> {
        let mut started = dir.start_with_log(program, arguments, log)?;
        let address = until("the address of the page", || {
            let text = fs::read_to_string(dir.path(log))?;
            let address = text.split_once("http://").map(|(_, rest)| rest);
            if let Some((address, _)) = address.and_then(|rest| rest.split_once('/')) {
                return Ok(Some(address.to_owned()));
            }
            ensure!(started.is_running()?, "{program} ended: {text}");
            Ok(None)
        })?;
        Ok(Self {
            dir,
            address,
            program: started,
        })
    }

    /// A writer without a broker: it serves what the database has.
    pub(crate) fn writer(dir: &'a TestDir, log: &str) -> Result<Self> {
        Self::start(dir, "consumer-writer", &["--dashboard", "127.0.0.1:0"], log)
    }

    /// The answer to a request, with its headers.
    pub(crate) fn get(&self, path: &str) -> Result<String> {
        self.ask(path, &format!("Host: {}", self.address))
    }

    /// The answer to a request with these headers.
    pub(crate) fn ask(&self, path: &str, headers: &str) -> Result<String> {
        let mut stream = TcpStream::connect(&self.address)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\n{headers}\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    fn json(&self, path: &str) -> Result<Value> {
        let answer = self.get(path)?;
        let (_, body) = answer.split_once("\r\n\r\n").context("a body")?;
        Ok(serde_json::from_str(body)?)
    }

    fn in_a_browser(&self) -> Result<String> {
        in_a_browser(self.dir, &self.address)
    }
}

/// The text of the element with an id.
fn text_of<'a>(document: &'a str, id: &str) -> Option<&'a str> {
    let (_, rest) = document.split_once(&format!("id=\"{id}\">"))?;
    rest.split('<').next()
}

/// The count of each status, as a document shows it. One that is not shown is 0.
fn shown(document: &str) -> Result<Vec<i64>> {
    let counts = StatusKind::ALL.map(StatusKind::name).map(|status| {
        let text = text_of(document, &format!("count-{status}")).unwrap_or("0");
        text.replace(',', "")
            .parse()
            .with_context(|| text.to_owned())
    });
    counts.into_iter().collect()
}

/// The count of each status in the rows of a run.
fn counted(dir: &TestDir, run: i64) -> Result<Vec<i64>> {
    let connection = Connection::open(dir.path("pingfleet.db"))?;
    let count = |status| {
        let sql = "SELECT count(*) FROM report WHERE run = ?1 AND status = ?2";
        Ok(connection.query_row(sql, (run, status), |row| row.get(0))?)
    };
    StatusKind::ALL
        .map(StatusKind::name)
        .into_iter()
        .map(count)
        .collect()
}

#[test]
fn the_page_with_and_without_a_script_has_the_numbers_of_the_database() -> Result<()> {
    let dir = generated(2100, 2)?;
    let page = Live::writer(&dir, "log")?;
    let plain = page.get("/")?;
    let live = page.in_a_browser()?;
    let counted = counted(&dir, 2)?;
    assert_eq!(shown(&plain)?, counted);
    assert_eq!(shown(&live)?, counted);
    assert_eq!(text_of(&live, "state"), Some("complete"));
    // The script ran: it makes the headings to sort by. Without it the page loads itself again.
    assert!(live.contains("<button type=\"button\">report</button>"));
    assert!(!plain.contains("<button") && plain.contains("http-equiv=\"refresh\""));
    // The control: another number is noticed.
    let other = plain.replace("count-up\">", "count-up\">1");
    assert_ne!(shown(&other)?, counted);
    // Everything that a page loads is on this server.
    for attribute in [" src=\"", " href=\""] {
        for value in plain.split(attribute).skip(1) {
            let is_here = value.starts_with('/') || value.starts_with('#');
            assert!(
                is_here || value.starts_with("data:image/png"),
                "{value:.60}"
            );
        }
    }
    let report = page.get("/runs/2/report")?;
    assert!(report.contains("<title>pingfleet: run 2, complete</title>"));
    assert!(page.get("/runs/9/report")?.starts_with("HTTP/1.1 404"));
    Ok(())
}

#[test]
fn numbers_change_while_a_sweep_runs_and_agree_with_the_database_when_it_has_stopped() -> Result<()>
{
    let dir = TestDir::new()?;
    let page = Live::writer(&dir, "log")?;
    let empty = page.get("/")?;
    assert!(empty.contains("This database has no run."), "{empty}");
    // It would take more than an hour, so it runs until this test has seen enough.
    let sweep = [
        "sweep",
        "127.0.0.0/20",
        "--rate=1",
        "--chunk-size=1",
        "--dashboard=127.0.0.1:0",
    ];
    let own = Live::start(&dir, "pingfleet", &sweep, "sweep-log")?;
    let mut seen = BTreeSet::new();
    let mut own_seen = BTreeSet::new();
    until("three numbers on both pages", || {
        seen.insert(shown(&page.get("/")?)?);
        own_seen.insert(shown(&own.get("/")?)?);
        Ok((seen.len() >= 3 && own_seen.len() >= 3).then_some(()))
    })?;
    assert_eq!(page.json("/api/v1/runs")?[0]["state"], "running");
    drop(own);
    let counted = counted(&dir, 1)?;
    assert!(counted.iter().sum::<i64>() >= 2, "{counted:?}");
    until("the numbers of the database", || {
        Ok((shown(&page.get("/")?)? == counted).then_some(()))
    })?;
    assert_eq!(shown(&page.in_a_browser()?)?, counted);
    Ok(())
}

#[test]
fn names_of_workers_and_targets_are_text_on_the_page() -> Result<()> {
    let dir = generated(300, 1)?;
    let connection = Connection::open(dir.path("pingfleet.db"))?;
    connection.execute("UPDATE runs SET source = ?1", [HOSTILE])?;
    // Two logins with one name.
    let sql = "INSERT INTO workers (login, instance, worker, pid, version, worker_group, threads, prefetch, first_seen_us,
             last_seen_us, draining, chunks_done, targets_done, requests_sent, replies, lost_socket_drops,
             lost_send_path, lost_stalled, lost_canary, lost_interrupted, lost_link_down, lost_no_route, lost_no_address,
             lost_gateway_no_arp, lost_local_firewall, lost_rp_filter)
         VALUES (?2, randomblob(16), ?1, 7, ?1, ?1, 1, 1, 0, unixepoch() * 1000000,
             0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)";
    for login in ["", HOSTILE] {
        connection.execute(sql, [HOSTILE, login])?;
    }
    let page = Live::writer(&dir, "log")?;
    let plain = page.get("/")?;
    let live = page.in_a_browser()?;
    let escaped = "&#60;script&#62;document.title=&#39;owned&#39;&#60;/script&#62;";
    assert!(plain.matches(escaped).count() >= 10, "{plain}");
    for document in [&plain, &live] {
        assert_eq!(document.matches("<script").count(), 2, "{document}");
        assert!(!document.contains("<title>owned"));
    }
    // The control: what is not escaped would be an element.
    let open = plain.replacen(escaped, HOSTILE, 1);
    assert_eq!(open.matches("<script").count(), 3);
    Ok(())
}

#[test]
fn a_page_in_a_browser_changes_by_its_event_stream_and_hostile_text_stays_text() -> Result<()> {
    let dir = generated(300, 1)?;
    let writer = Live::writer(&dir, "log")?;
    let answer = writer.get("/")?;
    let connection = Connection::open(dir.path("pingfleet.db"))?;
    connection.execute("UPDATE runs SET source = ?1", [HOSTILE])?;
    let escaped = "&#60;script&#62;document.title=&#39;owned&#39;&#60;/script&#62;";
    // A stream sends everything at its start, and the page is read again within seconds.
    let event = until("an event with the new text", || {
        let event = first_event(&writer.address)?;
        Ok(event.contains(escaped).then_some(event))
    })?;
    let changed = in_a_browser(&dir, &Relay::start(&writer.address, &answer, Some(&event))?)?;
    // A browser writes the characters of a text in its own way.
    let shown = "&lt;script&gt;document.title='owned'&lt;/script&gt;";
    assert!(changed.contains(shown), "{changed}");
    assert!(!changed.contains("<title>owned") && !changed.contains("<script>"));
    // The control: without an event the browser shows what the page had.
    let unchanged = in_a_browser(&dir, &Relay::start(&writer.address, &answer, None)?)?;
    assert!(!unchanged.contains("owned"), "{unchanged}");
    assert!(unchanged.contains("<button type=\"button\">report</button>"));
    Ok(())
}

#[test]
fn the_writer_goes_on_without_a_page_unless_it_was_asked_for_one() -> Result<()> {
    let dir = TestDir::new()?;
    let page = Live::writer(&dir, "log")?;
    let other = TestDir::new()?;
    let taken = ["--dashboard", page.address.as_str()];
    let finished = other.call("consumer-writer", &taken)?.end()?;
    finished.fails(4, &["another program uses it"]);
    let open = ["--dashboard", "0.0.0.0:0"];
    let finished = other.call("consumer-writer", &open)?.end()?;
    finished.fails(3, &["visitors need a token"]);
    let wrong = ["--dashboard", "8787"];
    let finished = other.call("consumer-writer", &wrong)?.end()?;
    finished.fails(3, &["is neither an address with a port"]);
    Ok(())
}

#[test]
fn the_api_answers_in_pages_and_in_words() -> Result<()> {
    let dir = generated(40, 3)?;
    let page = Live::writer(&dir, "log")?;
    let numbers = |path: &str| -> Result<Vec<i64>> {
        let runs = page.json(path)?;
        let runs = runs.as_array().context("a list")?;
        Ok(runs.iter().filter_map(|run| run["run"].as_i64()).collect())
    };
    assert_eq!(numbers("/api/v1/runs")?, [3, 2, 1]);
    assert_eq!(numbers("/api/v1/runs?limit=1&before=3")?, [2]);
    let printed = dir.pingfleet(&["runs", "--json"])?.ends_with(0).json()?;
    let answered = page.json("/api/v1/runs")?[0].take();
    assert_eq!(Some(&answered), printed.iter().find(|run| run["run"] == 3));
    for (path, code, part) in [
        ("/api/v1/runs?limit=x", "400", "limit=x is not a number"),
        ("/api/v1/runs/9", "404", "There is no run 9."),
        ("/api/v1/runs/%FF", "404", "There is no run "),
        ("/api/v1/nothing", "404", "nothing under this address"),
    ] {
        let answer = page.get(path)?;
        assert!(answer.starts_with(&format!("HTTP/1.1 {code}")), "{answer}");
        assert!(
            answer.contains("{\"error\":") && answer.contains(part),
            "{answer}"
        );
    }
    assert!(page.json("/api/v1/workers")?.is_array());
    let queues = page.json("/api/v1/queues")?;
    assert_eq!(queues["writer"]["state"], "no_broker");
    Ok(())
}
