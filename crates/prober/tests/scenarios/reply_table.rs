//! The table of `docs/replies.md`: each kind of reply, and the documented status and reason of its target. Every row is a
//! few hosts of one network, which every variant probes.

use pingfleet_testbed::simnet::IpVersion;
use toml::Value;

use crate::{
    engines::Kind,
    run_at_once,
    scenario::{Scenario, Variant},
    variants,
};

const DOCUMENT: &str = include_str!("../../../../docs/replies.md");

/// How the targets are probed, as the document says.
const PROBING: &str = "probing = { count = 1, retries = 1, timeout = \"300ms\", size = 200 }";

/// Hosts of each row.
const HOSTS: usize = 3;

/// A row, as it is written.
struct Row {
    answers: &'static str,
    /// What is expected with `linux`, with `surge` on raw and on datagram sockets.
    expected: [&'static str; 3],
}

/// The rows of the table.
fn rows() -> Vec<Row> {
    let lines = DOCUMENT.lines().filter(|line| line.starts_with("| "));
    lines
        .skip(1)
        .map(|line| {
            let cells: Vec<_> = line.split(" | ").collect();
            let [_, answers, linux, raw, datagram] = cells[..] else {
                panic!("a row has five cells: {line}");
            };
            let datagram = datagram.trim_end_matches(" |");
            Row {
                answers: answers.trim_matches('`'),
                expected: [linux, raw, datagram],
            }
        })
        .collect()
}

/// What a cell expects in a family: the status, and its reason if it has one.
fn expected(cell: &str, family: IpVersion) -> (&str, Option<&str>) {
    let (both, v6) = cell.split_once("; v6: ").unwrap_or((cell, cell));
    let text = match family {
        IpVersion::V4 => both,
        IpVersion::V6 => v6,
    };
    match text.split_once(": ") {
        Some((status, reason)) => (status, Some(reason)),
        None => (text, None),
    }
}

/// The first answer that has `key`, and that key's value.
fn first_with<'a>(answers: &'a [Value], key: &str) -> Option<(&'a Value, &'a Value)> {
    let mut having = answers
        .iter()
        .filter_map(|answer| Some((answer, answer.get(key)?)));
    having.next()
}

/// The expectation of a scenario file for a row.
fn expectation(answers: &[Value], status: &str, reason: Option<&str>) -> String {
    let reason = match reason {
        None => String::new(),
        Some("error") => {
            let (answer, send) = first_with(answers, "send").expect("an error is sent");
            let send = send.as_str().expect("the name of an error");
            let source = answer.get("source").and_then(Value::as_integer);
            let source = source.map_or_else(String::new, |host| format!(", source = {host}"));
            format!(", error = {{ send = \"{send}\"{source} }}")
        }
        Some("answered_by") => {
            let (_, source) = first_with(answers, "source").expect("it has a source");
            let source = source.as_integer().expect("the number of a host");
            format!(", answered_by = {source}")
        }
        Some(reason) => format!(", reason = \"{reason}\""),
    };
    format!("{{ status = \"{status}\"{reason} }}")
}

/// The scenario of all rows for one variant.
fn scenario(rows: &[Row], variant: Variant) -> Scenario {
    let column = match (variant.engine.name, variant.kind) {
        ("linux", _) => 0,
        (_, Kind::Raw) => 1,
        (_, Kind::Datagram) => 2,
    };
    let mut text = PROBING.to_owned();
    for (number, row) in rows.iter().enumerate() {
        let answers: toml::Table = toml::from_str(&format!("answers = {}", row.answers))
            .unwrap_or_else(|error| panic!("{}: {error}", row.answers));
        let answers = answers["answers"].as_array().expect("a list of answers");
        let (status, reason) = expected(row.expected[column], variant.family);
        let first = number * HOSTS + 1;
        let last = first + HOSTS - 1;
        let expect = expectation(answers, status, reason);
        let group = format!(
            "\n[[targets]]\nhosts = [{first}, {last}]\nanswers = {}\nexpect = {expect}\n",
            row.answers
        );
        text.push_str(&group);
    }
    toml::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

#[test]
fn every_kind_of_reply_has_its_documented_status() {
    let rows = rows();
    assert!(rows.len() >= 30, "only {} rows", rows.len());
    let scenarios: Vec<_> = variants()
        .map(|variant| (variant, scenario(&rows, variant)))
        .collect();
    let cases: Vec<_> = scenarios
        .iter()
        .map(|(variant, scenario)| (*variant, scenario))
        .collect();
    run_at_once(&cases);
}
