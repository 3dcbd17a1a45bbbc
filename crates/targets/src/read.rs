//! Reads all that the arguments name: excludes first, then targets, in the order in which they are given.
//!
//! Bad targets are collected and reported together at the end. Only an error that makes a list impossible stops the
//! reading.

use std::{io::Read, path::PathBuf, sync::Mutex};

use pingfleet_wire::Family;

use crate::{
    InputFormat, TargetArgs, Targets,
    bad_targets::{BadTargets, Place},
    collect::{CollectError, CollectOptions, Collected, Collector},
    error::TargetsError,
    input::source::TargetSource,
    limits::{MAX_TARGETS, MAX_WITHOUT_YES, MEMORY_LIMITS, MemoryLimits},
    line_counts::{LineClass, LineCounts},
    notes::{Notes, describe},
    parse::{self, ParsedTarget},
    target_set::TargetSet,
};

/// Reads all targets that the arguments name. `stdin` is read where `-` stands, and else left alone.
///
/// # Errors
/// [`TargetsError`]: there is no list of targets, and nothing should be probed.
pub fn read(args: &TargetArgs, family: Family, stdin: impl Read) -> Result<Targets, TargetsError> {
    let files = args.hosts.iter().chain(&args.exclude_file);
    let inputs = files.filter(|path| TargetSource::from_path(path) == TargetSource::StandardInput);
    if inputs.count() + args.targets.iter().filter(|word| *word == "-").count() > 1 {
        return Err(TargetsError::InputTwice);
    }
    read_within(args, family, stdin, MEMORY_LIMITS)
}

/// The same with these limits.
fn read_within(
    args: &TargetArgs,
    family: Family,
    stdin: impl Read,
    limits: MemoryLimits,
) -> Result<Targets, TargetsError> {
    let mut reader = TargetReader::new(stdin, args.format, limits);
    let excludes = reader.set(&args.exclude, &args.exclude_file)?;
    let exclude_lines = reader.lines.take();
    let options = CollectOptions {
        family,
        all_addresses: args.all_addresses,
        most_targets: if args.yes {
            MAX_TARGETS
        } else {
            MAX_WITHOUT_YES
        },
        limits: reader.limits,
    };
    let collected = reader.list(args, Collector::new(options, excludes))?;
    reader.finish(args, collected, exclude_lines)
}

/// Reads words and files, such as the excludes of a command or a stop list, into a set. `stdin` is read where a file
/// is named `-`.
///
/// # Errors
/// [`TargetsError::BadExcludes`] when a word of them cannot be read, and what else reading can fail with.
pub fn read_set(
    words: &[String],
    files: &[PathBuf],
    stdin: impl Read,
) -> Result<TargetSet, TargetsError> {
    TargetReader::new(stdin, None, MEMORY_LIMITS).set(words, files)
}

/// The state of reading everything.
struct TargetReader<R> {
    /// Standard input, until it is read.
    input: Option<R>,
    format: Option<InputFormat>,
    limits: MemoryLimits,
    bad: BadTargets,
    notes: Notes,
    /// The lines of all files so far.
    lines: Option<LineCounts>,
}

impl<R: Read> TargetReader<R> {
    fn new(stdin: R, format: Option<InputFormat>, limits: MemoryLimits) -> Self {
        Self {
            input: Some(stdin),
            format,
            limits,
            bad: BadTargets::default(),
            notes: Notes::default(),
            lines: None,
        }
    }

    /// Reads a set. No bad word is skipped.
    fn set(&mut self, words: &[String], files: &[PathBuf]) -> Result<TargetSet, TargetsError> {
        let mut set = TargetSet::default();
        let limits = self.limits;
        let mut insert = |target: ParsedTarget<'_>, _: Option<&str>| {
            let is_in = set.contains_spec(target.spec());
            set.insert(target);
            if !set.is_within(limits) {
                return Err(CollectError::Fatal(TargetsError::TooLargeSet));
            }
            Ok(if is_in {
                LineClass::Duplicate
            } else {
                LineClass::Target
            })
        };
        for word in words {
            match parse::parse(word) {
                Ok(target) => self.read(TargetSource::Word(target), &mut insert)?,
                Err(reason) => self.bad.add(None, word, reason),
            }
        }
        for path in files {
            self.read(TargetSource::from_path(path), &mut insert)?;
        }
        if self.bad.count() > 0 {
            return Err(TargetsError::BadExcludes(self.bad.clone()));
        }
        Ok(set)
    }

    /// Reads the targets.
    fn list(
        &mut self,
        args: &TargetArgs,
        mut collector: Collector,
    ) -> Result<Collected, TargetsError> {
        let mut add =
            |target: ParsedTarget<'_>, labels: Option<&str>| collector.add(target, labels);
        for word in &args.targets {
            match TargetSource::from_argument(word) {
                Ok(source) => {
                    self.notes.file_like_host(source, word);
                    self.read(source, &mut add)?;
                }
                Err(reason) => self.bad.add(None, word, reason),
            }
        }
        for path in &args.hosts {
            self.read(TargetSource::from_path(path), &mut add)?;
        }
        if self.bad.count() > 0 && !args.skip_bad {
            return Err(TargetsError::Bad(self.bad.clone()));
        }
        collector.finish()
    }

    /// Reads one source, and counts its lines. Bad words are kept for the report, and the next ones are read.
    fn read(
        &mut self,
        source: TargetSource<'_>,
        each: &mut impl FnMut(ParsedTarget<'_>, Option<&str>) -> Result<LineClass, CollectError>,
    ) -> Result<(), TargetsError> {
        let Self {
            input,
            format,
            bad,
            notes,
            lines,
            ..
        } = self;
        if let TargetSource::Word(target) = source {
            let taken = each(target, None);
            if taken.is_ok() {
                notes.host_bits(None, target.spec());
            }
            bad.keep(None, target.word(), taken)?;
            return Ok(());
        }
        let file = source.name();
        let lines = lines.get_or_insert_default();
        source.read(input, *format, lines, |word| {
            let place = Place {
                file: &file,
                line: word.line,
                last_line: word.last_line,
            };
            match word.quoted_row {
                Some(line) => notes.quoted_row(place, line),
                None if !word.is_word => notes.commented_row(place),
                None => {}
            }
            if !word.is_word {
                return Ok(LineClass::Comment);
            }
            let parsed = match word.bad {
                Some(reason) => Err(reason),
                None => parse::parse(word.text),
            };
            let taken = parsed.map_err(CollectError::Bad).and_then(|target| {
                let class = each(target, word.labels)?;
                notes.host_bits(Some(place), target.spec());
                Ok(class)
            });
            bad.keep(Some(place), word.text, taken)
        })
    }

    fn finish(
        self,
        args: &TargetArgs,
        collected: Collected,
        exclude_lines: Option<LineCounts>,
    ) -> Result<Targets, TargetsError> {
        let Collected {
            list,
            spool,
            counts,
            link_local,
        } = collected;
        let targets = Targets {
            list,
            spool: Mutex::new(spool),
            duplicates: u64::try_from(counts.duplicates).unwrap_or(u64::MAX),
            excluded: u64::try_from(counts.excluded).unwrap_or(u64::MAX),
            skipped: self.bad,
            lines: self.lines,
            exclude_lines,
            notes: self.notes.finish(),
            link_local,
            sources: describe(args),
        };
        match targets.count() {
            0 => Err(TargetsError::Nothing {
                duplicates: targets.duplicates,
                excluded: targets.excluded,
                skipped_bad: targets.skipped_bad(),
                lines: targets.lines,
            }),
            _ => Ok(targets),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;

    /// What reading these lines ends with, within small limits: the number of targets, or the begin of the message.
    fn count(args: TargetArgs, lines: &str) -> Result<u64, String> {
        let args = TargetArgs { yes: true, ..args };
        let limits = MemoryLimits {
            names: 4,
            set_names: 3,
            pieces: 6,
        };
        let read = read_within(&args, Family::Any, lines.as_bytes(), limits);
        read.map(|targets| targets.count())
            .map_err(|error| match error {
                TargetsError::TooManyNames => "names".to_owned(),
                TargetsError::TooManyPieces => "pieces".to_owned(),
                TargetsError::TooLargeSet => "set".to_owned(),
                other => other.to_string(),
            })
    }

    fn lines(numbers: Range<u32>, line: impl Fn(u32) -> String) -> String {
        numbers.map(line).collect()
    }

    fn listed(lines: &str) -> Result<u64, String> {
        let args = TargetArgs {
            hosts: vec!["-".into()],
            ..TargetArgs::default()
        };
        count(args, lines)
    }

    fn with_excludes(lines: &str) -> Result<u64, String> {
        let args = TargetArgs {
            targets: vec!["192.0.2.1".to_owned()],
            exclude_file: vec!["-".into()],
            ..TargetArgs::default()
        };
        count(args, lines)
    }

    #[test]
    fn a_list_is_read_up_to_its_limits_and_no_further() {
        assert_eq!(listed("a\nb\nc\nd\na\nB\n"), Ok(4));
        assert_eq!(
            listed("a\nb\nfe80::1%a\nfe80::1%b\nc\n"),
            Err("names".to_owned())
        );
        let scattered = lines(0..6, |n| format!("192.0.2.{}\n", 2 * n + 1));
        assert_eq!(listed(&scattered), Ok(6));
        // Addresses that follow each other, or were mentioned before, are no new piece.
        assert_eq!(
            listed(&(scattered.clone() + "192.0.2.1\n192.0.2.12\n")),
            Ok(7)
        );
        assert_eq!(
            listed(&(scattered.clone() + "192.0.2.77\n")),
            Err("pieces".to_owned())
        );
        // Labels are kept, also those of an address that is listed already.
        let labelled = "target,site\n".to_owned() + &"192.0.2.1,x\n".repeat(6);
        assert_eq!(listed(&labelled), Ok(1));
        assert_eq!(
            listed(&(labelled + "192.0.2.1,x\n")),
            Err("pieces".to_owned())
        );
    }

    #[test]
    fn a_set_is_read_up_to_its_limits_and_no_further() {
        assert_eq!(with_excludes("a\nb\nc\nC\n"), Ok(1));
        assert_eq!(with_excludes("a\nb\nc\nd\n"), Err("set".to_owned()));
        let scattered = lines(1..7, |n| format!("10.0.{n}.0/25\n"));
        assert_eq!(with_excludes(&scattered), Ok(1));
        assert_eq!(
            with_excludes(&(scattered + "10.0.9.0/25\n")),
            Err("set".to_owned())
        );
    }

    #[test]
    fn names_of_zones_that_are_excluded_are_bounded_as_well() {
        let args = TargetArgs {
            hosts: vec!["-".into()],
            exclude: vec!["fe80::/10".to_owned()],
            ..TargetArgs::default()
        };
        let zones = |count| lines(0..count, |n| format!("fe80::1%e{n}\n"));
        assert_eq!(count(args.clone(), &(zones(4) + "192.0.2.1\n")), Ok(1));
        assert_eq!(count(args, &zones(5)), Err("names".to_owned()));
    }
}
