//! Where targets come from: an argument, a file, or standard input. Looks for files, opens and reads them.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Cursor, ErrorKind, Read},
    path::Path,
};

use encoding_rs_io::DecodeReaderBytesBuilder;

use crate::{
    bad_targets::shown,
    error::{FileProblem, TargetsError},
    input::{
        InputWord, csv_file,
        format::{InputFormat, looks_like_csv},
        line_reader::LineReader,
        text_file,
    },
    line_counts::{LineClass, LineCounts},
    parse::{self, BadTargetReason, ParsedTarget, TargetSpec},
};

/// The byte order marks of UTF-16.
const UTF16: [[u8; 2]; 2] = [[0xff, 0xfe], [0xfe, 0xff]];

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
        let path = Path::new(word);
        let has_separator = word.contains(['/', '\\']);
        let looks_like_path = match &parsed {
            Err(why) if !has_file_ending(word) => has_separator && why.may_be_path(),
            Err(why) => why.may_be_file_name(),
            Ok(_) => has_separator || has_file_ending(word),
        };
        let file = Self::File {
            path,
            may_be_host: is_name && !word.contains('.'),
        };
        match fs::metadata(path) {
            // A folder that happens to have a host's name is not meant.
            Ok(found) if found.is_dir() && !has_separator => parsed.map(Self::Word),
            Ok(_) => Ok(file),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(file),
            Err(_) if looks_like_path => Err(BadTargetReason::NoSuchFile),
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

    /// Calls `each` with every word of a file or of standard input, in order, and counts the lines. Standard input can be
    /// read once. A word of the command line is parsed already: it has nothing to read.
    ///
    /// A file whose name ends with `.csv` is CSV. What another file is, its first line shows.
    pub(crate) fn read(
        self,
        input: &mut Option<impl Read>,
        format: Option<InputFormat>,
        counts: &mut LineCounts,
        each: impl FnMut(InputWord<'_>) -> Result<LineClass, TargetsError>,
    ) -> Result<(), TargetsError> {
        match self {
            Self::Word(_) => Ok(()),
            Self::StandardInput => {
                let input = input.take().ok_or(TargetsError::InputTwice)?;
                self.read_input(input, format, counts, each)
            }
            Self::File { path, .. } => {
                let file = open(path).map_err(|source| self.unreadable(source))?;
                let is_csv = path
                    .extension()
                    .is_some_and(|ending| ending.eq_ignore_ascii_case("csv"));
                let format = format.or(is_csv.then_some(InputFormat::Csv));
                self.read_input(file, format, counts, each)
            }
        }
    }

    fn read_input(
        self,
        input: impl Read,
        format: Option<InputFormat>,
        counts: &mut LineCounts,
        each: impl FnMut(InputWord<'_>) -> Result<LineClass, TargetsError>,
    ) -> Result<(), TargetsError> {
        let unreadable = |source| self.unreadable(source);
        let mut lines = text(input).map_err(unreadable)?;
        let read = if csv_file::next_content(&mut lines, counts).map_err(unreadable)? {
            let format = format.unwrap_or_else(|| {
                if looks_like_csv(lines.text()) {
                    InputFormat::Csv
                } else {
                    InputFormat::List
                }
            });
            match format {
                InputFormat::Csv => csv_file::read(&mut lines, counts, &self.name(), each),
                InputFormat::List => text_file::read(&mut lines, counts, unreadable, each),
            }
        } else if format == Some(InputFormat::Csv) {
            Err(TargetsError::File {
                file: self.name(),
                problem: FileProblem::NoHeader,
            })
        } else {
            Ok(())
        };
        counts.read += lines.number();
        read
    }

    fn unreadable(self, source: io::Error) -> TargetsError {
        TargetsError::Unreadable {
            file: self.name(),
            source,
        }
    }
}

/// Opens a regular file, or what a shell passes in the place of one: `<(command)`. Another pipe would wait for a writer, and
/// a device may have no end.
fn open(path: &Path) -> io::Result<File> {
    let is_passed = ["/dev/fd", "/proc/self/fd"]
        .iter()
        .any(|fd| path.starts_with(fd));
    if !is_passed && path != Path::new("/dev/stdin") {
        // Before it is opened, because opening a pipe waits; and after, because the file may be another one by then.
        check_file(&fs::metadata(path)?)?;
        let file = File::open(path)?;
        check_file(&file.metadata()?)?;
        return Ok(file);
    }
    File::open(path)
}

fn check_file(metadata: &fs::Metadata) -> io::Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    Err(io::Error::new(
        ErrorKind::InvalidInput,
        "it is no regular file; `-` is standard input",
    ))
}

/// The lines of an input, without its byte order mark. UTF-16 with a byte order mark becomes UTF-8.
fn text(mut input: impl Read) -> io::Result<LineReader<impl BufRead>> {
    let mut head = Vec::new();
    input.by_ref().take(2).read_to_end(&mut head)?;
    let utf16 = UTF16.iter().any(|mark| head == mark);
    let decoder = DecodeReaderBytesBuilder::new()
        .utf8_passthru(true)
        .strip_bom(true)
        .build(Cursor::new(head).chain(input));
    let text = BufReader::with_capacity(64 << 10, decoder);
    Ok(LineReader::new(text, utf16))
}

fn has_file_ending(word: &str) -> bool {
    let word = word.to_ascii_lowercase();
    FILE_ENDINGS.iter().any(|ending| word.ends_with(ending))
}
