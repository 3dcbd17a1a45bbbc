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

use crate::spool::{Record, Slot, Spool};

/// The texts that were mentioned or excluded.
#[derive(Debug, Default)]
pub(super) struct Texts {
    state: RandomState,
    /// Hash to slot; where the place of a hash is taken by another text, the next free one is used.
    slots: HashMap<u32, Slot>,
    excluded: HashSet<String>,
    /// Excluded texts that were mentioned.
    left_out: HashSet<String>,
}

/// What a mention of a text is.
#[derive(Debug)]
pub(super) enum Known {
    /// The first one: to be spooled, and entered by [`Texts::enter`].
    New(Vacant),
    /// Not the first one; the first one's slot and record.
    Listed(Slot, Record),
}

/// A free place for a text.
#[derive(Debug)]
pub(super) struct Vacant(u32);

impl Texts {
    pub(super) fn exclude(&mut self, text: &str) {
        self.excluded.insert(identity(text).into_owned());
    }

    pub(super) fn excludes(&self, text: &str) -> bool {
        self.excluded.contains(identity(text).as_ref())
    }

    /// Remembers a text that is not probed, and says whether this was its first mention.
    pub(super) fn leave_out(&mut self, text: &str) -> bool {
        self.left_out.insert(identity(text).into_owned())
    }

    /// Looks a text up.
    pub(super) fn find(&self, text: &str, spool: &mut Spool) -> io::Result<Known> {
        let wanted = identity(text);
        let mut place = self.state.hash_one(&wanted) as u32;
        while let Some(slot) = self.slots.get(&place) {
            let record = spool.read(*slot)?;
            if identity(&record.text) == wanted {
                return Ok(Known::Listed(*slot, record));
            }
            place = place.wrapping_add(1);
        }
        Ok(Known::New(Vacant(place)))
    }

    /// Enters a text at the place that [`Texts::find`] gave for it.
    pub(super) fn enter(&mut self, place: &Vacant, slot: Slot) {
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
