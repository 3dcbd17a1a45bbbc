//! What is told of a list beside its targets: notes on how they were read, and a description of where they come from.
//! No I/O.

use crate::{TargetArgs, bad::MOST_TOLD, name, source::Source, spelling::Spelled};

/// How many sources a description names.
const MOST_NAMED: usize = 5;

/// Notes for the user, the first few of them.
#[derive(Debug, Default)]
pub(super) struct Notes {
    told: Vec<String>,
    untold: u64,
}

impl Notes {
    pub(super) fn add(&mut self, note: impl FnOnce() -> String) {
        if self.told.len() < MOST_TOLD {
            self.told.push(note());
        } else {
            self.untold += 1;
        }
    }

    /// Notes a network that was written with the address of one of its hosts.
    pub(super) fn host_bits(&mut self, place: Option<(&str, u64)>, spelled: Spelled<'_>) {
        let Spelled::Network(network) = spelled else {
            return;
        };
        if network.trunc() != network {
            self.add(|| {
                let place = place.map_or(String::new(), |(file, line)| format!("{file}:{line}: "));
                format!(
                    "{place}{network}: host bits are set, read as {}",
                    network.trunc()
                )
            });
        }
    }

    /// Notes a file whose name could be a host's, as it was read in the host's stead.
    pub(super) fn file_like_host(&mut self, source: Source<'_>, word: &str) {
        if matches!(source, Source::File(_)) && !word.contains('.') && name::check(word).is_ok() {
            self.add(|| {
                format!("{word}: read as a file; the host is written {word}. (with a dot)")
            });
        }
    }

    /// The notes, with the number of those that are left out.
    pub(super) fn finish(mut self) -> Vec<String> {
        if self.untold > 0 {
            self.told.push(format!("and {} more notes", self.untold));
        }
        self.told
    }
}

/// The sources in a few words.
pub(super) fn describe(args: &TargetArgs) -> String {
    fn list(names: impl Iterator<Item = String>) -> String {
        let mut names: Vec<_> = names.collect();
        let more = names.len().saturating_sub(MOST_NAMED);
        names.truncate(MOST_NAMED);
        let joined = names.join(", ");
        match more {
            0 => joined,
            more => format!("{joined} and {more} more"),
        }
    }
    let targets = args.targets.iter().map(|word| match word.as_str() {
        "-" => Source::Input.name(),
        word => Source::Word(word).name(),
    });
    let hosts = args.hosts.iter().map(|path| Source::of_option(path).name());
    let mut text = list(targets.chain(hosts));
    let words = args.exclude.iter().map(|word| Source::Word(word).name());
    let files = args.exclude_file.iter();
    let excludes = list(words.chain(files.map(|path| Source::of_option(path).name())));
    if !excludes.is_empty() {
        text.push_str(" without ");
        text.push_str(&excludes);
    }
    text
}
