//! Probing threads with one kind of socket only, and the networks in which they probe.

use std::{
    collections::HashMap, fs, net::Ipv4Addr, num::NonZeroUsize, process::Command, sync::Arc,
};

use pingfleet_prober::{
    linux::LinuxPing, probe_threads::ProbeThreads, prober::OpenProber, resolve::Resolver,
};
use pingfleet_testbed::Namespace;
use pingfleet_wire::{Outcome, Target, WorkChunk};

use crate::support::{self, run_inner};

/// A kind of ICMP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Datagram,
    Raw,
}

/// A probing thread with sockets of one kind only.
pub(crate) struct Worker {
    kind: Kind,
    pub(crate) threads: ProbeThreads,
}

impl Worker {
    fn start(kind: Kind) -> Self {
        let opener: Arc<dyn OpenProber> = Arc::new(match kind {
            Kind::Datagram => LinuxPing::new(),
            Kind::Raw => LinuxPing::raw(),
        });
        let threads =
            ProbeThreads::start(NonZeroUsize::MIN, &opener, None, Resolver::from_system());
        Self {
            kind,
            threads: threads.expect("ICMP sockets are needed"),
        }
    }

    /// Checks the kind of the open sockets: a prober that falls back to the other kind would prove nothing. No other
    /// process has ICMP sockets in these networks.
    fn assert_kind(&self) {
        let [datagram, raw] = [["icmp", "icmp6"], ["raw", "raw6"]].map(|tables| {
            let open = tables.map(|table| {
                let path = format!("/proc/thread-self/net/{table}");
                let table = fs::read_to_string(path).expect("the kernel has a table");
                table.lines().skip(1).count()
            });
            open.iter().sum::<usize>()
        });
        let (wanted, other) = match self.kind {
            Kind::Datagram => (datagram, raw),
            Kind::Raw => (raw, datagram),
        };
        assert!(wanted > 0, "no socket is {:?}", self.kind);
        assert_eq!(other, 0, "of another kind than {:?}", self.kind);
    }
}

/// Both kinds, one after the other.
pub(crate) fn both_kinds() -> impl Iterator<Item = Worker> {
    [Kind::Datagram, Kind::Raw].into_iter().map(Worker::start)
}

pub(crate) fn v4(first: [u8; 4], count: u32) -> Vec<Target> {
    let first = u32::from(Ipv4Addr::from(first));
    (first..first + count)
        .map(|address| Target::Address(Ipv4Addr::from(address).into()))
        .collect()
}

/// The outcomes of a chunk, probed with the right kind of socket.
pub(crate) async fn probe(worker: &Worker, chunk: Arc<WorkChunk>) -> Vec<Outcome> {
    let outcomes = support::probe(&worker.threads, chunk).await;
    worker.assert_kind();
    outcomes
}

/// The number of outcomes of each status.
pub(crate) fn tally(outcomes: &[Outcome]) -> HashMap<&'static str, usize> {
    outcomes.iter().fold(HashMap::new(), |mut tally, outcome| {
        *tally.entry(outcome.status.name()).or_default() += 1;
        tally
    })
}

/// Runs `inner` in a new network that the shell script `set_up` configures.
pub(crate) fn in_a_network(set_up: &str, inner: &str) {
    let mut enter = Command::new("unshare");
    let script = format!("set -e; ip link set lo up; {set_up}; exec \"$0\" \"$@\"");
    enter.args(["--net", "sh", "-c", &script]);
    run_inner(enter, inner);
}

/// Runs `inner` where both kinds of sockets are permitted and no link leads to another machine.
pub(crate) fn on_loopback(inner: &str) {
    const ALONE: &str = "ip link add alone type veth peer name findings; ip link set findings up; \
        ip link set alone up; ip route add default dev alone; \
        echo '0 0' > /proc/sys/net/ipv4/ping_group_range";
    in_a_network(ALONE, inner);
}

/// Runs `inner` where every address of `prefix` answers and all others are silent.
pub(crate) fn beside_answering(prefix: &str, inner: &str) {
    let namespace = Namespace::answering(prefix).expect("network namespaces need root");
    run_inner(namespace.command("env"), inner);
}
