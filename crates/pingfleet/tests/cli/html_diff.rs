//! The page of `diff --html`: in a real browser without a network, beside `diff --json`, with hostile text, and as a file.

use std::fs;

use anyhow::{Context, Result, ensure};
use rusqlite::Connection;
use serde_json::Value;

use crate::{
    changes::changed,
    html::{HOSTILE, document, text_of},
    rig::TestDir,
    screens::generated,
};

/// Writes the page of the newest two runs, and reads it.
fn page(dir: &TestDir) -> Result<String> {
    let finished = dir
        .pingfleet(&["diff", "1", "2", "--html", "page.html"])?
        .ends_with(0);
    ensure!(finished.stdout.is_empty(), "{finished:#?}");
    Ok(fs::read_to_string(dir.path("page.html"))?)
}

/// The rows of the table in the section with an id, without the headings.
fn rows(document: &str, id: &str) -> usize {
    let section = document.split_once(&format!("id=\"{id}\""));
    let section = section.and_then(|(_, rest)| rest.split_once("</section>"));
    section.map_or(0, |(section, _)| section.matches("<tr>").count() - 1)
}

/// Compares what a document shows with the changes as JSON.
fn has_the_numbers(document: &str, changes: &[Value], unknown: &str) -> Result<()> {
    let number = |id: &str| Ok::<_, anyhow::Error>(text_of(document, id)?.replace(',', ""));
    ensure!(number("total")? == changes.len().to_string());
    ensure!(number("unknown")? == unknown, "{unknown}");
    let mut listed = 0;
    let mut whole: Vec<_> = Vec::new();
    for change in changes {
        let kind = change["change"].as_str().context("a kind")?;
        let same = changes.iter().filter(|other| other["change"] == kind);
        ensure!(
            number(&format!("count-{kind}"))? == same.count().to_string(),
            "{kind}"
        );
        if change["whole_subnet"] == true {
            whole.push((change["subnet"].as_str(), kind));
        } else {
            listed += 1;
            let target = change["target"].as_str().context("a target")?;
            ensure!(
                document.contains(&format!("<bdi>{target}<"))
                    || document.contains(&format!("<bdi>{target} (")),
                "{target}"
            );
        }
    }
    whole.sort_unstable();
    whole.dedup();
    ensure!(rows(document, "changes") == listed, "{listed}");
    ensure!(rows(document, "whole-subnets") == whole.len(), "{whole:?}");
    Ok(())
}

#[test]
fn the_page_has_the_numbers_of_the_json_in_a_browser_without_a_network() -> Result<()> {
    let dir = changed()?;
    Connection::open(dir.path("pingfleet.db"))?.execute_batch(
        "UPDATE runs SET probing = json_set(probing, '$.timeout_us', 2500000), source = 'second.csv' WHERE run = 2",
    )?;
    let json = dir.pingfleet(&["diff", "1", "2", "--json"])?.ends_with(0);
    let unknown = json
        .stderr
        .split_whitespace()
        .next()
        .unwrap_or("")
        .replace(',', "");
    let changes = json.json()?;
    let written = ["diff", "1", "2", "--html", "page.html", "--exit-code"];
    dir.pingfleet(&written)?.ends_with(1);
    let document = document(&dir, "page.html")?;
    has_the_numbers(&document, &changes, &unknown)?;
    // Only its script makes the search and the headings to sort by.
    assert!(document.contains("type=\"search\""));
    assert!(document.contains("<button type=\"button\">target</button>"));
    // What differs in how the runs were made.
    assert!(document.contains("<bdi>2.5 s</bdi>") && document.contains("<bdi>second.csv</bdi>"));
    // The control: another number, and a change less, are noticed.
    let total = text_of(&document, "total")?;
    let other = document.replace(&format!("id=\"total\">{total}<"), "id=\"total\">1<");
    assert!(has_the_numbers(&other, &changes, &unknown).is_err());
    assert!(has_the_numbers(&document, &changes[1..], &unknown).is_err());
    Ok(())
}

#[test]
fn the_page_names_both_sources_and_the_runs_whose_settings_cannot_be_read() -> Result<()> {
    let dir = changed()?;
    let header = |page: &str| -> Result<String> {
        let header = page
            .split_once("<header>")
            .and_then(|(_, rest)| rest.split_once("</header>"));
        Ok(header.context("a header")?.0.to_owned())
    };
    // The control: one source, and settings that can be read.
    let same = page(&dir)?;
    assert_eq!(header(&same)?.matches("inventory.csv").count(), 1, "{same}");
    assert!(!same.contains("id=\"settings\"") && !same.contains("cannot be read"));
    let connection = Connection::open(dir.path("pingfleet.db"))?;
    connection.execute_batch("UPDATE runs SET source = 'second.csv' WHERE run = 2")?;
    let other = header(&page(&dir)?)?;
    assert!(
        other.contains("<bdi>inventory.csv</bdi>, then <bdi>second.csv</bdi>"),
        "{other}"
    );
    for (sql, who) in [
        ("UPDATE runs SET probing = '{}' WHERE run = 1", "run 1"),
        ("UPDATE runs SET probing = '{}'", "runs 1 and 2"),
    ] {
        connection.execute_batch(sql)?;
        let shown = page(&dir)?;
        let sentence = format!("How the targets of {who} were probed cannot be read");
        assert!(shown.contains(&sentence), "{who}: {shown}");
        // What can be compared still is.
        assert!(shown.contains("<bdi>second.csv</bdi>"));
    }
    Ok(())
}

#[test]
fn text_from_outside_is_inert_in_the_page_of_a_difference() -> Result<()> {
    let dir = changed()?;
    let connection = Connection::open(dir.path("pingfleet.db"))?;
    connection.execute(
        "UPDATE results SET name = ?1 || chunk || '.' || position WHERE chunk < 4",
        [HOSTILE],
    )?;
    connection.execute("UPDATE results SET reason = ?1 WHERE status = 6", [HOSTILE])?;
    connection.execute("UPDATE runs SET source = ?1", [HOSTILE])?;
    let page = page(&dir)?;
    let shown = document(&dir, "page.html")?;
    let title = "<title>pingfleet: from run 1 to run 2</title>";
    assert_eq!(shown.matches("<script").count(), 1, "{shown}");
    assert_eq!(shown.matches("<img").count(), 0);
    assert!(shown.contains(title));
    for place in shown.match_indices('\u{202e}') {
        let before = &shown[..place.0];
        assert!(
            before.rfind("<bdi>") > before.rfind("</bdi>"),
            "{}",
            place.0
        );
    }
    assert!(shown.matches('\u{202e}').count() > 20);
    // The control: what is not escaped becomes an element, and the policy keeps even that from running.
    let escaped = "&#60;script&#62;document.title=&#39;owned&#39;&#60;/script&#62;";
    assert!(page.contains(escaped));
    let open = page.replacen(escaped, "<script>document.title='owned'</script>", 1);
    dir.write("open.html", open)?;
    let open = document(&dir, "open.html")?;
    assert_eq!(open.matches("<script").count(), 2);
    assert!(open.contains(title));
    // Without the policy it does run.
    let policy = page.find("<meta http-equiv").context("a policy")?;
    let end = page[policy..].find("/>").context("its end")? + policy + 2;
    let unguarded = [&page[..policy], &page[end..]].concat();
    let unguarded = unguarded.replacen(escaped, "<script>document.title='owned'</script>", 1);
    dir.write("unguarded.html", unguarded)?;
    assert!(document(&dir, "unguarded.html")?.contains("<title>owned</title>"));
    Ok(())
}

#[test]
fn the_page_of_a_difference_is_well_formed_and_whole_or_not_there() -> Result<()> {
    let unchanged = generated(40, 2)?;
    Connection::open(unchanged.path("pingfleet.db"))?.execute_batch(
        "DELETE FROM results WHERE run = 2;
         INSERT INTO results SELECT 2, chunk, position, status, sent, received, attempts, probed_after_us, address,
            rtt_avg_ns, rtt_min_ns, rtt_max_ns, rtt_stddev_ns, name, reason FROM results WHERE run = 1",
    )?;
    let parse =
        "python3 -c 'import sys, xml.dom.minidom; xml.dom.minidom.parse(sys.argv[1])' page.html";
    for (dir, part) in [
        (&unchanged, "Nothing changed."),
        (&changed()?, "Whole subnets"),
    ] {
        let page = page(dir)?;
        assert!(page.contains(part), "{page}");
        dir.shell(parse)?.ends_with(0);
        for outside in [" src=\"", " href=\"", "url(", "@import"] {
            assert!(!page.contains(outside), "{outside}");
        }
        let printed = dir.pingfleet(&["diff", "--html", "-"])?.ends_with(0).stdout;
        assert!(printed.ends_with("</html>\n"), "{printed}");
        // The control: an element without an end.
        dir.write("page.html", page.replacen("</main>", "", 1))?;
        dir.shell(parse)?.ends_with(1);
    }
    let before = unchanged.files()?;
    for (arguments, code, part) in [
        (["--html", "nowhere/page.html"].as_slice(), 4, "nowhere"),
        (&["--html", "pingfleet.db"], 3, "is the database"),
        (&["--html", "new.html", "--json"], 3, "--json"),
        (&["--html", "new.html", "--all"], 3, "--all"),
        (&["1", "9", "--html", "new.html"], 3, "9"),
    ] {
        let arguments = [["diff"].as_slice(), arguments].concat();
        unchanged.pingfleet(&arguments)?.fails(code, &[part]);
    }
    assert_eq!(unchanged.files()?, before);
    Ok(())
}

#[test]
fn a_page_that_is_interrupted_at_the_last_moment_is_not_there() -> Result<()> {
    let dir = changed()?;
    dir.write("page.html", "older")?;
    let before = dir.files()?;
    // The signal comes when all of it is written and goes to the disk, where it is held for some seconds.
    let program = "sh -c 'echo $$ > pid; exec pingfleet \"$@\"' sh";
    let hold =
        "strace -f -qq -o /dev/null -e trace=fsync -e inject=fsync:delay_enter=5000000:when=1";
    let wait = "until tail -c 8 .page.html.*.part | grep -q '</html>'; do :; done 2>/dev/null";
    for command in ["diff", "report"] {
        for (signal, code) in [("kill -INT $(cat pid);", 130), ("", 0)] {
            let line =
                format!("{hold} {program} {command} --html page.html & {wait}; {signal} wait $!");
            let finished = dir.shell(&line)?.ends_with(code);
            fs::remove_file(dir.path("pid"))?;
            if code == 0 {
                // The control: without the signal the page is there.
                let page = fs::read_to_string(dir.path("page.html"))?;
                ensure!(page.ends_with("</html>\n"), "{command}: {page}");
                dir.write("page.html", "older")?;
            } else {
                let message = "error: interrupted: page.html is not written";
                ensure!(finished.stderr.contains(message), "{finished:#?}");
            }
            ensure!(dir.files()? == before, "{command}");
        }
    }
    Ok(())
}
