//! Logging by `tracing`, on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// The format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One line per event, for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verbosity {
    /// Errors.
    Quiet,
    /// Warnings, for commands that show a progress bar or a table.
    Warnings,
    /// State changes and totals, for programs that keep running.
    Normal,
    /// Chunks and transactions.
    Debug,
    /// Probes.
    Trace,
}

/// What the names of our crates begin with.
const OUR_CRATES: [&str; 4] = ["consumer_writer", "ping_worker", "pingfleet", "producer"];

/// Starts logging. A second call has no effect.
pub(crate) fn start(verbosity: Verbosity, format: LogFormat) {
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .with_target(false)
        // They would go to standard error, and panic if that is closed.
        .log_internal_errors(false)
        .with_env_filter(filter(verbosity));
    let started = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    // Tests may have started it already.
    drop(started);
}

fn filter(verbosity: Verbosity) -> EnvFilter {
    let level = match verbosity {
        Verbosity::Quiet => "error",
        Verbosity::Warnings => "warn",
        Verbosity::Normal => "info",
        Verbosity::Debug => "debug",
        Verbosity::Trace => "trace",
    };
    // Our errors include those of other crates. With -v other crates log as well, but never their traces: those show
    // the bytes on the wire.
    let others = match verbosity {
        Verbosity::Debug | Verbosity::Trace => "warn",
        _ => "off",
    };
    let ours = OUR_CRATES.map(|name| format!("{name}={level}")).join(",");
    EnvFilter::new(format!("{others},{ours}"))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{self, Write},
        sync::{Arc, Mutex},
    };

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(verbosity: Verbosity, events: impl FnOnce()) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .with_env_filter(filter(verbosity))
            .finish();
        tracing::subscriber::with_default(subscriber, events);
        let bytes = buffer.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn all_our_crates_are_logged_at_the_level_and_others_only_with_v() {
        let events = || {
            tracing::warn!(target: "pingfleet_prober::linux", "one");
            tracing::warn!(target: "pingfleet", "two");
            tracing::info!(target: "consumer_writer", "three");
            tracing::warn!(target: "lapin::channel", "four");
            tracing::info!(target: "lapin::channel", "five");
        };
        for (verbosity, expected) in [
            (Verbosity::Quiet, ""),
            (Verbosity::Warnings, "one two"),
            (Verbosity::Normal, "one two three"),
            (Verbosity::Debug, "one two three four"),
        ] {
            let text = logged(verbosity, events);
            let words: Vec<_> = text
                .lines()
                .filter_map(|line| line.split_whitespace().next_back())
                .collect();
            assert_eq!(words.join(" "), expected, "{text}");
        }
    }
}
