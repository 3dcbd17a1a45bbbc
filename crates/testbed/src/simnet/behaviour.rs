//! What the simulated network answers: data, as scenario files write it. No I/O.

use std::{ops::RangeInclusive, time::Duration};

use serde::{Deserialize, Deserializer};

use super::IpVersion;

/// How some hosts behave. A host that no behaviour names is dead.
#[derive(Debug, Clone, Default)]
pub struct Behaviour {
    /// The share of requests, from 0 to 1, that are lost on their way. They get no answer.
    pub loss: f64,
    /// The answers to a request. Empty: the host is dead.
    pub answers: Vec<Answer>,
}

/// One message, or several equal ones, in answer to a request.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Answer {
    /// Which requests to a host get this answer, counted from 1. Empty: all of them.
    pub to: Vec<u32>,
    /// What is sent.
    pub send: Send,
    /// How long after the request's arrival.
    #[serde(deserialize_with = "duration")]
    pub after: Duration,
    /// How often it is repeated.
    pub again: u32,
    /// The sender: a router that reports an error, or a forger. By default the host itself.
    pub source: Option<u32>,
    /// Added to the identifier.
    pub identifier: u16,
    /// Added to the sequence number.
    pub sequence: u16,
    /// What is done to the payload.
    pub payload: Payload,
    /// The host whose request an error quotes. By default the host itself.
    pub quotes: Option<u32>,
}

impl Answer {
    /// Whether this is a genuine reply of the host to the request.
    #[must_use]
    pub fn is_true(&self) -> bool {
        self.send == Send::Reply
            && self.source.is_none()
            && self.identifier == 0
            && self.sequence == 0
            && self.payload == Payload::Whole
    }
}

/// What is sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Send {
    /// An echo reply.
    #[default]
    Reply,
    /// Destination unreachable: no route.
    NetUnreachable,
    /// Destination unreachable: nobody has the address.
    HostUnreachable,
    /// Destination unreachable: no such protocol; for IPv6, no such port.
    ProtocolUnreachable,
    /// Destination unreachable: administratively prohibited.
    Prohibited,
    /// Time exceeded in transit.
    TtlExceeded,
    /// Parameter problem.
    ParameterProblem,
    /// Source quench (deprecated by RFC 6633). IPv6 has none: nothing is sent.
    SourceQuench,
    /// Redirect for the host, to itself. In IPv6 it comes from the link-local address of the sending host (RFC 4861,
    /// section 4.5).
    Redirect,
    /// Too big for the next link: in IPv4 destination unreachable, fragmentation needed. It contains no size.
    TooBig,
}

impl Send {
    /// ICMP type and code of an error; `None` for a reply and where the family has no such message.
    #[must_use]
    pub fn error(self, family: IpVersion) -> Option<(u8, u8)> {
        let (v4, v6) = match self {
            Self::Reply => return None,
            Self::NetUnreachable => ((3, 0), Some((1, 0))),
            Self::HostUnreachable => ((3, 1), Some((1, 3))),
            Self::ProtocolUnreachable => ((3, 2), Some((1, 4))),
            Self::Prohibited => ((3, 13), Some((1, 1))),
            Self::TtlExceeded => ((11, 0), Some((3, 0))),
            Self::ParameterProblem => ((12, 0), Some((4, 0))),
            Self::SourceQuench => ((4, 0), None),
            Self::Redirect => ((5, 1), Some((137, 0))),
            Self::TooBig => ((3, 4), Some((2, 0))),
        };
        match family {
            IpVersion::V4 => Some(v4),
            IpVersion::V6 => v6,
        }
    }
}

/// What is done to the payload of a reply, or to the one that an error quotes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Payload {
    /// Nothing.
    #[default]
    Whole,
    /// The lowest bit of its first byte is flipped.
    Flipped,
    /// The lowest bit of its last byte is flipped.
    FlippedAtEnd,
    /// The last byte is missing.
    Shorter,
    /// It is empty: an old router quotes no more than the header (RFC 792).
    Empty,
    /// Only so many of its first bytes are there: some networks return no more.
    First(usize),
    /// So many zeros follow it.
    Padded(usize),
    /// All of its bytes are zero.
    Zeroed,
}

/// Messages that belong to no request, from hosts that were not probed. They begin with the first request.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Noise {
    /// How many, at most.
    pub messages: u32,
    /// How many a second.
    pub rate: u32,
    /// The kind of message: unsolicited replies, or errors that quote a request that was never sent.
    #[serde(default)]
    pub send: Send,
    /// From which host on; the senders are this and the 255 that follow.
    pub from: u32,
}

/// A network: who behaves how.
#[derive(Debug, Clone, Default)]
pub struct Script {
    /// Hosts and their behaviour. The first one that names a host counts.
    pub hosts: Vec<(RangeInclusive<u32>, Behaviour)>,
    /// Messages that belong to no request.
    pub noise: Vec<Noise>,
    /// Seed of the losses: the same seed loses the same requests of each host.
    pub seed: u64,
}

impl Script {
    /// A network in which `hosts` answer at once.
    #[must_use]
    pub fn alive(hosts: RangeInclusive<u32>) -> Self {
        Self::alive_after(hosts, Duration::ZERO)
    }

    /// The same, some time after each request.
    #[must_use]
    pub fn alive_after(hosts: RangeInclusive<u32>, after: Duration) -> Self {
        let answer = Answer {
            after,
            ..Answer::default()
        };
        let behaviour = Behaviour {
            loss: 0.0,
            answers: vec![answer],
        };
        Self {
            hosts: vec![(hosts, behaviour)],
            ..Self::default()
        }
    }

    pub(super) fn of(&self, host: u32) -> Option<&Behaviour> {
        self.hosts
            .iter()
            .find(|(hosts, _)| hosts.contains(&host))
            .map(|(_, behaviour)| behaviour)
    }
}

/// A duration with a unit, such as `250ms`.
///
/// # Errors
/// When it is none.
pub fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map_err(serde::de::Error::custom)
}
