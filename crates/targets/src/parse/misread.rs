//! What a bad word probably means: characters that look like others or like nothing, and the ways in which other programs
//! write several targets. No I/O.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::{
    bad_targets::shown,
    parse::{self, BadTargetReason},
};

/// Characters that cannot be seen: those of category Cf that occur in texts, and fillers.
const INVISIBLE: [(char, char, &str); 17] = [
    ('\u{ad}', '\u{ad}', "soft hyphen"),
    ('\u{34f}', '\u{34f}', "combining grapheme joiner"),
    ('\u{61c}', '\u{61c}', "Arabic letter mark"),
    ('\u{115f}', '\u{1160}', "Hangul filler"),
    ('\u{180e}', '\u{180e}', "Mongolian vowel separator"),
    ('\u{200b}', '\u{200b}', "zero width space"),
    ('\u{200c}', '\u{200c}', "zero width non-joiner"),
    ('\u{200d}', '\u{200d}', "zero width joiner"),
    ('\u{200e}', '\u{200e}', "left-to-right mark"),
    ('\u{200f}', '\u{200f}', "right-to-left mark"),
    ('\u{202a}', '\u{202e}', "a mark of writing direction"),
    ('\u{2060}', '\u{2064}', "word joiner or invisible operator"),
    ('\u{2066}', '\u{206f}', "a mark of writing direction"),
    ('\u{3164}', '\u{3164}', "Hangul filler"),
    ('\u{fe00}', '\u{fe0f}', "variation selector"),
    (
        '\u{feff}',
        '\u{feff}',
        "byte order mark, zero width no-break space",
    ),
    ('\u{e0001}', '\u{e01ef}', "tag or variation selector"),
];

/// Dashes that are no hyphens: of category Pd, and the minus sign.
const DASHES: [(char, &str); 12] = [
    ('\u{2010}', "typographic hyphen"),
    ('\u{2011}', "non-breaking hyphen"),
    ('\u{2012}', "figure dash"),
    ('\u{2013}', "en dash"),
    ('\u{2014}', "em dash"),
    ('\u{2015}', "horizontal bar"),
    ('\u{2043}', "hyphen bullet"),
    ('\u{2212}', "minus sign"),
    ('\u{2e3a}', "two-em dash"),
    ('\u{fe58}', "small em dash"),
    ('\u{fe63}', "small hyphen-minus"),
    ('\u{ff0d}', "fullwidth hyphen-minus"),
];

/// Why a bad word is bad, where that is one of the usual mistakes.
pub(super) fn reason(word: &str) -> Option<BadTargetReason> {
    if let Some(character) = word.chars().find(|c| invisible(*c).is_some()) {
        return Some(BadTargetReason::Invisible { character });
    }
    if let Some(character) = word.chars().find(|c| dash(*c).is_some()) {
        let meant: String = word
            .chars()
            .map(|c| if dash(c).is_some() { '-' } else { c })
            .collect();
        return Some(BadTargetReason::Dash {
            character,
            meant: shown(&meant),
        });
    }
    if let Some((before, after)) = word.split_once('#')
        && parse::parse(before).is_ok()
    {
        return Some(BadTargetReason::Comment {
            meant: shown(&format!("{before} #{after}")),
        });
    }
    if let Some(at) = word.find([',', ';'])
        && parse::parse(&word[..at]).is_ok()
    {
        let character = if word[at..].starts_with(',') {
            ','
        } else {
            ';'
        };
        return Some(BadTargetReason::Separator { character });
    }
    wildcard(word).map(|meant| BadTargetReason::Wildcard { meant })
}

/// The network of `10.0.0.*` or `10.0.*.*`.
fn wildcard(word: &str) -> Option<Ipv4Net> {
    let parts: Vec<_> = word.split('.').collect();
    let fixed = parts.iter().take_while(|part| **part != "*").count();
    if parts.len() != 4
        || fixed == 4
        || fixed == 0
        || parts[fixed..].iter().any(|part| *part != "*")
    {
        return None;
    }
    let mut octets = [0; 4];
    for (octet, part) in octets.iter_mut().zip(&parts[..fixed]) {
        *octet = part.parse().ok()?;
    }
    Ipv4Net::new(Ipv4Addr::from(octets), 8 * fixed as u8).ok()
}

fn invisible(c: char) -> Option<&'static str> {
    let mut ranges = INVISIBLE.iter();
    ranges
        .find(|(first, last, _)| (*first..=*last).contains(&c))
        .map(|(_, _, name)| *name)
}

fn dash(c: char) -> Option<&'static str> {
    let found = DASHES.iter().find(|(dash, _)| *dash == c);
    found.map(|(_, name)| *name)
}

/// A character that looks like another one or like nothing, by its number and its name.
pub(super) fn unicode_name(c: char) -> String {
    let name = invisible(c).or_else(|| dash(c)).unwrap_or("unnamed");
    format!("U+{:04X} ({name})", u32::from(c))
}
