//! What holds for any bytes as a settings file, and as the value of a setting. Compiled for the tests, which run the
//! fuzzer's corpus, and for the fuzz targets in `fuzz`.

use std::str;

use crate::{Layers, keys, text::decode};

/// The name of the file in the problems.
const NAME: &str = "FILE";

/// The longest message about any file, in bytes.
const MAX_MESSAGE_BYTES: usize = 100 << 10;

/// The longest problem, in bytes: an escaped character takes ten.
const MAX_PROBLEM_BYTES: usize = 12_000;

/// What bytes are as a settings file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileKind {
    /// No text.
    NoText,
    /// A text with problems.
    Problems,
    /// A good file, with so many values.
    Good(usize),
}

/// A file is good, and then the value of each key passes its check, or its problems are lines that name the file and
/// can be shown on a terminal.
///
/// # Panics
/// When that does not hold.
#[must_use]
pub fn check_file(bytes: &[u8]) -> FileKind {
    let Ok(text) = decode(bytes) else {
        return FileKind::NoText;
    };
    let mut layers = Layers::of_text(NAME, &text);
    let mut values = 0;
    for key in keys::all() {
        let value = layers.parsed(key, |text| key.check(text).map(|()| text.to_owned()));
        if let Some(value) = value {
            assert_eq!(key.check(&value), Ok(()), "{}", key.name());
            values += usize::from(key.default().value() != Some(value.as_str()));
        }
    }
    let Err(error) = layers.finish() else {
        return FileKind::Good(values);
    };
    for problem in &error.problems {
        assert_is_shown(problem);
        assert!(problem.contains(NAME), "{problem}");
    }
    let message = error.to_string();
    assert!(message.len() <= MAX_MESSAGE_BYTES, "{}", message.len());
    assert!(!message.is_empty());
    FileKind::Problems
}

/// The first line names a key, and the rest is its value, as a flag or a variable gives it. Returns the name of the key,
/// and whether the value is good.
///
/// # Panics
/// When its problem cannot be shown.
#[must_use]
pub fn check_value(bytes: &[u8]) -> Option<(&'static str, bool)> {
    let (name, text) = str::from_utf8(bytes).ok()?.split_once('\n')?;
    let key = keys::find(name)?;
    let mut layers = Layers::default();
    layers.set(key, "--flag", text);
    let is_good = layers.parsed(key, |text| key.check(text)).is_some();
    match layers.finish() {
        Ok(()) => assert!(is_good, "{}", key.name()),
        Err(error) => {
            assert!(!is_good, "{}", key.name());
            let [problem] = error.problems.as_slice() else {
                panic!("{error}");
            };
            assert!(problem.starts_with("--flag: "), "{problem}");
            assert_is_shown(problem);
        }
    }
    Some((key.name(), is_good))
}

/// A problem is a line of bounded length without what controls a terminal.
fn assert_is_shown(problem: &str) {
    assert!(problem.len() <= MAX_PROBLEM_BYTES, "{}", problem.len());
    let is_unsafe = |c: char| c.is_control() || matches!(c, '\u{2028}'..='\u{202e}');
    assert!(!problem.contains(is_unsafe), "{problem:?}");
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, BTreeSet},
        fs,
        path::Path,
    };

    use super::*;

    /// The files of a corpus.
    fn corpus(name: &str) -> Vec<Vec<u8>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fuzz/corpus")
            .join(name);
        let files = fs::read_dir(folder).expect("the corpus is part of the tree");
        files
            .map(|file| fs::read(file.unwrap().path()).unwrap())
            .collect()
    }

    #[test]
    fn every_file_of_the_corpus_is_good_or_has_problems_that_can_be_shown() {
        let mut found = BTreeMap::new();
        for bytes in corpus("file") {
            *found.entry(check_file(&bytes)).or_insert(0) += 1;
        }
        // The controls.
        let has_values = |kind: &&FileKind| matches!(kind, FileKind::Good(1..));
        let good: i32 = found
            .iter()
            .filter(|(kind, _)| has_values(kind))
            .map(|(_, count)| count)
            .sum();
        assert!(good > 10, "{found:?}");
        for kind in [FileKind::Problems, FileKind::NoText, FileKind::Good(0)] {
            assert!(found.contains_key(&kind), "{kind:?} of {found:?}");
        }
    }

    #[test]
    fn every_value_of_the_corpus_is_good_or_has_a_problem_that_can_be_shown() {
        let found: BTreeSet<_> = corpus("value")
            .iter()
            .filter_map(|bytes| check_value(bytes))
            .collect();
        // The controls: good and bad values of many keys.
        let count = |good| found.iter().filter(|(_, is_good)| *is_good == good).count();
        assert!(count(true) > 20 && count(false) > 10, "{found:?}");
    }

    #[test]
    fn the_file_of_the_documents_is_good() {
        let file = include_bytes!("../../../deploy/pingfleet.toml");
        assert!(matches!(check_file(file), FileKind::Good(_)));
        assert_eq!(check_file(b"[probing]\ncount = 2\n"), FileKind::Good(1));
        assert_eq!(check_file(b"[probing]\ncount = 0\n"), FileKind::Problems);
        assert_eq!(check_file(b"\xff"), FileKind::NoText);
    }

    #[test]
    fn a_file_that_is_full_of_mistakes_has_a_short_message() {
        let name = |number: u32| format!("k{number}=1\n");
        let names: String = (0..100_000).map(name).collect();
        let long = "k".repeat(1_000_000);
        // Each of the three kinds of nesting is bounded by the parser.
        let deep = |depth| {
            let path = vec!["a"; depth].join(".");
            format!(
                "[{path}]\n{path} = {}1{}\n",
                "[".repeat(depth),
                "]".repeat(depth)
            )
        };
        for text in [
            names.clone(),
            format!("[probing]\n{names}"),
            format!("[probing]\n{long} = 1\n"),
            format!("[probing]\ncount = \"{long}\"\n"),
            deep(75),
            deep(300_000),
        ] {
            assert_eq!(check_file(text.as_bytes()), FileKind::Problems);
        }
    }
}
