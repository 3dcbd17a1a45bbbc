//! A machine with 200,000 routes and 1,000 links, where some of them change all the time. To read them takes longer than a
//! stall, so no probing thread may do it.

use std::{
    env,
    fmt::Write,
    fs::{self, File},
    num::NonZeroUsize,
    path::Path,
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use async_trait::async_trait;
use hickory_resolver::config::{ResolverConfig, ResolverOpts};
use pingfleet_prober::{
    linux::LinuxPing,
    probe_threads::ProbeThreads,
    prober::{Destination, Finding, OpenProber, ProbeCounters, ProbeError, Prober},
    resolve::Resolver,
    schedule::pacing::Pace,
};
use pingfleet_testbed::{Namespace, simnet::IpVersion};
use pingfleet_wire::{Outcome, Probing, Status};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::{
    chunk_files::{probe_all, read_result, write_chunk},
    expectations::{all, repeated, tally},
    pair,
    variants::{Network, addresses},
};

/// Routes of IPv4, half of them by gateways.
const ROUTES: u32 = 200_000;

/// Links, each with an address.
const LINKS: u32 = 1000;

/// Chunks that are probed, each begins while the one before is in hand.
const CHUNKS: u32 = 6;

/// Targets of a chunk that answer.
const LIVING: u32 = 8000;

/// Targets of a chunk that are silent.
const SILENT: u32 = 100;

/// Time between the beginnings of two chunks.
const BETWEEN: Duration = Duration::from_millis(700);

/// How long the control reads the routes before each chunk, again and again: as long as a slow machine takes for it.
const READING: Duration = Duration::from_secs(1);

/// Environment variables of the inner process: its folder, its number of threads, and whether they read the routes.
const FOLDER: &str = "PINGFLEET_MANY_ROUTES_FOLDER";
const THREADS: &str = "PINGFLEET_MANY_ROUTES_THREADS";
const READS: &str = "PINGFLEET_MANY_ROUTES_READS";

/// The outcomes of the inner process, the targets that it probed again because of a stall, and its log.
struct Report {
    outcomes: Vec<Outcome>,
    stalled: u64,
    log: String,
}

impl Report {
    /// How often threads with names of this beginning have logged a message.
    fn count(&self, thread: &str, message: &str) -> usize {
        let of = |line: &&str| line.contains(message) && line.contains(&format!(" {thread}"));
        self.log.lines().filter(of).count()
    }
}

/// Commands for `ip -batch`.
fn links_and_routes() -> anyhow::Result<String> {
    let mut batch = String::new();
    for link in (0..LINKS).step_by(2) {
        let peer = link + 1;
        writeln!(batch, "link add m{link} type veth peer name m{peer}")?;
    }
    for link in 0..LINKS {
        let [_, _, high, low] = link.to_be_bytes();
        writeln!(batch, "link set m{link} addrgenmode none up")?;
        writeln!(batch, "addr add 10.255.{high}.{low}/32 dev m{link}")?;
    }
    for route in 0..ROUTES {
        let link = route % LINKS;
        let [_, high, middle, low] = route.to_be_bytes();
        let prefix = format!("{}.{middle}.{low}.0/24", 20 + high);
        if route % 2 == 0 {
            writeln!(batch, "route add {prefix} dev m{link}")?;
        } else {
            let gateway = 1 + route % 7;
            writeln!(
                batch,
                "route add {prefix} via 10.254.0.{gateway} dev m{link} onlink"
            )?;
        }
    }
    Ok(batch)
}

fn network() -> anyhow::Result<Namespace> {
    let pair = pair::make()?;
    let folder = TempDir::new()?;
    let file = folder.path().join("batch");
    fs::write(&file, links_and_routes()?)?;
    let mut ip = pair.command("ip");
    let output = ip.arg("-batch").arg(&file).output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{errors}");
    Ok(pair)
}

/// Probes with so many threads. With `reads`, each thread reads the routes before each chunk.
fn probe(pair: &Namespace, threads: usize, reads: bool) -> anyhow::Result<Report> {
    let folder = TempDir::new()?;
    let probing = Probing {
        retries: 0,
        // The control's is over while the routes are read.
        timeout: if reads { READING / 2 } else { READING * 2 },
        rate: None,
        ..Probing::default()
    };
    for number in 0..CHUNKS as usize {
        // Those that are in hand for long come first.
        let mut targets = addresses(pair::silent(IpVersion::V4), SILENT);
        targets.extend(addresses(pair::living(IpVersion::V4), LIVING));
        write_chunk(folder.path(), number, probing.clone(), targets)?;
    }
    let mut inner = Network::command(pair, "nice");
    // Other processes must not stall the prober.
    inner.args(["-n", "-10"]).arg(env::current_exe()?);
    inner.args(["--exact", "many_routes::inner", "--ignored", "--nocapture"]);
    inner.env(FOLDER, folder.path());
    inner.env(THREADS, threads.to_string());
    if reads {
        inner.env(READS, "");
    }
    let output = inner.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    // A test filter without a match also succeeds.
    let passed = output.status.success() && text.contains("1 passed");
    ensure!(passed, "{text}{errors}");
    let mut outcomes = Vec::new();
    for number in 0..CHUNKS as usize {
        outcomes.extend(read_result(folder.path(), number)?.outcomes);
    }
    Ok(Report {
        outcomes,
        stalled: fs::read_to_string(folder.path().join("stalled"))?.parse()?,
        log: fs::read_to_string(folder.path().join("log"))?,
    })
}

#[test]
fn many_routes_and_links_make_no_target_unknown() -> anyhow::Result<()> {
    let pair = network()?;
    for threads in [1, 4] {
        let report = probe(&pair, threads, false)?;
        let outcomes = &report.outcomes;
        // Other processes of a busy machine may stall a thread, and some targets are probed again then.
        let expected = |outcome: &Outcome| matches!(outcome.status, Status::Up | Status::DOWN);
        all(outcomes, expected).with_context(|| format!("{threads} threads"))?;
        let up = outcomes.iter().filter(|of| of.status == Status::Up).count();
        ensure!(up == (LIVING * CHUNKS) as usize, "{:?}", tally(outcomes));
        // Once, when the first of them began, with nothing in hand.
        for message in ["routes read", "links read"] {
            let [probing, all] = ["probe-", ""].map(|thread| report.count(thread, message));
            ensure!(probing == 1 && all > 1, "{message}: {probing} of {all}");
        }
    }
    // The control: if the probing threads read the routes, targets are probed again.
    let control = probe(&pair, 1, true)?;
    ensure!(
        control.stalled > 0 && repeated(&control.outcomes) > 0,
        "{} stalled, {:?}",
        control.stalled,
        tally(&control.outcomes)
    );
    Ok(())
}

/// Opens probers that read the routes on the probing thread.
struct Reading(LinuxPing);

struct ReadingProber(Box<dyn Prober>);

impl OpenProber for Reading {
    fn open(&self, counters: Arc<ProbeCounters>) -> Result<Box<dyn Prober>, ProbeError> {
        Ok(Box::new(ReadingProber(self.0.open(counters)?)))
    }
}

#[async_trait(?Send)]
impl Prober for ReadingProber {
    async fn probe(
        &self,
        probing: &Probing,
        destinations: &[Destination],
        pace: &Pace,
    ) -> Vec<Finding> {
        let began = Instant::now();
        while began.elapsed() < READING {
            let routes = fs::read("/proc/thread-self/net/route").expect("routes");
            assert!(routes.len() > 1 << 20);
        }
        self.0.probe(probing, destinations, pace).await
    }
}

/// Changes a link and a route.
fn change(number: u32) -> anyhow::Result<()> {
    let script = format!(
        "ip link add extra{number} type veth peer name peer{number}
         ip link del extra{number}
         ip route replace 198.51.100.0/24 via 10.254.0.{} dev m0 onlink",
        1 + number
    );
    let status = Command::new("sh").args(["-e", "-c", &script]).status()?;
    ensure!(status.success(), "{script}");
    Ok(())
}

#[tokio::test]
#[ignore = "runs in the network that another test makes for it"]
async fn inner() -> anyhow::Result<()> {
    let folder = env::var(FOLDER)?;
    let folder = Path::new(&folder);
    let log = folder.join("log");
    tracing_subscriber::fmt()
        .with_env_filter("pingfleet_prober::linux::network=trace")
        .with_thread_names(true)
        .with_ansi(false)
        .with_writer(Arc::new(File::create(&log)?))
        .init();
    let opener: Arc<dyn OpenProber> = if env::var_os(READS).is_some() {
        Arc::new(Reading(LinuxPing::new()))
    } else {
        Arc::new(LinuxPing::new())
    };
    let resolver = Resolver::with_servers(ResolverConfig::default(), ResolverOpts::default());
    let threads: NonZeroUsize = env::var(THREADS)?.parse()?;
    let threads = ProbeThreads::start(threads, &opener, None, resolver)?;
    let changes = thread::spawn(|| {
        for number in 0..CHUNKS {
            // Nothing to wait for: the changes are spread over the run.
            thread::sleep(BETWEEN);
            change(number)?;
        }
        anyhow::Ok(())
    });
    probe_all(folder, &threads, BETWEEN).await?;
    changes.join().expect("no thread panics")?;
    // The test runner ends it if that never happens.
    while fs::read_to_string(&log)?.matches("routes read").count() < 2 {
        sleep(Duration::from_millis(10)).await;
    }
    let stalled = threads.local_losses().stalled;
    fs::write(folder.join("stalled"), stalled.to_string())?;
    threads.close();
    Ok(())
}
