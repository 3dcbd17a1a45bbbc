//! What one probe is sent to. No I/O.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Visitor};

use crate::MAX_NAME_BYTES;

/// A target as a worker receives it.
///
/// On the wire an address is a binary of 4 or 16 bytes in network order, everything else a string.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// An address whose canonical text is the target's text.
    Address(IpAddr),
    /// A text that the worker reads: a host name, `fe80::1%eth0`, or an address in another spelling than its
    /// canonical one (which is kept because a report shows targets as they were given).
    Text(String),
}

impl Target {
    pub(crate) fn check(&self) -> Result<(), String> {
        match self {
            Self::Address(_) => Ok(()),
            Self::Text(text) => check_text(text),
        }
    }
}

fn check_text(text: &str) -> Result<(), String> {
    let plain = text.bytes().all(|byte| byte.is_ascii_graphic());
    if (1..=MAX_NAME_BYTES).contains(&text.len()) && plain {
        Ok(())
    } else {
        Err(format!(
            "a name is 1 to {MAX_NAME_BYTES} graphic ASCII characters"
        ))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Address(address) => Address(*address).serialize(serializer),
            Self::Text(text) => serializer.serialize_str(text),
        }
    }
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TargetVisitor;

        impl Visitor<'_> for TargetVisitor {
            type Value = Target;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address of 4 or 16 bytes, or a name")
            }

            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Target, E> {
                address_from(bytes).map(Target::Address)
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Target, E> {
                check_text(text).map_err(E::custom)?;
                Ok(Target::Text(text.to_owned()))
            }
        }

        deserializer.deserialize_any(TargetVisitor)
    }
}

/// An address on the wire: a binary of 4 or 16 bytes in network order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Address(pub(crate) IpAddr);

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            IpAddr::V4(address) => serializer.serialize_bytes(&address.octets()),
            IpAddr::V6(address) => serializer.serialize_bytes(&address.octets()),
        }
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AddressVisitor;

        impl Visitor<'_> for AddressVisitor {
            type Value = Address;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address of 4 or 16 bytes")
            }

            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Address, E> {
                address_from(bytes).map(Address)
            }
        }

        deserializer.deserialize_bytes(AddressVisitor)
    }
}

fn address_from<E: serde::de::Error>(bytes: &[u8]) -> Result<IpAddr, E> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        Ok(Ipv4Addr::from(octets).into())
    } else if let Ok(octets) = <[u8; 16]>::try_from(bytes) {
        Ok(Ipv6Addr::from(octets).into())
    } else {
        Err(E::custom("an address has 4 or 16 bytes"))
    }
}

/// Optional addresses as a field: `#[serde(with = "optional_address")]`.
pub(crate) mod optional_address {
    use std::net::IpAddr;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Address;

    #[expect(
        clippy::ref_option,
        reason = "serde calls it with a reference to the field"
    )]
    pub(crate) fn serialize<S: Serializer>(
        address: &Option<IpAddr>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        address.map(Address).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<IpAddr>, D::Error> {
        Ok(Option::<Address>::deserialize(deserializer)?.map(|address| address.0))
    }
}
