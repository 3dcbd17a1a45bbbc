//! What holds for any bytes that a socket receives. Compiled for the tests, which run the fuzzer's corpus, and for the fuzz
//! targets in `fuzz`. What a message must count as is computed here a second time, from the RFCs alone.

mod cursor;
mod error_queue;
mod reply;

pub use self::{
    error_queue::{EntryKind, check_error_queue},
    reply::{ReplyKind, check_reply},
};
pub use super::network::any_bytes::{NetworkKind, check_network};

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, path::Path};

    use super::*;

    /// Checks each file of a corpus, and counts what the files were.
    fn run<K: Ord>(name: &str, check: impl Fn(&[u8]) -> K) -> BTreeMap<K, usize> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fuzz/corpus")
            .join(name);
        let mut found = BTreeMap::new();
        for file in fs::read_dir(folder).expect("the corpus is part of the tree") {
            let bytes = fs::read(file.unwrap().path()).unwrap();
            *found.entry(check(&bytes)).or_insert(0) += 1;
        }
        found
    }

    #[test]
    fn every_message_of_the_corpus_counts_as_what_it_is() {
        let found = run("reply", check_reply);
        // The controls: a kind that the corpus lacks is not checked.
        for kind in [
            ReplyKind::Answer,
            ReplyKind::Cookie,
            ReplyKind::Changed,
            ReplyKind::Quote,
            ReplyKind::Other,
        ] {
            assert!(found.contains_key(&kind), "{kind:?} of {found:?}");
        }
    }

    #[test]
    fn every_entry_of_the_corpus_is_an_error_a_stamp_or_nothing() {
        let found = run("error_queue", check_error_queue);
        for kind in [
            EntryKind::QuotesRequest,
            EntryKind::Error,
            EntryKind::Stamp,
            EntryKind::Nothing,
        ] {
            assert!(found.contains_key(&kind), "{kind:?} of {found:?}");
        }
    }

    #[test]
    fn every_report_of_the_corpus_is_read_within_its_bounds() {
        let found = run("network", check_network);
        for kind in [
            NetworkKind::Link,
            NetworkKind::Address,
            NetworkKind::Neighbour,
            NetworkKind::Error,
            NetworkKind::Route,
            NetworkKind::Refusing,
            NetworkKind::Nothing,
        ] {
            assert!(found.contains_key(&kind), "{kind:?} of {found:?}");
        }
    }
}
