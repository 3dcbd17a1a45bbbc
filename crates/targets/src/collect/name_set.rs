//! Which names and zoned addresses were mentioned: a hash of each, and the texts themselves in the spool.
//!
//! Invariant: two texts are the same target only when the texts say so; equal hashes only make it look. In memory a
//! text costs 8 bytes here, in a table that is half to seven eighths full.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    hash::{BuildHasher, RandomState},
    io,
    net::Ipv6Addr,
};

use crate::collect::text_spool::{SpooledText, TextId, TextSpool};

/// The texts that were mentioned or excluded.
#[derive(Debug, Default)]
pub(crate) struct NameSet {
    state: RandomState,
    /// Hash to slot; where the place of a hash is taken by another text, the next free one is used.
    slots: HashMap<u32, TextId>,
    excluded: HashSet<String>,
    /// Excluded texts that were mentioned.
    left_out: HashSet<String>,
}

/// What a mention of a text is.
#[derive(Debug)]
pub(crate) enum NameLookup {
    /// The first one: to be spooled, and entered by [`NameSet::enter`].
    New(FreeNameKey),
    /// Not the first one; the first one's slot and record.
    ListedTarget(TextId, SpooledText),
}

/// A free place for a text.
#[derive(Debug)]
pub(crate) struct FreeNameKey(u32);

impl NameSet {
    pub(crate) fn exclude(&mut self, text: &str) {
        self.excluded.insert(identity(text).into_owned());
    }

    pub(crate) fn excludes(&self, text: &str) -> bool {
        self.excluded.contains(identity(text).as_ref())
    }

    /// Remembers a text that is not probed, and says whether this was its first mention.
    pub(crate) fn leave_out(&mut self, text: &str) -> bool {
        self.left_out.insert(identity(text).into_owned())
    }

    /// Looks a text up.
    pub(crate) fn find(&self, text: &str, spool: &mut TextSpool) -> io::Result<NameLookup> {
        let wanted = identity(text);
        let mut place = self.state.hash_one(&wanted) as u32;
        while let Some(slot) = self.slots.get(&place) {
            let record = spool.read(*slot)?;
            if identity(&record.text) == wanted {
                return Ok(NameLookup::ListedTarget(*slot, record));
            }
            place = place.wrapping_add(1);
        }
        Ok(NameLookup::New(FreeNameKey(place)))
    }

    /// Enters a text at the place that [`NameSet::find`] gave for it.
    pub(crate) fn enter(&mut self, place: &FreeNameKey, slot: TextId) {
        self.slots.insert(place.0, slot);
    }
}

/// What makes two texts one target: names do not differ by case (RFC 4343), nor addresses by their spelling.
fn identity(text: &str) -> Cow<'_, str> {
    let zoned = text
        .split_once('%')
        .and_then(|(address, zone)| Some((address.parse::<Ipv6Addr>().ok()?, zone)));
    match zoned {
        Some((address, zone)) => format!("{address}%{zone}").into(),
        None if text.bytes().any(|byte| byte.is_ascii_uppercase()) => {
            text.to_ascii_lowercase().into()
        }
        None => text.into(),
    }
}
