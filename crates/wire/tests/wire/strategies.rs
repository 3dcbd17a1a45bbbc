//! Strategies for every message that a writer may send.

use std::{net::IpAddr, num::NonZeroU32, time::Duration};

use pingfleet_wire::{
    ChunkInHand, ChunkKey, DnsFailure, DownReason, Family, Heartbeat, LinkAddress, LocalLoss,
    LocalLossCounts, MAX_LINK_ADDRESS_BYTES, Outcome, Probing, ResultChunk, Rtt, Status, Target,
    Token, Version, WorkChunk, WorkerCounts,
};
use proptest::{collection::vec, option, prelude::*};
use uuid::Uuid;

const HOUR_US: u64 = 3_600_000_000;

fn uuid() -> impl Strategy<Value = Uuid> {
    any::<u128>().prop_map(Uuid::from_u128)
}

fn key() -> impl Strategy<Value = ChunkKey> {
    (uuid(), any::<u32>()).prop_map(|(run, chunk)| ChunkKey { run, chunk })
}

fn micros(range: std::ops::RangeInclusive<u64>) -> impl Strategy<Value = Duration> {
    range.prop_map(Duration::from_micros)
}

fn worker() -> impl Strategy<Value = String> {
    prop_oneof!["[!-~]{1,100}", "\\PC{1,100}"]
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![
        any::<IpAddr>().prop_map(Target::Address),
        "[!-~]{1,253}".prop_map(Target::Text),
    ]
}

fn probing() -> impl Strategy<Value = Probing> {
    let requests = (
        1..=1000_u16,
        micros(0..=HOUR_US),
        micros(1..=HOUR_US),
        0..=100_u16,
        1000..=10_000_u16,
        micros(0..=HOUR_US),
    );
    let route = (
        0..=65_507_u16,
        option::of(1..=u8::MAX),
        option::of(any::<IpAddr>()),
        option::of("[!-~]{1,64}"),
        prop_oneof![Just(Family::Any), Just(Family::V4), Just(Family::V6)],
        any::<u32>().prop_map(NonZeroU32::new),
    );
    (requests, route).prop_map(
        |(
            (count, interval, timeout, retries, backoff_permille, late_window),
            (size, ttl, source, interface, family, rate),
        )| {
            timely(Probing {
                count,
                interval,
                timeout,
                retries,
                backoff_permille,
                late_window,
                size,
                ttl,
                source,
                interface,
                family,
                rate,
            })
        },
    )
}

/// Shortens what takes longest until one target is settled in time, which a writer of messages sees to as well.
fn timely(mut probing: Probing) -> Probing {
    let minute = Duration::from_mins(1);
    let steps: [fn(&mut Probing, Duration); 6] = [
        |probing, _| probing.rate = None,
        |probing, minute| probing.late_window = probing.late_window.min(minute),
        |probing, minute| probing.timeout = probing.timeout.min(minute),
        |probing, minute| probing.interval = probing.interval.min(minute / 1000),
        |probing, _| probing.backoff_permille = 1000,
        |probing, _| probing.retries %= 5,
    ];
    for step in steps {
        if !probing.is_timely() {
            step(&mut probing, minute);
        }
    }
    probing
}

pub(crate) fn work() -> impl Strategy<Value = WorkChunk> {
    (uuid(), key(), uuid(), probing(), vec(target(), 1..40)).prop_map(
        |(database, key, token, probing, targets)| WorkChunk {
            version: Version,
            database,
            key,
            token: Token(token),
            probing,
            targets,
        },
    )
}

fn rtt() -> impl Strategy<Value = Rtt> {
    let figure = 0..=i64::MAX as u64;
    (figure.clone(), figure.clone(), figure.clone(), figure).prop_map(|(a, b, c, spread)| {
        let mut ordered = [a, b, c];
        ordered.sort_unstable();
        let [min_ns, avg_ns, max_ns] = ordered;
        Rtt {
            min_ns,
            avg_ns,
            max_ns,
            stddev_ns: spread.min(max_ns),
        }
    })
}

fn status() -> impl Strategy<Value = Status> {
    prop_oneof![
        Just(Status::Up),
        Just(Status::Late),
        (any::<u8>(), any::<u8>(), any::<IpAddr>()).prop_map(|(icmp_type, code, reporter)| {
            Status::Unreachable {
                icmp_type,
                code,
                reporter,
            }
        }),
        prop_oneof![
            Just(DnsFailure::Nxdomain),
            Just(DnsFailure::NoData),
            Just(DnsFailure::Servfail),
            Just(DnsFailure::Timeout),
            Just(DnsFailure::BlockedAddress),
        ]
        .prop_map(Status::DnsFailed),
        any::<i32>().prop_map(|errno| Status::SendFailed { errno }),
        any::<u16>().prop_map(|causes| Status::Unknown(LocalLoss(causes))),
        down_reason().prop_map(Status::Down),
    ]
}

fn down_reason() -> impl Strategy<Value = DownReason> {
    let link_address = vec(any::<u8>(), 1..=MAX_LINK_ADDRESS_BYTES)
        .prop_filter_map("1 to 20 bytes", |bytes| LinkAddress::new(&bytes));
    prop_oneof![
        Just(DownReason::NoAnswer),
        Just(DownReason::NoArp),
        link_address.prop_map(DownReason::ArpAnswered),
        Just(DownReason::PayloadChanged),
        any::<IpAddr>().prop_map(DownReason::AnsweredBy),
    ]
}

pub(crate) fn outcome() -> impl Strategy<Value = Outcome> {
    (
        status(),
        option::of(any::<IpAddr>()),
        1..=u16::MAX,
        any::<u16>(),
        rtt(),
        1..=u8::MAX,
        0..=HOUR_US,
    )
        .prop_map(
            |(status, address, sent, received, rtt, attempts, probed_after_us)| {
                let answered = matches!(status, Status::Up | Status::Late);
                let never_sent = matches!(status, Status::DnsFailed(_) | Status::SendFailed { .. });
                Outcome {
                    status,
                    address,
                    sent: if never_sent { 0 } else { sent },
                    received: if answered { received.clamp(1, sent) } else { 0 },
                    rtt: answered.then_some(rtt),
                    attempts,
                    probed_after_us,
                }
            },
        )
}

pub(crate) fn result() -> impl Strategy<Value = ResultChunk> {
    (
        uuid(),
        key(),
        uuid(),
        worker(),
        any::<bool>(),
        0..=4_102_444_800_000_000_u64,
        vec(outcome(), 0..40),
    )
        .prop_map(
            |(database, key, token, worker, redelivered, started_at_us, outcomes)| ResultChunk {
                version: Version,
                database,
                key,
                token: Token(token),
                worker,
                redelivered,
                started_at_us,
                outcomes,
            },
        )
}

fn counts() -> impl Strategy<Value = WorkerCounts> {
    vec(0..=i64::MAX as u64, 4 + LocalLossCounts::CAUSES).prop_map(|counts| WorkerCounts {
        chunks_done: counts[0],
        targets_done: counts[1],
        requests_sent: counts[2],
        replies: counts[3],
        local_losses: LocalLossCounts::from_causes(
            counts[4..].try_into().expect("one count for each cause"),
        ),
    })
}

fn in_hand() -> impl Strategy<Value = ChunkInHand> {
    (key(), any::<u32>()).prop_map(|(key, age_ms)| ChunkInHand { key, age_ms })
}

pub(crate) fn heartbeat() -> impl Strategy<Value = Heartbeat> {
    let texts = (
        worker(),
        prop_oneof!["[!-~]{1,50}", "\\PC{1,50}"],
        "[a-zA-Z0-9_-]{1,32}",
    );
    let state = (
        any::<u16>(),
        any::<u16>(),
        any::<u32>().prop_map(NonZeroU32::new),
        any::<bool>(),
    );
    (
        texts,
        uuid(),
        any::<u32>(),
        state,
        counts(),
        vec(in_hand(), 0..40),
    )
        .prop_map(|(texts, instance, pid, state, counts, in_hand)| {
            let (worker, program_version, group) = texts;
            let (threads, prefetch, rate, draining) = state;
            Heartbeat {
                version: Version,
                worker,
                instance,
                pid,
                program_version,
                group,
                threads,
                prefetch,
                rate,
                draining,
                counts,
                in_hand,
            }
        })
}
