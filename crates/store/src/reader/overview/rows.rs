//! The rows of a run, added up.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use hdrhistogram::Histogram;
use ipnet::IpNet;
use pingfleet_wire::StatusKind;
use rusqlite::{Connection, Row, types::ValueRef};

use super::{
    LISTED, RunOverview, RunWorker, SubnetCounts, TargetRtt,
    detail::DetailScan,
    subnets_not_up::{SubnetScan, SubnetsNotUp},
};
use crate::{
    Reader, StoreError,
    address::shown_address,
    reader::report::{FIRST_KEY, RowKey},
};

/// Rows of one page. Each takes about 150 bytes.
const PAGE_ROWS: i64 = 50_000;

/// Different reasons that are counted. Those of `unreachable` have the reporter, so there may be many.
const MAX_REASONS: usize = 10_000;

/// Targets that did not answer and are kept until it is known which of them are in a prefix of which none answered.
const MAX_CANDIDATES: usize = 4096;

/// Significant digits of a percentile.
const DIGITS: u8 = 3;

const PAGE: &str = "SELECT chunk, position, status, sent, received, attempts, probed_after_us, address, rtt_avg_ns,
        coalesce(rtt_min_ns, rtt_avg_ns), coalesce(rtt_max_ns, rtt_avg_ns), reason, name IS NOT NULL
    FROM results WHERE run = ?1 AND (chunk, position) > (?2, ?3) ORDER BY chunk, position LIMIT ?4";

const CHUNKS: &str = "SELECT chunk, worker, started_at_us, login FROM chunks WHERE run = ?1 AND chunk BETWEEN ?2 AND ?3";

/// A row as it is stored, with what is counted of it.
#[derive(Debug)]
pub(super) struct StoredRow {
    key: RowKey,
    pub(super) status: u8,
    pub(super) sent: i64,
    received: i64,
    attempts: i64,
    probed_after_us: i64,
    pub(super) address: Option<IpAddr>,
    /// Mean, shortest and longest, in nanoseconds.
    pub(super) rtt_ns: Option<[i64; 3]>,
    pub(super) reason: Option<String>,
    /// Whether the target is a name.
    is_name: bool,
}

/// The first bits of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum SubnetKey {
    V4(u32),
    V6(u64),
}

/// Name and login of a worker.
type WorkerId = (Option<String>, Option<String>);

/// The worker of a chunk, and when it began with the chunk, in microseconds since 1970-01-01 UTC.
type ChunkWorker = (WorkerId, i64);

#[derive(Debug, Default)]
struct WorkerScan {
    targets: i64,
    local_losses: i64,
    /// When the first and the last target were begun.
    began_us: Option<(i64, i64)>,
}

/// What was added up so far.
#[derive(Debug, Default)]
pub(super) struct RowScan {
    pub(super) count: i64,
    pub(super) requests: i64,
    pub(super) replies: i64,
    /// The first targets that did not answer, with their addresses, and how many are kept.
    not_up: Vec<(RowKey, Option<IpAddr>)>,
    pub(super) max_not_up: usize,
    /// The addresses of names that did not answer.
    names_not_up: HashMap<RowKey, IpAddr>,
    /// What only a page shows.
    pub(super) detail: Option<DetailScan>,
    rtt: Option<RttScan>,
    /// The targets with the longest round-trip times, the shortest of these on top.
    slowest: BinaryHeap<Reverse<(i64, Reverse<RowKey>)>>,
    reasons: HashMap<(u8, Option<String>), i64>,
    subnets: HashMap<SubnetKey, SubnetScan>,
    workers: HashMap<WorkerId, WorkerScan>,
}

#[derive(Debug)]
struct RttScan {
    min_ns: i64,
    max_ns: i64,
    /// Microseconds.
    means: Histogram<u64>,
}

impl RowScan {
    /// Keeps at most so many targets that did not answer, and counts the detail of a page if it is given.
    pub(super) fn new(max_not_up: usize, detail: Option<DetailScan>) -> Self {
        Self {
            max_not_up,
            detail,
            ..Self::default()
        }
    }

    pub(super) fn read(&mut self, reader: &Reader, run: i64) -> Result<(), StoreError> {
        let mut after = FIRST_KEY;
        loop {
            let (rows, chunks) = reader.read(|connection| page(connection, run, after))?;
            for of_chunk in rows.chunk_by(|one, other| one.key.0 == other.key.0) {
                self.add_chunk(of_chunk, chunks.get(&of_chunk[0].key.0));
            }
            let Some(last) = rows.last() else {
                return Ok(());
            };
            after = last.key;
        }
    }

    fn add_chunk(&mut self, rows: &[StoredRow], chunk: Option<&ChunkWorker>) {
        let (worker, started_us) = chunk.cloned().unwrap_or_default();
        let worker = self.workers.entry(worker).or_default();
        worker.targets += rows.len() as i64;
        for row in rows {
            let lost = row.status == StatusKind::Unknown.code();
            worker.local_losses += row.attempts - 1 + i64::from(lost);
            let began = started_us + row.probed_after_us;
            let (first, last) = worker.began_us.get_or_insert((began, began));
            *first = began.min(*first);
            *last = began.max(*last);
            if let Some(detail) = &mut self.detail {
                detail.add(row, began);
            }
        }
        for row in rows {
            self.add(row);
        }
    }

    fn add(&mut self, row: &StoredRow) {
        self.count += 1;
        self.requests += row.sent;
        self.replies += row.received;
        let answered = row.status <= StatusKind::Late.code();
        if let Some(address) = row.address {
            let subnet = self.subnets.entry(SubnetKey::of(address)).or_default();
            subnet.add(address, row);
            if row.is_name && !answered && self.detail.is_none() {
                self.names_not_up.insert(row.key, address);
            }
        }
        if !answered {
            if self.not_up.len() < self.max_not_up.max(MAX_CANDIDATES) {
                self.not_up.push((row.key, row.address));
            }
            let reason = (
                row.status,
                row.reason.as_deref().map(general).map(str::to_owned),
            );
            if let Some(count) = self.reasons.get_mut(&reason) {
                *count += 1;
            } else if self.reasons.len() < MAX_REASONS {
                self.reasons.insert(reason, 1);
            }
        }
        if let Some([mean, min, max]) = row.rtt_ns {
            self.add_rtt(mean, min, max);
            self.slowest.push(Reverse((mean, Reverse(row.key))));
            if self.slowest.len() > LISTED {
                self.slowest.pop();
            }
        }
    }

    fn add_rtt(&mut self, mean: i64, min: i64, max: i64) {
        let rtt = self.rtt.get_or_insert_with(|| RttScan {
            min_ns: min,
            max_ns: max,
            means: Histogram::new(DIGITS).expect("the number of digits is valid"),
        });
        rtt.min_ns = rtt.min_ns.min(min);
        rtt.max_ns = rtt.max_ns.max(max);
        rtt.means
            .record(mean.max(0) as u64 / 1000)
            .expect("the histogram grows with its values");
    }

    pub(super) fn rtt(&self) -> Option<TargetRtt> {
        let rtt = self.rtt.as_ref()?;
        let at = |quantile: f64| {
            let micros = rtt.means.value_at_quantile(quantile) as i64;
            micros.saturating_mul(1000).clamp(rtt.min_ns, rtt.max_ns)
        };
        Some(TargetRtt {
            min_ns: rtt.min_ns,
            p50_ns: at(0.5),
            p95_ns: at(0.95),
            p99_ns: at(0.99),
            max_ns: rtt.max_ns,
        })
    }

    /// The prefixes in which no target answered.
    pub(super) fn subnets_not_up(&self) -> SubnetsNotUp {
        SubnetsNotUp::of(&self.subnets)
    }

    /// The first targets that did not answer, without those of some prefixes.
    pub(super) fn not_up_without(&self, subnets: &SubnetsNotUp) -> Vec<RowKey> {
        let is_single =
            |address: &Option<IpAddr>| address.and_then(|address| subnets.find(address)).is_none();
        let single = self.not_up.iter().filter(|(_, address)| is_single(address));
        single.map(|(key, _)| *key).take(self.max_not_up).collect()
    }

    /// The address of a name that did not answer.
    pub(super) fn name_address(&self, key: RowKey) -> Option<IpAddr> {
        self.names_not_up.get(&key).copied()
    }

    pub(super) fn slowest(&self) -> Vec<RowKey> {
        let mut slowest: Vec<_> = self.slowest.iter().collect();
        slowest.sort_unstable();
        slowest
            .into_iter()
            .map(|Reverse((_, Reverse(key)))| *key)
            .collect()
    }

    pub(super) fn reasons(&self) -> Vec<(&'static str, Option<String>, i64)> {
        let mut reasons: Vec<_> = self.reasons.iter().collect();
        reasons.sort_unstable_by_key(|(reason, count)| (Reverse(**count), *reason));
        let named = reasons.into_iter().map(|((status, reason), count)| {
            let status = StatusKind::ALL[usize::from(*status)].name();
            (status, reason.clone(), *count)
        });
        named.collect()
    }

    pub(super) fn worst_subnets(&self) -> Vec<SubnetCounts> {
        let mut worst: Vec<_> = self
            .subnets
            .iter()
            .map(|(subnet, scan)| (*subnet, scan.targets, scan.not_up))
            .filter(|(_, targets, not_up)| {
                *not_up > 0 && i64::from(*targets) >= RunOverview::MIN_SUBNET_TARGETS
            })
            .collect();
        worst.sort_unstable_by(|one, other| {
            // not_up / targets, without a division.
            let [left, right] = [(other, one), (one, other)]
                .map(|(share, by)| u64::from(share.2) * u64::from(by.1));
            left.cmp(&right)
                .then(other.2.cmp(&one.2))
                .then(one.0.cmp(&other.0))
        });
        worst
            .into_iter()
            .take(LISTED)
            .map(|(subnet, targets, not_up)| SubnetCounts {
                subnet: subnet.network(),
                targets: targets.into(),
                not_up: not_up.into(),
            })
            .collect()
    }

    pub(super) fn workers(self) -> Vec<RunWorker> {
        let mut workers: Vec<_> = self
            .workers
            .into_iter()
            .map(|((worker, login), scan)| RunWorker {
                worker,
                login,
                targets: scan.targets,
                targets_per_s: scan
                    .began_us
                    .map(|(first, last)| (last - first) as f64 / 1_000_000.0)
                    .filter(|seconds| *seconds > 0.0)
                    .map(|seconds| scan.targets as f64 / seconds),
                local_losses: scan.local_losses,
            })
            .collect();
        workers.sort_unstable_by(|one, other| {
            (&one.worker, &one.login).cmp(&(&other.worker, &other.login))
        });
        workers
    }
}

/// A reason without the address of a single host.
fn general(reason: &str) -> &str {
    match reason.split_once(' ') {
        Some((word @ ("arp_answered" | "answered_by"), _)) => word,
        _ => reason,
    }
}

/// The address in a column.
fn address(stored: ValueRef<'_>) -> Option<IpAddr> {
    match stored {
        ValueRef::Integer(number) => shown_address(number).map(IpAddr::V4),
        // A link-local address may have a zone behind it.
        ValueRef::Text(text) => {
            let text = std::str::from_utf8(text).ok()?;
            text.split('%').next()?.parse().ok()
        }
        _ => None,
    }
}

impl SubnetKey {
    pub(super) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::V4(address.to_bits() >> 8),
            IpAddr::V6(address) => Self::V6((address.to_bits() >> 64) as u64),
        }
    }

    pub(super) fn network(self) -> IpNet {
        let (address, length): (IpAddr, u8) = match self {
            Self::V4(bits) => (Ipv4Addr::from_bits(bits << 8).into(), 24),
            Self::V6(bits) => (Ipv6Addr::from_bits(u128::from(bits) << 64).into(), 64),
        };
        IpNet::new_assert(address, length)
    }
}

impl StoredRow {
    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        let mean: Option<i64> = row.get(8)?;
        let rtt_ns = match mean {
            Some(mean) => Some([mean, row.get(9)?, row.get(10)?]),
            None => None,
        };
        Ok(Self {
            key: (row.get(0)?, row.get(1)?),
            status: row.get(2)?,
            sent: row.get(3)?,
            received: row.get(4)?,
            attempts: row.get(5)?,
            probed_after_us: row.get(6)?,
            address: address(row.get_ref(7)?),
            rtt_ns,
            reason: row.get(11)?,
            is_name: row.get(12)?,
        })
    }
}

/// The rows behind a key, at most [`PAGE_ROWS`], and the workers of their chunks. A chunk's worker is written with its
/// rows, so it is there when they are.
fn page(
    connection: &Connection,
    run: i64,
    after: RowKey,
) -> Result<(Vec<StoredRow>, HashMap<i64, ChunkWorker>), StoreError> {
    let rows: Vec<StoredRow> = connection
        .prepare(PAGE)?
        .query_map((run, after.0, after.1, PAGE_ROWS), StoredRow::from_row)?
        .collect::<Result<_, _>>()?;
    let mut chunks = HashMap::new();
    if let (Some(first), Some(last)) = (rows.first(), rows.last()) {
        let mut statement = connection.prepare(CHUNKS)?;
        let read = statement.query_map((run, first.key.0, last.key.0), |row| {
            let started: Option<i64> = row.get(2)?;
            let worker = (row.get(1)?, row.get(3)?);
            Ok((row.get(0)?, (worker, started.unwrap_or(0))))
        })?;
        chunks = read.collect::<Result<_, _>>()?;
    }
    Ok((rows, chunks))
}
