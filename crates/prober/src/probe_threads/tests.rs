//! The probing threads with probers that need no network.

use std::{
    collections::HashSet,
    iter,
    net::Ipv4Addr,
    sync::{Mutex, atomic::AtomicUsize},
    thread::{self, ThreadId},
    time::Duration,
};

use async_trait::async_trait;
use hickory_resolver::config::{ResolverConfig, ResolverOpts};
use pingfleet_wire::{
    ChunkKey, DnsFailure, Message, Probing, ResultChunk, Status, Target, Token, Version,
};
use tokio::{sync::Semaphore, task::JoinSet};
use uuid::Uuid;

use super::*;
use crate::{prober::Prober, schedule::pacing::Pace, scripted::Scripted};

fn chunk(targets: Vec<Target>) -> Arc<WorkChunk> {
    Arc::new(WorkChunk {
        version: Version,
        database: Uuid::nil(),
        key: ChunkKey {
            run: Uuid::nil(),
            chunk: 0,
        },
        token: Token(Uuid::nil()),
        probing: Probing {
            rate: None,
            ..Probing::default()
        },
        targets,
    })
}

fn addresses(first: u32, count: u32) -> Vec<Target> {
    (first..first + count)
        .map(|address| Target::Address(Ipv4Addr::from(address).into()))
        .collect()
}

fn no_dns() -> Resolver {
    let nobody = ResolverConfig::from_parts(None, Vec::new(), Vec::new());
    Resolver::with_servers(nobody, ResolverOpts::default())
}

fn start(count: usize, opener: impl OpenProber + 'static) -> ProbeThreads {
    let opener: Arc<dyn OpenProber> = Arc::new(opener);
    ProbeThreads::start(count.try_into().unwrap(), &opener, None, no_dns()).unwrap()
}

#[tokio::test]
async fn each_outcome_belongs_to_its_target() {
    let script = Scripted {
        seed: 7,
        ..Scripted::default()
    };
    let threads = start(2, script.clone());
    // The first addresses of the space belong to no host.
    let probes = (1..21).map(|number| {
        let chunk = chunk(addresses(number * 500, 500));
        let threads = &threads;
        async move { (Arc::clone(&chunk), threads.probe(chunk).await.unwrap()) }
    });
    for (chunk, probed) in future::join_all(probes).await {
        assert_eq!(probed.outcomes.len(), chunk.targets.len());
        for (target, outcome) in iter::zip(&chunk.targets, &probed.outcomes) {
            let Target::Address(address) = target else {
                panic!("only addresses were asked for");
            };
            let expected = script.finding(&chunk.probing, *address, Instant::now());
            assert_eq!(outcome.status, expected.status);
            assert_eq!(outcome.rtt, expected.rtt);
            assert_eq!(outcome.address, None);
        }
        let result = ResultChunk {
            version: Version,
            database: chunk.database,
            key: chunk.key,
            token: chunk.token,
            worker: "test".to_owned(),
            redelivered: false,
            started_at_us: probed.started_at_us,
            outcomes: probed.outcomes,
        };
        ResultChunk::decode(&result.encode()).unwrap();
    }
    assert_eq!(threads.targets_done(), 10_000);
    assert!(threads.requests_sent() >= 9_000);
}

#[tokio::test]
async fn texts_are_parsed_or_resolved_and_keep_their_positions() {
    let threads = start(1, Scripted::default());
    let texts = [
        "2001:DB8::1",
        "fe80::1%no-such-if",
        "name.test",
        "192.0.2.9",
    ];
    let mut targets: Vec<_> = texts
        .iter()
        .map(|text| Target::Text((*text).to_owned()))
        .collect();
    targets.insert(2, Target::Address(Ipv4Addr::LOCALHOST.into()));
    let probed = threads.probe(chunk(targets)).await.unwrap();
    let addresses: Vec<_> = probed
        .outcomes
        .iter()
        .map(|outcome| outcome.address)
        .collect();
    assert_eq!(
        addresses,
        [
            Some("2001:db8::1".parse().unwrap()),
            None,
            None,
            None,
            Some("192.0.2.9".parse().unwrap()),
        ]
    );
    assert_eq!(probed.outcomes[1].status, Status::SendFailed { errno: 19 });
    assert!(matches!(
        probed.outcomes[3].status,
        Status::DnsFailed(DnsFailure::Timeout | DnsFailure::Servfail)
    ));
}

/// A prober that holds every chunk until the test releases it, and records the threads on which it probes.
#[derive(Clone, Default)]
struct HoldingProber {
    gate: Arc<Gate>,
    threads: Arc<Mutex<HashSet<ThreadId>>>,
}

struct Gate {
    /// One permit for each chunk that is held.
    held: Semaphore,
    /// One permit for each chunk that is probed or given up.
    ended: Semaphore,
    /// One permit for each chunk that may continue.
    released: Semaphore,
}

impl Default for Gate {
    fn default() -> Self {
        let [held, ended, released] = [(); 3].map(|()| Semaphore::new(0));
        Self {
            held,
            ended,
            released,
        }
    }
}

/// Adds a permit to `ended` when its chunk is probed or given up.
struct ReportEnd(Arc<Gate>);

impl Drop for ReportEnd {
    fn drop(&mut self) {
        self.0.ended.add_permits(1);
    }
}

impl OpenProber for HoldingProber {
    fn open(&self, _: Arc<ProbeCounters>) -> Result<Box<dyn Prober>, ProbeError> {
        Ok(Box::new(self.clone()))
    }
}

#[async_trait(?Send)]
impl Prober for HoldingProber {
    async fn probe(
        &self,
        probing: &Probing,
        destinations: &[Destination],
        _: &Pace,
    ) -> Vec<Finding> {
        self.threads.lock().unwrap().insert(thread::current().id());
        let _end = ReportEnd(Arc::clone(&self.gate));
        self.gate.held.add_permits(1);
        self.gate.released.acquire().await.unwrap().forget();
        let script = Scripted::default();
        let find = |to: &Destination| script.finding(probing, to.address, Instant::now());
        destinations.iter().map(find).collect()
    }
}

async fn take_permits(from: &Semaphore, permits: u32) {
    from.acquire_many(permits).await.unwrap().forget();
}

#[tokio::test]
async fn the_least_loaded_thread_gets_the_next_chunk() {
    let held = HoldingProber::default();
    let threads = Arc::new(start(2, held.clone()));
    let mut probes = JoinSet::new();
    for _ in 0..2 {
        let threads = Arc::clone(&threads);
        probes.spawn(async move { threads.probe(chunk(addresses(0, 10))).await });
    }
    take_permits(&held.gate.held, 2).await;
    assert_eq!(held.threads.lock().unwrap().len(), 2);
    held.gate.released.add_permits(2);
    while let Some(probed) = probes.join_next().await {
        assert_eq!(probed.unwrap().unwrap().outcomes.len(), 10);
    }
}

#[tokio::test]
async fn a_dropped_probe_gives_the_chunk_up_on_its_thread() {
    let held = HoldingProber::default();
    let threads = start(1, held.clone());
    {
        let probe = threads.probe(chunk(addresses(0, 10)));
        tokio::select! {
            _ = probe => panic!("nothing releases the chunk"),
            () = take_permits(&held.gate.held, 1) => {}
        }
    }
    take_permits(&held.gate.ended, 1).await;
    assert_eq!(threads.threads[0].load(), 0);
    assert_eq!(threads.targets_done(), 0);
}

#[tokio::test]
async fn closing_gives_up_the_chunks_in_hand_and_joins_the_threads() {
    let held = HoldingProber::default();
    let threads = Arc::new(start(2, held.clone()));
    let probe = tokio::spawn({
        let threads = Arc::clone(&threads);
        async move { threads.probe(chunk(addresses(0, 10))).await }
    });
    take_permits(&held.gate.held, 1).await;
    probe.abort();
    assert!(probe.await.unwrap_err().is_cancelled());
    Arc::into_inner(threads).unwrap().close();
    take_permits(&held.gate.ended, 1).await;
}

/// The script panics at an address while another chunk of the thread is delayed.
#[tokio::test]
async fn a_panic_fails_all_chunks_of_its_thread_and_no_other() {
    let panics_at = Ipv4Addr::from(99);
    let threads = start(
        2,
        Scripted {
            panics_at: Some(panics_at.into()),
            delay: Duration::from_millis(200),
            ..Scripted::default()
        },
    );
    // By load, the first and the third chunk go to one thread, the second to the other.
    let (first, second, third) = tokio::join!(
        threads.probe(chunk(addresses(1000, 10))),
        threads.probe(chunk(addresses(2000, 20))),
        threads.probe(chunk(vec![Target::Address(panics_at.into())])),
    );
    assert_eq!(first, Err(ProbeThreadFailed));
    assert_eq!(second.unwrap().outcomes.len(), 20);
    assert_eq!(third, Err(ProbeThreadFailed));
    // Chunks are probed again after each panic.
    for _ in 0..5 {
        let last = chunk(vec![Target::Address(panics_at.into())]);
        assert_eq!(threads.probe(last).await, Err(ProbeThreadFailed));
        let (one, two) = tokio::join!(
            threads.probe(chunk(addresses(3000, 5))),
            threads.probe(chunk(addresses(4000, 5))),
        );
        assert_eq!(one.unwrap().outcomes.len(), 5);
        assert_eq!(two.unwrap().outcomes.len(), 5);
    }
}

#[derive(Default)]
struct FailingOpener(AtomicUsize);

impl OpenProber for FailingOpener {
    fn open(&self, _: Arc<ProbeCounters>) -> Result<Box<dyn Prober>, ProbeError> {
        if self.0.fetch_add(1, Ordering::Relaxed) == 0 {
            return Ok(Box::new(HoldingProber::default()));
        }
        let refused = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        Err(ProbeError::from_socket(refused))
    }
}

#[test]
fn without_permission_the_start_fails_and_names_the_command_to_run() {
    let opener: Arc<dyn OpenProber> = Arc::new(FailingOpener::default());
    let error =
        ProbeThreads::start(NonZeroUsize::new(3).unwrap(), &opener, None, no_dns()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("ping_group_range=\"0 2147483647\""), "{text}");
    assert!(text.contains("setcap cap_net_raw+ep /"), "{text}");
}

/// Opens one prober, and no other one.
struct OpensOnce {
    script: Scripted,
    opened: AtomicUsize,
}

impl OpenProber for OpensOnce {
    fn open(&self, counters: Arc<ProbeCounters>) -> Result<Box<dyn Prober>, ProbeError> {
        match self.opened.fetch_add(1, Ordering::Relaxed) {
            0 => self.script.open(counters),
            _ => Err(ProbeError::Ended),
        }
    }
}

#[tokio::test]
async fn a_thread_that_cannot_open_a_new_prober_gives_up_its_chunks_and_ends() {
    let panics_at = Ipv4Addr::from(99);
    let threads = start(
        1,
        OpensOnce {
            script: Scripted {
                panics_at: Some(panics_at.into()),
                ..Scripted::default()
            },
            opened: AtomicUsize::new(0),
        },
    );
    threads.probe(chunk(addresses(1, 9))).await.unwrap();
    let last = chunk(vec![Target::Address(panics_at.into())]);
    assert_eq!(threads.probe(last).await, Err(ProbeThreadFailed));
    // It waits for a new prober, and is given up.
    let waiting = threads.probe(chunk(addresses(1, 9))).await;
    assert_eq!(waiting, Err(ProbeThreadFailed));
    assert!(threads.have_ended());
}

/// Records the destinations that its probers are given.
#[derive(Clone, Default)]
struct Recording(Arc<Mutex<Vec<std::net::IpAddr>>>);

struct RecordingProber(Recording, Box<dyn Prober>);

impl OpenProber for Recording {
    fn open(&self, counters: Arc<ProbeCounters>) -> Result<Box<dyn Prober>, ProbeError> {
        let script = Scripted::default().open(counters)?;
        Ok(Box::new(RecordingProber(self.clone(), script)))
    }
}

#[async_trait(?Send)]
impl Prober for RecordingProber {
    async fn probe(
        &self,
        probing: &Probing,
        destinations: &[Destination],
        pace: &Pace,
    ) -> Vec<Finding> {
        let addresses = destinations.iter().map(|to| to.address);
        self.0.0.lock().unwrap().extend(addresses);
        self.1.probe(probing, destinations, pace).await
    }
}

/// The plan refuses such targets. A work message of another program may have them all the same.
#[tokio::test]
async fn nothing_is_sent_to_an_address_that_no_host_can_have() {
    let none = [
        "0.0.0.0",
        "224.0.0.1",
        "239.255.255.255",
        "255.255.255.255",
        "::",
        "ff02::1",
        "::ffff:224.0.0.1",
    ];
    let mut targets: Vec<_> = none
        .map(|text| Target::Address(text.parse().unwrap()))
        .into();
    targets.extend(["224.0.0.251", "ff02::1%1"].map(|text| Target::Text(text.to_owned())));
    let refused = targets.len();
    // The control: addresses of hosts are probed.
    let hosts = ["192.0.2.1", "2001:db8::1"].map(|text| text.parse().unwrap());
    targets.extend(hosts.map(Target::Address));
    let recording = Recording::default();
    let threads = start(1, recording.clone());
    let probed = threads.probe(chunk(targets)).await.unwrap();
    assert_eq!(*recording.0.lock().unwrap(), hosts);
    for (position, outcome) in probed.outcomes.iter().enumerate() {
        assert_eq!(outcome.check(), Ok(()));
        let is_refused = outcome.status == Status::SendFailed { errno: 22 } && outcome.sent == 0;
        assert_eq!(is_refused, position < refused, "{position}: {outcome:?}");
    }
}

#[tokio::test]
async fn a_worker_whose_clock_is_after_the_year_9999_encodes_its_results() {
    let threads = start(1, Scripted::default());
    let mut probed = threads.probe(chunk(addresses(1, 2))).await.unwrap();
    let year = Duration::from_hours(24 * 366);
    for clock in [UNIX_EPOCH + 9000 * year, UNIX_EPOCH + 100_000 * year] {
        probed.started_at_us = started_at_us(clock);
        let result = ResultChunk {
            version: Version,
            database: Uuid::nil(),
            key: ChunkKey {
                run: Uuid::nil(),
                chunk: 0,
            },
            token: Token(Uuid::nil()),
            worker: "late".to_owned(),
            redelivered: false,
            started_at_us: probed.started_at_us,
            outcomes: probed.outcomes.clone(),
        };
        assert_eq!(ResultChunk::decode(&result.encode()), Ok(result.clone()));
        // The control: the clock's own time does not pass.
        let since = clock.duration_since(UNIX_EPOCH).unwrap();
        let unchecked = ResultChunk {
            started_at_us: u64::try_from(since.as_micros()).unwrap_or(u64::MAX),
            ..result
        };
        assert!(unchecked.check().is_err());
    }
    assert_eq!(started_at_us(UNIX_EPOCH - year), 0);
}
