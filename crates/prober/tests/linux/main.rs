//! Real ICMP with the Linux prober, on both kinds of sockets, in network namespaces that the tests make: a machine may
//! forbid datagram sockets even to root. The tests `local_loss` cover what this machine loses. Needs root, and fails with
//! the reason without.
#![cfg(target_os = "linux")]

mod names;
mod rig;
#[path = "../support/probing.rs"]
mod support;

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use pingfleet_testbed::{
    Namespace,
    simnet::{IpVersion, Script, SimNet},
};
use pingfleet_wire::{DownReason, Probing, Status, Target};

use crate::{
    rig::{beside_answering, both_kinds, in_a_network, on_loopback, probe, tally, v4},
    support::{chunk, quick, run_inner},
};

#[test]
fn every_loopback_address_is_up() {
    on_loopback("inner_loopback");
}

#[tokio::test]
#[ignore = "runs in the network that another test makes for it"]
async fn inner_loopback() {
    for worker in both_kinds() {
        let probing = Probing {
            retries: 2,
            timeout: Duration::from_secs(2),
            ..quick()
        };
        let outcomes = probe(&worker, chunk(probing, v4([127, 0, 0, 1], 254))).await;
        for outcome in &outcomes {
            assert_eq!(outcome.status, Status::Up, "{outcome:?}");
            assert_eq!((outcome.sent, outcome.received), (1, 1));
            assert_eq!((outcome.attempts, outcome.address), (1, None));
            assert!(outcome.rtt.is_some_and(|rtt| rtt.min_ns > 0));
        }
        assert_eq!(worker.threads.requests_sent(), 254);
    }
}

#[test]
fn ipv6_loopback_is_up() {
    on_loopback("inner_ipv6");
}

#[tokio::test]
#[ignore = "runs in the network that another test makes for it"]
async fn inner_ipv6() {
    for worker in both_kinds() {
        let targets = vec![
            Target::Address(Ipv6Addr::LOCALHOST.into()),
            Target::Text("0:0:0:0:0:0:0:1".to_owned()),
            Target::Text("localhost".to_owned()),
        ];
        let outcomes = probe(&worker, chunk(quick(), targets)).await;
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
}

#[test]
fn many_chunks_at_once_are_each_complete() {
    on_loopback("inner_many");
}

#[tokio::test]
#[ignore = "runs in the network that another test makes for it"]
async fn inner_many() {
    for worker in both_kinds() {
        let probing = Probing {
            timeout: Duration::from_secs(5),
            retries: 2,
            ..quick()
        };
        let chunks =
            (0..8).map(|_| probe(&worker, chunk(probing.clone(), v4([127, 1, 0, 0], 10_000))));
        for outcomes in futures_util::future::join_all(chunks).await {
            assert_eq!(tally(&outcomes), HashMap::from([("up", 10_000)]));
        }
    }
}

#[test]
fn every_payload_size_is_answered() {
    on_loopback("inner_sizes");
}

#[tokio::test]
#[ignore = "runs in the network that another test makes for it"]
async fn inner_sizes() {
    for worker in both_kinds() {
        for size in [0, 1, 7, 8, 9, 1400, 9000, 65_507] {
            let probing = Probing { size, ..quick() };
            for address in [
                IpAddr::from(Ipv4Addr::LOCALHOST),
                Ipv6Addr::LOCALHOST.into(),
            ] {
                let targets = vec![Target::Address(address)];
                let outcomes = probe(&worker, chunk(probing.clone(), targets)).await;
                assert_eq!(outcomes[0].status, Status::Up, "{size} to {address}");
            }
        }
    }
}

#[test]
fn a_target_that_the_kernel_always_refuses_is_send_failed() {
    on_loopback("inner_refused");
}

#[tokio::test]
#[ignore = "runs in the network that another test makes for it"]
async fn inner_refused() {
    for worker in both_kinds() {
        let probing = Probing {
            retries: 1,
            timeout: Duration::from_millis(50),
            ..quick()
        };
        // The broadcast of loopback needs an option that no prober sets (EACCES).
        let targets = vec![
            Target::Address(Ipv4Addr::LOCALHOST.into()),
            Target::Address(Ipv4Addr::new(127, 255, 255, 255).into()),
            Target::Address(Ipv4Addr::LOCALHOST.into()),
        ];
        let outcomes = probe(&worker, chunk(probing, targets)).await;
        assert_eq!(outcomes[0].status, Status::Up);
        assert_eq!(outcomes[1].status, Status::SendFailed { errno: 13 });
        assert_eq!((outcomes[1].sent, outcomes[1].rtt), (0, None));
        assert_eq!(outcomes[2].status, Status::Up);
    }
}

#[test]
fn a_source_interface_or_zone_of_another_machine_is_send_failed() {
    on_loopback("inner_not_ours");
}

#[tokio::test]
#[ignore = "runs in the network that another test makes for it"]
async fn inner_not_ours() {
    for worker in both_kinds() {
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
            let outcomes = probe(&worker, chunk(probing, targets.clone())).await;
            assert_eq!(outcomes[0].status, Status::SendFailed { errno });
        }
        let zone = vec![Target::Text("fe80::1%no-such-if".to_owned())];
        let outcomes = probe(&worker, chunk(quick(), zone)).await;
        assert_eq!(outcomes[0].status, Status::SendFailed { errno: 19 });
    }
}

/// An address of this machine that the kernel would not choose by itself.
fn unusual_source(family: IpVersion) -> IpAddr {
    match family {
        IpVersion::V4 => Ipv4Addr::new(10, 63, 0, 77).into(),
        IpVersion::V6 => Ipv6Addr::new(0xfd00, 0x63, 0, 0, 0, 0, 0, 0x77).into(),
    }
}

#[test]
fn count_source_and_ttl_are_as_asked() {
    let net = SimNet::start(Script::alive(1..=1)).expect("network namespaces need root");
    for family in IpVersion::ALL {
        let added = net.add_own_address(unusual_source(family));
        added.expect("an address can be added");
    }
    run_inner(net.command("env"), "inner_as_asked");
    let traffic = net.stop().expect("the network runs");
    // Five requests from each kind of socket.
    for family in IpVersion::ALL {
        let mut requests = traffic.requests.clone();
        requests.retain(|request| request.family == family);
        assert_eq!(requests.len(), 10);
        for request in requests {
            let source = unusual_source(family);
            assert_eq!((request.from, request.hops), (source, 9), "{request:?}");
        }
    }
}

#[tokio::test]
#[ignore = "runs in the network that another test makes for it"]
async fn inner_as_asked() {
    for worker in both_kinds() {
        for family in IpVersion::ALL {
            let probing = Probing {
                count: 5,
                interval: Duration::from_millis(10),
                ttl: Some(9),
                source: Some(unusual_source(family)),
                ..quick()
            };
            let targets = vec![Target::Address(family.address(1))];
            let outcomes = probe(&worker, chunk(probing, targets)).await;
            assert_eq!(outcomes[0].status, Status::Up);
            assert_eq!((outcomes[0].sent, outcomes[0].received), (5, 5));
        }
    }
}

#[test]
fn silence_is_down_and_no_route_is_send_failed() {
    // Without ARP, messages carry a link address that the receiver ignores.
    const SILENT: &str = "ip link add silent type veth peer name findings; ip link set findings up; \
        ip link set silent arp off up; ip addr add 192.0.2.254/24 dev silent; \
        echo '0 0' > /proc/sys/net/ipv4/ping_group_range";
    in_a_network(SILENT, "inner_silence");
}

#[tokio::test]
#[ignore = "runs in the network that another test makes for it"]
async fn inner_silence() {
    for worker in both_kinds() {
        // With this timeout a delay below 200 ms, as on a busy machine, is no stall.
        let probing = Probing {
            retries: 2,
            timeout: Duration::from_secs(1),
            backoff_permille: 1000,
            ..quick()
        };
        let mut targets = v4([192, 0, 2, 1], 200);
        targets.extend(v4([198, 51, 100, 1], 1));
        let mut outcomes = probe(&worker, chunk(probing, targets)).await;
        let refused = outcomes.pop().unwrap();
        assert_eq!(refused.status, Status::SendFailed { errno: 101 });
        for outcome in outcomes {
            assert_eq!(outcome.status, Status::DOWN);
            assert_eq!((outcome.sent, outcome.received), (3, 0));
        }
    }
}

#[test]
fn no_arp_is_down_and_affects_no_answering_target() {
    // ARP gets no answer: nobody has these addresses.
    const DEAD_LINK: &str = "ip link add dead type veth peer name findings; ip link set findings up; \
        ip link set dead up; ip addr add 192.0.2.254/24 dev dead; \
        ip addr add fd00:2::254/64 dev dead nodad; \
        echo '0 0' > /proc/sys/net/ipv4/ping_group_range";
    in_a_network(DEAD_LINK, "inner_no_arp");
}

#[tokio::test]
#[ignore = "runs in the network that another test makes for it"]
async fn inner_no_arp() {
    for worker in both_kinds() {
        let probing = Probing {
            retries: 0,
            timeout: Duration::from_secs(4),
            ..quick()
        };
        // The kernel sends more ICMP errors than this at once (`net.ipv4.icmp_msgs_burst`).
        let mut targets = v4([192, 0, 2, 1], 20);
        targets.push(Target::Address("fd00:2::1".parse().unwrap()));
        let dead = targets.len();
        targets.extend(v4([127, 0, 0, 1], 200));
        // Answering targets are probed many times while the errors of the others come in.
        let living = Probing {
            count: 40,
            interval: Duration::from_millis(100),
            ..probing.clone()
        };
        let (outcomes, living) = tokio::join!(
            probe(&worker, chunk(probing, targets)),
            probe(&worker, chunk(living, v4([127, 0, 1, 1], 50)))
        );
        for outcome in &outcomes[..dead] {
            assert_eq!(
                outcome.status,
                Status::Down(DownReason::NoArp),
                "{outcome:?}"
            );
        }
        assert_eq!(tally(&outcomes[dead..]), HashMap::from([("up", 200)]));
        for outcome in living {
            assert_eq!(outcome.status, Status::Up);
            assert_eq!((outcome.sent, outcome.received), (40, 40));
        }
    }
}

#[test]
fn an_icmp_error_is_unreachable_with_its_reporter() {
    let namespace = Namespace::answering("10.0.0.0/16").expect("network namespaces need root");
    namespace.answer("fd00::/64").expect("a prefix");
    // The answering namespace routes these prefixes back to the prober.
    let script = "ip route add 10.1.0.0/16 via 169.254.77.1; ip route add fd00:1::/64 via fd77::1; \
        echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding";
    let made = namespace
        .answering_command("sh")
        .args(["-e", "-c", script])
        .status();
    assert!(made.unwrap().success());
    run_inner(namespace.command("env"), "inner_errors");
}

#[tokio::test]
#[ignore = "runs in the network that another test makes for it"]
async fn inner_errors() {
    for worker in both_kinds() {
        let probing = Probing {
            ttl: Some(1),
            retries: 1,
            ..quick()
        };
        let mut targets = v4([10, 1, 0, 1], 300);
        targets.push(Target::Address("fd00:1::7".parse().unwrap()));
        let beyond = targets.len();
        targets.extend(v4([10, 0, 0, 1], 300));
        targets.push(Target::Address("fd00::7".parse().unwrap()));
        let outcomes = probe(&worker, chunk(probing, targets)).await;
        // Time exceeded in transit (RFC 792; RFC 4443, section 3.3).
        for (number, outcome) in outcomes[..beyond].iter().enumerate() {
            let (icmp_type, reporter) = match number {
                300 => (3, "fd77::2"),
                _ => (11, "169.254.77.2"),
            };
            let expected = Status::Unreachable {
                icmp_type,
                code: 0,
                reporter: reporter.parse().unwrap(),
            };
            assert_eq!(outcome.status, expected, "{outcome:?}");
            assert_eq!((outcome.sent, outcome.received), (2, 0));
        }
        assert_eq!(tally(&outcomes[beyond..]), HashMap::from([("up", 301)]));
    }
}

#[test]
fn more_than_65_535_unanswered_requests_are_kept_apart() {
    beside_answering("10.0.0.0/9", "inner_outstanding");
}

#[tokio::test]
#[ignore = "runs in the network that another test makes for it"]
async fn inner_outstanding() {
    for worker in both_kinds() {
        let probing = Probing {
            timeout: Duration::from_secs(4),
            ..quick()
        };
        // 80,000 silent targets and 20,000 that answer, alternating.
        let chunks = (0..10).map(|number| {
            let mut targets = v4([10, 200 + number, 0, 0], 8000);
            targets.extend(v4([10, 1 + number, 0, 0], 2000));
            probe(&worker, chunk(probing.clone(), targets))
        });
        for outcomes in futures_util::future::join_all(chunks).await {
            let expected = HashMap::from([("down", 8000), ("up", 2000)]);
            assert_eq!(tally(&outcomes), expected);
        }
        assert_eq!(worker.threads.requests_sent(), 100_000);
    }
}
