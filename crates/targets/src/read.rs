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
    limits::MAX_WITHOUT_YES,
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
    let mut reader = TargetReader::new(stdin, args.format);
    let excludes = reader.set(&args.exclude, &args.exclude_file)?;
    let exclude_lines = reader.lines.take();
    let options = CollectOptions {
        family,
        all_addresses: args.all_addresses,
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
    TargetReader::new(stdin, None).set(words, files)
}

/// The state of reading everything.
struct TargetReader<R> {
    /// Standard input, until it is read.
    input: Option<R>,
    format: Option<InputFormat>,
    bad: BadTargets,
    notes: Notes,
    /// The lines of all files so far.
    lines: Option<LineCounts>,
}

impl<R: Read> TargetReader<R> {
    fn new(stdin: R, format: Option<InputFormat>) -> Self {
        Self {
            input: Some(stdin),
            format,
            bad: BadTargets::default(),
            notes: Notes::default(),
            lines: None,
        }
    }

    /// Reads a set. No bad word is skipped.
    fn set(&mut self, words: &[String], files: &[PathBuf]) -> Result<TargetSet, TargetsError> {
        let mut set = TargetSet::default();
        let mut insert = |target: ParsedTarget<'_>, _: Option<&str>| {
            let is_in = set.contains_spec(target.spec());
            set.insert(target);
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
            count if count > MAX_WITHOUT_YES && !args.yes => Err(TargetsError::NeedsYes { count }),
            _ => Ok(targets),
        }
    }
}
