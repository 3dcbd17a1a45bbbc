//! The page of `report --html`: in a real browser without a network, with hostile text, and as a file.

use std::fs;

use anyhow::{Context, Result, ensure};
use pingfleet_wire::StatusKind;
use rusqlite::Connection;

use crate::{rig::TestDir, screens::generated};

/// Text that would run or reorder if it were not escaped.
pub(crate) const HOSTILE: &str = "'\"><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\u{202e}&amp;";

/// Writes the page of the latest run, and reads it.
fn page(dir: &TestDir) -> Result<String> {
    let finished = dir
        .pingfleet(&["report", "--html", "page.html"])?
        .ends_with(0);
    ensure!(finished.stdout.is_empty(), "{finished:#?}");
    Ok(fs::read_to_string(dir.path("page.html"))?)
}

/// What the browser makes of a file, in a network namespace in which there is no interface but a loopback that is down.
pub(crate) fn document(dir: &TestDir, file: &str) -> Result<String> {
    let line = format!(
        "exec unshare --net chromium --headless --no-sandbox --disable-gpu --disable-dev-shm-usage \
         --disable-background-networking --disable-component-update --disable-sync --no-first-run \
         --user-data-dir=profile --dump-dom file://{}",
        dir.path(file).display()
    );
    let finished = dir.shell(&line)?;
    ensure!(
        finished.code == Some(0) && finished.stdout.contains("</html>"),
        "no page from chromium (apt-get install chromium): {finished:#?}"
    );
    Ok(finished.stdout)
}

/// The text of the element with an id.
pub(crate) fn text_of<'a>(document: &'a str, id: &str) -> Result<&'a str> {
    let (_, rest) = document
        .split_once(&format!("id=\"{id}\">"))
        .with_context(|| format!("no element {id}"))?;
    Ok(rest.split('<').next().unwrap_or(""))
}

/// Compares what a document shows with the database.
fn has_the_numbers(document: &str, connection: &Connection, run: i64) -> Result<()> {
    let count = |condition: &str| -> Result<usize> {
        let sql = format!("SELECT count(*) FROM report WHERE run = {run} AND {condition}");
        Ok(connection.query_row(&sql, (), |row| row.get::<_, i64>(0))? as usize)
    };
    for status in StatusKind::ALL.map(StatusKind::name) {
        let shown = text_of(document, &format!("count-{status}"))?.replace(',', "");
        let counted = count(&format!("status = '{status}'"))?;
        ensure!(
            shown == counted.to_string(),
            "{status}: {shown}, not {counted}"
        );
    }
    // A row for the headings, and one for each target.
    let rows = |id: &str| {
        let section = document
            .split_once(&format!("id=\"{id}\""))
            .map(|(_, rest)| rest);
        let section = section.and_then(|rest| rest.split_once("</section>"));
        section.map_or(0, |(section, _)| section.matches("<tr>").count())
    };
    ensure!(
        rows("not-up") == 1 + count("received = 0")?,
        "{}",
        rows("not-up")
    );
    let workers: i64 = connection.query_row(
        "SELECT count(DISTINCT worker) FROM report WHERE run = ?1",
        [run],
        |row| row.get(0),
    )?;
    ensure!(rows("workers") as i64 == 1 + workers);
    Ok(())
}

#[test]
fn the_page_shows_the_numbers_of_the_database_in_a_browser_without_a_network() -> Result<()> {
    let dir = generated(2100, 2)?;
    page(&dir)?;
    let document = document(&dir, "page.html")?;
    let connection = Connection::open(dir.path("pingfleet.db"))?;
    has_the_numbers(&document, &connection, 2)?;
    assert_eq!(text_of(&document, "state")?, "complete");
    // Only its script, which the policy admits by its hash, makes the search and the headings to sort by.
    assert!(document.contains("type=\"search\""));
    assert!(document.contains("<button type=\"button\">target</button>"));
    // The control: another number, and a target less, are noticed.
    let shown = text_of(&document, "count-down")?;
    let changed = document.replace(&format!("count-down\">{shown}<"), "count-down\">1<");
    assert!(has_the_numbers(&changed, &connection, 2).is_err());
    let (before, after) = document.split_once("id=\"not-up\"").context("a section")?;
    let fewer = format!("{before}id=\"not-up\"{}", after.replacen("<tr>", "<i>", 1));
    assert!(has_the_numbers(&fewer, &connection, 2).is_err());
    Ok(())
}

#[test]
fn text_from_outside_is_inert() -> Result<()> {
    let dir = generated(300, 1)?;
    let connection = Connection::open(dir.path("pingfleet.db"))?;
    let labels = serde_json::json!({ HOSTILE: HOSTILE }).to_string();
    connection.execute(
        "UPDATE results SET name = ?1 || chunk || position",
        [HOSTILE],
    )?;
    connection.execute("UPDATE results SET reason = ?1 WHERE status = 6", [HOSTILE])?;
    connection.execute("UPDATE chunks SET worker = ?1", [HOSTILE])?;
    connection.execute("UPDATE labels SET labels = ?1", [&labels])?;
    connection.execute("UPDATE runs SET source = ?1", [HOSTILE])?;
    let page = page(&dir)?;
    let shown = document(&dir, "page.html")?;
    assert_eq!(shown.matches("<script").count(), 1, "{shown}");
    assert_eq!(shown.matches("<img").count(), 0);
    assert!(shown.contains("<title>pingfleet: run 1, complete</title>"));
    // Each is there, and marks that turn the direction end with their element.
    for part in ["Slowest", "Workers", "Not up"] {
        assert!(shown.contains(part));
    }
    for place in shown.match_indices('\u{202e}') {
        let before = &shown[..place.0];
        assert!(
            before.rfind("<bdi>") > before.rfind("</bdi>"),
            "{}",
            place.0
        );
    }
    assert!(shown.matches('\u{202e}').count() > 100);
    // The control: what is not escaped becomes an element, and the policy keeps even that from running.
    let escaped = "&#60;script&#62;document.title=&#39;owned&#39;&#60;/script&#62;";
    assert!(page.contains(escaped));
    let open = page.replacen(escaped, "<script>document.title='owned'</script>", 1);
    dir.write("open.html", open)?;
    let open = document(&dir, "open.html")?;
    assert_eq!(open.matches("<script").count(), 2);
    assert!(open.contains("<title>pingfleet: run 1, complete</title>"));
    Ok(())
}

#[test]
fn every_page_is_well_formed_and_names_nothing_outside() -> Result<()> {
    for (targets, runs, sql) in [
        (3, 1, ""),
        (254, 1, ""),
        (2100, 2, ""),
        (40, 1, "UPDATE results SET address = '2001:db8::1'"),
        (
            40,
            1,
            "UPDATE results SET status = 6, reason = NULL, received = 0, rtt_avg_ns = NULL;
             UPDATE runs SET up = 0, late = 0, unreachable = 0, dns_failed = 0, send_failed = 0, unknown = 0, down = 40",
        ),
    ] {
        let dir = generated(targets, runs)?;
        Connection::open(dir.path("pingfleet.db"))?.execute_batch(sql)?;
        let page = page(&dir)?;
        let parse = "python3 -c 'import sys, xml.dom.minidom; xml.dom.minidom.parse(sys.argv[1])'";
        dir.shell(&format!("{parse} page.html"))?.ends_with(0);
        for attribute in [" src=\"", " href=\""] {
            for value in page.split(attribute).skip(1) {
                assert!(value.starts_with("data:image/png;base64,"), "{value:.40}");
            }
        }
        assert!(!page.contains("url(") && !page.contains("@import"));
        // The control: an element without an end.
        dir.write("broken.html", page.replacen("</main>", "", 1))?;
        dir.shell(&format!("{parse} broken.html"))?.ends_with(1);
    }
    Ok(())
}

#[test]
fn a_page_without_ipv4_or_without_answers_says_so() -> Result<()> {
    let dir = generated(40, 1)?;
    let connection = Connection::open(dir.path("pingfleet.db"))?;
    assert!(page(&dir)?.contains("data:image/png"));
    connection.execute_batch("UPDATE results SET address = '2001:db8::1'")?;
    assert!(page(&dir)?.contains("All addresses are IPv6: the map is for IPv4 only."));
    connection.execute_batch(
        "UPDATE results SET status = 6, reason = NULL, received = 0, rtt_avg_ns = NULL;
         UPDATE runs SET up = 0, late = 0, unreachable = 0, dns_failed = 0, send_failed = 0, unknown = 0, down = 40",
    )?;
    let none_up = page(&dir)?;
    assert!(
        none_up.contains("No target is up. Likely cause:"),
        "{none_up}"
    );
    assert!(!none_up.contains("id=\"histogram\""));
    Ok(())
}

#[test]
fn the_page_of_a_pruned_run_has_no_charts_and_no_map() -> Result<()> {
    let dir = generated(600, 2)?;
    let page = |run: &str| {
        let printed = dir.pingfleet(&["report", run, "--html", "-"])?;
        anyhow::Ok(printed.ends_with(0).stdout)
    };
    // The control: the page of a run with rows has both.
    let parts = ["Answers over time", "id=\"map\""];
    let before = page("1")?;
    for part in parts {
        assert!(before.contains(part), "{part}");
    }
    dir.pingfleet(&["prune", "--keep", "1"])?.ends_with(0);
    let pruned = page("1")?;
    assert!(pruned.contains("Its rows were pruned at"), "{pruned}");
    for part in parts {
        assert!(!pruned.contains(part), "{part}");
    }
    Ok(())
}

#[test]
fn the_file_is_whole_or_is_not_there() -> Result<()> {
    let dir = generated(40, 1)?;
    let printed = dir
        .pingfleet(&["report", "--html", "-"])?
        .ends_with(0)
        .stdout;
    assert!(printed.ends_with("</html>\n"), "{printed}");
    dir.write("page.html", "older")?;
    assert!(page(&dir)?.ends_with("</html>\n"));
    let before = dir.files()?;
    for (arguments, code, part) in [
        (["--html", "nowhere/page.html"].as_slice(), 4, "nowhere"),
        (&["--html", "pingfleet.db"], 3, "is the database"),
        (
            &["--html", "new.html", "--status", "down"],
            3,
            "--html shows the whole run",
        ),
        (&["--html", "new.html", "--json"], 3, "--json"),
        (&["9", "--html", "new.html"], 3, "9"),
    ] {
        let arguments = [["report"].as_slice(), arguments].concat();
        dir.pingfleet(&arguments)?.fails(code, &[part]);
    }
    assert_eq!(dir.files()?, before);
    Ok(())
}
