//! What changed between two runs. The rows of both are sorted by target in temporary files, and merged.
//!
//! Invariants: no row of the database is read when [`Reader::diff`] has returned; memory holds at most
//! [`sorted_rows::MAX_ROWS`] rows of each run, and an entry for each subnet.

mod sorted_rows;
mod whole_subnets;

use std::{io, thread};

use ipnet::IpNet;
use pingfleet_wire::StatusKind;
use rusqlite::OptionalExtension;
use tokio_util::sync::CancellationToken;

pub use self::whole_subnets::WholeSubnet;
use self::{
    sorted_rows::{DiffRow, SortedRows, SortedRowsIter},
    whole_subnets::{SubnetTallies, subnet_of},
};
use crate::{Reader, RunState, RunSummary, StoreError};

/// After how many targets a pass over the sorted rows looks whether it was interrupted: about 1 ms.
const PAIRS_BETWEEN_LOOKS: u64 = 1000;

/// From when on another round-trip time is a change. Both must be exceeded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DiffLimits {
    /// The factor between the two means.
    pub rtt_factor: f64,
    /// The difference of the two means, in nanoseconds.
    pub rtt_min_ns: i64,
}

/// A kind of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChangeKind {
    /// It was up or late, and is neither now.
    StoppedAnswering,
    /// It is up or late, and was neither before.
    AnswersAgain,
    /// Another change of the status.
    OtherStatus,
    /// Only the second run has the target.
    Appeared,
    /// Only the first run has the target.
    Disappeared,
    /// The name has another address.
    OtherAddress,
    /// The mean round-trip time is longer, and the status is the same.
    Slower,
    /// The mean round-trip time is shorter, and the status is the same.
    Faster,
}

impl ChangeKind {
    /// All kinds, those that need attention first.
    pub const ALL: [Self; 8] = [
        Self::StoppedAnswering,
        Self::AnswersAgain,
        Self::OtherStatus,
        Self::Appeared,
        Self::Disappeared,
        Self::OtherAddress,
        Self::Slower,
        Self::Faster,
    ];

    /// The name in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::StoppedAnswering => "stopped_answering",
            Self::AnswersAgain => "answers_again",
            Self::OtherStatus => "other_status",
            Self::Appeared => "appeared",
            Self::Disappeared => "disappeared",
            Self::OtherAddress => "other_address",
            Self::Slower => "rtt_longer",
            Self::Faster => "rtt_shorter",
        }
    }
}

/// How a target was found in one of the two runs.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundTarget {
    /// The address that was probed.
    pub address: Option<String>,
    /// The status.
    pub status: StatusKind,
    /// The reason, for statuses that have one.
    pub reason: Option<String>,
    /// The mean round-trip time in nanoseconds.
    pub rtt_avg_ns: Option<i64>,
}

/// A change of one target. A target may have two: its status or round-trip time, and its address.
#[derive(Debug, Clone, PartialEq)]
pub struct TargetChange {
    /// The target as the user gave it, or the address for an expanded CIDR.
    pub target: String,
    /// What changed.
    pub kind: ChangeKind,
    /// In the first run. None if it appeared.
    pub before: Option<FoundTarget>,
    /// In the second run. None if it disappeared.
    pub after: Option<FoundTarget>,
    /// The /24 or /64 of its address, or the part of it that changed as a whole.
    pub subnet: Option<IpNet>,
    /// Whether the whole subnet changed like this: see [`WholeSubnet`].
    pub is_whole_subnet: bool,
}

/// The difference of two runs.
#[derive(Debug)]
pub struct RunDiff {
    /// The first run.
    pub before: RunSummary,
    /// The second run.
    pub after: RunSummary,
    /// Changes of each kind, in the order of [`ChangeKind::ALL`].
    pub counts: [i64; ChangeKind::ALL.len()],
    /// Targets of both runs.
    pub in_both: i64,
    /// Targets of both runs that are `unknown` in one of them: no change is claimed for their status and their RTT.
    pub unknown: i64,
    /// Targets of one run that the other one may not have probed yet, because it is not complete.
    pub not_probed: i64,
    /// Subnets that changed as a whole, in the order of their addresses.
    pub whole_subnets: Vec<WholeSubnet>,
    /// From when on another round-trip time is a change.
    pub limits: DiffLimits,
    rows: [SortedRows; 2],
    interrupt: Option<CancellationToken>,
}

impl RunDiff {
    /// How many changes there are.
    #[must_use]
    pub fn total(&self) -> i64 {
        self.counts.iter().sum()
    }

    /// The changes, in the order of the targets: IPv4 addresses by their number, and then all others by their text.
    ///
    /// # Errors
    /// When a temporary file cannot be read; [`io::ErrorKind::Interrupted`] when the token of [`Reader::interrupted_by`] is
    /// cancelled. [`StoreError::from_sorted_rows`] is the error of a caller.
    pub fn changes(&mut self) -> io::Result<impl Iterator<Item = io::Result<TargetChange>>> {
        // The position in a file is shared, so there is one iterator at a time.
        let diff: &Self = self;
        let mut pairs = diff.pairs()?;
        let mut pending: Vec<TargetChange> = Vec::new();
        Ok(std::iter::from_fn(move || {
            loop {
                if let Some(change) = pending.pop() {
                    return Some(Ok(change));
                }
                match pairs.next()? {
                    Ok(pair) => {
                        let kinds = diff.kinds(&pair);
                        let changes = kinds.into_iter().rev().flatten();
                        pending.extend(changes.map(|kind| diff.change(&pair, kind)));
                    }
                    Err(error) => return Some(Err(error)),
                }
            }
        }))
    }

    fn pairs(&self) -> io::Result<Pairs<'_>> {
        let [before, after] = &self.rows;
        Ok(Pairs {
            before: before.merged()?.peekable(),
            after: after.merged()?.peekable(),
            interrupt: self.interrupt.as_ref(),
            read: 0,
        })
    }

    /// What changed, if the changes of targets that one run may not have probed yet are left out.
    fn kinds(&self, pair: &Pair) -> [Option<ChangeKind>; 2] {
        if self.may_be_missing(pair) {
            [None, None]
        } else {
            pair.kinds(self.limits)
        }
    }

    fn may_be_missing(&self, pair: &Pair) -> bool {
        let is_complete = |summary: &RunSummary| summary.state == RunState::Complete;
        match pair {
            Pair::Before(_) => !is_complete(&self.after),
            Pair::After(_) => !is_complete(&self.before),
            Pair::Both(..) => false,
        }
    }

    fn change(&self, pair: &Pair, kind: ChangeKind) -> TargetChange {
        let row = pair.newest();
        let whole = row
            .address()
            .and_then(|address| subnet_of(&self.whole_subnets, address, kind));
        let (before, after) = pair.sides();
        TargetChange {
            target: row.target.clone().into(),
            kind,
            before: before.map(DiffRow::found),
            after: after.map(DiffRow::found),
            subnet: whole.or_else(|| row.subnet()),
            is_whole_subnet: whole.is_some(),
        }
    }

    /// Counts everything in one pass.
    fn count(&mut self) -> io::Result<()> {
        let mut counts = [0; ChangeKind::ALL.len()];
        let (mut in_both, mut unknown, mut not_probed) = (0, 0, 0);
        let mut subnets = SubnetTallies::default();
        for pair in self.pairs()? {
            let pair = pair?;
            if let Pair::Both(before, after) = &pair {
                in_both += 1;
                unknown += i64::from(before.is_unknown() || after.is_unknown());
            }
            not_probed += i64::from(self.may_be_missing(&pair));
            let kinds = self.kinds(&pair);
            for kind in kinds.into_iter().flatten() {
                counts[kind as usize] += 1;
            }
            subnets.add(&pair, kinds);
        }
        self.counts = counts;
        (self.in_both, self.unknown, self.not_probed) = (in_both, unknown, not_probed);
        self.whole_subnets = subnets.whole();
        Ok(())
    }
}

/// The rows of a target in the two runs.
#[derive(Debug)]
enum Pair {
    Before(DiffRow),
    After(DiffRow),
    Both(DiffRow, DiffRow),
}

impl Pair {
    fn sides(&self) -> (Option<&DiffRow>, Option<&DiffRow>) {
        match self {
            Self::Before(before) => (Some(before), None),
            Self::After(after) => (None, Some(after)),
            Self::Both(before, after) => (Some(before), Some(after)),
        }
    }

    fn newest(&self) -> &DiffRow {
        match self {
            Self::Before(row) | Self::After(row) | Self::Both(_, row) => row,
        }
    }

    /// The change of status or round-trip time, and that of the address.
    fn kinds(&self, limits: DiffLimits) -> [Option<ChangeKind>; 2] {
        let (before, after) = match self {
            Self::Before(_) => return [Some(ChangeKind::Disappeared), None],
            Self::After(_) => return [Some(ChangeKind::Appeared), None],
            Self::Both(before, after) => (before, after),
        };
        if before.is_unknown() || after.is_unknown() {
            return [None, None];
        }
        let is_other_address = matches!(
            (&before.name_address, &after.name_address),
            (Some(before), Some(after)) if before != after
        );
        let first = if before.status == after.status {
            shift(before.rtt_avg_ns, after.rtt_avg_ns, limits)
        } else {
            Some(match (before.answered(), after.answered()) {
                (true, false) => ChangeKind::StoppedAnswering,
                (false, true) => ChangeKind::AnswersAgain,
                _ => ChangeKind::OtherStatus,
            })
        };
        [first, is_other_address.then_some(ChangeKind::OtherAddress)]
    }
}

fn shift(before: Option<i64>, after: Option<i64>, limits: DiffLimits) -> Option<ChangeKind> {
    let (before, after) = (before?, after?);
    let (short, long) = (before.min(after), before.max(after));
    let is_shifted =
        long as f64 > limits.rtt_factor * short as f64 && long - short > limits.rtt_min_ns;
    is_shifted.then_some(if after > before {
        ChangeKind::Slower
    } else {
        ChangeKind::Faster
    })
}

/// Two sorted lists of rows, merged.
struct Pairs<'d> {
    before: std::iter::Peekable<SortedRowsIter<'d>>,
    after: std::iter::Peekable<SortedRowsIter<'d>>,
    interrupt: Option<&'d CancellationToken>,
    /// Pairs that were read.
    read: u64,
}

impl Iterator for Pairs<'_> {
    type Item = io::Result<Pair>;

    fn next(&mut self) -> Option<Self::Item> {
        use std::cmp::Ordering::{Equal, Greater, Less};
        let looks = self.read.is_multiple_of(PAIRS_BETWEEN_LOOKS);
        if looks && self.interrupt.is_some_and(CancellationToken::is_cancelled) {
            return Some(Err(io::ErrorKind::Interrupted.into()));
        }
        self.read += 1;
        let order = match (self.before.peek(), self.after.peek()) {
            (None, None) => return None,
            (Some(Ok(before)), Some(Ok(after))) => before.target.cmp(&after.target),
            (Some(_), None) | (Some(Err(_)), _) => Less,
            (None, Some(_)) | (_, Some(Err(_))) => Greater,
        };
        match order {
            Less => Some(self.before.next()?.map(Pair::Before)),
            Greater => Some(self.after.next()?.map(Pair::After)),
            Equal => {
                let (before, after) = (self.before.next()?, self.after.next()?);
                Some(before.and_then(|before| Ok(Pair::Both(before, after?))))
            }
        }
    }
}

impl Reader {
    /// The newest complete run, or `after` if it is given, and the complete run before it of the same source. Runs that
    /// repeat targets of another run, and pruned runs, do not count. `None` if there are no two.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn runs_to_compare(&self, after: Option<i64>) -> Result<Option<(i64, i64)>, StoreError> {
        self.read(|connection| {
            let sql = "SELECT max(b.run), a.run FROM runs a JOIN runs b ON b.source = a.source AND b.run < a.run
                 WHERE b.state = 'complete' AND b.parent_run IS NULL AND a.run = coalesce(?1, (
                     SELECT max(run) FROM runs WHERE state = 'complete' AND parent_run IS NULL
                     AND run NOT IN (SELECT run FROM pruned_runs)))
                 AND a.run NOT IN (SELECT run FROM pruned_runs) AND b.run NOT IN (SELECT run FROM pruned_runs)
                 GROUP BY a.run";
            let found = connection.query_row(sql, [after], |row| Ok((row.get(0)?, row.get(1)?)));
            Ok(found.optional()?)
        })
    }

    /// The newest complete run of the source of run `before` that is newer than it, and not pruned.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn newest_run_of_its_source(&self, before: i64) -> Result<Option<i64>, StoreError> {
        self.read(|connection| {
            let sql = "SELECT max(run) FROM runs WHERE state = 'complete' AND parent_run IS NULL AND run > ?1
                 AND source = (SELECT source FROM runs WHERE run = ?1) AND run NOT IN (SELECT run FROM pruned_runs)";
            Ok(connection.query_row(sql, [before], |row| row.get(0))?)
        })
    }

    /// Compares two runs. Scans both, at the same time, and writes about 30 bytes a row into temporary files.
    ///
    /// # Errors
    /// [`StoreError::NoSuchRun`], [`StoreError::Pruned`], [`StoreError::Sqlite`], [`StoreError::TemporaryFile`],
    /// [`StoreError::Interrupted`].
    pub fn diff(&self, before: i64, after: i64, limits: DiffLimits) -> Result<RunDiff, StoreError> {
        for run in [before, after] {
            self.summary(run)?.refuse_pruned()?;
        }
        let [first, second] = thread::scope(|scope| {
            let reading =
                [before, after].map(|run| scope.spawn(move || SortedRows::read(self, run)));
            reading.map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
        });
        let (before, after) = (self.summary(before)?, self.summary(after)?);
        // They may have been pruned while they were read.
        before.refuse_pruned()?;
        after.refuse_pruned()?;
        let mut diff = RunDiff {
            before,
            after,
            counts: [0; ChangeKind::ALL.len()],
            in_both: 0,
            unknown: 0,
            not_probed: 0,
            whole_subnets: Vec::new(),
            rows: [first?, second?],
            limits,
            interrupt: self.interrupt.clone(),
        };
        diff.count().map_err(StoreError::from_sorted_rows)?;
        Ok(diff)
    }
}
