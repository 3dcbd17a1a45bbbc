//! The table of cases and outcomes, as Markdown: a section for each version of the broker. No I/O.

use crate::{
    bench::{Case, Judgement},
    cases,
};

/// What the file begins with.
const HEAD: &str = "\
# Faults

What the fault suite did to a fleet, and what came of it. `scripts/fault-suite` writes this file; run it with the folder
of a broker's scripts to test with that broker, and its section is written anew.

Every case runs the real roles as processes, over a prober whose findings are a function of a seed and the address. At
rest, after whatever was done, this must hold:

- I1: every chunk that was published is done, dead, or outstanding with a message on a queue. Nothing is lost. A run with
  none outstanding is stored as ended, and `latest` has the newest row of each target.
- I2: a chunk is stored at most once, with all of its rows or none.
- I3: its rows are those of one probing, as the seed has them.
- I4: nothing was acked that was not committed or confirmed: what is outstanding is on a queue.
- I5: memory, threads, the database's log and the time to come to rest are bounded; nothing hangs.
- I6: every delivery to the writer was applied, a duplicate, or quarantined; the counters add up.

A control is the same case with a promise kept badly; it has to be seen that the invariants do not hold then.
";

/// Between the head and the sections.
const SECTION: &str = "\n## RabbitMQ ";

/// How the outcome of a case that holds begins.
const HOLDS: &str = "| holds: ";

/// Puts a broker's outcomes into the text of the file. Those of other brokers stay, and those of cases that were not run
/// now.
#[must_use]
pub fn with_section(file: &str, version: &str, judged: &[(Case, Judgement)]) -> String {
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

/// A row for each case that was run, now or before.
fn section(before: &str, judged: &[(Case, Judgement)]) -> String {
    let rows: Vec<String> = cases::all()
        .iter()
        .filter_map(|case| {
            let now = judged.iter().find(|(judged, _)| judged.name == case.name);
            match now {
                Some((case, how)) => Some(row(case, how)),
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
         | case | fault | what holds, beside I1 to I6 | outcome | control |\n|---|---|---|---|---|\n{}",
        rows.len(),
        rows.join("\n")
    )
}

fn row(case: &Case, how: &Judgement) -> String {
    let verdict = if how.passed { HOLDS } else { "| FAILED: " };
    let story = format!(
        "{} ({:.0} s in all)",
        cell(&how.story),
        how.took.as_secs_f64()
    );
    let [fault, holds, control] = [case.fault, case.holds, &how.control].map(cell);
    format!(
        "| {} | {fault} | {holds} {verdict}{story} | {control} |",
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
    fn what_was_not_run_now_stays_and_what_was_is_replaced() {
        let judgement = |story: &str| Judgement {
            passed: true,
            story: story.to_owned(),
            control: "none".to_owned(),
            took: Duration::from_mins(1),
        };
        let [one, other] = [cases::all()[0], cases::all()[1]];
        let text = with_section("", "4.0.5", &[(one, judgement("a | b"))]);
        let text = with_section(&text, "3.10.8", &[(one, judgement("first"))]);
        let text = with_section(&text, "3.10.8", &[(other, judgement("kept"))]);
        let text = with_section(&text, "3.10.8", &[(one, judgement("second"))]);
        assert!(text.contains("| holds: a \\| b ("), "{text}");
        assert!(text.contains("second") && !text.contains("first"), "{text}");
        assert!(text.contains("kept"), "{text}");
        assert!(text.find("3.10.8") < text.find("4.0.5"), "{text}");
        assert_eq!(text.matches("1 of 1 cases hold").count(), 1, "{text}");
        assert_eq!(text.matches("2 of 2 cases hold").count(), 1, "{text}");
    }
}
