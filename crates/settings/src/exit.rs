//! Exit codes, and what every `main` does around its program.

use std::{
    fmt,
    io::{self, Write},
    process::ExitCode,
};

use clap::{Parser, error::ErrorKind};

use crate::SettingsError;

/// What to do when a process has as many files open as it may.
pub const OPEN_FILES_ADVICE: &str =
    "raise the limit of open files (`ulimit -n 1024`; for a service LimitNOFILE=1024)";

/// How a program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Complete. Targets that are down are data, not errors.
    Complete,
    /// With `--fail-down`: a target is neither up nor late. With `diff --exit-code`: something changed.
    SomeDown,
    /// Bad targets, an unreadable hosts file, or nothing to probe.
    BadTargets,
    /// Usage or configuration, or no such run.
    Usage,
    /// Permission, broker, disk or database, or rows that contradict the plan.
    System,
    /// The run is incomplete or has dead chunks.
    Incomplete,
    /// Interrupted, with the state saved.
    Interrupted,
}

impl Exit {
    /// The process's exit code.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Complete => 0,
            Self::SomeDown => 1,
            Self::BadTargets => 2,
            Self::Usage => 3,
            Self::System => 4,
            Self::Incomplete => 5,
            Self::Interrupted => 130,
        }
    }
}

/// Why a program failed: one message and an exit code.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What went wrong and what the user can do.
    pub message: String,
}

impl Failure {
    /// A failure with its message.
    pub fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self {
            exit,
            message: message.to_string(),
        }
    }

    /// A system failure, with the messages of all error sources.
    pub fn system(error: &(dyn std::error::Error + 'static)) -> Self {
        let mut message = error.to_string();
        let mut wrapper = message.clone();
        let mut source = error.source();
        let mut lacks_files = has_too_many_files(error);
        while let Some(error) = source {
            let text = error.to_string();
            // Some errors repeat the text of their source, and some sources that of their wrapper.
            if !message.contains(&text) && !text.contains(&wrapper) {
                message.push_str(": ");
                message.push_str(&text);
            }
            wrapper = text;
            lacks_files |= has_too_many_files(error);
            source = error.source();
        }
        if lacks_files {
            message = format!("{message}: {OPEN_FILES_ADVICE}");
        }
        Self::new(Exit::System, message)
    }
}

/// Whether the process has as many files open as it may (EMFILE).
fn has_too_many_files(error: &(dyn std::error::Error + 'static)) -> bool {
    const EMFILE: i32 = 24;
    let system = error.downcast_ref::<io::Error>();
    cfg!(unix) && system.is_some_and(|error| error.raw_os_error() == Some(EMFILE))
}

impl From<SettingsError> for Failure {
    fn from(error: SettingsError) -> Self {
        Self::new(Exit::Usage, error)
    }
}

/// The result of writing to standard output. A closed pipe is not an error.
///
/// # Errors
/// Any other write error, such as a full disk.
pub fn printed(written: io::Result<()>) -> Result<(), Failure> {
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::new(
            Exit::System,
            format_args!("cannot write the output: {error}"),
        )),
        _ => Ok(()),
    }
}

/// Hides the memory and the environment of this process, which may have passwords, from other processes of its user but
/// root, and keeps them out of core files (`prctl(2)`, `PR_SET_DUMPABLE`). A program that this one starts is not hidden.
#[cfg(target_os = "linux")]
fn hide_memory() -> io::Result<()> {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Parses the arguments and runs the program. Usage errors exit with 3 instead of clap's 2, which means bad targets
/// here. A failure is printed to standard error as one message.
pub fn main_with<A: Parser>(body: impl FnOnce(&A) -> Result<Exit, Failure>) -> ExitCode {
    #[cfg(target_os = "linux")]
    if let Err(error) = hide_memory() {
        // If standard error is closed, nobody can read the message.
        drop(writeln!(
            io::stderr(),
            "warning: other processes of this user can read the memory of this one, with its passwords: {error}"
        ));
    }
    let arguments = match A::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let exit = match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Complete,
                _ => Exit::Usage,
            };
            // If the terminal is gone, nobody can read the message.
            drop(error.print());
            return exit.code().into();
        }
    };
    match body(&arguments) {
        Ok(exit) => exit.code().into(),
        Err(failure) => {
            // If standard error is closed, nobody can read the message.
            drop(writeln!(io::stderr(), "error: {}", failure.message));
            failure.exit.code().into()
        }
    }
}
