//! Runs cases: gives each its fleet, and judges how it and its control ended.

use std::time::{Duration, Instant};

use pingfleet_testbed::Rabbit;

use crate::fleet::Fleet;

/// Whether the promise that a case is about is kept, or kept badly on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// The roles as they are.
    Kept,
    /// The control: a violation must be seen.
    Broken,
}

/// How a case ended.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// What was seen, for the table.
    pub story: String,
    /// What did not hold.
    pub violations: Vec<String>,
}

/// A control: the case with one promise kept badly.
#[derive(Debug, Clone, Copy)]
pub struct Control {
    /// What keeps its promise badly.
    pub broken: &'static str,
    /// Words of the violations that show it, each of which has to be seen. Others prove nothing.
    pub shown_by: &'static [&'static str],
}

/// A case: what is done, what must hold, and how it is done.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Its name, for the command line and the table.
    pub name: &'static str,
    /// What it belongs to.
    pub group: &'static str,
    /// What is done.
    pub fault: &'static str,
    /// What must hold, beside the invariants that always must.
    pub holds: &'static str,
    /// Which promise the control breaks.
    pub control: Control,
    /// Does it.
    pub run: fn(&mut Bench, Promise) -> anyhow::Result<Outcome>,
}

/// How a case and its control ended.
#[derive(Debug, Clone)]
pub struct Judgement {
    /// Whether all is well.
    pub passed: bool,
    /// What was seen, or what went wrong.
    pub story: String,
    /// What the control showed.
    pub control: String,
    /// How long both took.
    pub took: Duration,
}

/// Where cases run: keeps the broker from one to the next, where it is whole.
#[derive(Debug, Default)]
pub struct Bench {
    rabbit: Option<Rabbit>,
    fleets: u32,
    /// The whole suite, or the quick selection of it.
    pub thorough: bool,
}

impl Bench {
    /// A bench for the quick selection, or for all there is.
    #[must_use]
    pub fn new(thorough: bool) -> Self {
        Self {
            thorough,
            ..Self::default()
        }
    }

    /// The larger number for the whole suite, the smaller one for the quick selection.
    #[must_use]
    pub fn pick<T>(&self, thorough: T, quick: T) -> T {
        if self.thorough { thorough } else { quick }
    }

    /// The broker that the cases run with.
    ///
    /// # Errors
    /// When there is none.
    pub fn broker_version(&mut self) -> anyhow::Result<String> {
        self.with_fleet(|fleet| Ok(fleet.broker()?.ctl(&["version"])?.trim().to_owned()))
    }

    /// Runs something with a fleet whose queues are its own, on a broker that others used before.
    ///
    /// # Errors
    /// What `body` returns; the broker is not used again then.
    pub fn with_fleet<T>(
        &mut self,
        body: impl FnOnce(&mut Fleet) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let rabbit = match self.rabbit.take() {
            Some(rabbit) => rabbit,
            None => Rabbit::start()?,
        };
        self.fleets += 1;
        let mut fleet = Fleet::on(rabbit, &format!("fleet{}", self.fleets))?;
        let done = body(&mut fleet)?;
        self.rabbit = fleet.into_rabbit();
        Ok(done)
    }

    /// Runs a case, and its control.
    pub fn judge(&mut self, case: &Case) -> Judgement {
        let began = Instant::now();
        let mut judgement = match (case.run)(self, Promise::Kept) {
            Ok(outcome) if outcome.violations.is_empty() => Judgement {
                passed: true,
                story: outcome.story,
                control: String::new(),
                took: Duration::ZERO,
            },
            Ok(outcome) => Judgement::failed(outcome.violations.join("; ")),
            Err(error) => Judgement::failed(format!("{error:#}")),
        };
        if judgement.passed {
            (judgement.passed, judgement.control) = self.judge_control(case);
        }
        judgement.took = began.elapsed();
        judgement
    }

    /// Whether the control showed what it is to show, and what it showed.
    fn judge_control(&mut self, case: &Case) -> (bool, String) {
        let Control { broken, shown_by } = case.control;
        let Outcome { story, violations } = match (case.run)(self, Promise::Broken) {
            Ok(outcome) => outcome,
            Err(error) => return (false, format!("{broken}: {error:#}")),
        };
        let shown: Option<Vec<&str>> = shown_by
            .iter()
            .map(|words| {
                let shows = |violation: &&String| violation.contains(words);
                violations.iter().find(shows).map(String::as_str)
            })
            .collect();
        match shown {
            Some(shown) => (true, format!("{broken}: seen ({})", shown.join("; "))),
            None => (
                false,
                format!("{broken}: NOT seen ({story}; {})", violations.join("; ")),
            ),
        }
    }
}

impl Judgement {
    fn failed(why: String) -> Self {
        Self {
            passed: false,
            story: why,
            control: "not run".to_owned(),
            took: Duration::ZERO,
        }
    }
}
