//! The corpora of the fuzz targets in `crates/targets/fuzz`.

use std::{
    fs::{self, DirEntry},
    io,
    path::Path,
};

use super::any_bytes::{check_file, check_word};

/// Checks each file of a corpus, and returns how many there are.
fn check_corpus(name: &str, check: impl Fn(&[u8])) -> usize {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(name);
    let files = fs::read_dir(&folder).expect("the corpus is part of the tree");
    let read = |file: io::Result<DirEntry>| fs::read(file?.path());
    files
        .map(|file| check(&read(file).expect("its files can be read")))
        .count()
}

#[test]
fn the_corpus_of_words_is_read() {
    assert!(check_corpus("word", check_word) > 100);
}

#[test]
fn the_corpus_of_files_is_read() {
    assert!(check_corpus("file", check_file) > 100);
}
