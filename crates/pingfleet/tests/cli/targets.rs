//! Hosts files and targets on the command line: errors are reported with line numbers before anything is probed or
//! stored.

use serde_json::json;

use crate::rig::TestDir;

const BAD_LINES: &str = "127.0.0.1\n10.0.0.300\nlocalhost\n# a comment\n\ntwo words\n127.0.0.2\n";

#[test]
fn bad_lines_are_reported_by_number_and_nothing_is_planned() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    let hosts = dir.write("hosts.txt", BAD_LINES)?;
    let before = dir.files()?;
    let first = format!("{hosts}:2: 10.0.0.300: ");
    let second = format!("{hosts}:6: two words: ");
    let parts = [
        "2 bad targets",
        &first,
        &second,
        "nothing was probed",
        "--skip-bad",
    ];
    for (program, arguments) in [
        ("pingfleet", vec!["sweep", "-f", &hosts]),
        ("pingfleet", vec!["sweep", &hosts]),
        ("producer", vec!["--hosts", &hosts]),
    ] {
        dir.call(program, &arguments)?.end()?.fails(2, &parts);
        assert_eq!(dir.files()?, before);
    }
    Ok(())
}

#[test]
fn the_first_twenty_bad_lines_are_reported_and_all_are_counted() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    let hosts = dir.write("hosts.txt", "10.0.0.300\n".repeat(25))?;
    let finished = dir.pingfleet(&["sweep", "-f", &hosts])?;
    let finished = finished.fails(2, &["25 bad targets", ":20: ", "and 5 more"]);
    assert!(!finished.stderr.contains(":21: "), "{finished:#?}");
    Ok(())
}

#[test]
fn skip_bad_probes_the_rest_and_reports_what_it_skipped() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    let hosts = dir.write("hosts.txt", BAD_LINES)?;
    let finished = dir
        .pingfleet(&["sweep", "-f", &hosts, "--skip-bad"])?
        .ends_with(0);
    assert!(
        finished.stderr.contains(&format!("{hosts}:6: ")),
        "{finished:#?}"
    );
    let rows = dir.pingfleet(&["export"])?.ends_with(0).json()?;
    let mut targets: Vec<_> = rows.iter().map(|row| row["target"].to_string()).collect();
    targets.sort();
    assert_eq!(
        targets,
        [r#""127.0.0.1""#, r#""127.0.0.2""#, r#""localhost""#]
    );
    Ok(())
}

#[test]
fn a_hosts_file_that_cannot_be_read_is_named() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    for program in ["pingfleet", "producer"] {
        for hosts in ["/nonexistent/hosts.txt", "/tmp"] {
            let mut arguments = vec!["--hosts", hosts];
            if program == "pingfleet" {
                arguments.insert(0, "sweep");
            }
            dir.call(program, &arguments)?
                .end()?
                .fails(2, &["cannot read", hosts]);
        }
    }
    dir.pingfleet(&["sweep", "missing/hosts.txt"])?
        .fails(2, &["missing/hosts.txt", "no such file"]);
    assert!(dir.files()?.is_empty());
    Ok(())
}

#[test]
fn files_without_a_target_are_an_error() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    dir.write("empty.txt", "")?;
    dir.write("comments.txt", "# one\n\n   # two\r\n")?;
    dir.write("header.csv", "target,site\n")?;
    let before = dir.files()?;
    for file in ["empty.txt", "comments.txt", "header.csv"] {
        dir.pingfleet(&["sweep", "-f", file])?
            .fails(2, &["nothing to probe"]);
    }
    dir.pingfleet(&["sweep"])?
        .fails(2, &["nothing to probe", "-f"]);
    dir.call("pingfleet", &["sweep", "-"])?
        .end()?
        .fails(2, &["nothing to probe"]);
    dir.pingfleet(&["sweep", "127.0.0.1", "--exclude", "127.0.0.0/8"])?
        .fails(2, &["nothing to probe", "1 excluded"]);
    assert_eq!(dir.files()?, before);
    Ok(())
}

#[test]
fn labels_of_a_csv_file_are_in_the_report() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    let table =
        "\u{feff}site,target,rack\r\n\"Graz, \"\"A\"\"\",127.0.0.1,7\r\nWien,127.0.0.2,\r\n";
    let hosts = dir.write("hosts.csv", table)?;
    dir.pingfleet(&["sweep", "--no-shuffle", &hosts])?
        .ends_with(0);
    let rows = dir.pingfleet(&["export"])?.ends_with(0).json()?;
    assert_eq!(
        rows[0]["labels"],
        json!({"site": "Graz, \"A\"", "rack": "7"})
    );
    assert_eq!(rows[1]["labels"]["site"], "Wien");
    let report = dir.pingfleet(&["export", "--format", "csv"])?.ends_with(0);
    let mut reader = csv::Reader::from_reader(report.stdout.as_bytes());
    let labels = reader
        .headers()?
        .iter()
        .position(|name| name == "labels")
        .expect("a column of labels");
    let first = reader.records().next().expect("a row")?;
    let first: serde_json::Value = serde_json::from_str(&first[labels])?;
    assert_eq!(first, rows[0]["labels"]);
    Ok(())
}

#[test]
fn a_dash_reads_standard_input() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    for arguments in [["sweep", "-a", "-"].as_slice(), &["sweep", "-a", "-f", "-"]] {
        let finished = dir
            .call("pingfleet", arguments)?
            .stdin("127.0.0.7 # one\n")
            .end()?
            .ends_with(0);
        assert_eq!(finished.stdout, "127.0.0.7\n");
    }
    dir.call("pingfleet", &["sweep", "-"])?
        .stdin("127.0.0.1\nno target\n")
        .end()?
        .fails(2, &["standard input:2: no target"]);
    dir.pingfleet(&["sweep", "-", "-f", "-"])?
        .fails(2, &["standard input", "twice"]);
    Ok(())
}

#[test]
fn files_of_windows_editors_are_read() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    dir.write("hosts.txt", "\u{feff}127.0.0.1\r\n\r\n127.0.0.2")?;
    let finished = dir
        .pingfleet(&["sweep", "--no-shuffle", "-a", "hosts.txt"])?
        .ends_with(0);
    assert_eq!(finished.stdout, "127.0.0.1\n127.0.0.2\n");
    let utf16: Vec<u8> = "\u{feff}127.0.0.1\r\n"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    dir.write("utf16.txt", utf16)?;
    let finished = dir.pingfleet(&["sweep", "-a", "utf16.txt"])?.ends_with(0);
    assert_eq!(finished.stdout, "127.0.0.1\n");
    Ok(())
}

#[test]
fn a_plan_says_what_became_of_every_line() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    dir.write(
        "hosts.csv",
        "target,note\n127.0.0.1,gw\n\n# two\n127.0.0.2,\"19\n inch\"\n127.0.0.1,\n",
    )?;
    dir.write("never.txt", "127.0.0.2\n")?;
    let files = ["-f", "hosts.csv", "--exclude-file", "never.txt"];
    let lines = "7 lines read: targets 1, duplicates 1, comments 1, blank 1, bad 0, excluded 1, header 1, \
                 line breaks in quotes 1\n";
    let excludes = "excludes: 1 line read: targets 1, ";
    let dry = dir
        .pingfleet(&[["sweep", "--dry-run"].as_slice(), &files].concat())?
        .ends_with(0);
    assert!(
        dry.stdout.contains(lines) && dry.stdout.contains(excludes),
        "{dry:#?}"
    );
    let swept = dir
        .pingfleet(&[["sweep"].as_slice(), &files].concat())?
        .ends_with(0);
    assert!(
        swept.stderr.contains(lines) && swept.stderr.contains(excludes),
        "{swept:#?}"
    );
    let quiet = dir
        .pingfleet(&[["sweep", "-q"].as_slice(), &files].concat())?
        .ends_with(0);
    assert_eq!(quiet.stderr, "");
    Ok(())
}

#[test]
fn a_repeated_target_is_reported_and_probed_once() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    for (again, probed) in [
        (["127.0.0.1", "127.0.0.1"], "127.0.0.1"),
        (["localhost", "LocalHost"], "localhost"),
        (["127.0.0.1", "127.0.0.1/32"], "127.0.0.1"),
        (["::1", "0:0:0:0:0:0:0:1"], "::1"),
    ] {
        let finished = dir
            .pingfleet(&["sweep", "-a", again[0], again[1]])?
            .ends_with(0);
        assert_eq!(finished.stdout, format!("{probed}\n"));
        assert!(finished.stderr.contains("duplicates=1"), "{finished:#?}");
    }
    // A name and its address are two targets: only the worker resolves the name.
    let finished = dir
        .pingfleet(&["sweep", "-a", "localhost", "127.0.0.1"])?
        .ends_with(0);
    assert_eq!(finished.stdout.lines().count(), 2, "{finished:#?}");
    Ok(())
}

#[test]
fn addresses_that_no_host_can_have_are_bad_targets() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    for target in ["0.0.0.0", "255.255.255.255", "224.0.0.1", "ff02::1", "::"] {
        dir.pingfleet(&["sweep", target])?
            .fails(2, &["1 bad target", target]);
    }
    dir.pingfleet(&["sweep", "10.0.0.0/7"])?
        .fails(2, &["33554430", "--yes"]);
    assert!(dir.files()?.is_empty());
    Ok(())
}
