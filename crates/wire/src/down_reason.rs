//! What is known of a target that is `down`. No I/O.

use std::{fmt, net::IpAddr};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, SeqAccess, Visitor},
    ser::SerializeTuple,
};

use crate::target::Address;

/// The longest link address, in bytes: that of `InfiniBand` (RFC 4391, section 9.1.1).
pub const MAX_LINK_ADDRESS_BYTES: usize = 20;

/// The address of a machine on a link, such as a MAC address; 1 to [`MAX_LINK_ADDRESS_BYTES`] bytes.
///
/// Its text is that of `ip neigh`: each byte as two hexadecimal digits, with colons in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkAddress {
    length: u8,
    /// Zero after `length` bytes.
    bytes: [u8; MAX_LINK_ADDRESS_BYTES],
}

impl LinkAddress {
    /// From its bytes in network order; `None` when there are too few or too many.
    #[must_use]
    pub fn new(address: &[u8]) -> Option<Self> {
        let mut bytes = [0; MAX_LINK_ADDRESS_BYTES];
        bytes.get_mut(..address.len())?.copy_from_slice(address);
        (!address.is_empty()).then_some(Self {
            length: address.len() as u8,
            bytes,
        })
    }

    /// Its bytes in network order.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl fmt::Display for LinkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, byte) in self.as_bytes().iter().enumerate() {
            let colon = if number == 0 { "" } else { ":" };
            write!(f, "{colon}{byte:02x}")?;
        }
        Ok(())
    }
}

impl Serialize for LinkAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.as_bytes())
    }
}

impl<'de> Deserialize<'de> for LinkAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct LinkAddressVisitor;

        impl Visitor<'_> for LinkAddressVisitor {
            type Value = LinkAddress;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a link address of 1 to {MAX_LINK_ADDRESS_BYTES} bytes")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<LinkAddress, E> {
                LinkAddress::new(bytes).ok_or_else(|| E::invalid_length(bytes.len(), &self))
            }
        }

        deserializer.deserialize_bytes(LinkAddressVisitor)
    }
}

/// What is known of a target that gave no answer that counts. In order of precedence, from the lowest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DownReason {
    /// Nothing: no answer.
    #[default]
    NoAnswer,
    /// This machine's kernel reported that nobody answered its ARP request or neighbour solicitation.
    NoArp,
    /// The target is on a link of this machine, and after our first request it answered ARP (RFC 826) or neighbour
    /// discovery (RFC 4861): it is there, and silent to ping.
    ArpAnswered(LinkAddress),
    /// The target's address sent an echo reply with our identifier and sequence number and a payload that is not ours.
    PayloadChanged,
    /// Another address sent an echo reply with the identifier, the sequence number and the cookie of our request.
    AnsweredBy(IpAddr),
}

impl DownReason {
    /// The code on the wire, which is also the precedence: a higher one replaces a lower one.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::NoAnswer => 0,
            Self::NoArp => 1,
            Self::ArpAnswered(_) => 2,
            Self::PayloadChanged => 3,
            Self::AnsweredBy(_) => 4,
        }
    }

    /// How many facts `down` has: the code, and what belongs to it.
    pub(crate) fn facts(&self) -> usize {
        match self {
            Self::NoAnswer | Self::NoArp | Self::PayloadChanged => 1,
            Self::ArpAnswered(_) | Self::AnsweredBy(_) => 2,
        }
    }

    /// Writes the facts of `down`, from the code on.
    pub(crate) fn write<T: SerializeTuple>(&self, tuple: &mut T) -> Result<(), T::Error> {
        tuple.serialize_element(&self.code())?;
        match self {
            Self::NoAnswer | Self::NoArp | Self::PayloadChanged => Ok(()),
            Self::ArpAnswered(address) => tuple.serialize_element(address),
            Self::AnsweredBy(address) => tuple.serialize_element(&Address(*address)),
        }
    }

    /// Reads the facts of `down`, from the code on.
    pub(crate) fn read<'de, A: SeqAccess<'de>>(seq: &mut A) -> Result<Self, A::Error> {
        let missing = || A::Error::custom("a reason of down without its facts");
        let code: u8 = seq.next_element()?.ok_or_else(missing)?;
        Ok(match code {
            0 => Self::NoAnswer,
            1 => Self::NoArp,
            2 => Self::ArpAnswered(seq.next_element()?.ok_or_else(missing)?),
            3 => Self::PayloadChanged,
            4 => {
                let address: Option<Address> = seq.next_element()?;
                Self::AnsweredBy(address.ok_or_else(missing)?.0)
            }
            _ => return Err(A::Error::custom("no such reason of down")),
        })
    }

    /// The reason, as the column `reason` shows it.
    pub(crate) fn text(&self) -> Option<String> {
        match self {
            Self::NoAnswer => None,
            Self::NoArp => Some("no_arp".to_owned()),
            Self::ArpAnswered(link_address) => Some(format!("arp_answered {link_address}")),
            Self::PayloadChanged => Some("payload_changed".to_owned()),
            Self::AnsweredBy(address) => Some(format!("answered_by {address}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_address_is_shown_as_ip_neigh_shows_it() {
        let mac = LinkAddress::new(&[2, 0, 0, 0, 0, 0xab]).unwrap();
        assert_eq!(mac.to_string(), "02:00:00:00:00:ab");
        let reason = DownReason::ArpAnswered(mac).text();
        assert_eq!(reason.as_deref(), Some("arp_answered 02:00:00:00:00:ab"));
    }

    #[test]
    fn a_link_address_has_1_to_20_bytes() {
        assert_eq!(LinkAddress::new(&[]), None);
        assert_eq!(LinkAddress::new(&[1; 21]), None);
        for length in 1..=20 {
            let address = vec![7; length];
            assert_eq!(LinkAddress::new(&address).unwrap().as_bytes(), address);
        }
    }
}
