//! Why a message is a dead letter, read from its headers. Headers are untrusted: this returns a short text or nothing.
//! No I/O.
//!
//! A dead letter that is published again loses what the broker noted. Then our own header has the reason.
//!
//! Source: RabbitMQ's guide to dead letter exchanges (`x-death`, `x-first-death-reason`).

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};

/// The longest reason that is passed on, in characters.
const MAX_REASON_CHARS: usize = 100;

/// The header with the reason of a dead letter that was published again.
const REASON_HEADER: &str = "x-pingfleet-dead-letter-reason";

/// The properties of a message that is a dead letter for this reason.
pub(super) fn with_dead_letter_reason(reason: Option<&str>) -> BasicProperties {
    let properties = BasicProperties::default();
    let Some(reason) = reason else {
        return properties;
    };
    let mut headers = FieldTable::default();
    headers.insert(REASON_HEADER.into(), AMQPValue::LongString(reason.into()));
    properties.with_headers(headers)
}

/// The reason of the newest dead lettering. No header has the number of deliveries before it: `x-delivery-count` counts
/// in the queue that the dead letter now comes from.
pub(super) fn dead_letter_reason(properties: &BasicProperties) -> Option<String> {
    let headers = properties.headers().as_ref()?;
    newest(headers)
        .and_then(|death| text(death, "reason"))
        .or_else(|| text(headers, "x-first-death-reason"))
        .or_else(|| text(headers, REASON_HEADER))
}

/// The first table of `x-death`, which is the newest.
fn newest(headers: &FieldTable) -> Option<&FieldTable> {
    match headers.inner().get("x-death")? {
        AMQPValue::FieldArray(deaths) => match deaths.as_slice().first()? {
            AMQPValue::FieldTable(death) => Some(death),
            _ => None,
        },
        _ => None,
    }
}

fn text(table: &FieldTable, key: &str) -> Option<String> {
    let bytes = match table.inner().get(key)? {
        AMQPValue::LongString(text) => text.as_bytes(),
        AMQPValue::ShortString(text) => text.as_str().as_bytes(),
        _ => return None,
    };
    let reason: String = String::from_utf8_lossy(bytes)
        .chars()
        .filter(|character| !character.is_control())
        .take(MAX_REASON_CHARS)
        .collect();
    (!reason.is_empty()).then_some(reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(headers: &[(&str, AMQPValue)]) -> Option<String> {
        let mut table = FieldTable::default();
        for (key, value) in headers {
            table.insert((*key).into(), value.clone());
        }
        dead_letter_reason(&BasicProperties::default().with_headers(table))
    }

    fn deaths(deaths: Vec<AMQPValue>) -> (&'static str, AMQPValue) {
        ("x-death", AMQPValue::FieldArray(deaths.into()))
    }

    fn one(reason: AMQPValue) -> AMQPValue {
        let mut table = FieldTable::default();
        table.insert("reason".into(), reason);
        AMQPValue::FieldTable(table)
    }

    fn long(text: &str) -> AMQPValue {
        AMQPValue::LongString(text.into())
    }

    #[test]
    fn the_newest_reason_counts() {
        let first = ("x-first-death-reason", long("expired"));
        let all = deaths(vec![one(long("delivery_limit")), one(long("expired"))]);
        assert_eq!(
            reason(&[all, first.clone()]).as_deref(),
            Some("delivery_limit")
        );
        assert_eq!(reason(&[first]).as_deref(), Some("expired"));
    }

    #[test]
    fn a_dead_letter_that_is_published_again_keeps_its_reason() {
        let again = with_dead_letter_reason(Some("expired"));
        assert_eq!(dead_letter_reason(&again).as_deref(), Some("expired"));
        assert_eq!(dead_letter_reason(&with_dead_letter_reason(None)), None);
        // What the broker notes counts more.
        let own = (REASON_HEADER, long("expired"));
        let death = deaths(vec![one(long("delivery_limit"))]);
        assert_eq!(reason(&[own, death]).as_deref(), Some("delivery_limit"));
    }

    #[test]
    fn headers_of_any_shape_yield_a_short_text_or_nothing() {
        for odd in [
            deaths(Vec::new()),
            deaths(vec![AMQPValue::Void]),
            deaths(vec![one(AMQPValue::Boolean(true))]),
            deaths(vec![one(long("\n\0"))]),
            ("x-death", long("delivery_limit")),
            ("other", long("x")),
        ] {
            assert_eq!(reason(&[odd]), None);
        }
        let endless = deaths(vec![one(long(&"x".repeat(10_000)))]);
        assert_eq!(
            reason(&[endless]).unwrap_or_default().len(),
            MAX_REASON_CHARS
        );
        let broken = deaths(vec![one(AMQPValue::LongString(vec![b'a', 0xff].into()))]);
        assert_eq!(reason(&[broken]).as_deref(), Some("a\u{fffd}"));
        assert_eq!(dead_letter_reason(&BasicProperties::default()), None);
    }
}
