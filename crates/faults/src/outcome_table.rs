//! The table of cases and outcomes, as Markdown: a section for each version of the broker. No I/O.

use crate::{
    cases,
    runner::{Case, CaseReport},
};

/// The beginning of the file.
const HEAD: &str = "\
# Faults

Which faults the fault suite injects, and with what outcome. `scripts/fault-suite` writes this file. Run it with the
folder of another broker's scripts to test with that broker; only that broker's section is then replaced.

Every case runs the real roles as processes, with a scripted prober whose results are a function of a seed and the
address. After every fault, once nothing changes any more, this must hold:

- I1: every published chunk is done, dead, or outstanding with a message on a queue. Nothing is lost. A run without
  outstanding chunks is closed, and `latest` has the newest row of each target.
- I2: a chunk is stored at most once, with all of its rows or none.
- I3: the rows of a chunk come from one probing, and equal what the seed produces.
- I4: nothing is acked before it is committed or confirmed: an outstanding chunk is on a queue.
- I5: memory, threads, the write-ahead log and the time until nothing changes any more are bounded; nothing hangs.
- I6: every delivery to the writer is applied, a duplicate, or quarantined; the counters add up.

A control is the same case with a deliberate defect. The same checks must then report a violation.
";

/// Between the head and the sections.
const SECTION: &str = "\n## RabbitMQ ";

/// How the outcome of a case that holds begins.
const HOLDS: &str = "| holds: ";

/// Puts a broker's outcomes into the text of the file. Outcomes of other brokers stay, and so do those of cases that were
/// not run this time.
#[must_use]
pub fn replace_section(file: &str, version: &str, judged: &[(Case, CaseReport)]) -> String {
    let mut sections: Vec<(&str, String)> = Vec::new();
    let mut before = "";
    for section in file.split(SECTION).skip(1) {
        let (of, body) = section.split_once('\n').unwrap_or((section, ""));
        if of == version {
            before = body;
        } else {
            sections.push((of, body.trim_end().to_owned()));
        }
    }
    sections.push((version, section(before, judged)));
    sections.sort();
    let mut text = HEAD.to_owned();
    for (version, body) in sections {
        text.push_str(SECTION);
        text.push_str(version);
        text.push('\n');
        text.push_str(&body);
        text.push('\n');
    }
    text
}

/// A row for each case that was run, this time or before.
fn section(before: &str, judged: &[(Case, CaseReport)]) -> String {
    let rows: Vec<String> = cases::all()
        .iter()
        .filter_map(|case| {
            let now = judged.iter().find(|(judged, _)| judged.name == case.name);
            match now {
                Some((case, report)) => Some(row(case, report)),
                None => before
                    .lines()
                    .find(|line| line.starts_with(&format!("| {} | ", case.name)))
                    .map(str::to_owned),
            }
        })
        .collect();
    let hold = rows.iter().filter(|row| row.contains(HOLDS)).count();
    format!(
        "\n{hold} of {} cases hold.\n\n\
         | case | fault | what holds, in addition to I1 to I6 | outcome | control |\n|---|---|---|---|---|\n{}",
        rows.len(),
        rows.join("\n")
    )
}

fn row(case: &Case, report: &CaseReport) -> String {
    let verdict = if report.passed { HOLDS } else { "| FAILED: " };
    let summary = format!(
        "{} ({:.0} s in all)",
        cell(&report.summary),
        report.took.as_secs_f64()
    );
    let [fault, holds, control] = [case.fault, case.holds, &report.control].map(cell);
    format!(
        "| {} | {fault} | {holds} {verdict}{summary} | {control} |",
        case.name
    )
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_row_is_replaced_only_when_its_case_was_run() {
        let report = |summary: &str| CaseReport {
            passed: true,
            summary: summary.to_owned(),
            control: "none".to_owned(),
            took: Duration::from_mins(1),
        };
        let [one, other] = [cases::all()[0], cases::all()[1]];
        let text = replace_section("", "4.0.5", &[(one, report("a | b"))]);
        let text = replace_section(&text, "3.10.8", &[(one, report("first"))]);
        let text = replace_section(&text, "3.10.8", &[(other, report("kept"))]);
        let text = replace_section(&text, "3.10.8", &[(one, report("second"))]);
        assert!(text.contains("| holds: a \\| b ("), "{text}");
        assert!(text.contains("second") && !text.contains("first"), "{text}");
        assert!(text.contains("kept"), "{text}");
        assert!(text.find("3.10.8") < text.find("4.0.5"), "{text}");
        assert_eq!(text.matches("1 of 1 cases hold").count(), 1, "{text}");
        assert_eq!(text.matches("2 of 2 cases hold").count(), 1, "{text}");
    }
}
