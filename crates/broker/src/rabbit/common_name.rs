//! The common name in a certificate, in which RabbitMQ finds the user (`ssl_cert_login_from = common_name`). Of the
//! certificate nothing else is read, and nothing is checked: it is this program's own. No I/O.
//!
//! Source: RFC 5280, section 4.1 (the fields of a certificate); X.690, section 8.1 (tag, length and value of DER).

/// The object identifier of a common name, 2.5.4.3.
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];

const OBJECT_IDENTIFIER: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;

/// The tag of the version, the first field of a certificate, which may be absent.
const VERSION: u8 = 0xa0;

/// The fields between the version and the subject: serial number, algorithm, issuer, validity.
const BEFORE_SUBJECT: usize = 4;

/// The common name of the subject; of several, all with commas between them, as RabbitMQ has them. None if there is none.
pub(super) fn common_name(certificate: &[u8]) -> Option<String> {
    let (_, certificate) = Values(certificate).of(SEQUENCE)?;
    let (_, signed) = Values(certificate).of(SEQUENCE)?;
    let mut fields = Values(signed);
    if signed.first() == Some(&VERSION) {
        fields.next()?;
    }
    let (tag, subject) = fields.nth(BEFORE_SUBJECT)?;
    if tag != SEQUENCE {
        return None;
    }
    let names: Option<Vec<&str>> = Values(subject)
        .filter(|(tag, _)| *tag == SET)
        .flat_map(|(_, set)| Values(set))
        .filter_map(|(_, attribute)| {
            let mut parts = Values(attribute);
            let is_name = parts.next()? == (OBJECT_IDENTIFIER, &COMMON_NAME[..]);
            let (_, text) = parts.next()?;
            is_name.then(|| std::str::from_utf8(text).ok())
        })
        .collect();
    names
        .map(|names| names.join(","))
        .filter(|name| !name.is_empty())
}

/// The values in these bytes, each with its tag of one byte. It ends at what is no value.
struct Values<'a>(&'a [u8]);

impl<'a> Values<'a> {
    /// The first value, if it has this tag.
    fn of(mut self, tag: u8) -> Option<(u8, &'a [u8])> {
        self.next().filter(|(found, _)| *found == tag)
    }
}

impl<'a> Iterator for Values<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let [tag, length, rest @ ..] = self.0 else {
            return None;
        };
        let (length, rest) = match length {
            short @ 0..=0x7f => (usize::from(*short), rest),
            // The length of the length: a certificate has less than 16 MiB.
            long @ 0x81..=0x83 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(long & 0x7f))?;
                let length = bytes
                    .iter()
                    .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
                (length, rest)
            }
            _ => return None,
        };
        let (value, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((*tag, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = content.len();
        let mut bytes = vec![tag];
        if length < 0x80 {
            bytes.push(length as u8);
        } else {
            bytes.extend([0x82, (length >> 8) as u8, length as u8]);
        }
        bytes.extend(content);
        bytes
    }

    /// A certificate as far as it is read, with a subject of these attributes.
    fn certificate(version: bool, attributes: &[(&[u8], &str)]) -> Vec<u8> {
        let subject: Vec<u8> = attributes
            .iter()
            .flat_map(|(id, text)| {
                let attribute = [value(OBJECT_IDENTIFIER, id), value(0x0c, text.as_bytes())];
                value(SET, &value(SEQUENCE, &attribute.concat()))
            })
            .collect();
        let mut fields = Vec::new();
        if version {
            fields.extend(value(VERSION, &value(0x02, &[2])));
        }
        fields.extend(value(0x02, &[7]));
        fields.extend(value(SEQUENCE, &[]));
        let issuer = [
            value(OBJECT_IDENTIFIER, &COMMON_NAME),
            value(0x0c, b"authority"),
        ];
        fields.extend(value(
            SEQUENCE,
            &value(SET, &value(SEQUENCE, &issuer.concat())),
        ));
        fields.extend(value(SEQUENCE, &[0; 200]));
        fields.extend(value(SEQUENCE, &subject));
        fields.extend(value(SEQUENCE, b"the key"));
        value(
            SEQUENCE,
            &[value(SEQUENCE, &fields), value(SEQUENCE, &[])].concat(),
        )
    }

    #[test]
    fn the_name_is_that_of_the_subject() {
        let country: &[u8] = &[0x55, 0x04, 0x06];
        let cn: &[u8] = &COMMON_NAME;
        for (attributes, expected) in [
            (vec![(cn, "rack-7")], Some("rack-7")),
            (vec![(country, "DE"), (cn, "rack-7")], Some("rack-7")),
            (vec![(cn, "a"), (cn, "b")], Some("a,b")),
            (vec![(country, "DE")], None),
            (vec![(cn, "")], None),
            (vec![], None),
        ] {
            for version in [true, false] {
                let found = common_name(&certificate(version, &attributes));
                assert_eq!(found.as_deref(), expected, "{attributes:?}");
            }
        }
    }

    #[test]
    fn a_damaged_certificate_never_panics() {
        let whole = certificate(true, &[(&COMMON_NAME, "rack-7")]);
        for at in 0..whole.len() {
            for byte in [0, 1, 0x30, 0x7f, 0x80, 0x81, 0x82, 0x83, 0x84, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = byte;
                common_name(&bytes);
            }
            assert_eq!(common_name(&whole[..at]), None, "cut at {at}");
        }
    }
}
