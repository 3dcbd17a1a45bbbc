//! How `results` stores an address: IPv4 as an integer, everything else as its text. No I/O.

use std::net::{IpAddr, Ipv4Addr};

use rusqlite::types::Value;

/// The SQL that shows a stored address as text: IPv4 in dotted quads. For `concat!`.
macro_rules! address_text {
    ($column:literal) => {
        concat!(
            "CASE typeof(",
            $column,
            ") WHEN 'integer' THEN printf('%d.%d.%d.%d', (",
            $column,
            " >> 24) + 128, (",
            $column,
            " >> 16) & 255, (",
            $column,
            " >> 8) & 255, ",
            $column,
            " & 255) ELSE ",
            $column,
            " END"
        )
    };
}
pub(crate) use address_text;

/// The value of an address in the column `address`. The integers have the order of the addresses, and 2^31 is subtracted
/// because SQLite stores signed integers: each takes at most 4 bytes.
pub(crate) fn stored_address(address: IpAddr) -> Value {
    match address {
        IpAddr::V4(address) => Value::Integer(i64::from(address.to_bits()) - (1 << 31)),
        IpAddr::V6(address) => Value::Text(address.to_string()),
    }
}

/// The IPv4 address that a number in the column `address` stands for.
pub(crate) fn shown_address(number: i64) -> Option<Ipv4Addr> {
    u32::try_from(number + (1 << 31))
        .ok()
        .map(Ipv4Addr::from_bits)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rusqlite::Connection;

    use super::*;

    fn assert_shown(connection: &Connection, address: IpAddr) {
        let stored = stored_address(address);
        if let Value::Integer(number) = stored {
            assert!(i32::try_from(number).is_ok(), "{number} takes over 4 bytes");
        }
        let shown: String = connection
            .prepare_cached(concat!("SELECT ", address_text!("?1")))
            .unwrap()
            .query_row([stored], |row| row.get(0))
            .unwrap();
        assert_eq!(shown, address.to_string());
    }

    #[test]
    fn sql_shows_the_canonical_text_of_every_stored_address() {
        let connection = Connection::open_in_memory().unwrap();
        for text in [
            "0.0.0.0",
            "0.0.0.1",
            "127.255.255.255",
            "128.0.0.0",
            "255.255.255.255",
            "::",
            "::ffff:10.0.0.1",
            "fe80::1",
        ] {
            assert_shown(&connection, text.parse().unwrap());
        }
        proptest!(|(address in any::<IpAddr>())| assert_shown(&connection, address));
    }

    #[test]
    fn stored_ipv4_addresses_have_the_order_of_the_addresses() {
        let numbers = [
            "0.0.0.0",
            "10.0.0.1",
            "127.255.255.255",
            "128.0.0.0",
            "255.255.255.255",
        ]
        .map(|text| match stored_address(text.parse().unwrap()) {
            Value::Integer(number) => number,
            other => panic!("{other:?}"),
        });
        assert!(numbers.is_sorted());
        assert_eq!(
            [numbers[0], numbers[4]],
            [i64::from(i32::MIN), i64::from(i32::MAX)]
        );
    }
}
