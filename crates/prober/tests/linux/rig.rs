//! Probing threads with one kind of socket only, and the networks in which they probe.

use std::{
    collections::HashMap, fs, net::Ipv4Addr, num::NonZeroUsize, process::Command, sync::Arc,
    time::Duration,
};

use pingfleet_prober::{
    linux::LinuxPing,
    probe_threads::{ProbeThreads, Probed},
    prober::OpenProber,
    resolve::Resolver,
};
use pingfleet_testbed::Namespace;
use pingfleet_wire::{
    ChunkKey, Message, Outcome, Probing, ResultChunk, Target, Token, Version, WorkChunk,
};
use uuid::Uuid;

pub(crate) fn chunk(probing: Probing, targets: Vec<Target>) -> Arc<WorkChunk> {
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

/// A kind of ICMP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Datagram,
    Raw,
}

/// A lane that has sockets of one kind only.
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

    /// A prober falls back to the other kind without an error, and would prove nothing about this one. Nobody else has
    /// ICMP sockets in the networks here.
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

/// One quick request, at any rate.
pub(crate) fn quick() -> Probing {
    Probing {
        retries: 0,
        timeout: Duration::from_millis(300),
        rate: None,
        ..Probing::default()
    }
}

/// One after the other.
pub(crate) fn both_kinds() -> impl Iterator<Item = Worker> {
    [Kind::Datagram, Kind::Raw].into_iter().map(Worker::start)
}

pub(crate) fn v4(first: [u8; 4], count: u32) -> Vec<Target> {
    let first = u32::from(Ipv4Addr::from(first));
    (first..first + count)
        .map(|address| Target::Address(Ipv4Addr::from(address).into()))
        .collect()
}

pub(crate) async fn probe(worker: &Worker, chunk: Arc<WorkChunk>) -> Vec<Outcome> {
    let expected = chunk.targets.len();
    let Probed {
        started_at_us,
        outcomes,
    } = worker
        .threads
        .probe(Arc::clone(&chunk))
        .await
        .expect("the lane stays");
    worker.assert_kind();
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

/// How many outcomes there are of each status.
pub(crate) fn tally(outcomes: &[Outcome]) -> HashMap<&'static str, usize> {
    outcomes.iter().fold(HashMap::new(), |mut tally, outcome| {
        *tally.entry(outcome.status.name()).or_default() += 1;
        tally
    })
}

/// Runs `inner`, an ignored test of the tests' root, by a command that enters some network.
pub(crate) fn run_inner(mut enter: Command, inner: &str) {
    let output = enter
        .arg(std::env::current_exe().expect("a test has a binary"))
        .args(["--exact", inner, "--ignored", "--nocapture"])
        .output()
        .expect("the command that enters the network runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    // A filter that matches nothing succeeds as well.
    assert!(text.contains("1 passed"), "{text}{errors}");
}

/// Runs `inner` where `set_up`, a shell script, has made a network of its own.
pub(crate) fn in_a_network(set_up: &str, inner: &str) {
    let mut enter = Command::new("unshare");
    let script = format!("set -e; ip link set lo up; {set_up}; exec \"$0\" \"$@\"");
    enter.args(["--net", "sh", "-c", &script]);
    run_inner(enter, inner);
}

/// Runs `inner` where this box has both kinds of sockets, and no link with anybody at its other end.
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
