//! Words that are kept as they are written, and labels, in a temporary file without a name; in memory as long as they are
//! few.
//!
//! Invariant: an id that was given out can be read at any time, and costs 8 bytes of memory. The file is gone when the
//! process ends, however it ends.

use std::{
    io::{self, BufWriter, Read, Seek, SeekFrom, Write},
    net::Ipv6Addr,
    num::NonZeroU32,
};

use tempfile::SpooledTempFile;

/// Up to this size, in bytes, everything stays in memory.
const IN_MEMORY: usize = 1 << 20;

/// Bits of a location that hold the text's length; the other bits hold its offset in the file.
const LENGTH_BITS: u32 = 24;

/// Names a text; from 1, so that an optional id needs no more room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TextId(NonZeroU32);

impl TextId {
    /// The id that was given out `count` ids after this one.
    pub(crate) fn plus(self, count: u32) -> Self {
        Self(self.0.saturating_add(count))
    }
}

/// What a text says, so that it is not parsed again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TextKind {
    /// No word: labels of addresses that are listed elsewhere.
    LabelsOnly,
    Name,
    /// An address that is not written in its canonical form. IPv4 addresses have one form.
    Address(Ipv6Addr),
    /// An address with a zone.
    Zoned(Ipv6Addr),
}

impl TextKind {
    fn tag(self) -> u8 {
        match self {
            Self::LabelsOnly => b'l',
            Self::Name => b'n',
            Self::Address(_) => b'a',
            Self::Zoned(_) => b'z',
        }
    }
}

/// One text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SpooledText {
    pub(crate) kind: TextKind,
    /// The word as it is written.
    pub(crate) word: String,
    /// The labels as a JSON object.
    pub(crate) labels: Option<String>,
}

impl SpooledText {
    /// Decodes a tag, an address where the kind has one, the word, and a line break and the labels where there are
    /// some.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (&tag, rest) = bytes.split_first()?;
        let (kind, text) = match tag {
            b'l' => (TextKind::LabelsOnly, rest),
            b'n' => (TextKind::Name, rest),
            _ => {
                let (octets, text) = rest.split_first_chunk::<16>()?;
                let address = Ipv6Addr::from(*octets);
                match tag {
                    b'a' => (TextKind::Address(address), text),
                    b'z' => (TextKind::Zoned(address), text),
                    _ => return None,
                }
            }
        };
        let text = str::from_utf8(text).ok()?;
        let (word, labels) = match text.split_once('\n') {
            Some((word, labels)) => (word, Some(labels.to_owned())),
            None => (text, None),
        };
        Some(Self {
            kind,
            word: word.to_owned(),
            labels,
        })
    }
}

/// The texts.
#[derive(Debug)]
pub(crate) struct TextSpool {
    file: BufWriter<SpooledTempFile>,
    length: u64,
    /// Offset and length of each text, packed.
    locations: Vec<u64>,
}

impl TextSpool {
    pub(crate) fn new() -> Self {
        Self {
            file: BufWriter::with_capacity(64 << 10, SpooledTempFile::new(IN_MEMORY)),
            length: 0,
            locations: Vec::new(),
        }
    }

    /// How many texts there are.
    pub(crate) fn count(&self) -> usize {
        self.locations.len()
    }

    /// Adds a text. A word has no line breaks.
    pub(crate) fn add(
        &mut self,
        kind: TextKind,
        word: &str,
        labels: Option<&str>,
    ) -> io::Result<TextId> {
        let location = self.write(kind, word, labels)?;
        self.locations.push(location);
        u32::try_from(self.locations.len())
            .ok()
            .and_then(NonZeroU32::new)
            .map(TextId)
            .ok_or_else(|| io::Error::other("too many texts"))
    }

    /// Replaces the text of an id.
    pub(crate) fn replace(&mut self, id: TextId, text: &SpooledText) -> io::Result<()> {
        self.locations[index(id)] = self.write(text.kind, &text.word, text.labels.as_deref())?;
        Ok(())
    }

    /// Reads a text.
    pub(crate) fn read(&mut self, id: TextId) -> io::Result<SpooledText> {
        let location = self.locations[index(id)];
        let mut bytes = vec![0; (location & ((1 << LENGTH_BITS) - 1)) as usize];
        self.file.flush()?;
        let file = self.file.get_mut();
        file.seek(SeekFrom::Start(location >> LENGTH_BITS))?;
        let read = file.read_exact(&mut bytes);
        file.seek(SeekFrom::Start(self.length))?;
        read?;
        SpooledText::decode(&bytes)
            .ok_or_else(|| io::Error::other("the temporary file is not as it was written"))
    }

    fn write(&mut self, kind: TextKind, word: &str, labels: Option<&str>) -> io::Result<u64> {
        let mut length = 0;
        let mut write = |bytes: &[u8]| {
            length += bytes.len() as u64;
            self.file.write_all(bytes)
        };
        write(&[kind.tag()])?;
        if let TextKind::Address(address) | TextKind::Zoned(address) = kind {
            write(&address.octets())?;
        }
        write(word.as_bytes())?;
        if let Some(labels) = labels {
            write(b"\n")?;
            write(labels.as_bytes())?;
        }
        let offset = self.length;
        self.length += length;
        if length >> LENGTH_BITS != 0 || self.length >> (u64::BITS - LENGTH_BITS) != 0 {
            return Err(io::Error::other(
                "a text is too long, or there are too many",
            ));
        }
        Ok((offset << LENGTH_BITS) | length)
    }
}

fn index(id: TextId) -> usize {
    id.0.get() as usize - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_back_from_memory_and_from_disk() {
        let mut spool = TextSpool::new();
        let long = format!("{{\"site\":\"{}\"}}", "x".repeat(IN_MEMORY / 3));
        let address = Ipv6Addr::from_bits(0xfe80 << 112 | 0x0a0a);
        let kinds = [
            TextKind::Name,
            TextKind::LabelsOnly,
            TextKind::Address(address),
            TextKind::Zoned(address),
            TextKind::Name,
            TextKind::Address(Ipv6Addr::UNSPECIFIED),
        ];
        let mut expected: Vec<_> = kinds
            .into_iter()
            .enumerate()
            .map(|(number, kind)| SpooledText {
                kind,
                word: format!("word{number}"),
                labels: (number % 2 == 1).then(|| long.clone()),
            })
            .collect();
        let mut ids = Vec::new();
        for text in &expected {
            let labels = text.labels.as_deref();
            ids.push(spool.add(text.kind, &text.word, labels).unwrap());
            assert_eq!(spool.read(ids[0]).unwrap(), expected[0]);
        }
        expected[2].labels = Some("{}".to_owned());
        spool.replace(ids[2], &expected[2]).unwrap();
        for (id, text) in ids.iter().zip(&expected) {
            assert_eq!(spool.read(*id).unwrap(), *text);
        }
        assert_eq!(ids[5], ids[0].plus(5));
    }

    #[test]
    fn bytes_that_are_no_text_are_refused() {
        for bytes in [
            b"".as_slice(),
            b"x",
            b"a::1",
            b"n\xff",
            b"q0123456789abcdefhost",
        ] {
            assert_eq!(SpooledText::decode(bytes), None, "{bytes:?}");
        }
    }
}
