//! Runs cases: gives each a deployment, and judges the outcome of the case and of its control.

use std::time::{Duration, Instant};

use pingfleet_testbed::Rabbit;

use crate::deployment::Deployment;

/// Whether a case runs with the real roles or with a deliberate defect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// The roles as they are.
    Normal,
    /// With the defect of the case's control: the checks must report a violation.
    Control,
}

/// What one run of a case observed.
#[derive(Debug, Clone, Default)]
pub struct CaseOutcome {
    /// What happened, for the table.
    pub summary: String,
    /// What did not hold.
    pub violations: Vec<String>,
}

/// A control: the case with one deliberate defect.
#[derive(Debug, Clone, Copy)]
pub struct Control {
    /// The defect.
    pub defect: &'static str,
    /// Texts of violations. Each must appear in one of those that the control reports; other violations prove nothing.
    pub expected_violations: &'static [&'static str],
}

/// A case: the fault, what must hold afterwards, and the function that runs it.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Its name, for the command line and the table.
    pub name: &'static str,
    /// What is injected.
    pub fault: &'static str,
    /// What must hold, in addition to the invariants.
    pub holds: &'static str,
    /// The defect that its checks must detect.
    pub control: Control,
    /// Runs it.
    pub run: fn(&mut CaseRunner, Variant) -> anyhow::Result<CaseOutcome>,
}

/// The outcome of a case and of its control.
#[derive(Debug, Clone)]
pub struct CaseReport {
    /// Whether the case holds and its control was detected.
    pub passed: bool,
    /// What happened, or what failed.
    pub summary: String,
    /// What the control showed.
    pub control: String,
    /// How long both took.
    pub took: Duration,
}

/// Runs cases, and reuses the broker of one case for the next when that case succeeded.
#[derive(Debug, Default)]
pub struct CaseRunner {
    rabbit: Option<Rabbit>,
    deployments: u32,
    /// The full form of each case, or the quick one.
    pub full: bool,
}

impl CaseRunner {
    /// A runner for the full form of the cases, or for the quick one.
    #[must_use]
    pub fn new(full: bool) -> Self {
        Self {
            full,
            ..Self::default()
        }
    }

    /// The first value for the full form, the second one for the quick form.
    #[must_use]
    pub fn pick<T>(&self, full: T, quick: T) -> T {
        if self.full { full } else { quick }
    }

    /// The version of the broker that the cases run with.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn broker_version(&mut self) -> anyhow::Result<String> {
        self.with_deployment(|deployment| {
            Ok(deployment.broker()?.ctl(&["version"])?.trim().to_owned())
        })
    }

    /// Runs `body` with a deployment that has queues of its own, on a broker that earlier cases may have used.
    ///
    /// # Errors
    /// Those of `body`; the broker is not reused after one.
    pub fn with_deployment<T>(
        &mut self,
        body: impl FnOnce(&mut Deployment) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let rabbit = match self.rabbit.take() {
            Some(rabbit) => rabbit,
            None => Rabbit::start()?,
        };
        self.deployments += 1;
        let mut deployment =
            Deployment::with_shared_broker(rabbit, &format!("deployment{}", self.deployments))?;
        let done = body(&mut deployment)?;
        self.rabbit = deployment.into_broker();
        Ok(done)
    }

    /// Runs a case, and its control.
    pub fn judge(&mut self, case: &Case) -> CaseReport {
        let began = Instant::now();
        let mut report = match (case.run)(self, Variant::Normal) {
            Ok(outcome) if outcome.violations.is_empty() => CaseReport {
                passed: true,
                summary: outcome.summary,
                control: String::new(),
                took: Duration::ZERO,
            },
            Ok(outcome) => CaseReport::failed(outcome.violations.join("; ")),
            Err(error) => CaseReport::failed(format!("{error:#}")),
        };
        if report.passed {
            (report.passed, report.control) = self.judge_control(case);
        }
        report.took = began.elapsed();
        report
    }

    /// Whether the control reported the expected violations, and what it reported.
    fn judge_control(&mut self, case: &Case) -> (bool, String) {
        let Control {
            defect,
            expected_violations,
        } = case.control;
        let CaseOutcome {
            summary,
            violations,
        } = match (case.run)(self, Variant::Control) {
            Ok(outcome) => outcome,
            Err(error) => return (false, format!("{defect}: {error:#}")),
        };
        let detected: Option<Vec<&str>> = expected_violations
            .iter()
            .map(|words| {
                let matches = |violation: &&String| violation.contains(words);
                violations.iter().find(matches).map(String::as_str)
            })
            .collect();
        match detected {
            Some(violations) => (
                true,
                format!("{defect}: detected ({})", violations.join("; ")),
            ),
            None => (
                false,
                format!(
                    "{defect}: NOT detected ({summary}; {})",
                    violations.join("; ")
                ),
            ),
        }
    }
}

impl CaseReport {
    fn failed(reason: String) -> Self {
        Self {
            passed: false,
            summary: reason,
            control: "not run".to_owned(),
            took: Duration::ZERO,
        }
    }
}
