//! Text files as editors and shells of Windows write them.

use std::{fs, io, path::Path};

use encoding_rs::UTF_8;

/// Reads a text file without its byte order mark. It is UTF-8, or UTF-16 with a byte order mark.
///
/// # Errors
/// What reading returns; [`io::ErrorKind::InvalidData`] if it is no such text.
pub fn read_text(path: &Path) -> io::Result<String> {
    let bytes = fs::read(path)?;
    let (text, _, malformed) = UTF_8.decode(&bytes);
    if malformed {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "is neither UTF-8 nor UTF-16 with a byte order mark",
        ));
    }
    Ok(text.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read of a file.
    fn read(bytes: &[u8]) -> io::Result<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, bytes).unwrap();
        read_text(&path)
    }

    #[test]
    fn utf8_and_utf16_are_read_without_their_byte_order_marks() {
        let utf16: Vec<u16> = "\u{feff}gr\u{fc}n\r\n".encode_utf16().collect();
        let little: Vec<u8> = utf16.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        let big: Vec<u8> = utf16.iter().flat_map(|unit| unit.to_be_bytes()).collect();
        let utf8 = "\u{feff}gr\u{fc}n\r\n".as_bytes();
        for bytes in [&little, &big, utf8, &utf8[3..]] {
            assert_eq!(read(bytes).unwrap(), "gr\u{fc}n\r\n");
        }
        assert!(read(b"gr\xfcn").is_err() && read(&little[..little.len() - 1]).is_err());
    }
}
