//! Logging by `tracing`, on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::{LogFormat, Verbosity};

/// Starts logging. A second call has no effect.
pub(crate) fn start(verbosity: Verbosity, format: LogFormat) {
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
    let ours = ["broker", "settings", "store", "wire"]
        .iter()
        .map(|name| format!("pingfleet_{name}={level}"))
        .chain(
            ["consumer_writer", "ping_worker", "pingfleet", "producer"]
                .iter()
                .map(|name| format!("{name}={level}")),
        );
    let directives: Vec<_> = std::iter::once(others.to_owned()).chain(ours).collect();
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .with_target(false)
        // They would go to standard error, and panic if that is closed.
        .log_internal_errors(false)
        .with_env_filter(EnvFilter::new(directives.join(",")));
    let started = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    // Tests may have started it already.
    drop(started);
}
