//! Finds a secret in bytes, as it is and in the forms in which programs write one.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};

/// How a program might show a secret: each makes a text from it.
pub(super) const SAMPLES: [fn(&str) -> String; 9] = [
    str::to_owned,
    |secret| format!("{secret:?}"),
    |secret| url::form_urlencoded::byte_serialize(secret.as_bytes()).collect(),
    |secret| format!("{:?}", secret.as_bytes()),
    |secret| hexadecimal(secret.as_bytes()),
    |secret| hexadecimal(secret.as_bytes()).to_uppercase(),
    |secret| STANDARD.encode(secret),
    // The response of SASL PLAIN (RFC 4616), and that of HTTP (RFC 7617).
    |secret| STANDARD.encode(format!("\0guest\0{secret}")),
    |secret| format!("Basic {}", STANDARD.encode(format!("boss:{secret}"))),
];

/// A secret with all its forms. Its first letters and digits are enough, so special characters may be written in any way.
pub(super) struct Secret {
    begin: String,
    forms: Vec<(&'static str, Vec<u8>)>,
}

impl Secret {
    pub(super) fn new(secret: &str) -> Self {
        let is_plain = |c: &char| c.is_ascii_alphanumeric();
        let begin: String = secret.chars().take_while(is_plain).collect();
        assert!(begin.len() >= 10, "it would be found by chance");
        let bytes = begin.as_bytes();
        let numbers = format!("{bytes:?}");
        let mut forms = vec![
            ("as it is", bytes.to_vec()),
            ("as numbers", numbers.trim_matches(['[', ']']).into()),
            ("in hexadecimal", hexadecimal(bytes).into()),
            ("in hexadecimal", hexadecimal(bytes).to_uppercase().into()),
        ];
        // In base64 it depends on what stands before it: three bytes are four digits.
        for before in 0..3 {
            let digits = STANDARD.encode([&vec![0; before], bytes].concat());
            let whole = (before * 8).div_ceil(6)..(before + bytes.len()) * 8 / 6;
            forms.push(("in base64", digits[whole].into()));
        }
        Self { begin, forms }
    }

    /// The form in which the secret is in these bytes.
    pub(super) fn find(&self, bytes: &[u8]) -> Option<&'static str> {
        let is_in = |form: &[u8]| bytes.windows(form.len()).any(|window| window == form);
        let found = self.forms.iter().find(|(_, form)| is_in(form));
        found.map(|(name, _)| *name)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.begin)
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}
