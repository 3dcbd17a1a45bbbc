//! The counters that a page shows equal a count over the rows, whatever happened to the batches.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use pingfleet_store::{DecodedDelivery, ReportFilter, RunDetail, Transport, Writer};
use pingfleet_wire::{DnsFailure, LocalLoss, Rtt, Status, StatusKind, Target, WorkChunk};
use proptest::{collection::vec, prelude::*, test_runner::Config};
use rusqlite::Connection;
use tempfile::TempDir;

use crate::sample::{delivery, options, outcome, plan_of, reader, result};

const STATUSES: [Status; 7] = [
    Status::Up,
    Status::Late,
    Status::Unreachable {
        icmp_type: 3,
        code: 1,
        reporter: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)),
    },
    Status::DnsFailed(DnsFailure::Timeout),
    Status::SendFailed { errno: 1 },
    Status::Unknown(LocalLoss::STALLED),
    Status::DOWN,
];

/// A target: an address of either family, or a name.
fn target(seed: u32) -> Target {
    match seed % 4 {
        0 => Target::Text(format!("host-{seed}.example")),
        1 => Target::Address(
            Ipv6Addr::from_bits((0xfd00_u128 << 112) + (u128::from(seed) << 60)).into(),
        ),
        _ => Target::Address(Ipv4Addr::from_bits(0x0a00_0000 + seed * 7).into()),
    }
}

/// The result of a chunk: statuses, times and the addresses of names follow from the seed.
fn message(work: &WorkChunk, seed: usize) -> DecodedDelivery {
    let mut message = result(work, &[Status::Up]);
    for (at, (answer, target)) in message.outcomes.iter_mut().zip(&work.targets).enumerate() {
        *answer = outcome(STATUSES[(seed + at * at) % 7]);
        let mean = 100_000 * (1 + (seed + at) as u64 % 50);
        answer.rtt = answer.rtt.map(|_| Rtt {
            min_ns: mean,
            avg_ns: mean,
            max_ns: mean,
            stddev_ns: 0,
        });
        if matches!((target, answer.status.kind()), (Target::Text(_), kind) if kind != StatusKind::DnsFailed)
        {
            answer.address = Some(Ipv4Addr::from_bits(0x0a01_0000 + (seed + at) as u32).into());
        }
    }
    delivery(message)
}

/// What the rows say.
#[derive(Debug, Default, PartialEq)]
struct Counted {
    statuses: BTreeMap<IpAddr, BTreeMap<String, i64>>,
    rtt_ns: Vec<i64>,
    answered: i64,
    not_up: i64,
    not_up_targets: BTreeSet<String>,
}

impl Counted {
    fn of(store: &Writer, run: i64) -> Result<Self> {
        let reader = reader(store)?;
        let mut pages = reader.report(run, &ReportFilter::default());
        let mut counted = Self::default();
        loop {
            let rows = pages.next_page()?;
            if rows.is_empty() {
                break;
            }
            for row in rows {
                if let Some(address) = &row.address {
                    let of_address = counted.statuses.entry(address.parse()?).or_default();
                    *of_address.entry(row.status).or_default() += 1;
                }
                if row.received > 0 {
                    counted.answered += 1;
                } else {
                    counted.not_up += 1;
                    counted.not_up_targets.insert(row.target);
                }
                let rtt_ns = row.rtt_ms[1].map(|ms| (ms * 1e6).round() as i64);
                counted.rtt_ns.extend(rtt_ns);
            }
        }
        Ok(counted)
    }

    /// Compares the detail with the rows. Networks of IPv4 have this length, and of IPv6 at most /64.
    fn compare(&self, detail: &RunDetail, v4: u8) -> Result<()> {
        for bin in &detail.rtt {
            let inside = |rtt: &&i64| (bin.from_ns..bin.to_ns).contains(*rtt);
            let count = self.rtt_ns.iter().filter(inside).count();
            ensure!(bin.targets == count as i64, "{bin:?}: {count}");
        }
        let timed: i64 = detail.rtt.iter().map(|bin| bin.targets).sum();
        ensure!(
            timed == self.rtt_ns.len() as i64,
            "{timed} round-trip times"
        );
        let answered: i64 = detail.timeline.iter().map(|bin| bin.answered).sum();
        let not_up: i64 = detail.timeline.iter().map(|bin| bin.not_up).sum();
        ensure!(
            (answered, not_up) == (self.answered, self.not_up),
            "{:?}",
            detail.timeline
        );
        let mut by_network: BTreeMap<IpNet, BTreeMap<&str, i64>> = BTreeMap::new();
        for (address, counts) in &self.statuses {
            let length = if address.is_ipv4() { v4 } else { 64 };
            let counted = by_network
                .entry(IpNet::new(*address, length)?.trunc())
                .or_default();
            for (status, count) in counts {
                *counted.entry(status).or_default() += count;
            }
        }
        let found = detail.subnets.iter().map(|subnet| {
            let counts = subnet.counts.iter().filter(|(_, count)| *count > 0);
            (
                subnet.subnet,
                counts
                    .map(|(status, count)| (status.name(), count))
                    .collect(),
            )
        });
        let found: BTreeMap<_, _> = found.collect();
        ensure!(found == by_network, "{found:?}\n{by_network:?}");
        Ok(())
    }
}

/// Compares the progress of a run with its rows.
fn compare(store: &Writer, run: i64) -> Result<()> {
    let progress = reader(store)?.progress(run)?;
    let counted = Counted::of(store, run)?;
    let Some(progress) = progress else {
        ensure!(counted == Counted::default(), "no progress of {counted:?}");
        return Ok(());
    };
    ensure!(progress.rtt_sum_ns == counted.rtt_ns.iter().sum::<i64>());
    counted.compare(&progress.detail, 24)?;
    let addresses = progress.detail.addresses.context("they are few")?;
    let v4 = counted
        .statuses
        .iter()
        .filter(|(address, _)| address.is_ipv4());
    let last = |counts: &BTreeMap<String, i64>| {
        let mut kinds = StatusKind::ALL.into_iter().rev();
        kinds.find(|kind| counts.contains_key(kind.name()))
    };
    let v4: Vec<_> = v4
        .map(|(address, counts)| (*address, last(counts)))
        .collect();
    let addresses: Vec<_> = addresses
        .into_iter()
        .map(|(address, status)| (IpAddr::V4(address), Some(status)))
        .collect();
    ensure!(addresses == v4, "{addresses:?}\n{v4:?}");
    let listed = progress.last_not_up.len();
    ensure!(
        listed == counted.not_up_targets.len().min(50),
        "{listed} are listed"
    );
    let is_not_up = |target: &String| counted.not_up_targets.contains(target);
    ensure!(
        progress
            .last_not_up
            .iter()
            .all(|row| is_not_up(&row.target))
    );
    let proof = reader(store)?.verify(run)?;
    ensure!(proof.is_consistent(), "{:?}", proof.findings);
    Ok(())
}

/// What happens to a batch of chunks.
#[derive(Debug, Clone, Copy)]
enum Fault {
    None,
    /// The transaction fails at its end, and the batch comes again.
    Failed,
    /// The writer is closed after the commit and before the acks, so that the batch comes again.
    Killed,
}

/// The seeds of the targets of each chunk, and the batches: their chunks, and what happens to them.
type Scenario = (Vec<Vec<u32>>, Vec<(Vec<usize>, Fault)>);

fn scenario() -> impl Strategy<Value = Scenario> {
    let fault =
        prop_oneof![4 => Just(Fault::None), 1 => Just(Fault::Failed), 1 => Just(Fault::Killed)];
    vec(vec(0..400_u32, 1..40), 1..8).prop_flat_map(move |chunks| {
        let batch = vec(0..chunks.len(), 1..5);
        (Just(chunks), vec((batch, fault.clone()), 1..8))
    })
}

const FAIL: &str = "CREATE TRIGGER fail BEFORE UPDATE ON writers BEGIN SELECT raise(ABORT, 'the disk is gone'); END";

fn follow(chunks: &[Vec<u32>], batches: &[(Vec<usize>, Fault)]) -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("fleet.db");
    let mut store = options(&path).open()?;
    store.note_writer_alive(Transport::Broker, "test")?;
    // A target stands once in a plan.
    let mut known = BTreeSet::new();
    let mut distinct = |seeds: &Vec<u32>| -> Vec<Target> {
        let new = seeds.iter().filter(|seed| known.insert(**seed));
        new.map(|seed| target(*seed)).collect()
    };
    let mut targets: Vec<_> = chunks.iter().map(&mut distinct).collect();
    targets.retain(|targets| !targets.is_empty());
    let (planned, works) = plan_of(&mut store, Transport::Broker, targets)?;
    store.start_run(planned.run)?;
    for (number, (batch, fault)) in batches.iter().enumerate() {
        let batch = batch
            .iter()
            .map(|at| message(&works[at % works.len()], number));
        let batch: Vec<_> = batch.collect();
        match fault {
            Fault::None => {}
            Fault::Failed => {
                let other = Connection::open(&path)?;
                other.execute_batch(FAIL)?;
                ensure!(store.apply(Transport::Broker, &batch).is_err());
                compare(&store, planned.run)?;
                other.execute_batch("DROP TRIGGER fail")?;
            }
            Fault::Killed => {
                store.apply(Transport::Broker, &batch)?;
                drop(store);
                store = options(&path).open()?;
            }
        }
        store.apply(Transport::Broker, &batch)?;
        compare(&store, planned.run)?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(Config { cases: 60, failure_persistence: None, ..Config::default() })]

    #[test]
    fn the_progress_is_a_count_over_the_rows((chunks, batches) in scenario()) {
        if let Err(error) = follow(&chunks, &batches) {
            return Err(TestCaseError::fail(format!("{error:#}")));
        }
    }
}

/// The control: a batch that is stored and not counted is found, by the comparison and by `verify`.
#[test]
fn a_batch_that_is_not_counted_is_found() -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("fleet.db");
    let mut store = options(&path).open()?;
    let targets = (0..3).map(|chunk| vec![target(4 * chunk + 2), target(4 * chunk + 3)]);
    let (planned, works) = plan_of(&mut store, Transport::Broker, targets.collect())?;
    store.start_run(planned.run)?;
    let other = Connection::open(&path)?;
    for (number, work) in works.iter().enumerate() {
        let before: Option<Vec<u8>> =
            other.query_row("SELECT max(progress) FROM run_progress", (), |row| {
                row.get(0)
            })?;
        store.apply(Transport::Broker, &[message(work, number)])?;
        if number < 2 {
            compare(&store, planned.run)?;
        } else {
            other.execute("UPDATE run_progress SET progress = ?1", [before])?;
        }
    }
    ensure!(compare(&store, planned.run).is_err());
    let findings = reader(&store)?.verify(planned.run)?.findings;
    ensure!(
        findings.len() == 2
            && findings
                .iter()
                .all(|finding| finding.0.contains("the progress counts")),
        "{findings:?}"
    );
    // What cannot be read is a finding as well.
    other.execute_batch("UPDATE run_progress SET progress = x'93'")?;
    let findings = reader(&store)?.verify(planned.run)?.findings;
    ensure!(
        findings.len() == 1 && findings[0].0.contains("cannot be read"),
        "{findings:?}"
    );
    Ok(())
}

/// Counters that cannot be read hold up no result.
#[test]
fn damaged_counters_are_removed_and_the_rows_are_stored() -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("fleet.db");
    let mut store = options(&path).open()?;
    let targets = (0..3).map(|chunk| vec![target(4 * chunk + 2), target(4 * chunk + 3)]);
    let (planned, works) = plan_of(&mut store, Transport::Broker, targets.collect())?;
    store.start_run(planned.run)?;
    store.apply(Transport::Broker, &[message(&works[0], 0)])?;
    let other = Connection::open(&path)?;
    other.execute_batch("UPDATE run_progress SET progress = x'93'")?;
    for number in [1, 2] {
        store.apply(Transport::Broker, &[message(&works[number], number)])?;
    }
    let reader = reader(&store)?;
    ensure!(reader.progress(planned.run)?.is_none());
    let report = reader.verify(planned.run)?;
    ensure!(report.is_complete(), "{:?}", report.findings);
    Ok(())
}

/// A page shows that nothing was stored lately, and not for ever what was an incomplete run.
#[test]
fn the_timeline_ends_now_only_while_the_run_is_running() -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("fleet.db");
    let mut store = options(&path).open()?;
    let targets = (0..2).map(|chunk| vec![target(4 * chunk + 2), target(4 * chunk + 3)]);
    let (planned, works) = plan_of(&mut store, Transport::Broker, targets.collect())?;
    store.start_run(planned.run)?;
    store.apply(Transport::Broker, &[message(&works[0], 0)])?;
    store.renew_lease(planned.run, None)?;
    let other = Connection::open(&path)?;
    other.execute_batch("UPDATE runs SET started_at_us = started_at_us - 90000000")?;
    let reader = reader(&store)?;
    let length_s = || {
        let progress = reader.progress(planned.run)?.context("it has one")?;
        let last = progress
            .detail
            .timeline
            .last()
            .map(|bin| bin.from_s + bin.length_s);
        last.context("it has a timeline")
    };
    let running_s = length_s()?;
    ensure!(running_s >= 90.0, "{running_s} s");
    store.release_lease(planned.run)?;
    let incomplete_s = length_s()?;
    ensure!(incomplete_s < 90.0, "{incomplete_s} s");
    Ok(())
}

/// More addresses than there are cells: the prefixes become shorter, and nothing is lost.
#[test]
fn many_addresses_are_counted_by_shorter_prefixes() -> Result<()> {
    let folder = TempDir::new()?;
    let mut store = options(&folder.path().join("fleet.db")).open()?;
    // 6,000 addresses in as many /22s, and 1,500 in as many /64s of one /48.
    let v4 = |number: u32| Target::Address(Ipv4Addr::from_bits(number << 10).into());
    let v6 = |number: u32| {
        Target::Address(
            Ipv6Addr::from_bits((0xfd00_u128 << 112) + (u128::from(number) << 64)).into(),
        )
    };
    let mut targets: Vec<_> = (1..=6000).map(v4).chain((0..1500).map(v6)).collect();
    fastrand::Rng::with_seed(5).shuffle(&mut targets);
    let chunks = targets.chunks(250).map(<[_]>::to_vec).collect();
    let (planned, works) = plan_of(&mut store, Transport::Broker, chunks)?;
    store.start_run(planned.run)?;
    for (number, work) in works.iter().enumerate() {
        store.apply(Transport::Broker, &[message(work, number)])?;
    }
    let progress = reader(&store)?
        .progress(planned.run)?
        .context("it has one")?;
    ensure!(progress.detail.addresses.is_none());
    let lengths: BTreeSet<_> = progress
        .detail
        .subnets
        .iter()
        .map(|subnet| subnet.subnet.prefix_len())
        .collect();
    ensure!(lengths == [20, 56].into(), "{lengths:?}");
    let mut counted = Counted::of(&store, planned.run)?;
    let mut v4 = counted.statuses.clone();
    v4.retain(|address, _| address.is_ipv4());
    counted.statuses = v4;
    let mut detail = progress.detail;
    detail
        .subnets
        .retain(|subnet| subnet.subnet.addr().is_ipv4());
    counted.compare(&detail, 20)?;
    ensure!(reader(&store)?.verify(planned.run)?.is_complete());
    Ok(())
}
