//! Files of targets: text files, CSV files and standard input, and what can be wrong with them.

use std::{
    fs,
    io::{self, Read},
    path::PathBuf,
};

use pingfleet_targets::{Targets, TargetsError, read, read_set};
use pingfleet_wire::{Family, Target};
use tempfile::TempDir;

use super::{arguments, listed, names, texts};

/// A folder of its own, with one file.
struct Folder {
    folder: TempDir,
}

impl Folder {
    fn new() -> Self {
        Self {
            folder: TempDir::new().expect("a temporary folder"),
        }
    }

    fn path(&self, name: &str) -> String {
        let path: PathBuf = self.folder.path().join(name);
        path.to_str().expect("a path of UTF-8").to_owned()
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        fs::write(&path, content).expect("the folder is writable");
        path
    }
}

/// The list of one file, named by `-f`.
fn file(name: &str, content: impl AsRef<[u8]>) -> Result<Targets, TargetsError> {
    let folder = Folder::new();
    listed(["-f", &folder.write(name, content)])
}

/// The bad lines of one file as `line: text: why`.
fn bad_lines(name: &str, content: impl AsRef<[u8]>) -> Vec<String> {
    let folder = Folder::new();
    let path = folder.write(name, content);
    match listed(["-f", &path]) {
        Err(TargetsError::Bad(bad)) => bad
            .reported()
            .iter()
            .map(|bad| {
                let text = bad.to_string();
                let place = format!("{path}:");
                text.strip_prefix(&place)
                    .expect("the file is named")
                    .to_owned()
            })
            .collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn comments_blanks_line_ends_and_a_byte_order_mark_are_fine() {
    let content =
        "\u{feff}10.0.0.1\r\n# comment\n\n \t10.0.0.2 \t# core\r\n10.0.0.4/31\n  #x\nhost";
    let targets = file("hosts", content).unwrap();
    assert_eq!(
        names(&targets),
        ["10.0.0.1", "10.0.0.2", "10.0.0.4", "10.0.0.5", "host"]
    );
    assert_eq!(targets.duplicates() + targets.skipped_bad(), 0);
}

#[test]
fn every_bad_line_is_reported_with_its_number() {
    let content = b"10.0.0.1\n10.0.0\n\nhost\0name\nM\xfcller\r\na b\nhost\n\x1b[31mred\n";
    let bad = bad_lines("hosts", content);
    let expected = [
        ("2: 10.0.0: ", "four octets"),
        ("4: host\\0name: ", "NUL"),
        ("5: M\u{fffd}ller: ", "UTF-8"),
        ("6: a b: ", "one target a line"),
        ("8: \\u{1b}[31mred: ", "'[' cannot stand in a name"),
    ];
    assert_eq!(bad.len(), expected.len(), "{bad:?}");
    for (bad, (place, why)) in bad.iter().zip(expected) {
        assert!(bad.starts_with(place) && bad.contains(why), "{bad}");
    }
}

#[test]
fn at_most_twenty_bad_lines_are_shown() {
    let folder = Folder::new();
    let path = folder.write("hosts", "10.0.0\n".repeat(1000));
    let error = listed(["-f", &path]).unwrap_err().to_string();
    assert_eq!(error.matches("four octets").count(), 20);
    assert!(
        error.starts_with("1000 bad targets:") && error.contains("and 980 more"),
        "{error}"
    );
}

#[test]
fn skipped_bad_lines_are_still_reported() {
    let folder = Folder::new();
    let path = folder.write("hosts", "10.0.0.1\n10.0.0\nhost\n");
    let targets = listed(["-f", &path, "--skip-bad"]).unwrap();
    assert_eq!(names(&targets), ["10.0.0.1", "host"]);
    assert_eq!(targets.skipped_bad(), 1);
    assert!(targets.skipped().to_string().contains("hosts:2: 10.0.0: "));
}

#[test]
fn a_line_of_4096_bytes_is_the_longest() {
    let comment = |length: usize| format!("10.0.0.1 #{}\n10.0.0.2", "x".repeat(length - 10));
    assert_eq!(
        names(&file("hosts", comment(4096)).unwrap()),
        ["10.0.0.1", "10.0.0.2"]
    );
    let bad = bad_lines("hosts", comment(4097));
    assert!(
        bad[0].starts_with("1: ") && bad[0].contains("4096 bytes"),
        "{bad:?}"
    );
    assert!(bad[0].chars().count() < 200, "{bad:?}");
}

#[test]
fn an_unreadable_file_is_reported_with_its_reason() {
    let folder = Folder::new();
    let directory = folder.path(".");
    let missing = folder.path("missing");
    for words in [
        vec!["-f", &directory],
        vec![&directory],
        vec!["-f", &missing],
        vec!["10.0.0.1", "--exclude-file", &missing],
    ] {
        let error = listed(words.iter().copied()).unwrap_err();
        let TargetsError::Unreadable { file, source } = &error else {
            panic!("{words:?}: {error}");
        };
        assert!([&directory, &missing].contains(&file));
        assert!(!source.to_string().is_empty());
    }
}

#[test]
fn a_read_that_fails_half_way_leaves_no_list() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("gone"))
        }
    }
    let input = "10.0.0.1\n".as_bytes().chain(Broken);
    let error = read(&arguments(["-"]), Family::Any, input).unwrap_err();
    assert!(matches!(error, TargetsError::Unreadable { .. }), "{error}");
}

#[test]
fn an_argument_is_a_file_when_there_is_one() {
    let folder = Folder::new();
    let path = folder.write("hosts.txt", "10.0.0.1\n");
    assert_eq!(names(&listed([path.as_str()]).unwrap()), ["10.0.0.1"]);
}

/// A text as Windows PowerShell writes it, in one byte order.
fn utf16(text: &str, bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
    let text = format!("\u{feff}{text}");
    text.encode_utf16().flat_map(bytes).collect()
}

#[test]
fn utf16_with_a_byte_order_mark_is_read() {
    for bytes in [u16::to_le_bytes, u16::to_be_bytes] {
        let targets = file(
            "hosts",
            utf16("10.0.0.1\r\n# Z\u{fc}rich\r\n10.0.0.2\r\n", bytes),
        )
        .unwrap();
        assert_eq!(names(&targets), ["10.0.0.1", "10.0.0.2"]);
        let table = utf16("target;site\r\n10.0.0.1;Z\u{fc}rich\r\n", bytes);
        assert_eq!(
            texts(&file("t.csv", table).unwrap()),
            [(
                "10.0.0.1".to_owned(),
                Some("{\"site\":\"Z\u{fc}rich\"}".to_owned())
            )]
        );
    }
    // Half a character at the end, and no byte order mark at the begin.
    let half = &utf16("10.0.0.1\n10.0.0.2", u16::to_le_bytes);
    let bad = bad_lines("hosts", &half[..half.len() - 1]);
    assert!(
        bad.len() == 1 && bad[0].starts_with("2: ") && bad[0].contains("UTF-16"),
        "{bad:?}"
    );
    let bad = bad_lines("hosts", &half[2..]);
    assert!(
        bad[0].contains("UTF-16 without a byte order mark"),
        "{bad:?}"
    );
}

#[test]
fn standard_input_is_read_once() {
    for words in [["-", "10.0.0.9"], ["-f", "-"], ["--hosts=-", "10.0.0.9"]] {
        let targets = read(&arguments(words), Family::Any, "10.0.0.1\n".as_bytes()).unwrap();
        assert!(
            names(&targets).contains(&"10.0.0.1".to_owned()),
            "{words:?}"
        );
    }
    for words in [
        vec!["-", "-"],
        vec!["-", "-f", "-"],
        vec!["-", "--exclude-file", "-"],
    ] {
        let error = read(&arguments(words), Family::Any, "10.0.0.1\n".as_bytes()).unwrap_err();
        assert!(matches!(error, TargetsError::InputTwice), "{error}");
    }
}

#[test]
fn an_exclude_file_takes_out_its_targets() {
    let folder = Folder::new();
    let path = folder.write("never", "# routers\n10.0.0.1\n10.0.0.4/30\nHOST\n");
    let targets = listed(["10.0.0.0/29", "host", "--exclude-file", &path]).unwrap();
    assert_eq!(names(&targets), ["10.0.0.2", "10.0.0.3"]);
    assert_eq!(targets.excluded(), 5);
}

#[test]
fn a_csv_file_has_targets_and_labels() {
    let content = "\u{feff}site, Target ,note\r\nberlin,10.0.0.1,\"a, \"\"b\"\"\r\nc\"\r\n,host,\r\n\
                   paris,10.0.1.0/30,5\" disk\r\n\r\n,,\r\n# all\r\nrome,2001:DB8::1,";
    let targets = file("hosts.CSV", content).unwrap();
    let labels = |text: &str| Some(text.to_owned());
    assert_eq!(
        texts(&targets),
        [
            (
                "10.0.0.1".to_owned(),
                labels(r#"{"note":"a, \"b\"\r\nc","site":"berlin"}"#)
            ),
            ("host".to_owned(), None),
            (
                "10.0.1.1".to_owned(),
                labels(r#"{"note":"5\" disk","site":"paris"}"#)
            ),
            (
                "10.0.1.2".to_owned(),
                labels(r#"{"note":"5\" disk","site":"paris"}"#)
            ),
            ("2001:DB8::1".to_owned(), labels(r#"{"site":"rome"}"#)),
        ]
    );
}

#[test]
fn lines_of_a_csv_file_are_counted_through_quoted_line_breaks_and_blank_lines() {
    for end in ["\n", "\r\n"] {
        let content = [
            "# inventory",
            "target,note",
            "10.0.0,\"one",
            "",
            "two\"",
            "",
            "# x",
            "10.0.1,",
            "10.0.2,",
            "",
        ]
        .join(end);
        let bad = bad_lines("t.csv", content);
        let lines: Vec<_> = bad
            .iter()
            .map(|bad| bad.split(": ").next().unwrap())
            .collect();
        assert_eq!(lines, ["3-5", "8", "9"], "{end:?}");
    }
}

#[test]
fn bad_csv_records_are_reported_and_the_next_ones_are_read() {
    let long = "x".repeat(5000);
    let many = ",".repeat(300);
    let content = format!(
        "target,site,\n10.0.0.1\nhost,a,b,c\n,berlin,\nhost,berlin,more\n{long},a,\nhost,{long},\n\
         {many}\n\"{long}\nx\",a,\na b,c,\ngood,d,\n10.0.0,a,\n"
    );
    let mut content = content.into_bytes();
    content.extend(b"h\xfc,a,\nh,\0,\n");
    let bad = bad_lines("t.csv", content);
    let expected = [
        ("2: 10.0.0.1: ", "1 columns, and the header has 3"),
        ("3: host,a,b,c: ", "4 columns"),
        ("4: ", "no target"),
        ("5: ", "column 3, which has no name"),
        ("6: ", "longer than"),
        ("7: ", "longer than"),
        ("8: ,,,", "301 columns"),
        ("9-10: ", "longer than"),
        ("11: a b: ", "one target"),
        ("13: ", "four octets"),
        ("14: ", "UTF-8"),
        ("15: ", "NUL"),
    ];
    assert_eq!(bad.len(), expected.len(), "{bad:#?}");
    for (bad, (place, why)) in bad.iter().zip(expected) {
        assert!(bad.starts_with(place) && bad.contains(why), "{bad}");
    }
}

#[test]
fn a_file_that_ends_in_quotes_has_a_bad_row_named_by_the_line_of_the_quote() {
    let content =
        "target,note\n127.0.0.1,gw\n127.0.0.2,\"19 inch rack\n127.0.0.3,db\n127.0.0.4,web\n";
    for (content, place) in [
        (content.to_owned(), "3-5"),
        (content.trim_end().to_owned(), "3-5"),
        (content.replace('\n', "\r\n"), "3-5"),
        // The first cell in quotes is good, the next one has no end.
        ("target,a,b\nh,\"x\ny\",\"z\nlast,a,b".to_owned(), "3-4"),
        ("target,note\n127.0.0.1,\"".to_owned(), "2"),
    ] {
        let bad = bad_lines("t.csv", &content);
        assert_eq!(bad.len(), 1, "{bad:?}");
        assert!(
            bad[0].starts_with(&format!("{place}: ")),
            "{content:?}: {bad:?}"
        );
        assert!(bad[0].contains("a quote opens here"), "{bad:?}");
    }
    // As an exclude file it excludes too little, so nothing is probed.
    let folder = Folder::new();
    let never = folder.write("never.csv", content);
    let error = listed(["127.0.0.0/29", "--skip-bad", "--exclude-file", &never]).unwrap_err();
    assert!(matches!(error, TargetsError::BadExcludes(_)), "{error}");
    assert!(error.to_string().contains("never.csv:3-5: "), "{error}");
    let error = read_set(&[], &[PathBuf::from(never)], io::empty()).unwrap_err();
    assert!(matches!(error, TargetsError::BadExcludes(_)), "{error}");
}

#[test]
fn text_after_a_closing_quote_is_a_bad_row() {
    for (row, place) in [
        ("127.0.0.2,\"19\" rack", "2"),
        ("127.0.0.2,\"19\" ", "2"),
        ("\"127.0.0.2\"x,a", "2"),
        ("127.0.0.2,\"19 inch\n127.0.0.3,\"db\"", "2-3"),
        (
            "127.0.0.2,\"19 inch\n127.0.0.3,db\n127.0.0.4,24\" rack",
            "2-4",
        ),
    ] {
        let bad = bad_lines("t.csv", format!("target,note\n{row}\n"));
        assert_eq!(bad.len(), 1, "{bad:?}");
        assert!(bad[0].starts_with(&format!("{place}: ")), "{bad:?}");
        assert!(bad[0].contains("text after a closing quote"), "{bad:?}");
    }
}

#[test]
fn a_line_in_quotes_that_reads_like_a_row_is_noted() {
    let content =
        "target,note\n127.0.0.2,\"19 inch\n127.0.0.3,db\n127.0.0.4,24\"\n127.0.0.5,\"a\nb\"\n";
    let targets = file("t.csv", content).unwrap();
    assert_eq!(names(&targets), ["127.0.0.2", "127.0.0.5"]);
    assert_eq!(targets.notes().len(), 1);
    assert!(
        targets.notes()[0].contains("t.csv:2-4: "),
        "{:?}",
        targets.notes()
    );
    assert!(
        targets.notes()[0].contains("line 3 is part of it"),
        "{:?}",
        targets.notes()
    );
}

#[test]
fn a_line_in_the_quotes_of_a_header_that_reads_like_a_row_is_noted() {
    let content = "site,target,\"note\na,127.0.0.3,x\nb,127.0.0.4,\"\nc,127.0.0.5,d\n";
    let targets = file("t.csv", content).unwrap();
    assert_eq!(names(&targets), ["127.0.0.5"]);
    assert_eq!(targets.notes().len(), 1, "{:?}", targets.notes());
    assert!(
        targets.notes()[0].contains("t.csv:1-3: "),
        "{:?}",
        targets.notes()
    );
    assert!(
        targets.notes()[0].contains("line 2 is part of it"),
        "{:?}",
        targets.notes()
    );
}

#[test]
fn a_comment_of_a_csv_file_that_reads_like_a_row_is_noted() {
    let content = "ticket,target\n#17,10.0.0.1\n# see 10.0.0.2\n#10.0.0.3\n\"#18\",10.0.0.4\n";
    let targets = file("t.csv", content).unwrap();
    assert_eq!(names(&targets), ["10.0.0.4"]);
    assert_eq!(targets.notes().len(), 1, "{:?}", targets.notes());
    assert!(
        targets.notes()[0].contains("t.csv:2: a comment"),
        "{:?}",
        targets.notes()
    );
}

#[test]
fn a_file_without_a_target_is_an_error_that_says_what_its_lines_are() {
    let error = file("hosts", "# one\n\n# two\n").unwrap_err().to_string();
    assert_eq!(
        error,
        "nothing to probe (3 lines read: targets 0, duplicates 0, comments 2, blank 1, bad 0)"
    );
}

#[test]
fn a_csv_file_may_have_the_separators_of_excel() {
    for content in [
        "site;target;note\r\nZ;10.0.0.1;a,b\r\n",
        "site\ttarget\tnote\r\nZ\t10.0.0.1\ta,b\r\n",
        "sep=;\r\nsite;target;note\r\nZ;10.0.0.1;a,b\r\n",
        "\"sep=;\"\r\nsite;target;note\r\nZ;10.0.0.1;a,b\r\n",
        "sep=\t\r\nsite\ttarget\tnote\r\nZ\t10.0.0.1\ta,b\r\n",
        "SEP=|\nsite|target|note\nZ|10.0.0.1|\"a,b\"\n",
        "# all\n\nsep=,\nsite,target,note\nZ,10.0.0.1,\"a,b\"\n",
    ] {
        // The name does not matter, if the first line shows what it is.
        for name in ["t.csv", "t.txt"] {
            let targets = file(name, content).unwrap_or_else(|error| panic!("{content}: {error}"));
            assert_eq!(
                texts(&targets),
                [(
                    "10.0.0.1".to_owned(),
                    Some(r#"{"note":"a,b","site":"Z"}"#.to_owned())
                )],
                "{content}"
            );
        }
    }
}

#[test]
fn csv_is_known_by_its_header_or_by_the_option() {
    let table = "target,site\n10.0.0.1,a\n";
    let stdin = |words: &[&str], text: &str| {
        read(
            &arguments(words.iter().copied()),
            Family::Any,
            text.as_bytes(),
        )
        .map(|targets| names(&targets))
    };
    assert_eq!(stdin(&["-"], table).unwrap(), ["10.0.0.1"]);
    assert_eq!(
        stdin(&["-f", "-", "--format", "csv"], table).unwrap(),
        ["10.0.0.1"]
    );
    assert!(stdin(&["-", "--format", "list"], table).is_err());
    // A host may be named target.
    let single = "target\n10.0.0.1\n";
    assert_eq!(stdin(&["-"], single).unwrap(), ["target", "10.0.0.1"]);
    assert_eq!(
        stdin(&["-", "--format", "csv"], single).unwrap(),
        ["10.0.0.1"]
    );
    let error = stdin(&["-", "--format", "csv"], "10.0.0.1\n").unwrap_err();
    assert!(error.to_string().contains("--format list"), "{error}");
    let excludes = ["10.0.0.0/30", "--exclude-file", "-"];
    assert_eq!(stdin(&excludes, table).unwrap(), ["10.0.0.2"]);
    let folder = Folder::new();
    let list = folder.write("list.csv", "10.0.0.9\n");
    assert_eq!(
        stdin(&["-f", &list, "--format", "list"], "").unwrap(),
        ["10.0.0.9"]
    );
}

#[test]
fn a_csv_file_with_a_bad_header_is_refused_as_a_whole() {
    let long = format!("target,{}\nhost,a\n", "x".repeat(5000));
    let cases: &[(&[u8], &str)] = &[
        (b"", "begins with a header"),
        (b"\n# nothing\n\n", "begins with a header"),
        (b"10.0.0.1\n", "no column is named target"),
        (b"name,ip\na,b\n", "name, ip"),
        (b"sep=;\ntarget,site\n", "its columns are: target,site"),
        (b"sep=\ntarget,site\n", "names no separator"),
        (b"sep=;\n", "begins with a header"),
        (b"target,\"site\n10.0.0.1,a\n", "a quote opens here"),
        (
            b"target,\"site\"s\n10.0.0.1,a\n",
            "text after a closing quote",
        ),
        (b"target,site,site\n", "two columns are named site"),
        (b"target,site,TARGET\n", "two columns are named TARGET"),
        (b"target,s\xfcd\n", "header cannot be read"),
        (long.as_bytes(), "header cannot be read"),
    ];
    for (content, problem) in cases {
        let error = file("t.csv", content).unwrap_err();
        assert!(matches!(error, TargetsError::File { .. }), "{error}");
        assert!(error.to_string().contains(problem), "{error}");
    }
}

#[test]
fn labels_for_more_than_65536_addresses_on_one_line_are_refused() {
    let fits = "target,site\n10.1.0.0/16,a\n10.2.0.0-10.2.255.255,b\n";
    let targets = file("t.csv", fits).unwrap();
    assert_eq!(targets.count(), 65_534 + 65_536);
    assert_eq!(
        targets.get(65_534).unwrap().labels.as_deref(),
        Some(r#"{"site":"b"}"#)
    );
    let bad = bad_lines("t.csv", "target,site\n10.0.0.0/15,a\n");
    assert!(bad[0].contains("labels for 131070 addresses"), "{bad:?}");
    assert_eq!(
        file("t.csv", "target,site\n10.0.0.0/15,\n")
            .unwrap()
            .count(),
        131_070
    );
}

#[test]
fn labels_win_over_the_same_target_without_labels() {
    let folder = Folder::new();
    let table = folder.write(
        "t.csv",
        "target,site\n10.0.0.2,a\n10.0.0.2,b\n2001:DB8::1,c\nHOST,d\n::ffff:10.0.0.5,e\nhost,f\n",
    );
    let words = ["10.0.0.0/29", "2001:db8:0::1", "host", "-f", &table];
    let targets = listed(words).unwrap();
    let labels = |site: &str| Some(format!("{{\"site\":\"{site}\"}}"));
    let expected = [
        ("10.0.0.1", None),
        ("10.0.0.2", labels("a")),
        ("10.0.0.3", None),
        ("10.0.0.4", None),
        ("10.0.0.5", labels("e")),
        ("10.0.0.6", None),
        ("2001:db8:0::1", labels("c")),
        ("host", labels("d")),
    ];
    let expected = expected.map(|(text, labels)| (text.to_owned(), labels));
    assert_eq!(texts(&targets), expected);
    assert_eq!(targets.duplicates(), 6);

    // The other way round the labelled ones stand first, and keep their texts.
    let targets = listed(["-f", &table]).unwrap();
    assert_eq!(
        names(&targets),
        ["10.0.0.2", "2001:DB8::1", "HOST", "10.0.0.5"]
    );
}

#[test]
fn excludes_take_out_labelled_targets() {
    let folder = Folder::new();
    let table = folder.write("t.csv", "target,site\n10.0.0.2,a\nHOST,d\n10.0.0.9,x\n");
    let targets = listed([
        "-f",
        &table,
        "--exclude",
        "10.0.0.0/29",
        "--exclude",
        "host",
    ])
    .unwrap();
    assert_eq!(names(&targets), ["10.0.0.9"]);
    assert_eq!(targets.excluded(), 2);
}

#[test]
fn a_set_is_read_from_words_files_and_standard_input() {
    let folder = Folder::new();
    let csv = folder.write("stop.csv", "target,why\n10.0.1.0/24,quarantined\n");
    let words = ["10.0.0.1".to_owned(), "Host".to_owned()];
    let files = [PathBuf::from(csv), PathBuf::from("-")];
    let set = read_set(&words, &files, "10.0.2.1-10.0.2.9 # routers\n".as_bytes()).unwrap();
    for address in ["10.0.0.1", "10.0.1.0", "10.0.1.255", "10.0.2.9"] {
        assert!(set.contains_address(address.parse().unwrap()), "{address}");
    }
    assert!(set.contains(&Target::Text("hOST".to_owned())));
    assert!(!set.contains_address("10.0.2.10".parse().unwrap()));
}

#[test]
fn a_set_with_a_bad_word_is_refused_as_a_whole() {
    let folder = Folder::new();
    let file = folder.write("stop", "10.0.0.1\n10.0.0\n");
    let words = ["10.0.0.1-9".to_owned()];
    let error = read_set(&words, &[PathBuf::from(file)], io::empty()).unwrap_err();
    let TargetsError::BadExcludes(bad) = &error else {
        panic!("{error}");
    };
    assert_eq!(bad.count(), 2);
    assert_eq!(bad.reported()[0].place(), None);
    assert_eq!(bad.reported()[1].place().map(|(_, line)| line), Some(2));
}
