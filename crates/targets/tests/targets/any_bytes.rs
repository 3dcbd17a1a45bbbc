//! What holds for any bytes, as a word and as a file. The fuzz targets try it with bytes of their own; the tests with the
//! fuzzer's corpus.

use std::str;

use clap::Parser;
use pingfleet_targets::{TargetArgs, TargetSpec, TargetsError, parse, read};
use pingfleet_wire::Family;

/// How many targets of a file are looked at.
const LOOKED_AT: u64 = 1000;

#[derive(Debug, Parser)]
struct CommandLine {
    #[command(flatten)]
    targets: TargetArgs,
}

/// A word is a target that has one meaning, or it is bad for a reason that can be shown on one line.
///
/// # Panics
/// When that does not hold.
pub(crate) fn check_word(bytes: &[u8]) {
    let Ok(word) = str::from_utf8(bytes) else {
        return;
    };
    let spec = match parse(word) {
        Ok(target) => target.spec(),
        Err(reason) => {
            let reason = reason.to_string();
            assert!(!reason.is_empty());
            assert!(!reason.contains(char::is_control), "{reason:?}");
            return;
        }
    };
    let meant = match spec {
        TargetSpec::Address(address) => address.to_string(),
        TargetSpec::Network(network) => network.to_string(),
        TargetSpec::Range { first, last } => format!("{first}-{last}"),
        TargetSpec::Zoned { address, zone } => format!("{address}%{zone}"),
        TargetSpec::Name(name) => name.to_owned(),
    };
    assert_eq!(parse(&meant).map(|target| target.spec()), Ok(spec));
}

/// The first byte says in which format the others are read. Each line of a file is counted once, and its targets are
/// words that are read as the same targets again.
///
/// # Panics
/// When that does not hold.
pub(crate) fn check_file(bytes: &[u8]) {
    let Some((format, content)) = bytes.split_first() else {
        return;
    };
    let mut words = vec!["test", "192.0.2.1", "-f", "-", "--skip-bad"];
    match format % 3 {
        0 => words.extend(["--format", "csv"]),
        1 => words.extend(["--format", "list"]),
        _ => {}
    }
    let arguments = CommandLine::try_parse_from(words).expect("the arguments are fixed");
    let targets = match read(&arguments.targets, Family::Any, content) {
        Ok(targets) => targets,
        Err(
            TargetsError::File { .. }
            | TargetsError::TooMany { .. }
            | TargetsError::NeedsYes { .. },
        ) => return,
        Err(error) => panic!("{error}"),
    };
    let lines = targets.lines().expect("a file was read");
    assert_eq!(lines.sum(), lines.read, "{lines}");
    assert!(
        lines.targets < targets.count() || lines.targets == 0,
        "{lines}"
    );
    assert!(lines.bad >= targets.skipped_bad(), "{lines}");
    for index in 0..targets.count().min(LOOKED_AT) {
        let planned = targets.get(index).expect("the spool is readable");
        let word = planned.target.to_string();
        let read_again = parse(&word).unwrap_or_else(|reason| panic!("{word:?}: {reason}"));
        assert!(
            !matches!(
                read_again.spec(),
                TargetSpec::Network(_) | TargetSpec::Range { .. }
            ),
            "{word}"
        );
    }
}
