//! What is wrong with the settings, as text for a terminal: a problem is one line of bounded length, whatever stands in
//! the file, and of many problems only the first are shown.

use std::fmt;

use thiserror::Error;

/// How many problems are shown.
const MAX_SHOWN: usize = 20;

/// The longest problem that is shown whole, in characters: twice the longest path that has a sentence behind it.
const MAX_CHARS: usize = 1000;

/// Everything that is wrong with the settings.
#[derive(Debug, Error)]
pub struct SettingsError {
    /// One sentence for each problem, each on one line.
    pub problems: Vec<String>,
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [only] = self.problems.as_slice() {
            return f.write_str(only);
        }
        write!(f, "{} problems in the settings:", self.problems.len())?;
        for problem in self.problems.iter().take(MAX_SHOWN) {
            write!(f, "\n  {problem}")?;
        }
        match self.problems.len().saturating_sub(MAX_SHOWN) {
            0 => Ok(()),
            more => write!(f, "\n  and {more} more"),
        }
    }
}

/// A problem as one line. Names and values in it are of unknown origin: what controls a terminal is escaped, and the middle
/// of a long text is left out, because the place stands before it and the rule behind it.
pub(crate) fn one_line(problem: &str) -> String {
    let characters = problem.chars().count();
    let half = MAX_CHARS / 2;
    let is_whole = characters <= MAX_CHARS;
    let mut line = String::new();
    for (index, character) in problem.chars().enumerate() {
        if is_whole || index < half || index >= characters - half {
            if matches!(character, '\'' | '"' | '\\') {
                line.push(character);
            } else {
                line.extend(character.escape_debug());
            }
        } else if index == half {
            line.push_str(" ... ");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_one_line_without_what_controls_a_terminal() {
        assert_eq!(
            one_line("\u{1b}[2J\n'a' \"b\" \\\u{202e}\u{2028} gr\u{fc}n"),
            "\\u{1b}[2J\\n'a' \"b\" \\\\u{202e}\\u{2028} gr\u{fc}n"
        );
    }

    #[test]
    fn of_a_long_problem_the_place_and_the_rule_are_shown() {
        let value = |bytes| format!("FILE: key: \"{}\" is no rule", "x".repeat(bytes));
        let (short, long) = (value(100), value(1 << 20));
        assert_eq!(one_line(&short), short);
        let line = one_line(&long);
        assert!(line.starts_with("FILE: key: \"xx") && line.ends_with("xx\" is no rule"));
        assert_eq!(line.len(), MAX_CHARS + " ... ".len());
    }

    #[test]
    fn twenty_problems_are_shown_and_all_are_counted() {
        let shown = |count: usize| {
            let problems = (0..count).map(|number| format!("problem {number}"));
            SettingsError {
                problems: problems.collect(),
            }
            .to_string()
        };
        assert_eq!(shown(1), "problem 0");
        assert_eq!(shown(20).lines().count(), 21);
        assert!(shown(20).ends_with("\n  problem 19"));
        assert!(shown(170_000).starts_with("170000 problems in the settings:\n  problem 0\n"));
        assert!(shown(170_000).ends_with("\n  problem 19\n  and 169980 more"));
    }
}
