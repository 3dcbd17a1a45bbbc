//! The flags that select rows.

use crate::rig::TestDir;

/// A database with a run of 127.0.0.1 to 127.0.0.4, with their labels, and of `::1`.
fn labelled() -> anyhow::Result<TestDir> {
    let dir = TestDir::new()?;
    let hosts =
        "target,site\n127.0.0.1,berlin\n127.0.0.2,berlin\n127.0.0.3,munich\n127.0.0.4,\n::1,\n";
    dir.write("hosts.csv", hosts)?;
    dir.pingfleet(&["sweep", "--no-shuffle", "--hosts", "hosts.csv"])?
        .ends_with(0);
    Ok(dir)
}

/// The targets of a report with these flags.
fn targets(dir: &TestDir, flags: &[&str]) -> anyhow::Result<Vec<String>> {
    let arguments = [["export"].as_slice(), flags].concat();
    let rows = dir.pingfleet(&arguments)?.ends_with(0).json()?;
    Ok(rows
        .iter()
        .filter_map(|row| Some(row["target"].as_str()?.to_owned()))
        .collect())
}

#[test]
fn rows_are_selected_by_status_label_subnet_and_condition() -> anyhow::Result<()> {
    let dir = labelled()?;
    for (flags, expected) in [
        (
            ["--label", "site=munich"].as_slice(),
            ["127.0.0.3"].as_slice(),
        ),
        (
            &["--label", "site=berlin", "--label", "site=munich"],
            &["127.0.0.1", "127.0.0.2", "127.0.0.3"],
        ),
        (&["--subnet", "127.0.0.2/31"], &["127.0.0.2", "127.0.0.3"]),
        (&["--subnet", "::/0"], &["::1"]),
        (
            &["--subnet", "127.0.0.4", "--subnet", "::1"],
            &["127.0.0.4", "::1"],
        ),
        (&["--where", "target LIKE '%.2'"], &["127.0.0.2"]),
        (
            &[
                "--status",
                "up",
                "--status",
                "down",
                "--subnet",
                "127.0.0.4/32",
            ],
            &["127.0.0.4"],
        ),
        (&["--status", "down"], &[]),
        (
            &[
                "--label",
                "site=berlin",
                "--subnet",
                "127.0.0.2/31",
                "--where",
                "sent > 0",
            ],
            &["127.0.0.2"],
        ),
    ] {
        assert_eq!(targets(&dir, flags)?, expected, "{flags:?}");
    }
    Ok(())
}

#[test]
fn a_wrong_filter_is_one_message_and_nothing_is_printed() -> anyhow::Result<()> {
    let dir = labelled()?;
    let before = dir.files()?;
    for (flags, parts) in [
        (
            ["--where", "rtt > 5"].as_slice(),
            ["no such column: rtt", "rtt_avg_ms"].as_slice(),
        ),
        (
            &["--where", "status = 'up"],
            &["--where", "unrecognized token"],
        ),
        (&["--where", "1); DROP TABLE runs; --"], &["--where"]),
        (&["--where", "EXISTS (SELECT 1 FROM plan)"], &["SELECT"]),
        (
            &["--where", "json_extract(target, '$') = 1"],
            &["malformed JSON"],
        ),
        (&["--subnet", "127.0.0.0/33"], &["--subnet", "10.0.0.0/24"]),
        (&["--label", "site"], &["--label", "KEY=VALUE"]),
        (&["--status", "sideways"], &["--status", "dns_failed"]),
    ] {
        let arguments = [["report"].as_slice(), flags].concat();
        dir.pingfleet(&arguments)?.fails(3, parts);
    }
    assert_eq!(dir.files()?, before);
    Ok(())
}
