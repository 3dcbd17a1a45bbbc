//! Every run as a row of a CSV file; medians, spreads and ratios; whether a promise holds.

use std::{fmt, fs::File, io::Write, ops::RangeInclusive, path::Path};

use anyhow::{Context, ensure};
use serde::Serialize;

/// One run of one program. What was not measured is empty.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Row {
    pub(crate) case: &'static str,
    pub(crate) round: u32,
    pub(crate) program: &'static str,
    pub(crate) targets: u32,
    pub(crate) seconds: Option<f64>,
    pub(crate) up: Option<u64>,
    pub(crate) down: Option<u64>,
    /// Neither up nor down.
    pub(crate) other: Option<u64>,
    /// Down, although they answer.
    pub(crate) false_down: Option<u64>,
    pub(crate) peak_rss_kb: Option<u64>,
    pub(crate) cpu_seconds: Option<f64>,
    pub(crate) requests: Option<u64>,
    /// The most requests that were unanswered at once.
    pub(crate) most_in_flight: Option<u64>,
    pub(crate) rtt_median_us: Option<f64>,
    pub(crate) rtt_p99_us: Option<f64>,
}

/// All rows so far, and the file that they are written to.
pub(crate) struct Rows {
    file: csv::Writer<File>,
    all: Vec<Row>,
}

/// The middle of some figures, and their spread.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Rows {
    /// Begins a file with `header`, whose lines become comments.
    pub(crate) fn create(path: &Path, header: &str) -> anyhow::Result<Self> {
        let mut file =
            File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        for line in header.lines() {
            println!("{line}");
            writeln!(file, "# {line}")?;
        }
        Ok(Self {
            file: csv::Writer::from_writer(file),
            all: Vec::new(),
        })
    }

    /// Writes the row of a run.
    ///
    /// # Errors
    /// When a target that answers was called down: then nothing else matters.
    pub(crate) fn note(&mut self, row: Row) -> anyhow::Result<()> {
        self.file.serialize(&row)?;
        self.file.flush()?;
        let false_down = row.false_down.unwrap_or(0);
        ensure!(
            false_down == 0,
            "{false_down} targets that answer are down: {row:?}"
        );
        self.all.push(row);
        Ok(())
    }

    /// The spread of a figure over the runs of a program in a case.
    pub(crate) fn spread(
        &self,
        case: &str,
        program: &str,
        figure: impl Fn(&Row) -> Option<f64>,
    ) -> Spread {
        let rows = self
            .all
            .iter()
            .filter(|row| row.case == case && row.program == program);
        Spread::of(rows.filter_map(figure).collect())
    }

    /// The spread of the seconds of a program, printed.
    pub(crate) fn seconds(&self, case: &str, program: &str) -> Spread {
        let seconds = self.spread(case, program, |row| row.seconds);
        print!("  {program:<34} {seconds} s");
        self.print_cost(case, program);
        seconds
    }

    /// What a program that is not timed took, printed.
    pub(crate) fn cost(&self, case: &str, program: &str) {
        print!("  {program:<34} {:36}", "");
        self.print_cost(case, program);
    }

    fn print_cost(&self, case: &str, program: &str) {
        let cpu = self.spread(case, program, |row| row.cpu_seconds).median;
        let peak = self
            .spread(case, program, |row| {
                row.peak_rss_kb.map(|kb| kb as f64 / 1000.0)
            })
            .most;
        println!("   cpu {cpu:>6.2} s   peak {peak:>5.0} MB");
    }
}

impl Spread {
    /// Of some figures; all NaN when there are none.
    pub(crate) fn of(mut figures: Vec<f64>) -> Self {
        figures.sort_by(f64::total_cmp);
        let at = |place: usize| figures.get(place).copied().unwrap_or(f64::NAN);
        Self {
            median: at(figures.len() / 2),
            least: at(0),
            most: at(figures.len().saturating_sub(1)),
        }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>9.3} ({:.3} .. {:.3})",
            self.median, self.least, self.most
        )
    }
}

/// Prints a figure and whether it meets its promise.
pub(crate) fn judge(what: &str, figure: f64, promised: RangeInclusive<f64>) {
    let verdict = if promised.contains(&figure) {
        "met"
    } else {
        "NOT MET"
    };
    let bound = match (promised.start(), promised.end()) {
        (least, most) if most.is_infinite() => format!("at least {least}"),
        (_, most) => format!("at most {most}"),
    };
    println!("  {what}: {figure:.2}, promised {bound}: {verdict}");
}
