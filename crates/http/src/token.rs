//! The token of visitors. It is kept as a hash only, and compared in constant time.

use std::path::Path;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use pingfleet_settings::read_text;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::ServeError;

/// The fewest characters of a token: a random one of this length cannot be guessed over a network.
const MIN_LENGTH: usize = 16;

/// The most bytes of its file, so that a wrong path does not fill the memory.
const MAX_FILE_BYTES: u64 = 4096;

type Hash = [u8; 32];

/// A token, and the cookie that a browser has after its first visit. The cookie does not reveal the token.
pub(crate) struct Token {
    token: Hash,
    cookie: String,
}

impl Token {
    /// Reads the first line of a file.
    pub(crate) fn read(path: &Path) -> Result<Self, ServeError> {
        let wrong = |why: String| ServeError::TokenFile(format!("{}: {why}", path.display()));
        let length = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?;
        if length.len() > MAX_FILE_BYTES {
            return Err(wrong(format!("has more than {MAX_FILE_BYTES} bytes")));
        }
        let text = read_text(path).map_err(|error| wrong(error.to_string()))?;
        let token = text.lines().next().unwrap_or_default().trim();
        if token.chars().count() < MIN_LENGTH {
            return Err(wrong(format!(
                "its first line has fewer than {MIN_LENGTH} characters; `openssl rand -hex 16` makes a good token"
            )));
        }
        Ok(Self::new(token))
    }

    fn new(token: &str) -> Self {
        Self {
            token: hash(b"token", token),
            cookie: URL_SAFE_NO_PAD.encode(hash(b"cookie", token)),
        }
    }

    /// Whether this is the token.
    pub(crate) fn is(&self, given: &str) -> bool {
        hash(b"token", given).ct_eq(&self.token).into()
    }

    /// Whether this is the value of the cookie.
    pub(crate) fn is_cookie(&self, given: &str) -> bool {
        given.as_bytes().ct_eq(self.cookie.as_bytes()).into()
    }

    /// The value of the cookie: letters, digits, `-` and `_`.
    pub(crate) fn cookie(&self) -> &str {
        &self.cookie
    }
}

fn hash(purpose: &[u8], text: &str) -> Hash {
    let mut hasher = Sha256::new();
    hasher.update(purpose);
    hasher.update([0]);
    hasher.update(text);
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Token, ServeError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, text).unwrap();
        Token::read(&path)
    }

    #[test]
    fn only_the_first_line_is_the_token_and_only_the_cookie_is_the_cookie() {
        let token = read("0123456789abcdef\nanother line\n").unwrap();
        assert!(token.is("0123456789abcdef"));
        for wrong in ["", "0123456789abcde", "0123456789abcdeF", token.cookie()] {
            assert!(!token.is(wrong), "{wrong}");
        }
        assert!(token.is_cookie(token.cookie()));
        assert!(!token.is_cookie("0123456789abcdef") && !token.is_cookie(""));
    }

    #[test]
    fn a_file_without_a_token_is_refused() {
        for text in ["", "\n0123456789abcdef", "short\n", &"x".repeat(5000)] {
            assert!(read(text).is_err(), "{text:.20}");
        }
        assert!(Token::read(Path::new("/nonexistent/token")).is_err());
    }
}
