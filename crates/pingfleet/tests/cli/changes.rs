//! `diff`, `hosts` and `history`: what stands on the screen at several widths, JSON, and bad input.

use std::{fs, path::Path};

use anyhow::Context;
use rusqlite::Connection;
use serde_json::{Value, json};

use crate::{
    rig::TestDir,
    screens::{generated, matches_its_snapshot, on_a_terminal},
};

/// Two runs, the second of which differs in every way: a subnet is silent, another one is new, and one is gone.
pub(crate) fn changed() -> anyhow::Result<TestDir> {
    let dir = generated(2100, 2)?;
    // The addresses of a /24, as the table has them.
    let inside = |subnet: i64| {
        let first = ((10_i64 << 24) | (subnet << 16)) - (1 << 31);
        format!("address BETWEEN {first} AND {}", first + 255)
    };
    Connection::open(dir.path("pingfleet.db"))?.execute_batch(&format!(
        "UPDATE results SET status = 0, reason = NULL, received = 1, rtt_avg_ns = 1000000 WHERE run = 1 AND {silent};
         UPDATE results SET status = 6, reason = NULL, received = 0, rtt_avg_ns = NULL WHERE run = 2 AND {silent};
         DELETE FROM results WHERE run = 1 AND {new};
         DELETE FROM results WHERE run = 2 AND {gone};
         UPDATE results SET address = address + 65536 WHERE run = 2 AND chunk = 3 AND name IS NOT NULL AND status = 0
            AND typeof(address) = 'integer'",
        silent = inside(4),
        new = inside(5),
        gone = inside(6),
    ))?;
    Ok(dir)
}

/// Each field that an object has stands in a table of docs/changes.md.
fn is_documented(fields: &Value) -> anyhow::Result<()> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/changes.md");
    let documented = fs::read_to_string(file)?;
    for field in fields.as_object().context("an object")?.keys() {
        assert!(documented.contains(&format!("`{field}`")), "{field}");
    }
    Ok(())
}

#[test]
fn a_difference_fits_each_width() -> anyhow::Result<()> {
    matches_its_snapshot(&changed()?, "diff", "diff")
}

#[test]
fn hosts_fit_each_width() -> anyhow::Result<()> {
    let dir = generated(2100, 6)?;
    matches_its_snapshot(
        &dir,
        "hosts",
        "hosts --subnet 10.3.0.0/24 --subnet 2001:db8:0:9::/64",
    )
}

#[test]
fn the_history_of_a_target_fits_each_width() -> anyhow::Result<()> {
    let dir = generated(2100, 24)?;
    let target = dir.sqlite3(
        "pingfleet.db",
        "SELECT printf('%d.%d.%d.%d', (target >> 24) + 128, (target >> 16) & 255, (target >> 8) & 255, target & 255)
         FROM status_changes WHERE typeof(target) = 'integer' GROUP BY target ORDER BY count(*) DESC, target LIMIT 1",
    )?;
    matches_its_snapshot(&dir, "history", &format!("history {target}"))
}

#[test]
fn the_history_of_a_subnet_fits_each_width() -> anyhow::Result<()> {
    matches_its_snapshot(
        &generated(2100, 6)?,
        "history-subnet",
        "history 10.3.0.0/24",
    )
}

#[test]
fn colours_are_for_terminals() -> anyhow::Result<()> {
    let dir = changed()?;
    for command in ["diff", "hosts --status down", "history 10.4.0.1"] {
        let colour = on_a_terminal(&dir, command, 80, "")?;
        assert!(colour.contains('\u{1b}'), "{colour}");
        let plain = on_a_terminal(&dir, command, 80, "NO_COLOR=1")?;
        assert!(!plain.contains('\u{1b}'), "{plain}");
    }
    Ok(())
}

#[test]
fn json_has_one_change_on_a_line_and_the_text_counts_them() -> anyhow::Result<()> {
    let dir = changed()?;
    let changes = dir.pingfleet(&["diff", "--json"])?.ends_with(0);
    assert!(
        changes.stderr.contains("unknown in one of the runs"),
        "{changes:#?}"
    );
    let changes = changes.json()?;
    is_documented(&changes[0])?;
    is_documented(&changes[0]["after"])?;
    let quiet = dir.pingfleet(&["-q", "diff", "--json"])?.ends_with(0);
    assert_eq!(
        (quiet.stderr.as_str(), quiet.stdout.lines().count()),
        ("", changes.len())
    );
    let count = |kind: &str| {
        changes
            .iter()
            .filter(|change| change["change"] == json!(kind))
            .count()
    };
    let text = dir.pingfleet(&["diff", "--all"])?.ends_with(0).stdout;
    for (kind, words) in [
        ("stopped_answering", "✕ stopped answering"),
        ("answers_again", "● answers again"),
        ("appeared", "+ appeared"),
        ("disappeared", "− disappeared"),
        ("other_address", "≠ other address"),
        ("rtt_longer", "↑ RTT longer"),
    ] {
        let line = text
            .lines()
            .find_map(|line| line.trim_start().strip_prefix(words));
        let shown = line.and_then(|line| line.split_whitespace().next());
        assert_eq!(
            shown,
            Some(count(kind).to_string().as_str()),
            "{kind}: {text}"
        );
        assert!(count(kind) > 0);
    }
    every_change_stands_in(&text, &changes)
}

/// Every change stands there: by its target, or by its subnet.
fn every_change_stands_in(text: &str, changes: &[Value]) -> anyhow::Result<()> {
    for change in changes {
        let name = if change["whole_subnet"] == json!(true) {
            &change["subnet"]
        } else {
            &change["target"]
        };
        assert!(text.contains(name.as_str().context("a text")?), "{change}");
    }
    let whole = changes
        .iter()
        .filter(|change| change["whole_subnet"] == json!(true));
    let whole: std::collections::BTreeSet<_> =
        whole.map(|change| change["subnet"].to_string()).collect();
    for subnet in ["10.4.0.0/24", "10.5.0.0/24", "10.6.0.0/24"] {
        assert!(
            whole.contains(&format!("\"{subnet}\"")),
            "{subnet}: {whole:?}"
        );
    }
    Ok(())
}

#[test]
fn labels_and_reasons_cannot_control_the_terminal() -> anyhow::Result<()> {
    let dir = generated(2100, 2)?;
    Connection::open(dir.path("pingfleet.db"))?.execute_batch(
        r#"UPDATE labels SET labels = '{"a\u001b[2Jb":"c\u001b]0;x\u0007\u202ed"}';
           UPDATE results SET reason = char(27) || '[2J' || char(8238) WHERE status = 6;
           UPDATE runs SET source = char(27) || '[2J' || run"#,
    )?;
    let target = dir.sqlite3(
        "pingfleet.db",
        "SELECT target FROM latest WHERE labels IS NOT NULL AND status = 'down' LIMIT 1",
    )?;
    let wide = dir.pingfleet(&["hosts"])?.ends_with(0).stdout;
    let label = r"a\u{1b}[2Jb=c\u{1b}]0;x\u{7}\u{202e}d";
    assert!(wide.contains(label), "{wide}");
    for arguments in [
        ["hosts"].as_slice(),
        &["history", &target],
        &["diff", "1", "2", "--all"],
        &["diff"],
        &["report"],
        &["report", "--targets"],
        &["runs"],
    ] {
        let shown = dir.pingfleet(arguments)?;
        let text = [shown.stdout.as_str(), &shown.stderr].concat();
        assert!(text.contains(r"\u{1b}[2J"), "{arguments:?}: {text}");
        let is_harmless = |letter: char| letter == '\n' || !letter.is_control();
        assert!(text.chars().all(is_harmless) && !text.contains('\u{202e}'));
    }
    Ok(())
}

#[test]
fn the_exit_code_says_whether_anything_changed() -> anyhow::Result<()> {
    let dir = generated(2100, 2)?;
    dir.pingfleet(&["diff"])?.ends_with(0);
    dir.pingfleet(&["diff", "--exit-code"])?.ends_with(1);
    let same = dir
        .pingfleet(&["diff", "--exit-code", "2", "2"])?
        .ends_with(0);
    assert!(same.stdout.contains("Nothing changed."), "{same:#?}");
    // Nothing is shifted by a factor of a million.
    let limits = ["diff", "--json", "--rtt-factor", "1000000"];
    let changes = dir.pingfleet(&limits)?.ends_with(0).json()?;
    assert!(
        changes
            .iter()
            .all(|change| !change["change"].to_string().contains("rtt"))
    );
    let closed = dir
        .shell("pingfleet -q diff --all | head -n 1; echo ${PIPESTATUS[0]}")?
        .ends_with(0);
    assert!(
        closed.stdout.ends_with("\n0\n") && closed.stderr.is_empty(),
        "{closed:#?}"
    );
    Ok(())
}

#[test]
fn runs_that_cannot_be_compared_are_explained() -> anyhow::Result<()> {
    let dir = generated(2100, 0)?;
    for command in [["diff"].as_slice(), &["hosts"], &["history", "10.0.0.1"]] {
        dir.pingfleet(command)?
            .fails(3, &["no run", "pingfleet sweep 127.0.0.0/24"]);
    }
    let dir = generated(2100, 1)?;
    dir.pingfleet(&["diff"])?
        .fails(3, &["run 1 is the only complete one of inventory.csv"]);
    dir.pingfleet(&["diff", "1"])?
        .fails(3, &["no newer complete run", "pingfleet diff A B"]);
    dir.pingfleet(&["diff", "1", "7"])?
        .fails(3, &["no run \"7\""]);
    dir.pingfleet(&["diff", "--rtt-factor", "0.5"])?
        .fails(3, &["at least 1"]);
    let dir = generated(2100, 2)?;
    let connection = Connection::open(dir.path("pingfleet.db"))?;
    connection
        .execute_batch("UPDATE runs SET state = 'planning', finished_at_us = NULL WHERE run = 2")?;
    dir.pingfleet(&["diff", "1", "2"])?
        .fails(5, &["run 2 is in progress", "pingfleet report 2"]);
    // The latest complete run is now the first one.
    dir.pingfleet(&["diff"])?
        .fails(3, &["run 1 is the only complete one"]);
    connection.execute_batch("UPDATE runs SET state = 'incomplete' WHERE run = 2; DELETE FROM results WHERE run = 2 AND chunk = 1")?;
    let partial = dir.pingfleet(&["diff", "1", "2"])?.ends_with(0).stdout;
    assert!(
        partial.contains("run 2 incomplete") && partial.contains("250 targets of one run"),
        "{partial}"
    );
    Ok(())
}

#[test]
fn a_target_that_no_run_has_is_answered_with_near_ones() -> anyhow::Result<()> {
    let dir = generated(2100, 2)?;
    dir.pingfleet(&["history", "10.3.0.200"])?
        .fails(3, &["did you mean 10.3.0.", " or 10.4.0."]);
    let name = dir.sqlite3(
        "pingfleet.db",
        "SELECT target FROM report WHERE target LIKE 'host-%' LIMIT 1",
    )?;
    dir.pingfleet(&["history", &name.to_uppercase()])?
        .fails(3, &["did you mean", &name]);
    dir.pingfleet(&["history", "?"])?
        .fails(3, &["no run has the target", "pingfleet hosts"]);
    dir.pingfleet(&["history", "192.0.2.0/24"])?
        .fails(3, &["no run has a target in 192.0.2.0/24"]);
    dir.pingfleet(&["history", "10.0.0.0/99"])?
        .fails(3, &["a network is ADDRESS/PREFIX"]);
    Ok(())
}

#[test]
fn hosts_and_histories_as_json_are_the_rows_of_the_views() -> anyhow::Result<()> {
    let dir = generated(2100, 3)?;
    let down = dir
        .pingfleet(&["hosts", "--status", "down", "--json"])?
        .ends_with(0)
        .json()?;
    let count = dir.sqlite3(
        "pingfleet.db",
        "SELECT count(*) FROM latest WHERE status = 'down'",
    )?;
    assert_eq!(down.len().to_string(), count);
    is_documented(&down[0])?;
    let sql = format!(
        "SELECT json_array(first_seen, last_up, changed_at, changes_30d) FROM latest WHERE target = '{}'",
        down[0]["target"].as_str().context("a text")?
    );
    let fields =
        ["first_seen", "last_up", "changed_at", "changes_30d"].map(|field| down[0][field].clone());
    assert_eq!(
        serde_json::from_str::<Value>(&dir.sqlite3("pingfleet.db", &sql)?)?,
        json!(fields)
    );
    let rows = dir
        .pingfleet(&["history", "10.3.0.1", "--json"])?
        .ends_with(0)
        .json()?;
    assert_eq!(
        rows.iter()
            .map(|row| row["run"].clone())
            .collect::<Vec<_>>(),
        [json!(3), json!(2), json!(1)]
    );
    is_documented(&rows[0])?;
    let subnet = dir
        .pingfleet(&["history", "10.3.0.0/24", "--json"])?
        .ends_with(0)
        .json()?;
    assert_eq!(subnet.len(), 3);
    is_documented(&subnet[0])?;
    Ok(())
}

#[test]
fn hosts_that_nobody_probed_since_are_stale() -> anyhow::Result<()> {
    let dir = generated(50, 1)?;
    // The runs of the generator are years old; 127.0.0.1 is probed now.
    dir.swept("pingfleet.db")?;
    let stale = dir
        .pingfleet(&["hosts", "--stale", "7d", "--json"])?
        .ends_with(0)
        .json()?;
    assert_eq!(stale.len(), 50);
    let none = dir
        .pingfleet(&["hosts", "--stale", "7d", "--subnet", "127.0.0.0/8"])?
        .ends_with(0);
    assert!(none.stderr.contains("no target is like this"), "{none:#?}");
    let quiet = dir
        .pingfleet(&["-q", "hosts", "--where", "status = 'nothing'"])?
        .ends_with(0);
    assert_eq!(quiet.stderr, "");
    dir.pingfleet(&["hosts", "--where", "probed = 1"])?
        .fails(3, &["no such column: probed", "changes_30d"]);
    Ok(())
}

#[test]
fn the_report_names_the_command_that_shows_what_changed() -> anyhow::Result<()> {
    let dir = generated(2100, 2)?;
    let report = dir.pingfleet(&["report"])?.ends_with(0).stdout;
    assert!(report.contains("pingfleet diff 1 2"), "{report}");
    // The control: the first run has none before it.
    let report = dir.pingfleet(&["report", "1"])?.ends_with(0).stdout;
    assert!(!report.contains("pingfleet diff"), "{report}");
    Ok(())
}
