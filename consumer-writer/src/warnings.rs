//! Counts what somebody may have to act on, so that a flood of messages is one warning a minute. No I/O.

use std::{collections::BTreeMap, fmt, time::Duration};

use tokio::time::Instant;

/// How often a warning repeats.
const INTERVAL: Duration = Duration::from_mins(1);

/// Different things that are counted apart.
const MAX_NAMED: usize = 20;

/// Counts by name since the last warning.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    by_name: BTreeMap<String, u64>,
    /// Those for which there was no place in `by_name`.
    others: u64,
    warned: Option<Instant>,
}

impl Counts {
    pub(crate) fn add(&mut self, name: String, count: u64) {
        if self.by_name.len() < MAX_NAMED || self.by_name.contains_key(&name) {
            *self.by_name.entry(name).or_default() += count;
        } else {
            self.others += count;
        }
    }

    /// What was counted, if there is something, and the last warning is a minute old or the writer stops. It is counted
    /// anew then.
    pub(crate) fn take_due(&mut self, is_stopping: bool) -> Option<Self> {
        let is_quiet = self
            .warned
            .is_none_or(|at| is_stopping || at.elapsed() >= INTERVAL);
        if self.by_name.is_empty() || !is_quiet {
            return None;
        }
        let next = Self {
            warned: Some(Instant::now()),
            ..Self::default()
        };
        Some(std::mem::replace(self, next))
    }

    pub(crate) fn total(&self) -> u64 {
        self.by_name.values().sum::<u64>() + self.others
    }
}

impl fmt::Display for Counts {
    /// `3 wrong token for chunk N of run N; 1 no run N; 7 others`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (name, count)) in self.by_name.iter().enumerate() {
            let separator = if position == 0 { "" } else { "; " };
            write!(f, "{separator}{count} {name}")?;
        }
        if self.others > 0 {
            write!(f, "; {} others", self.others)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_one_warning_a_minute_and_every_message_is_in_one() {
        let mut counts = Counts::default();
        assert!(counts.take_due(true).is_none());
        counts.add("one".to_owned(), 1);
        let first = counts.take_due(false).unwrap();
        assert_eq!((first.total(), first.to_string().as_str()), (1, "1 one"));
        for number in 0..MAX_NAMED + 5 {
            counts.add(format!("{number:02}"), 1);
        }
        counts.add("00".to_owned(), 1);
        assert!(counts.take_due(false).is_none());
        tokio::time::advance(INTERVAL).await;
        let second = counts.take_due(false).unwrap();
        assert_eq!(second.total(), MAX_NAMED as u64 + 6);
        let text = second.to_string();
        assert!(
            text.starts_with("2 00; 1 01; ") && text.ends_with("; 5 others"),
            "{text}"
        );
        // What is left is in the log when the writer stops.
        counts.add("last".to_owned(), 1);
        assert!(counts.take_due(false).is_none());
        assert_eq!(counts.take_due(true).unwrap().total(), 1);
    }
}
