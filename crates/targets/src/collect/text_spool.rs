//! Names and labels in a temporary file without a name, in memory as long as they are few.
//!
//! Invariant: a slot, once given out, can be read at any time; in memory it costs 8 bytes. The file is gone when the
//! process ends, however it ends.

use std::{
    io::{self, BufWriter, Read, Seek, SeekFrom, Write},
    num::NonZeroU32,
};

use tempfile::SpooledTempFile;

/// Up to this size, in bytes, everything stays in memory.
const IN_MEMORY: usize = 1 << 20;

/// Bits of an entry that hold the record's length; the others hold its place.
const LENGTH_BITS: u32 = 24;

/// Names a record; from 1, so that an optional one needs no more room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TextId(NonZeroU32);

impl TextId {
    /// The slot that was given out `count` after this one.
    pub(crate) fn plus(self, count: u32) -> Self {
        Self(self.0.saturating_add(count))
    }
}

/// What a record holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SpooledText {
    /// The target's text; empty in a record of labels alone.
    pub(crate) text: String,
    /// The labels as a JSON object.
    pub(crate) labels: Option<String>,
}

/// The records.
#[derive(Debug)]
pub(crate) struct TextSpool {
    file: BufWriter<SpooledTempFile>,
    length: u64,
    /// Place and length of each record, packed.
    entries: Vec<u64>,
}

impl TextSpool {
    pub(crate) fn new() -> Self {
        Self {
            file: BufWriter::with_capacity(64 << 10, SpooledTempFile::new(IN_MEMORY)),
            length: 0,
            entries: Vec::new(),
        }
    }

    /// Adds a record. A text has no line breaks.
    pub(crate) fn add(&mut self, text: &str, labels: Option<&str>) -> io::Result<TextId> {
        let entry = self.write(text, labels)?;
        self.entries.push(entry);
        u32::try_from(self.entries.len())
            .ok()
            .and_then(NonZeroU32::new)
            .map(TextId)
            .ok_or_else(|| io::Error::other("too many records"))
    }

    /// Writes other content for a slot.
    pub(crate) fn replace(
        &mut self,
        slot: TextId,
        text: &str,
        labels: Option<&str>,
    ) -> io::Result<()> {
        self.entries[index(slot)] = self.write(text, labels)?;
        Ok(())
    }

    /// Reads a record.
    pub(crate) fn read(&mut self, slot: TextId) -> io::Result<SpooledText> {
        let entry = self.entries[index(slot)];
        let mut record = vec![0; (entry & ((1 << LENGTH_BITS) - 1)) as usize];
        self.file.flush()?;
        let file = self.file.get_mut();
        file.seek(SeekFrom::Start(entry >> LENGTH_BITS))?;
        let read = file.read_exact(&mut record);
        file.seek(SeekFrom::Start(self.length))?;
        read?;
        let record = String::from_utf8(record).map_err(io::Error::other)?;
        Ok(match record.split_once('\n') {
            Some((text, labels)) => SpooledText {
                text: text.to_owned(),
                labels: Some(labels.to_owned()),
            },
            None => SpooledText {
                text: record,
                labels: None,
            },
        })
    }

    fn write(&mut self, text: &str, labels: Option<&str>) -> io::Result<u64> {
        self.file.write_all(text.as_bytes())?;
        let mut length = text.len() as u64;
        if let Some(labels) = labels {
            self.file.write_all(b"\n")?;
            self.file.write_all(labels.as_bytes())?;
            length += 1 + labels.len() as u64;
        }
        let place = self.length;
        self.length += length;
        if length >> LENGTH_BITS != 0 || self.length >> (u64::BITS - LENGTH_BITS) != 0 {
            return Err(io::Error::other(
                "a record is too long, or there are too many",
            ));
        }
        Ok((place << LENGTH_BITS) | length)
    }
}

fn index(slot: TextId) -> usize {
    slot.0.get() as usize - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_back_in_memory_and_on_disk() {
        let mut spool = TextSpool::new();
        let long = format!("{{\"site\":\"{}\"}}", "x".repeat(IN_MEMORY / 3));
        let mut slots = Vec::new();
        for number in 0..6_u32 {
            let labels = (number % 2 == 1).then_some(long.as_str());
            slots.push(spool.add(&format!("host{number}"), labels).unwrap());
            spool.read(slots[0]).unwrap();
        }
        spool.replace(slots[2], "other", Some("{}")).unwrap();
        for (number, slot) in slots.iter().enumerate() {
            let record = spool.read(*slot).unwrap();
            let expected = match number {
                2 => ("other".to_owned(), Some("{}")),
                _ => (format!("host{number}"), (number % 2 == 1).then_some(&*long)),
            };
            assert_eq!((record.text, record.labels.as_deref()), expected);
        }
        assert_eq!(slots[5], slots[0].plus(5));
    }
}
