//! The stop signal: the first one starts a drain, the second one exits at once.

use std::{
    io,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use crate::Exit;

/// A signal this soon after the first one is the same request: `timeout` signals a program and then its process group,
/// and a terminal signals both a program and a wrapper that forwards signals to it.
const SAME_REQUEST: Duration = Duration::from_millis(200);

/// Watches for SIGTERM, SIGINT and SIGHUP (Ctrl-C on Windows). SIGHUP comes when a terminal closes; a program that was
/// started with `nohup` goes on then.
#[derive(Debug, Clone)]
pub struct Stop {
    /// Cancelled by the first signal.
    pub token: CancellationToken,
}

impl Stop {
    /// Starts watching. Must be called within a runtime.
    ///
    /// # Errors
    /// When the system refuses a signal handler.
    pub fn watch() -> io::Result<Self> {
        let token = CancellationToken::new();
        let cancelled = token.clone();
        let mut signals = Signals::new()?;
        // It runs until the process exits, and needs no cleanup.
        drop(tokio::spawn(async move {
            signals.next().await;
            // A warning, so that it is shown by default: the drain can take a while after Ctrl-C.
            tracing::warn!("stopping; a second signal exits at once");
            cancelled.cancel();
            let first = Instant::now();
            signals.next().await;
            while first.elapsed() < SAME_REQUEST {
                signals.next().await;
            }
            std::process::exit(i32::from(Exit::Interrupted.code()));
        }));
        Ok(Self { token })
    }
}

#[cfg(unix)]
struct Signals {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
    /// `None` if this process was started to ignore it.
    hup: Option<tokio::signal::unix::Signal>,
}

#[cfg(unix)]
impl Signals {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: if is_hangup_ignored() {
                None
            } else {
                Some(signal(SignalKind::hangup())?)
            },
        })
    }

    async fn next(&mut self) {
        let Self { term, int, hup } = self;
        let hangup = async {
            match hup {
                Some(hup) => hup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
            _ = hangup => {}
        }
    }
}

/// Whether SIGHUP is ignored, as `nohup` sets it (Linux `proc_pid_status(5)`, `SigIgn`: bit n - 1 stands for signal n).
/// Where the system does not show it, it counts as not ignored.
#[cfg(unix)]
fn is_hangup_ignored() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores_hangup(&status))
}

#[cfg(unix)]
fn ignores_hangup(status: &str) -> bool {
    let ignored = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask & 1 != 0)
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    #[expect(clippy::unnecessary_wraps, reason = "the same signature as on Unix")]
    fn new() -> io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_bit_of_the_mask_is_sighup() {
        let status = |mask: &str| format!("Name:\tx\nSigBlk:\t0000000000000001\nSigIgn:\t{mask}\n");
        assert!(ignores_hangup(&status("0000000000001001")));
        assert!(!ignores_hangup(&status("0000000000001000")));
        assert!(!ignores_hangup("") && !ignores_hangup(&status("x")));
    }
}
