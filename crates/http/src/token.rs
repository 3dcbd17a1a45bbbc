//! The token of visitors. It is kept as a hash only, and compared in constant time.

use std::path::Path;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use pingfleet_settings::read_secret;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// The fewest characters of a token: a random one of this length cannot be guessed over a network.
const MIN_LENGTH: usize = 16;

/// What separates the parts of an address. A token with one of these would be cut there.
const SEPARATORS: [char; 3] = ['&', '#', '%'];

/// How to make a token that is long enough and has no special characters.
const ADVICE: &str = "`openssl rand -hex 32` makes a good token";

type Hash = [u8; 32];

/// A token, and the cookie that a browser has after its first visit. The cookie does not reveal the token.
pub(crate) struct Token {
    hash: Hash,
    cookie_name: String,
    cookie: String,
}

impl Token {
    /// Reads the first line of a file. An error names the file and what is wrong with it.
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        let wrong = |why: String| format!("{}: {why}", path.display());
        let line = read_secret(path, "the token").map_err(|error| wrong(error.to_string()))?;
        let token = line.expose().trim();
        if token.chars().count() < MIN_LENGTH {
            return Err(wrong(format!(
                "its first line has fewer than {MIN_LENGTH} characters; {ADVICE}"
            )));
        }
        if !token.chars().all(is_of_token) {
            return Err(wrong(format!(
                "its first line has a blank, `&`, `#`, `%` or a character that is not visible ASCII, which an address \
                 cannot carry as it is; {ADVICE}"
            )));
        }
        Ok(Self::new(token))
    }

    fn new(token: &str) -> Self {
        let [first, second, third, fourth, ..] = hash(b"name", token);
        let name = u32::from_be_bytes([first, second, third, fourth]);
        Self {
            hash: hash(b"token", token),
            cookie_name: format!("pingfleet_{name:08x}"),
            cookie: URL_SAFE_NO_PAD.encode(hash(b"cookie", token)),
        }
    }

    /// Whether this is the token.
    pub(crate) fn is(&self, given: &str) -> bool {
        hash(b"token", given).ct_eq(&self.hash).into()
    }

    /// Whether this is the value of the cookie.
    pub(crate) fn is_cookie(&self, given: &str) -> bool {
        given.as_bytes().ct_eq(self.cookie.as_bytes()).into()
    }

    /// The value of the cookie: letters, digits, `-` and `_`.
    pub(crate) fn cookie(&self) -> &str {
        &self.cookie
    }

    /// The name of the cookie. A browser sends a cookie to all ports of a host, and behind tunnels several masters are
    /// `localhost` at the same port, so the name comes from the token: 32 bits of another hash than the value's.
    pub(crate) fn cookie_name(&self) -> &str {
        &self.cookie_name
    }
}

fn is_of_token(character: char) -> bool {
    character.is_ascii_graphic() && !SEPARATORS.contains(&character)
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

    fn read(text: &str) -> Result<Token, String> {
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
        for text in [
            "",
            "\n0123456789abcdef",
            "short\n",
            "0123456789 abcdef",
            "0123456789abcdef&",
            "0123456789abcdef#",
            "0123456789%20abcdef",
            "0123456789abcdef\u{e4}",
            "0123456789\u{7f}abcdef",
        ] {
            let error = read(text).err().unwrap();
            assert!(error.contains("has"), "{text:.20}: {error}");
        }
        let advised = read("0123456789abcdef&").err().unwrap();
        assert!(advised.contains("openssl rand -hex 32"), "{advised}");
        assert!(Token::read(Path::new("/nonexistent/token")).is_err());
        // The control: what base64 makes, a long one, and a file of PowerShell.
        assert!(read("ab+/cdefghijklmnopqrstuvwxyz==\r\n").is_ok());
        assert!(read(&"x".repeat(4096)).is_ok());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let wide = "\u{feff}0123456789abcdef".encode_utf16();
        let bytes: Vec<u8> = wide.flat_map(u16::to_le_bytes).collect();
        std::fs::write(&path, bytes).unwrap();
        assert!(Token::read(&path).unwrap().is("0123456789abcdef"));
    }

    #[test]
    fn the_cookie_of_each_token_has_its_own_name() {
        let first = read("0123456789abcdef").unwrap();
        let second = read("0123456789abcdeg").unwrap();
        assert_ne!(first.cookie_name(), second.cookie_name());
        let digits = first.cookie_name().strip_prefix("pingfleet_").unwrap();
        let shown = u32::from_str_radix(digits, 16).unwrap().to_be_bytes();
        // The name shows no part of the value, nor of the hash that tokens are compared with.
        let value = URL_SAFE_NO_PAD.decode(first.cookie()).unwrap();
        assert!(digits.len() == 8 && !value.starts_with(&shown) && !first.hash.starts_with(&shown));
        // The control: the same token has the same name after a restart.
        let again = read("0123456789abcdef").unwrap();
        assert_eq!(first.cookie_name(), again.cookie_name());
    }

    #[test]
    fn what_is_no_regular_file_is_no_token() {
        let error = Token::read(std::env::temp_dir().as_path()).err().unwrap();
        assert!(error.contains("is no regular file"), "{error}");
    }
}
