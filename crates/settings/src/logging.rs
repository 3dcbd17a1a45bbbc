//! Logging by `tracing`, on standard error.

use std::{env, io::IsTerminal};

use tracing::{Level, Metadata, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{FilterExt, filter_fn},
    fmt::{
        self, MakeWriter,
        format::{DefaultFields, Format, JsonFields},
    },
    layer::{Filter, SubscriberExt},
    util::SubscriberInitExt,
};

use crate::json_log::FlatJson;

type Boxed = Box<dyn Layer<Registry> + Send + Sync>;

/// The environment variable that takes a filter of `tracing`, such as `info,pingfleet_prober=debug`, in the place of `-q`
/// and `-v`.
pub(crate) const FILTER_VARIABLE: &str = "PINGFLEET_LOG";

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
///
/// # Errors
/// What is wrong with the filter in [`FILTER_VARIABLE`]. Then the log is that of `verbosity`.
pub(crate) fn start(verbosity: Verbosity, format: LogFormat) -> Result<(), String> {
    let wanted = match env::var(FILTER_VARIABLE) {
        Ok(text) if !text.is_empty() => given(&text).map(Some),
        Ok(_) | Err(env::VarError::NotPresent) => Ok(None),
        Err(env::VarError::NotUnicode(_)) => Err("not Unicode".to_owned()),
    };
    let (filter, checked) = match wanted {
        Ok(wanted) => (wanted.unwrap_or_else(|| usual(verbosity)), Ok(())),
        Err(why) => (usual(verbosity), Err(why)),
    };
    let colour = std::io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none();
    let events = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        // They would go to standard error, and panic if that is closed.
        .log_internal_errors(false);
    let events = in_format(events, format);
    // Tests may have started it already.
    drop(
        Registry::default()
            .with(events.with_filter(complete(filter)))
            .try_init(),
    );
    checked
}

/// The layer with its format.
fn in_format<W>(events: fmt::Layer<Registry, DefaultFields, Format, W>, format: LogFormat) -> Boxed
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    match format {
        LogFormat::Text => events.with_target(false).boxed(),
        LogFormat::Json => events
            .fmt_fields(JsonFields::new())
            .event_format(FlatJson)
            .boxed(),
    }
}

/// The filter that a user gave.
fn given(text: &str) -> Result<EnvFilter, String> {
    EnvFilter::builder()
        .with_default_directive(LevelFilter::OFF.into())
        .parse(text)
        .map_err(|error| {
            format!("{error}; expected LEVEL or CRATE=LEVEL, with commas in between, such as info,pingfleet_broker=debug")
        })
}

/// The filter of `-q` and `-v`.
fn usual(verbosity: Verbosity) -> EnvFilter {
    let level = match verbosity {
        Verbosity::Quiet => "error",
        Verbosity::Warnings => "warn",
        Verbosity::Normal => "info",
        Verbosity::Debug => "debug",
        Verbosity::Trace => "trace",
    };
    // Our errors include those of other crates. With -v other crates log as well.
    let others = match verbosity {
        Verbosity::Debug | Verbosity::Trace => "warn",
        _ => "off",
    };
    let ours = OUR_CRATES.map(|name| format!("{name}={level}")).join(",");
    EnvFilter::new(format!("{others},{ours}"))
}

/// The filter, with two rules that hold whatever it says. Other crates log up to `info`: their traces show the bytes on
/// the wire, with the password. Our spans are always there: a line of one crate has the fields of another crate's span.
fn complete(filter: EnvFilter) -> impl Filter<Registry> {
    let is_ours = |metadata: &Metadata<'_>| {
        OUR_CRATES
            .iter()
            .any(|name| metadata.target().starts_with(name))
    };
    let is_safe =
        move |metadata: &Metadata<'_>| *metadata.level() <= Level::INFO || is_ours(metadata);
    let is_our_span = move |metadata: &Metadata<'_>| metadata.is_span() && is_ours(metadata);
    filter
        .and(filter_fn(is_safe))
        .or(filter_fn(is_our_span).with_max_level_hint(LevelFilter::ERROR))
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

    fn logged(filter: EnvFilter, format: LogFormat, events: impl FnOnce()) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(move || writer.clone())
            .with_ansi(false);
        let layer = in_format(layer, format).with_filter(complete(filter));
        tracing::subscriber::with_default(Registry::default().with(layer), events);
        let bytes = buffer.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    /// The last words of what a filter lets through.
    fn words(filter: EnvFilter) -> String {
        let text = logged(filter, LogFormat::Text, || {
            tracing::warn!(target: "pingfleet_prober::linux", "one");
            tracing::warn!(target: "pingfleet", "two");
            tracing::info!(target: "consumer_writer", "three");
            tracing::warn!(target: "lapin::channel", "four");
            tracing::info!(target: "lapin::channel", "five");
            tracing::debug!(target: "lapin::channel", "secret");
            tracing::trace!(target: "pingfleet_wire", "six");
        });
        let words = text
            .lines()
            .filter_map(|line| line.split_whitespace().next_back());
        words.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn all_our_crates_are_logged_at_the_level_and_others_only_with_v() {
        for (verbosity, expected) in [
            (Verbosity::Quiet, ""),
            (Verbosity::Warnings, "one two"),
            (Verbosity::Normal, "one two three"),
            (Verbosity::Debug, "one two three four"),
        ] {
            assert_eq!(words(usual(verbosity)), expected);
        }
    }

    #[test]
    fn a_given_filter_chooses_crates_and_levels_but_no_bytes_on_the_wire() {
        for (filter, expected) in [
            ("warn", "one two four"),
            ("consumer_writer=info", "three"),
            ("pingfleet_prober=warn,pingfleet_wire=trace", "one six"),
            ("trace", "one two three four five six"),
            ("lapin=trace", "four five"),
            ("off", ""),
        ] {
            assert_eq!(words(given(filter).unwrap()), expected, "{filter}");
        }
        let why = given("loud,x=y").unwrap_err();
        assert!(why.contains("such as info"), "{why}");
    }

    /// A line in two spans, and one beside them.
    fn in_spans() {
        let run = tracing::error_span!(target: "producer", "run", run = 3, run_id = "u");
        run.in_scope(|| {
            let chunk = tracing::error_span!(target: "ping_worker", "chunk", chunk = 7);
            chunk.in_scope(
                || tracing::warn!(target: "pingfleet_prober", names = 2, run_id = "v", "inside"),
            );
        });
        tracing::warn!(target: "pingfleet_prober", "beside");
    }

    #[test]
    fn a_line_has_the_fields_of_its_spans_whatever_the_filter_chooses() {
        for filter in ["warn", "pingfleet_prober=warn"] {
            let filter = || given(filter).unwrap();
            let text = logged(filter(), LogFormat::Text, in_spans);
            let spans = "run{run=3 run_id=\"u\"}:chunk{chunk=7}: ";
            assert!(text.lines().next().unwrap().contains(spans), "{text}");

            let text = logged(filter(), LogFormat::Json, in_spans);
            let lines: Vec<serde_json::Value> = text
                .lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect();
            let [inside, beside] = lines.as_slice() else {
                panic!("{text}")
            };
            let mut fields = inside.as_object().unwrap().clone();
            let timestamp = fields.remove("timestamp").unwrap();
            assert!(timestamp.as_str().unwrap().ends_with('Z'), "{timestamp}");
            // The line's own field hides that of the span.
            let expected = serde_json::json!({
                "level": "WARN", "message": "inside", "names": 2, "run": 3, "run_id": "v", "chunk": 7,
            });
            assert_eq!(serde_json::Value::Object(fields), expected);
            assert!(beside.get("run").is_none(), "{beside}");
        }
    }
}
