//! Fixed messages that several tests take apart. They are those of the specification.

use std::{net::IpAddr, num::NonZeroU32, time::Duration};

use pingfleet_wire::{
    ChunkInHand, ChunkKey, DnsFailure, DownReason, Family, Heartbeat, LinkAddress, LocalLoss,
    LocalLossCounts, Message, Outcome, Probing, ResultChunk, Rtt, Status, Target, Token, Version,
    WorkChunk, WorkerCounts,
};
use uuid::Uuid;

const DATABASE: Uuid = Uuid::from_u128(0x0f0e_0d0c_0b0a_4908_8706_0504_0302_0100);
const RUN: Uuid = Uuid::from_u128(0x0198_0000_0000_7000_8000_0000_0000_0001);
const TOKEN: Token = Token(Uuid::from_u128(0xa0a1_a2a3_a4a5_a6a7_a8a9_aaab_acad_aeaf));

pub(crate) fn key() -> ChunkKey {
    ChunkKey { run: RUN, chunk: 7 }
}

pub(crate) fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn link_address() -> LinkAddress {
    LinkAddress::new(&[2, 0, 0, 0, 0, 1]).expect("six bytes")
}

pub(crate) fn work() -> WorkChunk {
    WorkChunk {
        version: Version,
        database: DATABASE,
        key: key(),
        token: TOKEN,
        probing: Probing {
            count: 3,
            interval: Duration::from_millis(200),
            timeout: Duration::from_secs(1),
            retries: 2,
            backoff_permille: 1500,
            late_window: Duration::from_secs(2),
            size: 56,
            ttl: Some(64),
            source: Some(address("192.0.2.1")),
            interface: Some("eth0".to_owned()),
            family: Family::V4,
            rate: NonZeroU32::new(1000),
        },
        targets: vec![
            Target::Address(address("192.0.2.10")),
            Target::Address(address("2001:db8::1")),
            Target::Text("gw.example.net".to_owned()),
        ],
    }
}

/// An outcome of each status, in order of precedence.
pub(crate) fn outcomes() -> Vec<Outcome> {
    let unanswered = |status| Outcome {
        status,
        address: None,
        sent: 3,
        received: 0,
        rtt: None,
        attempts: 1,
        probed_after_us: 2000,
    };
    let answered = |status, received, [min_ns, avg_ns, max_ns, stddev_ns]: [u64; 4]| Outcome {
        received,
        rtt: Some(Rtt {
            min_ns,
            avg_ns,
            max_ns,
            stddev_ns,
        }),
        ..unanswered(status)
    };
    vec![
        Outcome {
            sent: 1,
            probed_after_us: 0,
            ..answered(Status::Up, 1, [250_000, 250_000, 250_000, 0])
        },
        Outcome {
            address: Some(address("2001:db8::1")),
            ..answered(
                Status::Late,
                2,
                [1_100_000_000, 1_150_000_000, 1_200_000_000, 50_000_000],
            )
        },
        unanswered(Status::Unreachable {
            icmp_type: 3,
            code: 1,
            reporter: address("192.0.2.254"),
        }),
        Outcome {
            sent: 0,
            ..unanswered(Status::DnsFailed(DnsFailure::Nxdomain))
        },
        Outcome {
            sent: 0,
            ..unanswered(Status::SendFailed { errno: 101 })
        },
        Outcome {
            attempts: 3,
            ..unanswered(Status::Unknown(
                LocalLoss::SOCKET_DROPS.and(LocalLoss::STALLED),
            ))
        },
        unanswered(Status::Down(DownReason::NoArp)),
        unanswered(Status::Down(DownReason::ArpAnswered(link_address()))),
        unanswered(Status::Down(DownReason::AnsweredBy(address("192.0.2.254")))),
    ]
}

pub(crate) fn result() -> ResultChunk {
    ResultChunk {
        version: Version,
        database: DATABASE,
        key: key(),
        token: TOKEN,
        worker: "host-1".to_owned(),
        redelivered: false,
        started_at_us: 1_767_225_600_000_000,
        outcomes: outcomes(),
    }
}

pub(crate) fn heartbeat() -> Heartbeat {
    Heartbeat {
        version: Version,
        worker: "host-1".to_owned(),
        instance: Uuid::from_u128(0xb0b1_b2b3_b4b5_46b7_b8b9_babb_bcbd_bebf),
        pid: 4242,
        program_version: "1.2.3".to_owned(),
        group: "default".to_owned(),
        threads: 2,
        prefetch: 21,
        rate: NonZeroU32::new(5000),
        draining: false,
        counts: WorkerCounts {
            chunks_done: 12,
            targets_done: 3000,
            requests_sent: 3456,
            replies: 2900,
            local_losses: LocalLossCounts {
                socket_drops: 4,
                send_path: 0,
                stalled: 2,
                canary: 1,
                interrupted: 0,
            },
        },
        in_hand: vec![in_hand()],
    }
}

pub(crate) fn in_hand() -> ChunkInHand {
    ChunkInHand {
        key: key(),
        age_ms: 1500,
    }
}

/// The bytes of a message that no role may build.
pub(crate) fn raw(message: &impl Message) -> Vec<u8> {
    rmp_serde::to_vec(message).expect("a vector takes every byte")
}

/// A decoder as a function: why the bytes are refused, or the bytes of what they were read as.
pub(crate) type Decode = fn(&[u8]) -> Result<Vec<u8>, pingfleet_wire::DecodeError>;

/// Each kind of message: its name, its decoder and the bytes of its sample.
pub(crate) fn kinds() -> [(&'static str, Decode, Vec<u8>); 3] {
    fn decode<M: Message>(bytes: &[u8]) -> Result<Vec<u8>, pingfleet_wire::DecodeError> {
        M::decode(bytes).map(|message| message.encode())
    }
    [
        ("work", decode::<WorkChunk>, work().encode()),
        ("result", decode::<ResultChunk>, result().encode()),
        ("heartbeat", decode::<Heartbeat>, heartbeat().encode()),
    ]
}
