//! Where targets come from: an argument, a file, or standard input. Looks for files, opens and reads them.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Cursor, ErrorKind, Read},
    path::Path,
};

use crate::{
    bad_targets::shown,
    error::{FileProblem, TargetsError},
    input::{
        csv_file,
        text_file::{self, InputWord},
    },
    parse::{self, BadTargetReason, ParsedTarget, TargetSpec},
};

/// The byte order mark of UTF-8.
const BOM: [u8; 3] = [0xef, 0xbb, 0xbf];

/// The name of standard input, as an argument and as a file.
const STANDARD_INPUT: &str = "-";

/// An argument with one of these endings is meant as a file, not as a host.
const FILE_ENDINGS: [&str; 4] = [".txt", ".csv", ".list", ".hosts"];

/// Where targets come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetSource<'a> {
    /// A word that is a target itself.
    Word(ParsedTarget<'a>),
    /// A file of targets.
    File {
        /// Its path.
        path: &'a Path,
        /// Whether the path could be a host's name.
        may_be_host: bool,
    },
    /// Standard input.
    StandardInput,
}

impl<'a> TargetSource<'a> {
    /// What an argument among the targets is: an address, network or range is always a target; everything else is a
    /// file if there is one of this name.
    ///
    /// # Errors
    /// [`BadTargetReason`] when it is neither.
    pub fn from_argument(word: &'a str) -> Result<Self, BadTargetReason> {
        if word == STANDARD_INPUT {
            return Ok(Self::StandardInput);
        }
        let parsed = parse::parse(word);
        let is_name = match &parsed {
            Ok(target) => matches!(target.spec(), TargetSpec::Name(_)),
            Err(_) => false,
        };
        if parsed.is_ok() && !is_name {
            return parsed.map(Self::Word);
        }
        let may_be_path = parsed
            .as_ref()
            .map_or_else(BadTargetReason::may_be_path, |_| true);
        let path = Path::new(word);
        let has_separator = word.contains(['/', '\\']);
        let file = Self::File {
            path,
            may_be_host: is_name && !word.contains('.'),
        };
        match fs::metadata(path) {
            // A folder that happens to have a host's name is not meant.
            Ok(found) if found.is_dir() && !has_separator => parsed.map(Self::Word),
            Ok(_) => Ok(file),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(file),
            Err(_) if may_be_path && (has_separator || has_file_ending(word)) => {
                Err(BadTargetReason::NoSuchFile)
            }
            Err(_) => parsed.map(Self::Word),
        }
    }

    /// What the value of an option for files is.
    #[must_use]
    pub fn from_path(path: &'a Path) -> Self {
        if path == Path::new(STANDARD_INPUT) {
            Self::StandardInput
        } else {
            Self::File {
                path,
                may_be_host: false,
            }
        }
    }

    /// The source's name as it is shown to the user.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Word(target) => shown(target.word()),
            Self::File { path, .. } => shown(&path.to_string_lossy()),
            Self::StandardInput => "standard input".to_owned(),
        }
    }

    /// Calls `each` with every word of a file or of standard input, in order. Standard input can be read once. A word
    /// of the command line is parsed already: it has nothing to read.
    pub(crate) fn read(
        self,
        input: &mut Option<impl Read>,
        mut each: impl FnMut(InputWord<'_>) -> Result<(), TargetsError>,
    ) -> Result<(), TargetsError> {
        let unreadable = |source| TargetsError::Unreadable {
            file: self.name(),
            source,
        };
        match self {
            Self::Word(_) => Ok(()),
            Self::StandardInput => {
                let input = input.take().ok_or(TargetsError::InputTwice)?;
                let text = self.text(input)?;
                text_file::read(text, unreadable, each)
            }
            Self::File { path, .. } => {
                let text = self.text(File::open(path).map_err(unreadable)?)?;
                let is_csv = path
                    .extension()
                    .is_some_and(|ending| ending.eq_ignore_ascii_case("csv"));
                if is_csv {
                    csv_file::read(text, &self.name(), each)
                } else {
                    text_file::read(text, unreadable, &mut each)
                }
            }
        }
    }

    /// The text of an input, without its byte order mark.
    fn text(self, mut input: impl Read) -> Result<impl BufRead, TargetsError> {
        let mut head = Vec::new();
        let read: io::Result<usize> = input.by_ref().take(BOM.len() as u64).read_to_end(&mut head);
        read.map_err(|source| TargetsError::Unreadable {
            file: self.name(),
            source,
        })?;
        if head.starts_with(&[0xff, 0xfe]) || head.starts_with(&[0xfe, 0xff]) {
            return Err(TargetsError::File {
                file: self.name(),
                problem: FileProblem::Utf16,
            });
        }
        if head == BOM {
            head.clear();
        }
        Ok(Cursor::new(head).chain(BufReader::with_capacity(64 << 10, input)))
    }
}

fn has_file_ending(word: &str) -> bool {
    let word = word.to_ascii_lowercase();
    FILE_ENDINGS.iter().any(|ending| word.ends_with(ending))
}
