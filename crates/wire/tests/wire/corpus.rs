//! The corpus of the fuzz target in `crates/wire/fuzz`.

use std::{collections::BTreeMap, fs, path::PathBuf};

use crate::{any_bytes::check_message, samples};

fn corpus() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "fuzz", "corpus", "message"]
        .iter()
        .collect()
}

#[test]
fn every_message_of_the_corpus_is_read_as_one_kind_or_refused() {
    let mut found = BTreeMap::new();
    for file in fs::read_dir(corpus()).expect("the corpus is part of the tree") {
        let bytes = fs::read(file.unwrap().path()).unwrap();
        *found.entry(check_message(&bytes)).or_insert(0) += 1;
    }
    // The controls: it holds messages of each kind, and bytes that are none.
    for kind in [None, Some("work"), Some("result"), Some("heartbeat")] {
        let count = found.get(&kind).copied().unwrap_or(0);
        assert!(count > 10, "{kind:?}: {count} of {found:?}");
    }
}

#[test]
fn every_message_of_the_specification_is_read_as_its_kind() {
    for (name, _, bytes) in samples::kinds() {
        assert_eq!(check_message(&bytes), Some(name));
        assert_eq!(check_message(&bytes[1..]), None, "control: a byte less");
    }
}
