//! The lanes over probers that need no network.

use std::{collections::HashSet, net::Ipv4Addr, sync::Mutex, time::Duration};

use async_trait::async_trait;
use hickory_resolver::config::{ResolverConfig, ResolverOpts};
use pingfleet_wire::{ChunkKey, DnsFailure, Message, Probing, ResultChunk, Status, Token, Version};
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::*;
use crate::scripted::Scripted;

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

fn start(threads: usize, opener: impl OpenProber + 'static) -> Lanes {
    let opener: Arc<dyn OpenProber> = Arc::new(opener);
    Lanes::start(threads.try_into().unwrap(), &opener, None, no_dns()).unwrap()
}

#[tokio::test]
async fn each_outcome_is_its_own_target_s() {
    let script = Scripted {
        seed: 7,
        ..Scripted::default()
    };
    let lanes = start(2, script.clone());
    let probes = (0..20).map(|number| {
        let chunk = chunk(addresses(number * 500, 500));
        let lanes = &lanes;
        async move { (Arc::clone(&chunk), lanes.probe(chunk).await.unwrap()) }
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
    assert_eq!(lanes.targets_done(), 10_000);
    assert!(lanes.requests_sent() >= 9_000);
}

#[tokio::test]
async fn texts_are_read_or_resolved_and_keep_their_places() {
    let lanes = start(1, Scripted::default());
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
    let probed = lanes.probe(chunk(targets)).await.unwrap();
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

/// Holds every chunk until the test lets it go; says which threads it probed on and how many chunks are held.
#[derive(Clone, Default)]
struct Held {
    go: Arc<Gate>,
    threads: Arc<Mutex<HashSet<thread::ThreadId>>>,
}

struct Gate {
    held: Semaphore,
    gone: Semaphore,
    go: Semaphore,
}

impl Default for Gate {
    fn default() -> Self {
        let [held, gone, go] = [(); 3].map(|()| Semaphore::new(0));
        Self { held, gone, go }
    }
}

/// Tells the gate when its chunk is probed or given up.
struct Leaving(Arc<Gate>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.gone.add_permits(1);
    }
}

impl OpenProber for Held {
    fn open(&self, _: Arc<RequestsSent>) -> Result<Box<dyn Prober>, ProbeError> {
        Ok(Box::new(self.clone()))
    }
}

#[async_trait(?Send)]
impl Prober for Held {
    async fn probe(
        &self,
        probing: &Probing,
        destinations: &[Destination],
        _: &Pace,
    ) -> Vec<Finding> {
        self.threads.lock().unwrap().insert(thread::current().id());
        let _leaving = Leaving(Arc::clone(&self.go));
        self.go.held.add_permits(1);
        self.go.go.acquire().await.unwrap().forget();
        let script = Scripted::default();
        let find = |to: &Destination| script.finding(probing, to.address, Instant::now());
        destinations.iter().map(find).collect()
    }
}

async fn take(from: &Semaphore, permits: u32) {
    from.acquire_many(permits).await.unwrap().forget();
}

#[tokio::test]
async fn the_least_loaded_lane_gets_the_next_chunk() {
    let held = Held::default();
    let lanes = Arc::new(start(2, held.clone()));
    let mut probes = JoinSet::new();
    for _ in 0..2 {
        let lanes = Arc::clone(&lanes);
        probes.spawn(async move { lanes.probe(chunk(addresses(0, 10))).await });
    }
    take(&held.go.held, 2).await;
    assert_eq!(held.threads.lock().unwrap().len(), 2);
    held.go.go.add_permits(2);
    while let Some(probed) = probes.join_next().await {
        assert_eq!(probed.unwrap().unwrap().outcomes.len(), 10);
    }
}

#[tokio::test]
async fn a_dropped_probe_gives_the_chunk_up_on_its_lane() {
    let held = Held::default();
    let lanes = start(1, held.clone());
    {
        let probe = lanes.probe(chunk(addresses(0, 10)));
        tokio::select! {
            _ = probe => panic!("nothing lets the chunk go"),
            () = take(&held.go.held, 1) => {}
        }
    }
    take(&held.go.gone, 1).await;
    assert_eq!(lanes.all[0].load.load(Ordering::Relaxed), 0);
    assert_eq!(lanes.targets_done(), 0);
}

#[tokio::test]
async fn closing_gives_up_what_is_in_hand_and_joins_the_threads() {
    let held = Held::default();
    let lanes = Arc::new(start(2, held.clone()));
    let probe = tokio::spawn({
        let lanes = Arc::clone(&lanes);
        async move { lanes.probe(chunk(addresses(0, 10))).await }
    });
    take(&held.go.held, 1).await;
    probe.abort();
    assert!(probe.await.unwrap_err().is_cancelled());
    Arc::into_inner(lanes).unwrap().close();
    take(&held.go.gone, 1).await;
}

/// A script that panics at an address, after another chunk of the lane is held.
#[tokio::test]
async fn a_panic_is_lane_gone_for_all_chunks_of_the_lane_and_for_no_other() {
    let panics_at = Ipv4Addr::from(99);
    let lanes = start(
        2,
        Scripted {
            panics_at: Some(panics_at.into()),
            delay: Duration::from_millis(200),
            ..Scripted::default()
        },
    );
    // By load, the first and the third go to one lane, the second to the other.
    let (first, second, third) = tokio::join!(
        lanes.probe(chunk(addresses(1000, 10))),
        lanes.probe(chunk(addresses(2000, 20))),
        lanes.probe(chunk(vec![Target::Address(panics_at.into())])),
    );
    assert_eq!(first, Err(LaneGone));
    assert_eq!(second.unwrap().outcomes.len(), 20);
    assert_eq!(third, Err(LaneGone));
    // However often it happens to whichever lane, chunks after it are probed.
    for _ in 0..5 {
        let last = chunk(vec![Target::Address(panics_at.into())]);
        assert_eq!(lanes.probe(last).await, Err(LaneGone));
        let (one, two) = tokio::join!(
            lanes.probe(chunk(addresses(3000, 5))),
            lanes.probe(chunk(addresses(4000, 5))),
        );
        assert_eq!(one.unwrap().outcomes.len(), 5);
        assert_eq!(two.unwrap().outcomes.len(), 5);
    }
}

#[derive(Default)]
struct Refusing(AtomicUsize);

impl OpenProber for Refusing {
    fn open(&self, _: Arc<RequestsSent>) -> Result<Box<dyn Prober>, ProbeError> {
        if self.0.fetch_add(1, Ordering::Relaxed) == 0 {
            return Ok(Box::new(Held::default()));
        }
        let refused = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        Err(ProbeError::from_socket(refused))
    }
}

#[test]
fn without_permission_the_start_fails_and_says_what_to_run() {
    let opener: Arc<dyn OpenProber> = Arc::new(Refusing::default());
    let error = Lanes::start(NonZeroUsize::new(3).unwrap(), &opener, None, no_dns()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("ping_group_range=\"0 2147483647\""), "{text}");
    assert!(text.contains("setcap cap_net_raw+ep /"), "{text}");
}
