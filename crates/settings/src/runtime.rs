//! The runtime of a program. Starting it with too few open files panics in the runtime itself, so the limit is checked
//! before.

use tokio::runtime::Builder;

use crate::Failure;

/// Files that a program which probes with up to four threads needs: such a sweep uses up to 70.
pub const FILES_FOR_PROBING: u64 = 96;

/// Files that a program needs which only uses the broker and the database.
pub const FILES_FOR_QUEUES: u64 = 32;

/// The limit that the advice names: the usual default of Linux.
#[cfg(unix)]
const USUAL_FILES: u64 = 1024;

/// The files that every program has open when it starts: standard input, output and error.
#[cfg(target_os = "linux")]
const STANDARD_FILES: u64 = 3;

/// Runs a program's future on a runtime with a thread for each core. It needs `files` open files, with the usual three.
/// What the future left on the runtime is given up, and not waited for: a name lookup, for example, cannot be stopped.
///
/// # Errors
/// What the future returns; a [`Failure`] with [`crate::Exit::System`] when the process may not open as many files.
pub fn run_async<T>(
    files: u64,
    future: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    check_open_files(files)?;
    let runtime = Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::system(&error))?;
    let ended = runtime.block_on(future);
    runtime.shutdown_background();
    ended
}

/// How many files this process may have open; none if there is no limit, or no such limit on this system.
#[must_use]
pub fn open_files_limit() -> Option<u64> {
    #[cfg(unix)]
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    #[cfg(not(unix))]
    let limit = None;
    limit
}

/// Checks whether this process may have `needed` files open.
///
/// # Errors
/// A [`Failure`] that names the limit and the command that raises it.
#[cfg(unix)]
fn check_open_files(needed: u64) -> Result<(), Failure> {
    use crate::Exit;

    let Some(limit) = open_files_limit() else {
        return Ok(());
    };
    let inherited = inherited_files();
    // A quarter is room for files that the caller left open.
    if limit >= needed && limit.saturating_sub(inherited) >= needed - needed / 4 {
        return Ok(());
    }
    Err(Failure::new(
        Exit::System,
        format_args!(
            "too few open files: the limit is {limit}, {inherited} are open already, and {needed} are needed: raise it \
             with `ulimit -n {USUAL_FILES}`, or as root with `prlimit -n{USUAL_FILES}:{USUAL_FILES} -p $$`; for a \
             service with LimitNOFILE={USUAL_FILES}"
        ),
    ))
}

#[cfg(not(unix))]
#[expect(clippy::unnecessary_wraps, reason = "the same signature as on Unix")]
fn check_open_files(_: u64) -> Result<(), Failure> {
    Ok(())
}

/// Files that are open already, beyond the usual three. None are known where the system does not show them.
#[cfg(target_os = "linux")]
fn inherited_files() -> u64 {
    // The folder itself is one of them while it is read.
    std::fs::read_dir("/proc/self/fd").map_or(0, |files| {
        (files.count() as u64).saturating_sub(STANDARD_FILES + 1)
    })
}

#[cfg(all(unix, not(target_os = "linux")))]
fn inherited_files() -> u64 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Exit;

    #[test]
    fn a_call_that_cannot_be_stopped_does_not_hold_the_program() {
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let (start, started) = tokio::sync::oneshot::channel();
        let ended = run_async(3, async {
            // As a name lookup: it blocks its thread until the test lets it go.
            drop(tokio::task::spawn_blocking(move || {
                start.send(()).expect("the program waits for it");
                held.recv()
            }));
            started.await.expect("it starts");
            Ok(7)
        });
        assert_eq!(ended.unwrap(), 7);
        drop(hold);
    }

    /// Whether the limit of open files is none, as the kernel shows it.
    fn is_unlimited() -> bool {
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
        let line = limits
            .lines()
            .find(|line| line.starts_with("Max open files"));
        line.unwrap().contains("unlimited")
    }

    #[test]
    fn a_program_that_may_not_open_enough_files_does_not_start() {
        let ended = run_async(3, async { Ok(7) });
        assert_eq!(ended.unwrap(), 7);
        let refused = run_async(u64::MAX - 1, async { Ok(7) });
        // Without a limit nothing is refused.
        if cfg!(target_os = "linux") && !is_unlimited() {
            let failure = refused.unwrap_err();
            assert_eq!(failure.exit, Exit::System);
            assert!(failure.message.contains("ulimit -n 1024"), "{failure:?}");
        }
    }
}
