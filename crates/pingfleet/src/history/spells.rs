//! Spells in which a target did not answer. No I/O.

use std::collections::BTreeMap;

use jiff::Timestamp;
use pingfleet_store::TargetRuns;
use pingfleet_wire::StatusKind;

/// A time in which a target did not answer. Times in microseconds since 1970-01-01 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spell {
    /// When it did not answer first.
    pub(super) from_us: i64,
    /// When it answered again; `None` if it has not yet.
    pub(super) to_us: Option<i64>,
    /// Its status at the beginning.
    pub(super) status: StatusKind,
}

/// The spells, the newest first. What is `unknown` neither begins nor ends one.
pub(super) fn spells(found: &TargetRuns) -> Vec<Spell> {
    let mut spells: Vec<Spell> = Vec::new();
    for (at, status) in observations(found) {
        let is_down = spells.last().is_some_and(|spell| spell.to_us.is_none());
        match (status, is_down) {
            (StatusKind::Up | StatusKind::Late, true) => {
                if let Some(spell) = spells.last_mut() {
                    spell.to_us = Some(at);
                }
            }
            (StatusKind::Up | StatusKind::Late | StatusKind::Unknown, _) | (_, true) => {}
            (status, false) => spells.push(Spell {
                from_us: at,
                to_us: None,
                status,
            }),
        }
    }
    spells.reverse();
    spells
}

/// What is known of the target, by time: the rows, and the changes of runs whose rows are gone.
fn observations(found: &TargetRuns) -> BTreeMap<i64, StatusKind> {
    let mut observations = BTreeMap::new();
    if let Some(latest) = &found.latest {
        if let Some(first) = found.changes.first() {
            observations.insert(latest.first_seen_us, first.old);
        }
        match StatusKind::from_name(&latest.row.status) {
            None | Some(StatusKind::Unknown) => {}
            Some(status) => {
                observations.insert(latest.changed_at_us, status);
            }
        }
    }
    for change in &found.changes {
        observations.insert(change.changed_at_us, change.new);
    }
    for row in &found.rows {
        if let (Some(at), Some(status)) =
            (micros(&row.probed_at), StatusKind::from_name(&row.status))
        {
            observations.insert(at, status);
        }
    }
    observations
}

pub(super) fn micros(time: &str) -> Option<i64> {
    Some(time.parse::<Timestamp>().ok()?.as_microsecond())
}

#[cfg(test)]
mod tests {
    use pingfleet_store::{HostRow, ReportRow, StatusChange};

    use super::*;

    fn row(minute: u8, status: &str) -> ReportRow {
        ReportRow {
            run: i64::from(minute),
            run_id: String::new(),
            target: "127.0.0.1".to_owned(),
            address: None,
            status: status.to_owned(),
            reason: None,
            sent: 1,
            received: 0,
            loss_pct: None,
            rtt_ms: [None; 4],
            attempts: 1,
            worker: None,
            login: None,
            probed_at: format!("2023-11-14T22:{minute:02}:00.000Z"),
            labels: None,
        }
    }

    fn found(statuses: &[&str], changes: Vec<StatusChange>) -> TargetRuns {
        let rows = (10..)
            .zip(statuses)
            .map(|(minute, status)| row(minute, status));
        let mut rows: Vec<_> = rows.collect();
        rows.reverse();
        TargetRuns {
            latest: None,
            rows,
            runs_without: 0,
            runs_pruned: 0,
            changes,
        }
    }

    /// Minutes of the beginning and the end of each spell.
    fn minutes(found: &TargetRuns) -> Vec<(i64, Option<i64>)> {
        let zero = micros("2023-11-14T22:00:00Z").unwrap();
        let minute = |at: i64| (at - zero) / 60_000_000;
        let spells = spells(found).into_iter();
        spells
            .map(|spell| (minute(spell.from_us), spell.to_us.map(minute)))
            .collect()
    }

    #[test]
    fn a_spell_ends_with_the_next_answer_and_not_with_what_is_unknown() {
        for (statuses, expected) in [
            (["up", "late", "up"].as_slice(), [].as_slice()),
            (&["up", "down", "up"], &[(11, Some(12))]),
            (
                &["down", "unknown", "unreachable", "late"],
                &[(10, Some(13))],
            ),
            (&["unknown", "down"], &[(11, None)]),
            (&["up", "unknown", "up"], &[]),
            (
                &["down", "up", "dns_failed", "unknown"],
                &[(12, None), (10, Some(11))],
            ),
            (&[], &[]),
        ] {
            assert_eq!(
                minutes(&found(statuses, Vec::new())),
                expected,
                "{statuses:?}"
            );
        }
    }

    #[test]
    fn changes_of_runs_whose_rows_are_gone_count() {
        let changed = |minute: u8, old, new| StatusChange {
            changed_at_us: micros(&row(minute, "up").probed_at).unwrap(),
            old,
            new,
        };
        let changes = vec![
            changed(3, StatusKind::Up, StatusKind::Down),
            changed(5, StatusKind::Down, StatusKind::Up),
        ];
        assert_eq!(minutes(&found(&["up"], changes)), [(3, Some(5))]);
    }
    #[test]
    fn a_spell_of_runs_whose_rows_are_gone_begins_with_the_newest_status() {
        for (status, expected) in [
            ("down", [(2, None)].as_slice()),
            ("up", &[]),
            ("unknown", &[(20, None)]),
        ] {
            let mut found = found(&[], Vec::new());
            let newest = row(20, "down");
            let changed_at_us = micros(&row(2, status).probed_at).unwrap();
            found.latest = Some(HostRow {
                row: row(20, status),
                first_seen_us: changed_at_us,
                last_up_us: None,
                changed_at_us,
                changes_30d: 0,
            });
            if status != "up" {
                found.rows.push(newest);
            }
            assert_eq!(minutes(&found), expected, "{status}");
        }
    }
}
