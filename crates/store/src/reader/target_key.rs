//! The key of a target in `latest_rows` and `status_changes`: a name, or an address as `results` stores it. No I/O.

use std::net::IpAddr;

use ipnet::IpNet;
use rusqlite::{
    ToSql,
    types::{FromSql, FromSqlError, FromSqlResult, ToSqlOutput, ValueRef},
};
use serde::{Deserialize, Serialize};

use crate::address::shown_address;

/// A key. The order is that of SQLite: IPv4 addresses by their number, and then all others by their bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum TargetKey {
    /// An IPv4 address, its number - 2^31.
    Ipv4(i64),
    /// An IPv6 address or a name.
    Text(String),
}

/// Keys behind one, up to another.
#[derive(Debug)]
pub(super) struct TargetRange {
    pub(super) after: TargetKey,
    /// None: up to the end.
    pub(super) last: Option<TargetKey>,
}

impl TargetRange {
    /// Comes behind each key, as SQLite sorts: a blob without bytes.
    const END: ToSqlOutput<'static> = ToSqlOutput::Borrowed(ValueRef::Blob(&[]));

    /// The value of the last key.
    pub(super) fn last(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        self.last.as_ref().map_or(Ok(Self::END), ToSql::to_sql)
    }
}

impl TargetKey {
    /// It comes before each key.
    pub(crate) const FIRST: Self = Self::Ipv4(i64::MIN);

    /// The key of a target that a user names.
    pub(crate) fn of(target: &str) -> Self {
        match target.parse::<IpAddr>() {
            Ok(address) => Self::of_address(address),
            Err(_) => Self::Text(target.to_owned()),
        }
    }

    /// The key of an address.
    pub(crate) fn of_address(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::Ipv4(i64::from(address.to_bits()) - (1 << 31)),
            IpAddr::V6(address) => Self::Text(address.to_string()),
        }
    }

    /// The address, if it is no name.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Ipv4(number) => shown_address(*number).map(IpAddr::V4),
            Self::Text(text) => text.parse().ok(),
        }
    }

    /// The /24 or /64 of the address.
    pub(crate) fn subnet(&self) -> Option<IpNet> {
        let address = self.address()?;
        let prefix = if address.is_ipv4() { 24 } else { 64 };
        Some(IpNet::new(address, prefix).ok()?.trunc())
    }
}

/// As the view `report` shows it.
impl From<TargetKey> for String {
    fn from(key: TargetKey) -> Self {
        match key {
            TargetKey::Ipv4(number) => {
                shown_address(number).map_or_else(Self::new, |address| address.to_string())
            }
            TargetKey::Text(text) => text,
        }
    }
}

impl FromSql for TargetKey {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        match value {
            ValueRef::Integer(number) => Ok(Self::Ipv4(number)),
            ValueRef::Text(_) => Ok(Self::Text(value.as_str()?.to_owned())),
            _ => Err(FromSqlError::InvalidType),
        }
    }
}

impl ToSql for TargetKey {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        match self {
            Self::Ipv4(number) => number.to_sql(),
            Self::Text(text) => text.to_sql(),
        }
    }
}
