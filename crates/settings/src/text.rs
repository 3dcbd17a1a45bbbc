//! Small text files: settings and secrets, as editors and shells of Windows write them too.

use std::{
    fs::{self, File, Metadata},
    io::{self, Read as _},
    path::Path,
};

use encoding_rs::UTF_8;

/// The most bytes of a file, so that a wrong path does not fill the memory.
const MAX_BYTES: u64 = 1 << 20;

/// Reads a text file without its byte order mark. It is UTF-8, or UTF-16 with a byte order mark.
///
/// # Errors
/// What reading returns; [`io::ErrorKind::InvalidInput`] if it is no regular file, [`io::ErrorKind::InvalidData`] if it is
/// no such text or has more than 1 MiB.
pub fn read_text(path: &Path) -> io::Result<String> {
    let (bytes, _) = read_file(path)?;
    decode(&bytes)
}

/// Reads the first line of a file as [`read_text`] does, and warns if others than this user may read or change it. `what`
/// is the name of the secret in that warning.
///
/// # Errors
/// As [`read_text`].
pub fn read_secret(path: &Path, what: &str) -> io::Result<String> {
    let (bytes, metadata) = read_file(path)?;
    warn_of_exposure(path, what, &metadata);
    let text = decode(&bytes)?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// Reads a file whole, in the bounds of [`read_text`]. Its text may be of any encoding.
///
/// # Errors
/// As [`read_text`], except that any bytes are accepted.
pub fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    read_file(path).map(|(bytes, _)| bytes)
}

/// Warns if others than this user may read or change the file of a secret. `what` is its name in that warning. A file that
/// cannot be looked at is left to whoever reads it.
pub fn warn_if_exposed(path: &Path, what: &str) {
    if let Ok(metadata) = fs::metadata(path) {
        warn_of_exposure(path, what, &metadata);
    }
}

fn warn_of_exposure(path: &Path, what: &str, metadata: &Metadata) {
    if let Some((danger, remedy)) = exposure(metadata) {
        tracing::warn!(path = %path.display(), "{danger} {what}: {remedy}");
    }
}

/// Reads a regular file of bounded size, one that a link leads to, or what a shell passes in the place of one:
/// `<(command)`. Another pipe would wait for a writer, and a device may have no end.
fn read_file(path: &Path) -> io::Result<(Vec<u8>, Metadata)> {
    let is_passed = ["/dev/fd", "/proc/self/fd", "/dev/stdin", "/dev/null"]
        .iter()
        .any(|passed| path.starts_with(passed));
    // Before it is opened, because opening a pipe waits; and after, because the file may be another one by then.
    if !is_passed {
        check_file(&fs::metadata(path)?)?;
    }
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if !is_passed {
        check_file(&metadata)?;
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        let text = format!("has more than {MAX_BYTES} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok((bytes, metadata))
}

fn check_file(metadata: &Metadata) -> io::Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    let text = "is no regular file";
    Err(io::Error::new(io::ErrorKind::InvalidInput, text))
}

/// Who else may read or change the file of a secret, and what to do about it.
#[cfg(unix)]
fn exposure(metadata: &Metadata) -> Option<(&'static str, &'static str)> {
    use std::os::unix::fs::MetadataExt as _;
    let own = rustix::process::geteuid().as_raw();
    let (owner, mode) = (metadata.uid(), metadata.mode());
    // What the administrator owns reaches a service by its group.
    let others = if owner == 0 && own != 0 { 0o037 } else { 0o077 };
    if owner != own && owner != 0 {
        Some((
            "another user owns the file of",
            "make it a file of your own (chown)",
        ))
    } else if metadata.is_file() && mode & others != 0 {
        Some((
            "other users of this machine may read or change",
            "make the file readable to its owner only (chmod 600)",
        ))
    } else {
        None
    }
}

/// Windows keeps lists of users instead of such bits.
#[cfg(not(unix))]
fn exposure(_: &Metadata) -> Option<(&'static str, &'static str)> {
    None
}

fn decode(bytes: &[u8]) -> io::Result<String> {
    let (text, _, malformed) = UTF_8.decode(bytes);
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

    #[test]
    fn a_file_that_is_too_large_is_refused() {
        let text = vec![b'#'; MAX_BYTES as usize];
        // The control: one byte less.
        assert_eq!(read(&text).unwrap().len(), text.len());
        let error = read(&[&text[..], b"#"].concat()).unwrap_err();
        assert!(error.to_string().contains("more than 1048576 bytes"));
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        for path in [&pipe, folder.path(), Path::new("/dev/zero")] {
            let error = read_text(path).unwrap_err();
            assert!(error.to_string().contains("is no regular file"), "{error}");
        }
        // The controls: what a shell passes, and a link to a file.
        assert_eq!(read_text(Path::new("/dev/null")).unwrap(), "");
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, "text").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert_eq!(read_text(&link).unwrap(), "text");
    }

    #[cfg(unix)]
    #[test]
    fn a_secret_that_others_may_read_or_change_is_noticed() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        fs::write(&path, "first line\nsecond line").unwrap();
        for (mode, noticed) in [
            (0o600, false),
            (0o400, false),
            (0o620, true),
            (0o640, true),
            (0o604, true),
            (0o644, true),
        ] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let found = exposure(&fs::metadata(&path).unwrap());
            assert_eq!(found.is_some(), noticed, "{mode:o}");
        }
        assert_eq!(read_secret(&path, "the secret").unwrap(), "first line");
    }
}
