//! Why a dead letter is one, from its headers. They come from outside: whatever they hold, this yields a short text
//! or nothing. No I/O.
//!
//! Source: RabbitMQ's guide to dead letter exchanges (`x-death`, `x-first-death-reason`).

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};

/// The longest reason that is passed on, in characters.
const MAX_REASON_CHARS: usize = 100;

/// The reason of the newest death, and how often the message was delivered before it where the headers tell.
pub(super) fn death(properties: &BasicProperties) -> Option<String> {
    let headers = properties.headers().as_ref()?;
    let reason = newest(headers)
        .and_then(|death| text(death, "reason"))
        .or_else(|| text(headers, "x-first-death-reason"))?;
    // The queue counts returns; the delivery that passed the limit is one more than it lets through.
    match number(headers, "x-delivery-count") {
        Some(count) => Some(format!("{reason}, {count} deliveries")),
        None => Some(reason),
    }
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

fn number(table: &FieldTable, key: &str) -> Option<i64> {
    match table.inner().get(key)? {
        AMQPValue::LongLongInt(number) => Some(*number),
        AMQPValue::LongInt(number) => Some(i64::from(*number)),
        AMQPValue::LongUInt(number) => Some(i64::from(*number)),
        _ => None,
    }
}
