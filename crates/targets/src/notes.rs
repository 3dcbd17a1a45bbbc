//! Notes for the user on how targets were read, and a description of where they come from.
//! No I/O.

use crate::{
    TargetArgs,
    bad_targets::{Place, shown},
    input::source::TargetSource,
    limits::MAX_REPORTED,
    parse::TargetSpec,
};

/// How many sources a description names.
const MAX_NAMED_SOURCES: usize = 5;

/// Notes for the user, the first few of them.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    reported: Vec<String>,
    omitted: u64,
}

impl Notes {
    pub(crate) fn add(&mut self, note: impl FnOnce() -> String) {
        if self.reported.len() < MAX_REPORTED {
            self.reported.push(note());
        } else {
            self.omitted += 1;
        }
    }

    /// Notes a network whose host bits are set.
    pub(crate) fn host_bits(&mut self, place: Option<Place<'_>>, spec: TargetSpec<'_>) {
        let TargetSpec::Network(network) = spec else {
            return;
        };
        if network.trunc() != network {
            self.add(|| {
                let place = place.map_or(String::new(), |place| format!("{place}: "));
                format!(
                    "{place}{network}: host bits are set, read as {}",
                    network.trunc()
                )
            });
        }
    }

    /// Notes a line that is part of a cell in quotes, and reads like a row: a quote may be missing.
    pub(crate) fn quoted_row(&mut self, place: Place<'_>, line: u64) {
        self.add(|| {
            format!(
                "{place}: one row with line breaks in quotes; line {line} is part of it and no target, although it reads \
                 like one"
            )
        });
    }

    /// Notes a comment of a CSV file that reads like a row: its first cell may begin with `#`.
    pub(crate) fn commented_row(&mut self, place: Place<'_>) {
        self.add(|| {
            format!(
                "{place}: a comment, and no target, although it reads like one; a cell that begins with # is written in \
                 quotes"
            )
        });
    }

    /// Notes an argument that was read as a file, and could be a host's name.
    pub(crate) fn file_like_host(&mut self, source: TargetSource<'_>, word: &str) {
        if let TargetSource::File {
            may_be_host: true, ..
        } = source
        {
            self.add(|| {
                format!("{word}: read as a file; the host is written {word}. (with a dot)")
            });
        }
    }

    /// The notes, with the number of those that are left out.
    pub(crate) fn finish(mut self) -> Vec<String> {
        if self.omitted > 0 {
            self.reported
                .push(format!("and {} more notes", self.omitted));
        }
        self.reported
    }
}

/// The sources in a few words.
pub(crate) fn describe(args: &TargetArgs) -> String {
    fn list(names: impl Iterator<Item = String>) -> String {
        let mut names: Vec<_> = names.collect();
        let more = names.len().saturating_sub(MAX_NAMED_SOURCES);
        names.truncate(MAX_NAMED_SOURCES);
        let joined = names.join(", ");
        match more {
            0 => joined,
            more => format!("{joined} and {more} more"),
        }
    }
    let file = |path| TargetSource::from_path(path).name();
    let targets = args.targets.iter().map(|word| match word.as_str() {
        "-" => TargetSource::StandardInput.name(),
        word => shown(word),
    });
    let mut text = list(targets.chain(args.hosts.iter().map(|path| file(path))));
    let words = args.exclude.iter().map(|word| shown(word));
    let excludes = list(words.chain(args.exclude_file.iter().map(|path| file(path))));
    if !excludes.is_empty() {
        text.push_str(" without ");
        text.push_str(&excludes);
    }
    text
}
