//! What became of one target. No I/O.

use std::net::IpAddr;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, SeqAccess, Visitor},
    ser::SerializeTuple,
};

use crate::{
    DownReason, LocalLoss, Rtt,
    errno::errno_text,
    target::{Address, optional_address},
};

/// Why a name has no address that can be probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsFailure {
    /// The name does not exist (RFC 8020).
    Nxdomain,
    /// The name exists, without an address of the wanted family.
    NoData,
    /// The server failed, refused or answered nonsense.
    Servfail,
    /// No server answered in time, or the time for resolving the chunk's names was over before.
    Timeout,
    /// All of its addresses are ones that no host can have ([`crate::is_host_address`]), or link-local ones without a
    /// zone. Nothing was sent.
    BlockedAddress,
}

/// The final state of a target, with its facts. In order of precedence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Answered within the timeout of its request.
    Up,
    /// Answered after the timeout of its request, and before the target was settled.
    Late,
    /// An ICMP error that quotes our request (RFC 792; RFC 4443, section 3).
    Unreachable {
        /// ICMP type.
        icmp_type: u8,
        /// ICMP code.
        code: u8,
        /// Who reported it.
        reporter: IpAddr,
    },
    /// The name has no address that can be probed.
    DnsFailed(DnsFailure),
    /// The kernel refused every request.
    SendFailed {
        /// The system's error number on the worker.
        errno: i32,
    },
    /// Sent, and the answer may have been lost on this machine.
    Unknown(LocalLoss),
    /// No answer.
    Down(DownReason),
}

/// The kind of a [`Status`], without its facts. In order of precedence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum StatusKind {
    /// [`Status::Up`].
    Up,
    /// [`Status::Late`].
    Late,
    /// [`Status::Unreachable`].
    Unreachable,
    /// [`Status::DnsFailed`].
    DnsFailed,
    /// [`Status::SendFailed`].
    SendFailed,
    /// [`Status::Unknown`].
    Unknown,
    /// [`Status::Down`].
    Down,
}

impl StatusKind {
    /// All kinds, in order of precedence.
    pub const ALL: [Self; Status::NAMES.len()] = [
        Self::Up,
        Self::Late,
        Self::Unreachable,
        Self::DnsFailed,
        Self::SendFailed,
        Self::Unknown,
        Self::Down,
    ];

    /// Index in [`Self::ALL`]. Also the code on the wire and in the database.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The name, as the column `status` shows it.
    #[must_use]
    pub fn name(self) -> &'static str {
        Status::NAMES[usize::from(self.code())]
    }

    /// The kind with that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl Status {
    /// No answer, and nothing else is known.
    pub const DOWN: Self = Self::Down(DownReason::NoAnswer);

    /// All names, in order of precedence, as the column `status` shows them.
    pub const NAMES: [&'static str; 7] = [
        "up",
        "late",
        "unreachable",
        "dns_failed",
        "send_failed",
        "unknown",
        "down",
    ];

    /// The kind of this status.
    #[must_use]
    pub fn kind(&self) -> StatusKind {
        match self {
            Self::Up => StatusKind::Up,
            Self::Late => StatusKind::Late,
            Self::Unreachable { .. } => StatusKind::Unreachable,
            Self::DnsFailed(_) => StatusKind::DnsFailed,
            Self::SendFailed { .. } => StatusKind::SendFailed,
            Self::Unknown(_) => StatusKind::Unknown,
            Self::Down(_) => StatusKind::Down,
        }
    }

    /// Index of this status in [`Self::NAMES`]. Also its code on the wire.
    #[must_use]
    pub fn code(&self) -> u8 {
        self.kind().code()
    }

    /// The name, as the column `status` shows it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.kind().name()
    }

    /// The reason, as the column `reason` shows it.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        match self {
            Self::Up | Self::Late => None,
            Self::Unreachable {
                icmp_type,
                code,
                reporter,
            } => Some(format!("type {icmp_type} code {code} from {reporter}")),
            Self::DnsFailed(failure) => Some(
                match failure {
                    DnsFailure::Nxdomain => "nxdomain",
                    DnsFailure::NoData => "no_data",
                    DnsFailure::Servfail => "servfail",
                    DnsFailure::Timeout => "timeout",
                    DnsFailure::BlockedAddress => "blocked_address",
                }
                .to_owned(),
            ),
            Self::SendFailed { errno } => Some(match errno_text(*errno) {
                Some(text) => format!("errno {errno} ({text})"),
                None => format!("errno {errno}"),
            }),
            Self::Unknown(cause) => Some(cause.to_string()),
            Self::Down(reason) => reason.text(),
        }
    }
}

impl Serialize for Status {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        fn array<S: Serializer, const N: usize>(
            serializer: S,
            code: u8,
            facts: [i32; N],
            reporter: Option<IpAddr>,
        ) -> Result<S::Ok, S::Error> {
            let length = 1 + N + usize::from(reporter.is_some());
            let mut tuple = serializer.serialize_tuple(length)?;
            tuple.serialize_element(&code)?;
            for fact in facts {
                tuple.serialize_element(&fact)?;
            }
            if let Some(reporter) = reporter {
                tuple.serialize_element(&Address(reporter))?;
            }
            tuple.end()
        }

        let status = self.code();
        match *self {
            Self::Up | Self::Late => array(serializer, status, [], None),
            Self::Unreachable {
                icmp_type,
                code,
                reporter,
            } => array(
                serializer,
                status,
                [icmp_type.into(), code.into()],
                Some(reporter),
            ),
            Self::DnsFailed(failure) => array(serializer, status, [failure as i32], None),
            Self::SendFailed { errno } => array(serializer, status, [errno], None),
            Self::Unknown(cause) => array(serializer, status, [cause.0.into()], None),
            Self::Down(reason) => {
                let mut tuple = serializer.serialize_tuple(1 + reason.facts())?;
                tuple.serialize_element(&status)?;
                reason.write(&mut tuple)?;
                tuple.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Status {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct StatusVisitor;

        impl StatusVisitor {
            fn next<'de, A: SeqAccess<'de>, T: Deserialize<'de>>(
                seq: &mut A,
            ) -> Result<T, A::Error> {
                seq.next_element()?
                    .ok_or_else(|| A::Error::custom("a status without its facts"))
            }
        }

        impl<'de> Visitor<'de> for StatusVisitor {
            type Value = Status;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an array of a status code and its facts")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Status, A::Error> {
                Ok(match Self::next::<_, u8>(&mut seq)? {
                    0 => Status::Up,
                    1 => Status::Late,
                    2 => Status::Unreachable {
                        icmp_type: Self::next(&mut seq)?,
                        code: Self::next(&mut seq)?,
                        reporter: Self::next::<_, Address>(&mut seq)?.0,
                    },
                    3 => Status::DnsFailed(match Self::next::<_, u8>(&mut seq)? {
                        0 => DnsFailure::Nxdomain,
                        1 => DnsFailure::NoData,
                        2 => DnsFailure::Servfail,
                        3 => DnsFailure::Timeout,
                        4 => DnsFailure::BlockedAddress,
                        _ => return Err(A::Error::custom("no such DNS failure")),
                    }),
                    4 => Status::SendFailed {
                        errno: Self::next(&mut seq)?,
                    },
                    5 => Status::Unknown(LocalLoss(Self::next(&mut seq)?)),
                    6 => Status::Down(DownReason::read(&mut seq)?),
                    _ => return Err(A::Error::custom("no such status")),
                })
            }
        }

        deserializer.deserialize_tuple(4, StatusVisitor)
    }
}

/// What became of one target: the n-th outcome of a result belongs to the n-th target of its chunk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The final state.
    pub status: Status,
    /// The address that was probed, where the target was a text.
    #[serde(with = "optional_address")]
    pub address: Option<IpAddr>,
    /// Requests that the kernel took, in the pass that counts: the last one, or the one in which an ICMP error came that
    /// decides the status.
    pub sent: u16,
    /// Distinct requests that were answered.
    pub received: u16,
    /// Round-trip times, when anything was answered.
    pub rtt: Option<Rtt>,
    /// Passes of probing, 1 unless this machine may have lost an answer.
    pub attempts: u8,
    /// When the first request left, in microseconds after the result's `started_at_us`.
    pub probed_after_us: u64,
}

impl Outcome {
    /// Checks that the facts agree with each other and with the status. A reader refuses a result with an outcome that
    /// does not pass, and with it the whole chunk.
    ///
    /// # Errors
    /// A sentence with the contradiction.
    pub fn check(&self) -> Result<(), String> {
        let answered = matches!(self.status, Status::Up | Status::Late);
        let never_sent = matches!(
            self.status,
            Status::DnsFailed(_) | Status::SendFailed { .. }
        );
        if self.received > self.sent {
            Err("more answers than requests".to_owned())
        } else if answered != (self.received > 0) || answered != self.rtt.is_some() {
            Err("the answers contradict the status".to_owned())
        } else if never_sent != (self.sent == 0) && !matches!(self.status, Status::Unknown(_)) {
            Err("the requests contradict the status".to_owned())
        } else if self.rtt.is_some_and(|rtt| !rtt.is_plausible()) {
            Err("round-trip times contradict each other".to_owned())
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LinkAddress, MAX_LINK_ADDRESS_BYTES, MAX_OUTCOME_BYTES};

    #[test]
    fn largest_outcome_fits() {
        let outcome = Outcome {
            status: Status::Unreachable {
                icmp_type: 255,
                code: 255,
                reporter: "ff::1".parse().unwrap(),
            },
            address: Some("ff::1".parse().unwrap()),
            sent: u16::MAX,
            received: u16::MAX,
            rtt: Some(Rtt {
                min_ns: u64::MAX,
                avg_ns: u64::MAX,
                max_ns: u64::MAX,
                stddev_ns: u64::MAX,
            }),
            attempts: u8::MAX,
            probed_after_us: u64::MAX,
        };
        let longest = [
            outcome.status,
            Status::Down(DownReason::ArpAnswered(
                LinkAddress::new(&[0xff; MAX_LINK_ADDRESS_BYTES]).unwrap(),
            )),
            Status::Down(DownReason::AnsweredBy("ff::1".parse().unwrap())),
        ];
        for status in longest {
            let outcome = Outcome {
                status,
                ..outcome.clone()
            };
            let bytes = rmp_serde::to_vec(&outcome).unwrap();
            assert!(bytes.len() <= MAX_OUTCOME_BYTES, "{}", bytes.len());
        }
    }
}
