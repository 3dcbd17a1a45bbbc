//! Real ICMP on this box: the threads with surge-ping, against loopback addresses. Needs ICMP sockets: as root, or with
//! `net.ipv4.ping_group_range` open. Fails and says so without.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroUsize,
    process::Command,
    sync::Arc,
    time::Duration,
};

use pingfleet_prober::{
    probe_threads::{ProbeThreads, Probed},
    prober::OpenProber,
    resolve::Resolver,
    surge::SurgePing,
};
use pingfleet_wire::{
    ChunkKey, Message, Outcome, Probing, ResultChunk, Status, Target, Token, Version, WorkChunk,
};
use uuid::Uuid;

fn chunk(probing: Probing, targets: Vec<Target>) -> Arc<WorkChunk> {
    Arc::new(WorkChunk {
        version: Version,
        database: Uuid::new_v4(),
        key: ChunkKey {
            run: Uuid::new_v4(),
            chunk: 0,
        },
        token: Token(Uuid::new_v4()),
        probing,
        targets,
    })
}

fn threads(opener: SurgePing) -> ProbeThreads {
    let opener: Arc<dyn OpenProber> = Arc::new(opener);
    let threads = NonZeroUsize::new(2).expect("two is not zero");
    ProbeThreads::start(threads, &opener, None, Resolver::from_system())
        .expect("ICMP sockets are needed")
}

/// One quick request, at any rate.
fn quick() -> Probing {
    Probing {
        retries: 0,
        timeout: Duration::from_millis(300),
        rate: None,
        ..Probing::default()
    }
}

fn loopback_block() -> Vec<Target> {
    (1..=254)
        .map(|host| Target::Address(Ipv4Addr::new(127, 0, 0, host).into()))
        .collect()
}

async fn probe(threads: &ProbeThreads, chunk: Arc<WorkChunk>) -> Vec<Outcome> {
    let expected = chunk.targets.len();
    let Probed {
        started_at_us,
        outcomes,
    } = threads
        .probe(Arc::clone(&chunk))
        .await
        .expect("the lane stays");
    assert_eq!(outcomes.len(), expected);
    // What the writer will refuse must not be produced.
    let result = ResultChunk {
        version: Version,
        database: chunk.database,
        key: chunk.key,
        token: chunk.token,
        worker: "test".to_owned(),
        redelivered: false,
        started_at_us,
        outcomes,
    };
    let read = ResultChunk::decode(&result.encode());
    read.expect("the outcomes are consistent").outcomes
}

async fn every_loopback_address_is_up(opener: SurgePing, is_raw: bool) {
    let threads = threads(opener);
    let probing = Probing {
        retries: 2,
        timeout: Duration::from_secs(2),
        ..quick()
    };
    let outcomes = probe(&threads, chunk(probing, loopback_block())).await;
    for outcome in &outcomes {
        assert_eq!(outcome.status, Status::Up, "{outcome:?}");
        assert_eq!((outcome.sent, outcome.received), (1, 1));
        assert_eq!((outcome.attempts, outcome.address), (1, None));
        assert!(outcome.rtt.is_some_and(|rtt| rtt.min_ns > 0));
    }
    assert_eq!(threads.requests_sent(), 254);
    assert_eq!(threads.targets_done(), 254);
    // A prober falls back to the other kind without an error, and would prove nothing about this one. Nobody else has
    // ICMP sockets in this network.
    for (table, is_wanted) in [("icmp", !is_raw), ("raw", is_raw)] {
        let path = format!("/proc/thread-self/net/{table}");
        let table = fs::read_to_string(&path).expect("the kernel has a table");
        let open = table.lines().skip(1).count();
        assert_eq!(open > 0, is_wanted, "{open} sockets in {path}");
    }
}

#[test]
fn every_loopback_address_is_up_on_the_preferred_socket() {
    in_a_silent_network("inner_datagram");
}

#[tokio::test]
#[ignore = "runs in the network that another test makes for it"]
async fn inner_datagram() {
    every_loopback_address_is_up(SurgePing::new(), false).await;
}

#[test]
fn every_loopback_address_is_up_on_a_raw_socket() {
    in_a_silent_network("inner_raw");
}

#[tokio::test]
#[ignore = "runs in the network that another test makes for it"]
async fn inner_raw() {
    every_loopback_address_is_up(SurgePing::raw(), true).await;
}

#[tokio::test]
async fn ipv6_loopback_is_up_also_by_text() {
    let threads = threads(SurgePing::new());
    let targets = vec![
        Target::Address(Ipv6Addr::LOCALHOST.into()),
        Target::Text("0:0:0:0:0:0:0:1".to_owned()),
        Target::Text("localhost".to_owned()),
    ];
    let outcomes = probe(&threads, chunk(quick(), targets)).await;
    let seen: Vec<_> = outcomes
        .iter()
        .map(|outcome| (outcome.status, outcome.address))
        .collect();
    assert_eq!(
        seen,
        [
            (Status::Up, None),
            (Status::Up, Some(IpAddr::V6(Ipv6Addr::LOCALHOST))),
            (Status::Up, Some(IpAddr::V4(Ipv4Addr::LOCALHOST))),
        ]
    );
}

#[tokio::test]
async fn many_chunks_at_once_are_each_complete() {
    let threads = threads(SurgePing::new());
    let targets: Vec<_> = (0..10_000_u32)
        .map(|host| Target::Address(Ipv4Addr::from(0x7f01_0000 + host).into()))
        .collect();
    let probing = Probing {
        timeout: Duration::from_secs(5),
        retries: 2,
        ..quick()
    };
    let chunks = (0..4).map(|_| probe(&threads, chunk(probing.clone(), targets.clone())));
    for outcomes in futures_util::future::join_all(chunks).await {
        assert!(outcomes.iter().all(|outcome| outcome.status == Status::Up));
    }
}

#[tokio::test]
async fn what_the_kernel_refuses_every_time_is_send_failed() {
    let threads = threads(SurgePing::new());
    let probing = Probing {
        retries: 1,
        timeout: Duration::from_millis(50),
        ..quick()
    };
    // The limited broadcast needs an option that no prober sets (EACCES).
    let targets = vec![
        Target::Address(Ipv4Addr::BROADCAST.into()),
        Target::Address(Ipv4Addr::LOCALHOST.into()),
    ];
    let outcomes = probe(&threads, chunk(probing, targets)).await;
    assert_eq!(outcomes[0].status, Status::SendFailed { errno: 13 });
    assert_eq!((outcomes[0].sent, outcomes[0].rtt), (0, None));
    assert_eq!(outcomes[1].status, Status::Up);
}

#[tokio::test]
async fn a_source_or_interface_that_is_not_ours_is_send_failed() {
    let threads = threads(SurgePing::new());
    let bad_source = Probing {
        source: Some("192.0.2.1".parse().unwrap()),
        ..quick()
    };
    let bad_interface = Probing {
        interface: Some("no-such-if".to_owned()),
        ..quick()
    };
    let targets = vec![Target::Address(Ipv4Addr::LOCALHOST.into())];
    for (probing, errno) in [(bad_source, 99), (bad_interface, 19)] {
        let outcomes = probe(&threads, chunk(probing, targets.clone())).await;
        assert_eq!(outcomes[0].status, Status::SendFailed { errno });
    }
}

#[tokio::test]
async fn a_zone_that_does_not_exist_is_send_failed() {
    let threads = threads(SurgePing::new());
    let targets = vec![Target::Text("fe80::1%no-such-if".to_owned())];
    let outcomes = probe(&threads, chunk(quick(), targets)).await;
    assert_eq!(outcomes[0].status, Status::SendFailed { errno: 19 });
}

#[tokio::test]
async fn count_and_size_are_sent_as_asked() {
    let threads = threads(SurgePing::new());
    let probing = Probing {
        count: 5,
        interval: Duration::from_millis(10),
        size: 1400,
        ttl: Some(9),
        source: Some("127.0.0.77".parse().unwrap()),
        ..quick()
    };
    let targets = vec![Target::Address(Ipv4Addr::LOCALHOST.into())];
    let outcomes = probe(&threads, chunk(probing, targets)).await;
    assert_eq!(outcomes[0].status, Status::Up);
    assert_eq!((outcomes[0].sent, outcomes[0].received), (5, 5));
}

/// Runs `inner`, an ignored test of this file, in a network namespace of its own, whose only network answers nothing:
/// without ARP, what is sent there carries a link address that is not the receiver's.
fn in_a_silent_network(inner: &str) {
    const SET_UP: &str = "ip link set lo up \
        && ip link add silent type veth peer name findings \
        && ip link set findings up \
        && ip link set silent arp off up \
        && ip addr add 192.0.2.254/24 dev silent \
        && echo '0 0' > /proc/sys/net/ipv4/ping_group_range \
        && exec \"$0\" --exact \"$1\" --ignored --nocapture";
    let output = Command::new("unshare")
        .args(["--map-root-user", "--net", "sh", "-c", SET_UP])
        .arg(std::env::current_exe().expect("a test has a binary"))
        .arg(inner)
        .output()
        .expect("`unshare` of util-linux is needed");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    // A filter that matches nothing succeeds as well.
    assert!(text.contains("1 passed"), "{text}{errors}");
}

#[test]
fn silence_is_down_and_no_route_is_send_failed() {
    in_a_silent_network("inner_silence");
}

#[tokio::test]
#[ignore = "runs in the network that another test makes for it"]
async fn inner_silence() {
    for opener in [SurgePing::new(), SurgePing::raw()] {
        let threads = threads(opener);
        let probing = Probing {
            retries: 2,
            timeout: Duration::from_millis(100),
            ..quick()
        };
        let silent = (1..=200).map(|host| Ipv4Addr::new(192, 0, 2, host));
        let no_route = Ipv4Addr::new(198, 51, 100, 1);
        let targets: Vec<_> = silent
            .chain([no_route])
            .map(|address| Target::Address(address.into()))
            .collect();
        // Far longer than 100 + 150 + 225 ms, far shorter than what surge-ping listens for.
        let bound = Duration::from_secs(30);
        let probing = probe(&threads, chunk(probing, targets));
        let mut outcomes = tokio::time::timeout(bound, probing).await.unwrap();
        let refused = outcomes.pop().unwrap();
        assert_eq!(refused.status, Status::SendFailed { errno: 101 });
        for outcome in outcomes {
            assert_eq!(outcome.status, Status::Down { no_arp: false });
            assert_eq!((outcome.sent, outcome.received), (3, 0));
        }
        assert_eq!(threads.requests_sent(), 600);
    }
}
