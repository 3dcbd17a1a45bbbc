//! Which names, and addresses with a zone, were mentioned: a hash of each; the texts themselves are in the spool.
//!
//! Invariant: two texts are the same target only when their keys are equal. Equal hashes only make it compare the keys.
//! A text costs 8 bytes of memory here, in a table that is half to seven eighths full.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher, RandomState},
    io,
};

use crate::{
    collect::text_spool::{SpooledText, TextId, TextKind, TextSpool},
    parse::TargetSpec,
};

/// The texts that were mentioned.
#[derive(Debug, Default)]
pub(crate) struct NameSet {
    state: RandomState,
    /// Hash of a key to its text. Where another text has the same hash, the next free number is used.
    texts: HashMap<u32, TextId>,
    /// Keys of excluded texts that were mentioned.
    excluded: HashSet<String>,
}

/// What is known of a text.
#[derive(Debug)]
pub(crate) enum NameLookup {
    /// It was not mentioned before: to be spooled, and entered by [`NameSet::insert`].
    New(FreeHash),
    /// It is listed already.
    Listed(TextId, SpooledText),
}

/// The free number for a text.
#[derive(Debug)]
pub(crate) struct FreeHash(u32);

impl NameSet {
    /// Remembers an excluded text, and returns whether this was its first mention.
    pub(crate) fn insert_excluded(&mut self, key: &str) -> bool {
        self.excluded.insert(key.to_owned())
    }

    /// How many texts there are.
    pub(crate) fn len(&self) -> usize {
        self.texts.len() + self.excluded.len()
    }

    /// Looks a text up by its key.
    pub(crate) fn find(&self, key: &str, spool: &mut TextSpool) -> io::Result<NameLookup> {
        let mut hash = self.state.hash_one(key) as u32;
        while let Some(id) = self.texts.get(&hash) {
            let text = spool.read(*id)?;
            if spec(&text).and_then(TargetSpec::name_key).as_deref() == Some(key) {
                return Ok(NameLookup::Listed(*id, text));
            }
            hash = hash.wrapping_add(1);
        }
        Ok(NameLookup::New(FreeHash(hash)))
    }

    /// Enters a text at the number that [`NameSet::find`] gave for it.
    pub(crate) fn insert(&mut self, free: &FreeHash, id: TextId) {
        self.texts.insert(free.0, id);
    }
}

/// What a text of the set says.
fn spec(text: &SpooledText) -> Option<TargetSpec<'_>> {
    match text.kind {
        TextKind::Name => Some(TargetSpec::Name(&text.word)),
        TextKind::Zoned(address) => {
            let (_, zone) = text.word.split_once('%')?;
            Some(TargetSpec::Zoned { address, zone })
        }
        TextKind::LabelsOnly | TextKind::Address(_) => None,
    }
}
