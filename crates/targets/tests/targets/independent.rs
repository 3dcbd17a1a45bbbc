//! Generated files, as this reader and an independent one (Python's csv module) read them.

use std::{
    fs,
    io::{self, ErrorKind},
    path::Path,
    process::Command,
};

use fastrand::Rng;
use pingfleet_targets::{Targets, TargetsError, read};
use pingfleet_wire::Family;
use serde_json::{Value, json};

use super::{arguments, names};

const FILES: u64 = 1000;

/// A word that is a target, or one that looks like one.
fn word(rng: &mut Rng) -> String {
    let number = rng.u8(1..20);
    match rng.u8(..20) {
        0..8 => format!("10.0.0.{number}"),
        8..10 => format!("2001:db8::{number:x}"),
        10 => format!("2001:DB8:0::{number:x}"),
        11..14 => format!("Host{number}.example"),
        14 => format!("host{number}.EXAMPLE"),
        _ => rng
            .choice([
                "10.0.0",
                "10.0.0.300",
                "10.0.0.1\u{200b}",
                "\u{feff}10.0.0.2",
                "10.0.0.1\u{2013}10.0.0.9",
                "a b",
                "1.1.1.*",
                "x#c",
                "10.0.0.1,10.0.0.2",
                "a;b",
                "target",
                "m\u{fc}ller.de",
                "\"10.0.0.3\"",
                "\"10.0.0.3",
            ])
            .unwrap_or_default()
            .to_owned(),
    }
}

fn blank(rng: &mut Rng) -> &'static str {
    rng.choice(["", "", "", "", " ", "\t", "\u{a0}", "  "])
        .unwrap_or_default()
}

/// A cell of a label, perhaps one that is written wrongly.
fn cell(rng: &mut Rng, end: &str) -> String {
    let text = rng
        .choice([
            "",
            "core",
            "Z\u{fc}rich",
            "5\" disk",
            "\"a, \"\"b\"\"\"",
            "\"a; b\tc\"",
            "\"19\"",
            "\u{1f5a7}",
            "#1",
            "\"two LINES\"",
            "\"two LINES10.0.0.9,x\"",
            "\"\"",
            " \"x\"",
            "\"19 inch rack",
            "\"19\" rack",
            "\"19\" ",
        ])
        .unwrap_or_default();
    // Wrong quotes are rarer: one of them may take all that follows.
    let is_wrong = text.matches('"').count() % 2 == 1 || text.starts_with("\"19\" ");
    if is_wrong && rng.u8(..5) > 0 {
        return "db".to_owned();
    }
    text.replace("LINES", &format!("lines{end}"))
}

/// A file's text and whether it is CSV.
fn text(rng: &mut Rng) -> (String, bool) {
    let is_csv = rng.bool();
    let separator = rng.choice([",", ",", ";", "\t", "|"]).unwrap_or_default();
    let ends = rng
        .choice([
            vec!["\n"],
            vec!["\r\n"],
            vec!["\r"],
            vec!["\n", "\r\n", "\r"],
        ])
        .unwrap_or_default();
    let end = move |rng: &mut Rng| rng.choice(ends.clone()).unwrap_or_default();
    let mut text = String::new();
    let mut columns = Vec::new();
    if is_csv {
        if separator == "|" || rng.u8(..4) == 0 {
            text.extend(["sep=", separator, end(rng)]);
        }
        columns = vec!["site", "note", ""];
        columns.truncate(rng.usize(..=3));
        columns.insert(rng.usize(..=columns.len()), "Target");
        text += &columns.join(separator);
        text += end(rng);
    }
    for _ in 0..rng.u8(..30) {
        match rng.u8(..40) {
            0..3 => text += "# a comment, \"quoted",
            3..6 => text += blank(rng),
            6 => text += &"x".repeat(rng.usize(4090..4100)),
            7 => text += &separator.repeat(rng.usize(..300)),
            8 => text += "  # 10.0.0.1",
            _ if is_csv => {
                let mut cells = Vec::new();
                for column in &columns {
                    let end = end(rng);
                    cells.push(match *column {
                        "Target" => format!("{}{}{}", blank(rng), word(rng), blank(rng)),
                        "" => String::new(),
                        _ => cell(rng, end),
                    });
                }
                if rng.u8(..20) == 0 {
                    cells.push("more".to_owned());
                }
                text += &cells.join(separator);
            }
            _ => {
                let comment = rng
                    .choice(["", "", " # x", "\t#", "#y"])
                    .unwrap_or_default();
                text.extend([blank(rng), &word(rng), comment]);
            }
        }
        text += end(rng);
    }
    (text, is_csv)
}

/// A file's name and its bytes.
fn generate(number: u64) -> (String, Vec<u8>) {
    let mut rng = Rng::with_seed(number);
    let (text, is_csv) = text(&mut rng);
    let utf16 = || format!("\u{feff}{text}").encode_utf16().collect::<Vec<_>>();
    let mut bytes = match rng.u8(..6) {
        0 => utf16().into_iter().flat_map(u16::to_le_bytes).collect(),
        1 => utf16().into_iter().flat_map(u16::to_be_bytes).collect(),
        2 => format!("\u{feff}{text}").into_bytes(),
        // Latin-1, where the text has such characters.
        3 => text
            .chars()
            .flat_map(|c| match c {
                '\u{80}'..='\u{ff}' => vec![c as u8],
                c => c.to_string().into_bytes(),
            })
            .collect(),
        _ => text.into_bytes(),
    };
    if rng.bool() {
        bytes.truncate(rng.usize(..=bytes.len()));
    }
    let ending = if is_csv && rng.bool() { "csv" } else { "txt" };
    (format!("{number:04}.{ending}"), bytes)
}

/// What the independent reader says of each file of a folder; `None` without Python.
fn independent(folder: &Path) -> Option<Vec<Value>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/targets/reader.py");
    let output = match Command::new("python3").arg(script).arg(folder).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        output => output.expect("python3 starts"),
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let lines = output.stdout.split(|byte| *byte == b'\n');
    let results = lines.filter(|line| !line.is_empty());
    Some(
        results
            .map(|line| serde_json::from_slice(line).expect("JSON"))
            .collect(),
    )
}

/// What this reader says of a list.
fn account(targets: &Targets) -> Value {
    let lines = targets.lines().expect("a file was read");
    assert_eq!(lines.sum(), lines.read, "{lines}");
    json!({
        "read": lines.read,
        "targets": lines.targets,
        "duplicates": lines.duplicates,
        "comments": lines.comments,
        "blank": lines.blank,
        "header": lines.header,
        "continued": lines.continued,
        "bad": lines.bad,
        // The first one is the argument.
        "words": names(targets)[1..],
    })
}

#[test]
fn a_thousand_files_are_read_as_pythons_csv_module_reads_them() {
    let folder = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for number in 0..FILES {
        let (name, bytes) = generate(number);
        let path = folder.path().join(name);
        fs::write(&path, &bytes).unwrap();
        files.push((path, bytes));
    }
    let expected = independent(folder.path())
        .expect("python3 must be installed: only its csv module is independent of ours");
    assert_eq!(expected.len(), files.len());
    let (mut planned, mut bad, mut refused, mut continued) = (0, 0, 0, 0);
    for ((path, bytes), expected) in files.iter().zip(&expected) {
        let words = ["192.0.2.1", "--skip-bad", "-f", path.to_str().unwrap()];
        let found = match read(&arguments(words), Family::Any, io::empty()) {
            Ok(targets) => account(&targets),
            Err(TargetsError::File { .. }) => Value::Null,
            Err(error) => panic!("{}: {error}", path.display()),
        };
        assert_eq!(
            found,
            *expected,
            "{}: {:?}",
            path.display(),
            String::from_utf8_lossy(bytes)
        );
        refused += u64::from(found.is_null());
        planned += found["targets"].as_u64().unwrap_or_default();
        bad += found["bad"].as_u64().unwrap_or_default();
        continued += found["continued"].as_u64().unwrap_or_default();
    }
    // The generator makes enough of everything.
    println!(
        "{planned} targets, {bad} bad lines, {continued} continued lines, {refused} files refused"
    );
    assert!(
        planned > 3000 && bad > 1000 && continued > 100,
        "{planned} {bad} {continued}"
    );
    assert!((5..300).contains(&refused), "{refused}");
}
