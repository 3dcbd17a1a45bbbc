//! No line vanishes: whatever a file contains, every line of it is counted once, as what it is.

use std::{fs, io, path::Path};

use pingfleet_targets::{LineCounts, Targets, TargetsError, read};
use pingfleet_wire::Family;
use proptest::prelude::*;

use super::{arguments, names};

/// Reads a file of generated content, after one target that makes the list possible.
fn read_file(path: &Path, more: &[&str]) -> Result<Targets, TargetsError> {
    let path = path.to_str().expect("a path of UTF-8");
    let words = ["192.0.2.1", "-f", path, "--skip-bad"];
    let words = words.iter().chain(more).copied();
    read(&arguments(words), Family::Any, io::empty())
}

/// The number of lines: each ends with LF, CRLF or CR, the last one perhaps with nothing.
fn count_lines(text: &[u8]) -> u64 {
    let mut lines = 0;
    let mut previous = b'\n';
    for byte in text {
        let is_end = previous == b'\n' || previous == b'\r' && *byte != b'\n';
        lines += u64::from(is_end);
        previous = *byte;
    }
    lines
}

/// Pieces of files, chosen to meet in every combination.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let pieces: Vec<&[u8]> = vec![
        b"10.0.0.1",
        b"10.0.0.2",
        b"10.0.0.4/30",
        b"10.0.0.8-10.0.0.9",
        b"host",
        b"HOST",
        b"2001:db8::1",
        b"10.0.0",
        b"target",
        b"note",
        b",",
        b",",
        b";",
        b"\t",
        b"\"",
        b"\"",
        b"\"\"",
        b"#",
        b"# x",
        b" ",
        b"\n",
        b"\n",
        b"\n",
        b"\r\n",
        b"\r\n",
        b"\r",
        b"sep=;\n",
        b"\xfc",
        b"\0",
        "\u{200b}".as_bytes(),
        "\u{feff}".as_bytes(),
        "\u{2013}".as_bytes(),
        "\u{a0}".as_bytes(),
        b"\xff\xfe",
        b"target,note\n",
        b"target;note\r\n",
    ];
    prop_oneof![
        40 => prop::sample::select(pieces).prop_map(<[u8]>::to_vec),
        1 => (4000_usize..5000).prop_map(|length| vec![b'x'; length]),
        1 => (200_usize..300).prop_map(|length| vec![b','; length]),
    ]
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    let begin = prop::sample::select(vec![
        b"".as_slice(),
        b"target,note\n",
        b"note;target\r\n",
        b"sep=|\ntarget|a\n",
    ]);
    let pieces = prop::collection::vec(piece(), 0..60);
    (begin, pieces).prop_map(|(begin, pieces)| [begin.to_vec(), pieces.concat()].concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn the_lines_of_a_file_are_the_sum_of_what_became_of_them(
        content in content(),
        name in prop::sample::select(vec!["t.csv", "t.txt"]),
        format in prop::sample::select(vec![None, None, Some("csv"), Some("list")]),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, &content).unwrap();
        let format: Vec<_> = format.map_or(Vec::new(), |format| vec!["--format", format]);
        match read_file(&path, &format) {
            Ok(targets) => {
                let lines = targets.lines().unwrap();
                prop_assert_eq!(lines.sum(), lines.read, "{}", lines);
                // A byte order mark of UTF-16 makes line ends of other bytes.
                if !content.starts_with(b"\xff\xfe") {
                    prop_assert_eq!(lines.read, count_lines(&content), "{}", lines);
                }
                prop_assert!(lines.bad >= targets.skipped_bad());
                prop_assert!(lines.targets < targets.count());
                let excluding = ["192.0.2.1", "--exclude-file", path.to_str().unwrap()];
                let excluding = excluding.iter().chain(&format).copied();
                match read(&arguments(excluding), Family::Any, io::empty()) {
                    Ok(excluded) => {
                        let excluded = excluded.exclude_lines().unwrap();
                        prop_assert_eq!(excluded.sum(), excluded.read);
                        // The same reader: what is a target of one is an exclude of the other.
                        prop_assert_eq!(excluded.targets + excluded.duplicates, lines.targets + lines.duplicates);
                        prop_assert_eq!(
                            LineCounts { targets: 0, duplicates: 0, ..excluded },
                            LineCounts { targets: 0, duplicates: 0, ..lines }
                        );
                    }
                    Err(error) => prop_assert!(lines.bad > 0, "{}", error),
                }
            }
            // A file is refused as a whole, or its pieces are a huge network.
            Err(error) => prop_assert!(
                matches!(error, TargetsError::File { .. } | TargetsError::TooMany { .. }),
                "{}",
                error
            ),
        }
    }
}

#[test]
fn a_summary_names_every_class() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.csv");
    let content = "sep=;\ntarget;note\n10.0.0.1;a\n\n# x\n10.0.0.1;\n10.0.0.2;\"a\nb\"\n10.0.0;\n;\n10.0.0.3;\"x\ny";
    fs::write(&path, content).unwrap();
    let targets = read_file(&path, &["--exclude", "10.0.0.2"]).unwrap();
    assert_eq!(names(&targets), ["192.0.2.1", "10.0.0.1"]);
    assert_eq!(
        targets.lines().unwrap().to_string(),
        "12 lines read: targets 1, duplicates 1, comments 1, blank 2, bad 3, excluded 1, header 2, \
         line breaks in quotes 1"
    );
    assert_eq!(targets.exclude_lines(), None);
    let words = read(&arguments(["10.0.0.1"]), Family::Any, io::empty()).unwrap();
    assert_eq!(words.lines(), None);
}
