//! Hosts files and targets on the command line: what is wrong with them is told, with line numbers, before anything is
//! probed or stored.

use serde_json::json;

use crate::rig::Room;

const BAD_LINES: &str = "127.0.0.1\n10.0.0.300\nlocalhost\n# a comment\n\ntwo words\n127.0.0.2\n";

#[test]
fn bad_lines_are_told_by_number_and_nothing_is_planned() -> anyhow::Result<()> {
    let room = Room::new()?;
    let hosts = room.write("hosts.txt", BAD_LINES)?;
    let before = room.files()?;
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
        room.call(program, &arguments)?.end()?.fails(2, &parts);
        assert_eq!(room.files()?, before);
    }
    Ok(())
}

#[test]
fn bad_lines_are_told_up_to_twenty_and_all_are_counted() -> anyhow::Result<()> {
    let room = Room::new()?;
    let hosts = room.write("hosts.txt", "10.0.0.300\n".repeat(25))?;
    let ended = room.pingfleet(&["sweep", "-f", &hosts])?;
    let ended = ended.fails(2, &["25 bad targets", ":20: ", "and 5 more"]);
    assert!(!ended.stderr.contains(":21: "), "{ended:#?}");
    Ok(())
}

#[test]
fn skip_bad_probes_the_rest_and_tells_what_it_left_out() -> anyhow::Result<()> {
    let room = Room::new()?;
    let hosts = room.write("hosts.txt", BAD_LINES)?;
    let ended = room
        .pingfleet(&["sweep", "-f", &hosts, "--skip-bad"])?
        .ends_with(0);
    assert!(ended.stderr.contains(&format!("{hosts}:6: ")), "{ended:#?}");
    let rows = room.pingfleet(&["report", "--json"])?.ends_with(0).json()?;
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
    let room = Room::new()?;
    for program in ["pingfleet", "producer"] {
        for hosts in ["/nonexistent/hosts.txt", "/tmp"] {
            let mut arguments = vec!["--hosts", hosts];
            if program == "pingfleet" {
                arguments.insert(0, "sweep");
            }
            room.call(program, &arguments)?
                .end()?
                .fails(2, &["cannot read", hosts]);
        }
    }
    room.pingfleet(&["sweep", "missing/hosts.txt"])?
        .fails(2, &["missing/hosts.txt", "no such file"]);
    assert!(room.files()?.is_empty());
    Ok(())
}

#[test]
fn files_without_a_target_leave_nothing_to_probe() -> anyhow::Result<()> {
    let room = Room::new()?;
    room.write("empty.txt", "")?;
    room.write("comments.txt", "# one\n\n   # two\r\n")?;
    room.write("header.csv", "target,site\n")?;
    let before = room.files()?;
    for file in ["empty.txt", "comments.txt", "header.csv"] {
        room.pingfleet(&["sweep", "-f", file])?
            .fails(2, &["nothing to probe"]);
    }
    room.pingfleet(&["sweep"])?
        .fails(2, &["nothing to probe", "-f"]);
    room.call("pingfleet", &["sweep", "-"])?
        .end()?
        .fails(2, &["nothing to probe"]);
    room.pingfleet(&["sweep", "127.0.0.1", "--exclude", "127.0.0.0/8"])?
        .fails(2, &["nothing to probe", "1 excluded"]);
    assert_eq!(room.files()?, before);
    Ok(())
}

#[test]
fn labels_of_a_csv_file_come_back_in_the_report() -> anyhow::Result<()> {
    let room = Room::new()?;
    let table =
        "\u{feff}site,target,rack\r\n\"Graz, \"\"A\"\"\",127.0.0.1,7\r\nWien,127.0.0.2,\r\n";
    let hosts = room.write("hosts.csv", table)?;
    room.pingfleet(&["sweep", "--no-shuffle", &hosts])?
        .ends_with(0);
    let rows = room.pingfleet(&["report", "--json"])?.ends_with(0).json()?;
    assert_eq!(
        rows[0]["labels"],
        json!({"site": "Graz, \"A\"", "rack": "7"})
    );
    assert_eq!(rows[1]["labels"]["site"], "Wien");
    let report = room.pingfleet(&["report", "--csv"])?.ends_with(0);
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
fn standard_input_is_read_where_a_dash_stands() -> anyhow::Result<()> {
    let room = Room::new()?;
    for arguments in [["sweep", "-a", "-"].as_slice(), &["sweep", "-a", "-f", "-"]] {
        let ended = room
            .call("pingfleet", arguments)?
            .stdin("127.0.0.7 # one\n")
            .end()?
            .ends_with(0);
        assert_eq!(ended.stdout, "127.0.0.7\n");
    }
    room.call("pingfleet", &["sweep", "-"])?
        .stdin("127.0.0.1\nno target\n")
        .end()?
        .fails(2, &["standard input:2: no target"]);
    room.pingfleet(&["sweep", "-", "-f", "-"])?
        .fails(2, &["standard input", "twice"]);
    Ok(())
}

#[test]
fn files_of_windows_editors_are_read() -> anyhow::Result<()> {
    let room = Room::new()?;
    room.write("hosts.txt", "\u{feff}127.0.0.1\r\n\r\n127.0.0.2")?;
    let ended = room
        .pingfleet(&["sweep", "--no-shuffle", "-a", "hosts.txt"])?
        .ends_with(0);
    assert_eq!(ended.stdout, "127.0.0.1\n127.0.0.2\n");
    let utf16: Vec<u8> = "\u{feff}127.0.0.1\r\n"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    room.write("utf16.txt", utf16)?;
    room.pingfleet(&["sweep", "utf16.txt"])?
        .fails(2, &["utf16.txt", "UTF-16", "UTF-8"]);
    Ok(())
}

#[test]
fn a_target_named_again_is_told_and_probed_once() -> anyhow::Result<()> {
    let room = Room::new()?;
    for (again, probed) in [
        (["127.0.0.1", "127.0.0.1"], "127.0.0.1"),
        (["localhost", "LocalHost"], "localhost"),
        (["127.0.0.1", "127.0.0.1/32"], "127.0.0.1"),
        (["::1", "0:0:0:0:0:0:0:1"], "::1"),
    ] {
        let ended = room
            .pingfleet(&["sweep", "-a", again[0], again[1]])?
            .ends_with(0);
        assert_eq!(ended.stdout, format!("{probed}\n"));
        assert!(ended.stderr.contains("duplicates=1"), "{ended:#?}");
    }
    // A name and its address are two targets: where a name leads is known on the worker only.
    let ended = room
        .pingfleet(&["sweep", "-a", "localhost", "127.0.0.1"])?
        .ends_with(0);
    assert_eq!(ended.stdout.lines().count(), 2, "{ended:#?}");
    Ok(())
}

#[test]
fn addresses_that_no_host_has_are_bad_targets() -> anyhow::Result<()> {
    let room = Room::new()?;
    for target in ["0.0.0.0", "255.255.255.255", "224.0.0.1", "ff02::1", "::"] {
        room.pingfleet(&["sweep", target])?
            .fails(2, &["1 bad target", target]);
    }
    room.pingfleet(&["sweep", "10.0.0.0/7"])?
        .fails(2, &["33554430", "--yes"]);
    assert!(room.files()?.is_empty());
    Ok(())
}
