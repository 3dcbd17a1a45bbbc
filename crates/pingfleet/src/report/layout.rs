//! Lines of text with colours, and tables beside or below one another as the width allows. No I/O but the question what
//! the terminal is.

use std::{
    borrow::Cow,
    env,
    io::{self, IsTerminal as _, Write as _},
};

use anstyle::Style;
use pingfleet_settings::{Failure, printed};
use terminal_size::{Height, Width, terminal_size_of};
use unicode_width::UnicodeWidthStr as _;

/// Columns of an output that is no terminal, and the range for one that is.
const DEFAULT_WIDTH: usize = 100;
const WIDTHS: (usize, usize) = (40, 160);

/// Between two tables, and between two items of a line.
const GAP: usize = 3;

/// What the output can show.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Screen {
    /// Columns.
    pub(crate) width: usize,
    /// Bars are shown on terminals only.
    pub(crate) has_bars: bool,
    has_colour: bool,
}

impl Screen {
    /// The standard output.
    pub(crate) fn of_stdout() -> Self {
        let stdout = io::stdout();
        Self::new(stdout.is_terminal(), terminal_size_of(&stdout))
    }

    /// The standard error.
    pub(crate) fn of_stderr() -> Self {
        let stderr = io::stderr();
        Self::new(stderr.is_terminal(), terminal_size_of(&stderr))
    }

    fn new(is_terminal: bool, size: Option<(Width, Height)>) -> Self {
        if !is_terminal {
            return Self {
                width: DEFAULT_WIDTH,
                has_bars: false,
                has_colour: false,
            };
        }
        let width = size.map_or(DEFAULT_WIDTH, |(Width(width), _)| {
            usize::from(width).clamp(WIDTHS.0, WIDTHS.1)
        });
        Self {
            width,
            has_bars: true,
            has_colour: env::var_os("NO_COLOR").is_none(),
        }
    }

    /// A sentence: wrapped between its words on a terminal, and on one line otherwise. A command in backticks stays on one
    /// line.
    pub(crate) fn sentence(self, sentence: &str) -> String {
        const NO_BREAK_SPACE: &str = "\u{a0}";
        if !self.has_bars {
            return sentence.to_owned();
        }
        let parts = (0..).zip(sentence.split('`'));
        let kept = parts.map(|(at, part)| match at % 2 {
            0 => part.to_owned(),
            _ => part.replace(' ', NO_BREAK_SPACE),
        });
        let kept: Vec<_> = kept.collect();
        let lines = wrapped(&kept.join("`"), 2, self.width);
        let lines: Vec<_> = lines.iter().map(Line::text).collect();
        lines.join("\n").replace(NO_BREAK_SPACE, " ")
    }

    /// A text in a style.
    pub(crate) fn paint(self, style: Style, text: &str) -> String {
        if self.has_colour {
            format!("{style}{text}{style:#}")
        } else {
            text.to_owned()
        }
    }
}

/// A line: its text may have colours, so its width is counted apart.
#[derive(Debug, Clone, Default)]
pub(crate) struct Line {
    text: String,
    width: usize,
}

impl Line {
    pub(crate) fn new(text: &str) -> Self {
        let mut line = Self::default();
        line.push(text, text);
        line
    }

    /// Adds a text of which `painted` is the form with colours. What could control a terminal is escaped.
    pub(crate) fn push(&mut self, text: &str, painted: &str) {
        let safe = escaped(text);
        self.width += width(&safe);
        match &safe {
            Cow::Borrowed(_) => self.text.push_str(painted),
            Cow::Owned(safe) => self.text.push_str(&painted.replace(text, safe)),
        }
    }

    pub(crate) fn pad(&mut self, width: usize) {
        let missing = width.saturating_sub(self.width);
        self.text.extend(std::iter::repeat_n(' ', missing));
        self.width += missing;
    }

    fn append(&mut self, other: &Self) {
        self.text.push_str(&other.text);
        self.width += other.width;
    }

    /// The text without spaces at its end.
    pub(crate) fn text(&self) -> &str {
        self.text.trim_end()
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }
}

/// Lines below one another.
pub(crate) type Block = Vec<Line>;

/// Prints blocks with an empty line between two of them; empty ones are left out.
pub(crate) fn print(blocks: &[Block]) -> Result<(), Failure> {
    let mut text = String::new();
    for block in blocks.iter().filter(|block| !block.is_empty()) {
        if !text.is_empty() {
            text.push('\n');
        }
        for line in block {
            text.push_str(line.text());
            text.push('\n');
        }
    }
    printed(io::stdout().lock().write_all(text.as_bytes()))
}

/// Items on one line, or on more where the width demands it. Further lines are indented.
pub(crate) fn flow(items: &[String], indent: usize, width: usize) -> Block {
    let mut lines: Block = Vec::new();
    for item in items {
        if let Some(line) = lines.last_mut()
            && line.width + GAP + item.width() <= width
        {
            line.pad(line.width + GAP);
            line.push(item, item);
            continue;
        }
        let mut line = Line::default();
        line.pad(if lines.is_empty() { 0 } else { indent });
        line.push(item, item);
        lines.push(line);
    }
    lines
}

/// A sentence, wrapped between its words.
pub(crate) fn wrapped(sentence: &str, indent: usize, width: usize) -> Block {
    let mut lines: Block = vec![Line::default()];
    for word in sentence.split(' ') {
        let is_full = lines
            .last()
            .is_some_and(|line| line.width > indent && line.width + 1 + word.width() > width);
        if is_full {
            let mut next = Line::default();
            next.pad(indent);
            lines.push(next);
        }
        if let Some(line) = lines.last_mut() {
            if line.width > 0 && !(is_full && line.width == indent) {
                line.push(" ", " ");
            }
            line.push(word, word);
        }
    }
    lines
}

/// The columns that a text takes. Most texts are of ASCII.
pub(crate) fn width(text: &str) -> usize {
    if is_plain(text) {
        text.len()
    } else {
        text.width()
    }
}

/// Whether all of a text are the printable characters of ASCII.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

/// A text of unknown origin in a form that is safe for a terminal: control characters, and marks that change the
/// direction of the text or cannot be seen, are escaped.
pub(crate) fn escaped(text: &str) -> Cow<'_, str> {
    let is_unsafe = |letter: char| {
        letter.is_control()
            || matches!(
                letter,
                '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
                    | '\u{2060}'..='\u{206f}' | '\u{feff}'
            )
    };
    if is_plain(text) || !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::new();
    for letter in text.chars() {
        if is_unsafe(letter) {
            safe.extend(letter.escape_default());
        } else {
            safe.push(letter);
        }
    }
    Cow::Owned(safe)
}

/// A text cut to a width, with a sign that it was cut.
pub(crate) fn cut(text: &str, most: usize) -> String {
    if width(text) <= most {
        return text.to_owned();
    }
    let mut short = String::new();
    for letter in text.chars() {
        if short.width() + 2 > most {
            break;
        }
        short.push(letter);
    }
    short + "…"
}

/// A table with a heading over each column. `right` says which columns are aligned to the right; the first is not, and its
/// cells are indented under the heading.
pub(crate) fn columns(heading: &[&str], right: &[bool], rows: &[Vec<String>]) -> Block {
    let heading = heading.iter().map(|cell| (*cell).to_owned()).collect();
    let rows = rows.iter().map(|row| {
        let first = row.iter().take(1).map(|cell| format!("  {cell}"));
        first.chain(row.iter().skip(1).cloned()).collect()
    });
    let lines: Vec<Vec<String>> = std::iter::once(heading).chain(rows).collect();
    let width = |at: usize| lines.iter().map(|cells| cells[at].width()).max();
    let widths: Vec<_> = (0..right.len()).map(|at| width(at).unwrap_or(0)).collect();
    let line = |cells: &Vec<String>| {
        let mut line = Line::default();
        for (at, cell) in cells.iter().enumerate() {
            let start = line.width + if at > 0 { 2 } else { 0 };
            let space = if right[at] {
                widths[at] - cell.width()
            } else {
                0
            };
            line.pad(start + space);
            line.push(cell, cell);
            line.pad(start + widths[at]);
        }
        line
    };
    lines.iter().map(line).collect()
}

/// The widths of columns that a terminal has room for: 0 for a column that it does not show. `by_importance` has the columns
/// in the order in which they get their place, with the least and the most of it; 0 is as wide as the widest cell. The
/// first column gets at most a third; what is left goes to the last one.
pub(crate) fn fitted(
    widths: &[usize],
    by_importance: &[(usize, usize, usize)],
    screen: usize,
) -> Vec<usize> {
    let mut shown = vec![0; widths.len()];
    let mut used = 0;
    for (at, least, most) in by_importance.iter().copied() {
        let gap = if used > 0 { 2 } else { 0 };
        let room = screen.saturating_sub(used + gap);
        let width = match (at, least) {
            (0, _) => widths[0].min((screen / 3).max(18)),
            (_, 0) => widths[at],
            _ => widths[at].min(most).min(room.max(least)),
        };
        if width <= room && width > 0 {
            shown[at] = width;
            used += gap + width;
        }
    }
    if let (Some(last), Some(width)) = (shown.last_mut(), widths.last())
        && *last > 0
    {
        *last = (*width).min(*last + screen.saturating_sub(used));
    }
    shown
}

/// Blocks beside one another as far as the width allows, and the others below.
pub(crate) fn beside(blocks: Vec<Block>, width: usize) -> Vec<Block> {
    let mut rows: Vec<(Block, usize)> = Vec::new();
    for block in blocks {
        let own = block.iter().map(Line::width).max().unwrap_or(0);
        match rows.last_mut() {
            Some((row, used)) if *used + GAP + own <= width => {
                let start = *used + GAP;
                for (at, line) in block.iter().enumerate() {
                    if row.len() == at {
                        row.push(Line::default());
                    }
                    row[at].pad(start);
                    row[at].append(line);
                }
                *used = start + own;
            }
            _ => rows.push((block, own)),
        }
    }
    rows.into_iter().map(|(row, _)| row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(block: &Block) -> Vec<&str> {
        block.iter().map(Line::text).collect()
    }

    #[test]
    fn items_and_sentences_are_wrapped_at_the_width() {
        let items = ["one".to_owned(), "two".to_owned(), "three".to_owned()];
        assert_eq!(texts(&flow(&items, 2, 9)), ["one   two", "  three"]);
        assert_eq!(texts(&flow(&items, 2, 40)), ["one   two   three"]);
        let lines = wrapped("a sentence of words", 2, 10);
        assert_eq!(texts(&lines), ["a sentence", "  of words"]);
    }

    #[test]
    fn blocks_stand_beside_one_another_while_they_fit() {
        let block = |name: &str| {
            columns(
                &[name, "n"],
                &[false, true],
                &[vec!["x".to_owned(), "10".to_owned()]],
            )
        };
        let blocks = vec![block("aaaa"), block("bbbb"), block("cccc")];
        assert_eq!(
            texts(&beside(blocks.clone(), 30)[0]),
            [
                "aaaa   n   bbbb   n   cccc   n",
                "  x   10     x   10     x   10"
            ]
        );
        assert_eq!(beside(blocks.clone(), 29).len(), 2);
        assert_eq!(beside(blocks.clone(), 18).len(), 3);
        assert_eq!(beside(blocks, 30).len(), 1);
    }

    #[test]
    fn what_controls_a_terminal_is_escaped_and_colours_stay() {
        for (text, safe) in [
            ("é 日本 👩\u{200d}💻", "é 日本 👩\u{200d}💻"),
            ("a\u{1b}[2J\tb", r"a\u{1b}[2J\tb"),
            ("\u{202e}x\u{2066}\u{9b}", r"\u{202e}x\u{2066}\u{9b}"),
        ] {
            assert_eq!(escaped(text), safe);
            let mut line = Line::new("  ");
            line.push(text, &format!("\u{1b}[1m{text}\u{1b}[0m"));
            assert_eq!(line.text(), format!("  \u{1b}[1m{safe}\u{1b}[0m"));
            assert_eq!(line.width(), 2 + safe.width());
        }
    }

    #[test]
    fn a_long_text_is_cut_with_a_sign() {
        assert_eq!(cut("printer-7.example", 9), "printer-…");
        assert_eq!(cut("printer", 7), "printer");
    }
}
