//! Names of a hosts file: which of their addresses are probed, and that nothing is sent to those that may not be.

use std::{
    fs,
    net::{IpAddr, UdpSocket},
    num::NonZeroUsize,
    sync::Arc,
};

use pingfleet_prober::{
    linux::LinuxPing, probe_threads::ProbeThreads, prober::OpenProber, resolve::Resolver,
};
use pingfleet_wire::{DnsFailure, Family, Outcome, Probing, Status, Target};
use tempfile::TempDir;

use crate::{
    rig::{in_a_network, on_loopback},
    support::{self, chunk, quick},
};

/// Probing threads with both kinds of sockets, one after the other, that read this hosts file and know no name server.
fn workers(hosts: &str) -> Vec<ProbeThreads> {
    let folder = TempDir::new().expect("a test has a temporary folder");
    let [resolv_conf, hosts_file] = ["resolv.conf", "hosts"].map(|name| folder.path().join(name));
    fs::write(&resolv_conf, "").expect("the folder is writable");
    fs::write(&hosts_file, hosts).expect("the folder is writable");
    let resolver = Resolver::from_files(resolv_conf, hosts_file);
    let start = |opener: LinuxPing| {
        let opener: Arc<dyn OpenProber> = Arc::new(opener);
        ProbeThreads::start(NonZeroUsize::MIN, &opener, None, resolver.clone())
            .expect("ICMP sockets are needed")
    };
    vec![start(LinuxPing::new()), start(LinuxPing::raw())]
}

fn name(text: &str) -> Target {
    Target::Text(text.to_owned())
}

async fn probe(worker: &ProbeThreads, probing: Probing, targets: Vec<Target>) -> Vec<Outcome> {
    support::probe(worker, chunk(probing, targets)).await
}

/// Multicast messages that left this network since its start.
fn multicasts() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/net/netstat").expect("the kernel counts");
    // A line of names, and then one of their values.
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("IpExt:"));
    let [names, values] = [(); 2].map(|()| lines.next().unwrap_or_default());
    let mut counters = names.split_whitespace().zip(values.split_whitespace());
    let found = counters.find(|(name, _)| *name == "OutMcastPkts");
    let value = found.and_then(|(_, value)| value.parse().ok());
    value.expect("the kernel counts multicasts")
}

#[test]
fn nothing_is_sent_to_a_name_whose_addresses_no_host_can_have() {
    on_loopback("names::inner_blocked");
}

#[tokio::test]
#[ignore = "runs in the network that another test makes for it"]
async fn inner_blocked() {
    const HOSTS: &str = "0.0.0.0 blocker.test\n:: blocker.test\n224.0.0.1 multicast.test\n\
        255.255.255.255 broadcast.test\n::ffff:224.0.0.1 mapped.test\nff02::1 multicast6.test\n\
        fe80::1 link-local.test\n";
    for worker in workers(HOSTS) {
        let before = multicasts();
        let names = [
            "blocker.test",
            "multicast.test",
            "broadcast.test",
            "mapped.test",
            "multicast6.test",
            "link-local.test",
        ];
        let outcomes = probe(&worker, quick(), names.map(name).to_vec()).await;
        for (name, outcome) in names.iter().zip(outcomes) {
            let blocked = Status::DnsFailed(DnsFailure::BlockedAddress);
            assert_eq!((outcome.status, outcome.sent), (blocked, 0), "{name}");
            assert_eq!(outcome.address, None, "{name}");
        }
        // Another producer may plan such an address itself.
        let planned = Target::Address(IpAddr::from([224, 0, 0, 1]));
        let outcomes = probe(&worker, quick(), vec![planned]).await;
        let refused = Status::SendFailed { errno: 22 };
        assert_eq!((outcomes[0].status, outcomes[0].sent), (refused, 0));
        assert_eq!((worker.requests_sent(), multicasts()), (0, before));
        // The control: both counters rise.
        probe(&worker, quick(), vec![name("127.0.0.1")]).await;
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        socket.send_to(b"x", "224.0.0.1:9").expect("it is sent");
        assert!(worker.requests_sent() > 0 && multicasts() > before);
    }
}

#[test]
fn a_mapped_address_answers_as_ipv4_however_it_comes() {
    on_loopback("names::inner_mapped");
}

#[tokio::test]
#[ignore = "runs in the network that another test makes for it"]
async fn inner_mapped() {
    for worker in workers("::ffff:127.0.0.3 mapped.test\n") {
        let mapped: IpAddr = "::ffff:127.0.0.1".parse().unwrap();
        let targets = vec![
            Target::Address(mapped),
            name("::FFFF:127.0.0.2"),
            name("mapped.test"),
        ];
        let outcomes = probe(&worker, quick(), targets).await;
        let seen: Vec<_> = outcomes
            .iter()
            .map(|outcome| (outcome.status, outcome.address))
            .collect();
        let expected = [None, Some([127, 0, 0, 2]), Some([127, 0, 0, 3])]
            .map(|address| (Status::Up, address.map(IpAddr::from)));
        assert_eq!(seen, expected);
    }
}

#[test]
fn of_two_families_the_one_with_a_route_is_probed() {
    const ONLY_V6: &str = "ip addr add fd00:9::9/128 dev lo nodad; \
        echo '0 0' > /proc/sys/net/ipv4/ping_group_range";
    // Without any address of the family its route is missing as well.
    const ONLY_V4: &str = "sysctl -qw net.ipv6.conf.all.disable_ipv6=1; \
        echo '0 0' > /proc/sys/net/ipv4/ping_group_range";
    in_a_network(ONLY_V6, "names::inner_only_v6");
    in_a_network(ONLY_V4, "names::inner_only_v4");
}

#[tokio::test]
#[ignore = "runs in the network that another test makes for it"]
async fn inner_only_v6() {
    for worker in workers("192.0.2.9 both.test\nfd00:9::9 both.test\n") {
        let outcomes = probe(&worker, quick(), vec![name("both.test")]).await;
        let reached: IpAddr = "fd00:9::9".parse().unwrap();
        assert_eq!(
            (outcomes[0].status, outcomes[0].address),
            (Status::Up, Some(reached))
        );
        // The user asked for the other one.
        let v4 = Probing {
            family: Family::V4,
            ..quick()
        };
        let outcomes = probe(&worker, v4, vec![name("both.test")]).await;
        assert_eq!(outcomes[0].status, Status::SendFailed { errno: 101 });
    }
}

#[tokio::test]
#[ignore = "runs in the network that another test makes for it"]
async fn inner_only_v4() {
    for worker in workers("fd00:9::9 both.test\n127.0.0.9 both.test\nfd00:9::9 six.test\n") {
        let targets = vec![name("both.test"), name("six.test")];
        let outcomes = probe(&worker, quick(), targets).await;
        let reached = IpAddr::from([127, 0, 0, 9]);
        assert_eq!(
            (outcomes[0].status, outcomes[0].address),
            (Status::Up, Some(reached))
        );
        let status = outcomes[1].status;
        assert!(matches!(status, Status::SendFailed { .. }), "{status:?}");
    }
}
