//! Real ICMP with surge-ping to loopback addresses. Needs ICMP sockets, as root or by `net.ipv4.ping_group_range`, and
//! fails with the reason without.

#[path = "support/probing.rs"]
mod support;

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroUsize,
    process::Command,
    sync::Arc,
    time::Duration,
};

use pingfleet_prober::{
    probe_threads::ProbeThreads, prober::OpenProber, resolve::Resolver, surge::SurgePing,
};
use pingfleet_wire::{Probing, Status, Target};

use crate::support::{chunk, probe, quick, run_inner};

fn threads(opener: SurgePing) -> ProbeThreads {
    let opener: Arc<dyn OpenProber> = Arc::new(opener);
    let threads = NonZeroUsize::new(2).expect("two is not zero");
    ProbeThreads::start(threads, &opener, None, Resolver::from_system())
        .expect("ICMP sockets are needed")
}

fn loopback_addresses() -> Vec<Target> {
    (1..=254)
        .map(|host| Target::Address(Ipv4Addr::new(127, 0, 0, host).into()))
        .collect()
}

async fn every_loopback_address_is_up(opener: SurgePing, is_raw: bool) {
    let threads = threads(opener);
    let probing = Probing {
        retries: 2,
        timeout: Duration::from_secs(2),
        ..quick()
    };
    let outcomes = probe(&threads, chunk(probing, loopback_addresses())).await;
    for outcome in &outcomes {
        assert_eq!(outcome.status, Status::Up, "{outcome:?}");
        assert_eq!((outcome.sent, outcome.received), (1, 1));
        assert_eq!((outcome.attempts, outcome.address), (1, None));
        assert!(outcome.rtt.is_some_and(|rtt| rtt.min_ns > 0));
    }
    assert_eq!(threads.requests_sent(), 254);
    assert_eq!(threads.targets_done(), 254);
    // A prober that falls back to the other kind of socket would prove nothing. No other process has ICMP sockets in this
    // network.
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
async fn a_target_that_the_kernel_always_refuses_is_send_failed() {
    let threads = threads(SurgePing::new());
    let probing = Probing {
        retries: 1,
        timeout: Duration::from_millis(50),
        ..quick()
    };
    // The broadcast of loopback needs an option that no prober sets (EACCES).
    let targets = vec![
        Target::Address(Ipv4Addr::new(127, 255, 255, 255).into()),
        Target::Address(Ipv4Addr::LOCALHOST.into()),
    ];
    let outcomes = probe(&threads, chunk(probing, targets)).await;
    assert_eq!(outcomes[0].status, Status::SendFailed { errno: 13 });
    assert_eq!((outcomes[0].sent, outcomes[0].rtt), (0, None));
    assert_eq!(outcomes[1].status, Status::Up);
}

#[tokio::test]
async fn a_source_or_interface_of_another_machine_is_send_failed() {
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

/// Runs `inner`, an ignored test of this file, in a new network namespace. Its only link answers nothing: without ARP,
/// messages carry a link address that the receiver ignores.
fn in_a_silent_network(inner: &str) {
    const SET_UP: &str = "ip link set lo up \
        && ip link add silent type veth peer name findings \
        && ip link set findings up \
        && ip link set silent arp off up \
        && ip addr add 192.0.2.254/24 dev silent \
        && echo '0 0' > /proc/sys/net/ipv4/ping_group_range \
        && exec \"$0\" \"$@\"";
    let mut enter = Command::new("unshare");
    enter.args(["--map-root-user", "--net", "sh", "-c", SET_UP]);
    run_inner(enter, inner);
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
        // Far longer than 100 + 150 + 225 ms, far shorter than surge-ping's own timeout.
        let bound = Duration::from_secs(30);
        let probing = probe(&threads, chunk(probing, targets));
        let mut outcomes = tokio::time::timeout(bound, probing).await.unwrap();
        let refused = outcomes.pop().unwrap();
        assert_eq!(refused.status, Status::SendFailed { errno: 101 });
        for outcome in outcomes {
            assert_eq!(outcome.status, Status::DOWN);
            assert_eq!((outcome.sent, outcome.received), (3, 0));
        }
        assert_eq!(threads.requests_sent(), 600);
    }
}
