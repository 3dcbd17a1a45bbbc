//! Reads all that the arguments name: excludes first, then targets, in the order in which they are given.
//!
//! Bad targets are collected and reported together at the end. Only an error that makes a list impossible stops the reading.

use std::{io::Read, sync::Mutex};

use pingfleet_wire::Family;

use crate::{
    TargetArgs, Targets,
    bad_targets::BadTargets,
    collect::{CollectError, CollectOptions, Collected, Collector},
    error::TargetsError,
    input::{source::TargetSource, text_file::InputWord},
    limits::MAX_WITHOUT_YES,
    notes::{Notes, describe},
    parse::{self, TargetSpec},
};

/// Reads all targets that the arguments name. `stdin` is read where `-` stands, and else left alone.
///
/// # Errors
/// [`TargetsError`]: there is no list of targets, and nothing should be probed.
pub fn read(args: &TargetArgs, family: Family, stdin: impl Read) -> Result<Targets, TargetsError> {
    let files = args.hosts.iter().chain(&args.exclude_file);
    let inputs = files.filter(|path| TargetSource::of_option(path) == TargetSource::Input);
    if inputs.count() + args.targets.iter().filter(|word| *word == "-").count() > 1 {
        return Err(TargetsError::InputTwice);
    }
    let mut reading = TargetReader {
        input: Some(stdin),
        collector: Collector::new(CollectOptions {
            family,
            all_addresses: args.all_addresses,
        }),
        bad: BadTargets::default(),
        notes: Notes::default(),
    };
    reading.excludes(args)?;
    reading.targets(args)?;
    reading.finish(args)
}

/// The state of reading everything.
struct TargetReader<R> {
    input: Option<R>,
    collector: Collector,
    bad: BadTargets,
    notes: Notes,
}

impl<R: Read> TargetReader<R> {
    fn excludes(&mut self, args: &TargetArgs) -> Result<(), TargetsError> {
        let words = args.exclude.iter().map(|word| TargetSource::Word(word));
        let files = args
            .exclude_file
            .iter()
            .map(|path| TargetSource::of_option(path));
        for source in words.chain(files) {
            self.take_in(source, |collector, spelled, entry| {
                collector.exclude(spelled, entry.text);
                Ok(())
            })?;
        }
        if self.bad.count() > 0 {
            return Err(TargetsError::BadExcludes(self.bad.clone()));
        }
        Ok(())
    }

    fn targets(&mut self, args: &TargetArgs) -> Result<(), TargetsError> {
        let mut sources = Vec::new();
        for word in &args.targets {
            match TargetSource::of_argument(word) {
                Ok(source) => {
                    self.notes.file_like_host(source, word);
                    sources.push(source);
                }
                Err(why) => self.bad.add(None, word, why),
            }
        }
        sources.extend(args.hosts.iter().map(|path| TargetSource::of_option(path)));
        for source in sources {
            self.take_in(source, |collector, spelled, entry| {
                collector.mention(spelled, entry.text, entry.labels)
            })?;
        }
        Ok(())
    }

    /// Reads one source; what is bad in it is noted, and does not end the reading.
    fn take_in(
        &mut self,
        source: TargetSource<'_>,
        mut each: impl FnMut(&mut Collector, TargetSpec<'_>, &InputWord<'_>) -> Result<(), CollectError>,
    ) -> Result<(), TargetsError> {
        let Self {
            input,
            collector,
            bad,
            notes,
        } = self;
        let file = match source {
            TargetSource::Word(_) => None,
            TargetSource::File(_) | TargetSource::Input => Some(source.name()),
        };
        source.read(input, |entry| {
            let place = file.as_deref().map(|file| (file, entry.line));
            let spelled = match &entry.bad {
                Some(why) => Err(why.clone()),
                None => parse::parse(entry.text),
            };
            let taken = spelled.map_err(CollectError::Bad).and_then(|spelled| {
                each(collector, spelled, &entry)?;
                notes.host_bits(place, spelled);
                Ok(())
            });
            match taken {
                Ok(()) => Ok(()),
                Err(CollectError::Bad(why)) => {
                    bad.add(place, entry.text, why);
                    Ok(())
                }
                Err(CollectError::Fatal(error)) => Err(error),
            }
        })
    }

    fn finish(self, args: &TargetArgs) -> Result<Targets, TargetsError> {
        if self.bad.count() > 0 && !args.skip_bad {
            return Err(TargetsError::Bad(self.bad));
        }
        let Collected {
            listing,
            spool,
            tally,
        } = self.collector.finish()?;
        let targets = Targets {
            listing,
            spool: Mutex::new(spool),
            duplicates: u64::try_from(tally.duplicates).unwrap_or(u64::MAX),
            excluded: u64::try_from(tally.excluded).unwrap_or(u64::MAX),
            skipped: self.bad,
            notes: self.notes.finish(),
            sources: describe(args),
        };
        match targets.count() {
            0 => Err(TargetsError::Nothing {
                duplicates: targets.duplicates,
                excluded: targets.excluded,
                skipped_bad: targets.skipped_bad(),
            }),
            count if count > MAX_WITHOUT_YES && !args.yes => Err(TargetsError::NeedsYes { count }),
            _ => Ok(targets),
        }
    }
}
