//! Where targets come from: an argument, a file, or standard input. Opens and reads files.

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
    parse::{self, BadTargetReason, TargetSpec},
};

/// The byte order mark of UTF-8.
const BOM: [u8; 3] = [0xef, 0xbb, 0xbf];

/// The name of standard input, as an argument and as a file.
const INPUT: &str = "-";

/// Endings of arguments that are meant as files' names, and not as hosts'.
const FILE_ENDINGS: [&str; 4] = [".txt", ".csv", ".list", ".hosts"];

/// Where targets come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TargetSource<'a> {
    /// An argument of the command line that stands for itself.
    Word(&'a str),
    File(&'a Path),
    /// Standard input.
    Input,
}

impl<'a> TargetSource<'a> {
    /// What an argument among the targets is: an address, network or range always stands for itself; everything else
    /// is a file if there is one of this name.
    pub(crate) fn of_argument(word: &'a str) -> Result<Self, BadTargetReason> {
        if word == INPUT {
            return Ok(Self::Input);
        }
        let may_be_path = match parse::parse(word) {
            Ok(TargetSpec::Name(_)) => true,
            Ok(_) => return Ok(Self::Word(word)),
            Err(why) => why.may_be_path(),
        };
        let path = Path::new(word);
        let has_separator = word.contains(['/', '\\']);
        match fs::metadata(path) {
            // A folder that happens to have a host's name is not meant.
            Ok(found) if found.is_dir() && !has_separator => Ok(Self::Word(word)),
            Ok(_) => Ok(Self::File(path)),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(Self::File(path)),
            Err(_) if may_be_path && (has_separator || has_file_ending(word)) => {
                Err(BadTargetReason::NoSuchFile)
            }
            Err(_) => Ok(Self::Word(word)),
        }
    }

    /// What the value of an option for files is.
    pub(crate) fn of_option(path: &'a Path) -> Self {
        if path == Path::new(INPUT) {
            Self::Input
        } else {
            Self::File(path)
        }
    }

    /// The source's name as it is shown to the user.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Word(word) => shown(word),
            Self::File(path) => shown(&path.to_string_lossy()),
            Self::Input => "standard input".to_owned(),
        }
    }

    /// Calls `each` with every target, in order. Standard input can be taken once.
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
            Self::Word(text) => each(InputWord {
                line: 1,
                text,
                labels: None,
                bad: None,
            }),
            Self::Input => {
                let input = input.take().ok_or(TargetsError::InputTwice)?;
                let text = self.text(input)?;
                text_file::read(text, unreadable, each)
            }
            Self::File(path) => {
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

    /// What is read, behind a byte order mark.
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
