//! The stop signal: the first one starts a drain, the second one exits at once. And SIGHUP, which asks a service for new
//! connections.

use std::{
    io,
    time::{Duration, Instant},
};

use tokio::sync::watch;
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
    /// Counts each SIGHUP that asks for new connections.
    pub reconnects: watch::Receiver<u64>,
}

/// What SIGHUP means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(unix), expect(dead_code, reason = "there is no SIGHUP"))]
enum Hangup {
    /// Nothing: `nohup` started the program.
    Ignored,
    /// The terminal is closed.
    Stops,
    /// The service is to reconnect.
    Reconnects,
}

impl Stop {
    /// Starts watching. Must be called within a runtime.
    ///
    /// # Errors
    /// When the system refuses a signal handler.
    pub fn watch() -> io::Result<Self> {
        Self::watch_with(hangup(false))
    }

    /// The same for a program that reconnects on SIGHUP when it runs without a terminal, as services do. With a terminal
    /// SIGHUP stops it, because then the terminal is closed.
    ///
    /// # Errors
    /// As [`Self::watch`].
    pub fn watch_and_reconnect() -> io::Result<Self> {
        Self::watch_with(hangup(true))
    }

    fn watch_with(hangup: Hangup) -> io::Result<Self> {
        let token = CancellationToken::new();
        let cancelled = token.clone();
        let (counter, reconnects) = watch::channel(0);
        let mut signals = Signals::new(hangup, counter)?;
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
        Ok(Self { token, reconnects })
    }
}

#[cfg(unix)]
struct Signals {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
    /// `None` if this process was started to ignore it.
    hup: Option<tokio::signal::unix::Signal>,
    hangup: Hangup,
    reconnects: watch::Sender<u64>,
}

#[cfg(unix)]
impl Signals {
    fn new(hangup: Hangup, reconnects: watch::Sender<u64>) -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: if hangup == Hangup::Ignored {
                None
            } else {
                Some(signal(SignalKind::hangup())?)
            },
            hangup,
            reconnects,
        })
    }

    /// Waits for a signal that stops. Counts the others meanwhile.
    async fn next(&mut self) {
        loop {
            let hup = &mut self.hup;
            let hangup = async {
                match hup {
                    Some(hup) => hup.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = self.term.recv() => return,
                _ = self.int.recv() => return,
                _ = hangup => {}
            }
            if self.hangup == Hangup::Stops {
                return;
            }
            tracing::info!("SIGHUP: new connections are opened when what is in hand is finished");
            self.reconnects.send_modify(|count| *count += 1);
        }
    }
}

/// What SIGHUP means to a program that does or does not reconnect.
#[cfg(unix)]
fn hangup(reconnects: bool) -> Hangup {
    // The terminal that controls this process, if there is one (tty(4)).
    let has_terminal = || std::fs::File::open("/dev/tty").is_ok();
    if is_hangup_ignored() {
        Hangup::Ignored
    } else if reconnects && !has_terminal() {
        Hangup::Reconnects
    } else {
        Hangup::Stops
    }
}

#[cfg(not(unix))]
fn hangup(_: bool) -> Hangup {
    Hangup::Stops
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
struct Signals {
    /// Nothing asks for new connections there.
    _reconnects: watch::Sender<u64>,
}

#[cfg(not(unix))]
impl Signals {
    #[expect(clippy::unnecessary_wraps, reason = "the same signature as on Unix")]
    fn new(_: Hangup, reconnects: watch::Sender<u64>) -> io::Result<Self> {
        Ok(Self {
            _reconnects: reconnects,
        })
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
