//! Metrics as text for Prometheus, in the format that the client asks for: `OpenMetrics`
//! (<https://prometheus.io/docs/specs/om/open_metrics_spec/>), or the text format 0.0.4, which is also for people, `curl`
//! and `promtool` (<https://prometheus.io/docs/instrumenting/exposition_formats/>).

use std::fmt;

use axum::http::{
    HeaderMap, StatusCode,
    header::{ACCEPT, VARY},
};
use prometheus_client::{
    encoding::{
        DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet, EncodeMetric,
        NoLabelSet, prometheus_text, text,
    },
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge, info::Info},
    registry::{Registry, Unit},
};

use crate::answer::{Answer, answer, failed, set, weight};

/// The path under which all roles serve their metrics.
pub const PATH: &str = "/metrics";

/// The unit of times.
pub const SECONDS: Option<&Unit> = Some(&Unit::Seconds);

const OPEN_METRICS: &str = "application/openmetrics-text";
const OPEN_METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A registry whose names begin with `pingfleet`. It has `pingfleet_build_info` with the name of a program and its version.
#[must_use]
pub fn registry(program: &'static str, version: &'static str) -> Registry {
    let mut registry = Registry::with_prefix("pingfleet");
    let build = Info::new([("program", program), ("version", version)]);
    registry.register("build", "The program that serves these metrics", build);
    registry
}

/// Answers with all metrics of a registry.
#[must_use]
pub fn exposition(request: &HeaderMap, registry: &Registry) -> Answer {
    let mut body = String::new();
    let (content_type, written) = if is_open_metrics(request) {
        (OPEN_METRICS_TYPE, text::encode(&mut body, registry))
    } else {
        let written = prometheus_text::encode(&mut body, registry);
        (prometheus_text::CONTENT_TYPE, written)
    };
    if let Err(error) = written {
        tracing::error!(%error, "the metrics cannot be written");
        let sentence = "The metrics cannot be written; the log says why.";
        return failed(StatusCode::INTERNAL_SERVER_ERROR, PATH, sentence);
    }
    let mut answer = answer(StatusCode::OK, content_type, body);
    set(&mut answer, VARY, "accept");
    answer
}

/// Whether a client names `OpenMetrics` and likes it at least as much as plain text (RFC 9110, section 12.5.1).
fn is_open_metrics(request: &HeaderMap) -> bool {
    let weight = |media_type| weight(request, &ACCEPT, media_type).unwrap_or(0.0);
    let open_metrics = weight(OPEN_METRICS);
    open_metrics > 0.0 && open_metrics >= weight("text/plain")
}

/// Writes the metrics of a snapshot, for a [`Collector`](prometheus_client::collector::Collector). A name has neither its
/// prefix nor `_total` nor its unit: these are added.
#[derive(Debug)]
pub struct Samples<'a>(DescriptorEncoder<'a>);

impl<'a> Samples<'a> {
    /// Writes to the encoder of a collector.
    #[must_use]
    pub fn new(encoder: DescriptorEncoder<'a>) -> Self {
        Self(encoder)
    }

    /// A gauge without labels; described but without a value when that is not known.
    ///
    /// # Errors
    /// Those of the encoder.
    pub fn gauge(
        &mut self,
        name: &str,
        unit: Option<&Unit>,
        help: &str,
        value: Option<impl EncodeGaugeValue>,
    ) -> fmt::Result {
        let encoder = self
            .0
            .encode_descriptor(name, help, unit, MetricType::Gauge)?;
        value.map_or(Ok(()), |value| ConstGauge::new(value).encode(encoder))
    }

    /// A gauge for each of these labels.
    ///
    /// # Errors
    /// Those of the encoder.
    pub fn gauges<L: EncodeLabelSet, N: EncodeGaugeValue>(
        &mut self,
        name: &str,
        unit: Option<&Unit>,
        help: &str,
        samples: impl IntoIterator<Item = (L, N)>,
    ) -> fmt::Result {
        let mut encoder = self
            .0
            .encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for (labels, value) in samples {
            ConstGauge::new(value).encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }

    /// Facts in words, as the labels of series that are always 1. `_info` is added to the name.
    ///
    /// # Errors
    /// Those of the encoder.
    pub fn infos<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        facts: impl IntoIterator<Item = L>,
    ) -> fmt::Result {
        let mut encoder = self
            .0
            .encode_descriptor(name, help, None, MetricType::Info)?;
        for labels in facts {
            encoder.encode_info(&labels)?;
        }
        Ok(())
    }

    /// A counter without labels.
    ///
    /// # Errors
    /// Those of the encoder.
    pub fn counter(
        &mut self,
        name: &str,
        help: &str,
        value: impl EncodeCounterValue,
    ) -> fmt::Result {
        let encoder = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(value).encode(encoder)
    }

    /// A counter for each of these labels.
    ///
    /// # Errors
    /// Those of the encoder.
    pub fn counters<L: EncodeLabelSet, N: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, N)>,
    ) -> fmt::Result {
        let mut encoder = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in samples {
            ConstCounter::new(value).encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }

    /// A histogram of times in seconds: the sum, and how many are in each bucket and not in the one before it. The bound
    /// of the last bucket is infinity.
    ///
    /// # Errors
    /// Those of the encoder.
    pub fn times(
        &mut self,
        name: &str,
        help: &str,
        sum: f64,
        buckets: &[(f64, u64)],
    ) -> fmt::Result {
        let mut encoder = self
            .0
            .encode_descriptor(name, help, SECONDS, MetricType::Histogram)?;
        let count = buckets.iter().map(|(_, count)| count).sum();
        encoder.encode_histogram::<NoLabelSet>(sum, count, buckets, None)
    }
}

#[cfg(test)]
mod tests {
    use axum::{
        body::to_bytes,
        http::{HeaderValue, header::CONTENT_TYPE},
    };
    use prometheus_client::collector::Collector;

    use super::*;

    #[derive(Debug)]
    struct Snapshot(&'static str);

    impl Collector for Snapshot {
        fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
            let mut samples = Samples::new(encoder);
            samples.counters("requests", "Requests.", [([("worker", self.0)], 3_u64)])?;
            samples.gauge("lag", SECONDS, "Lag.", Some(0.5))?;
            samples.gauge("alarm", None, "Alarm.", None::<i64>)?;
            samples.infos(
                "worker",
                "Workers.",
                ["one", "two"].map(|name| [("name", name)]),
            )?;
            let buckets = [(0.25, 1), (1.0, 2), (f64::INFINITY, 1)];
            samples.times("commit", "Commits.", 4.5, &buckets)
        }
    }

    async fn read(accept: Option<&'static str>, worker: &'static str) -> (String, String) {
        let mut request = HeaderMap::new();
        if let Some(accept) = accept {
            request.insert(ACCEPT, HeaderValue::from_static(accept));
        }
        let mut registry = registry("ping-worker", "1.2.3");
        registry.register_collector(Box::new(Snapshot(worker)));
        let answer = exposition(&request, &registry);
        let content_type = answer.headers()[CONTENT_TYPE].to_str().unwrap().to_owned();
        let body = to_bytes(answer.into_body(), usize::MAX).await.unwrap();
        (content_type, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn each_client_gets_the_format_that_it_asks_for() {
        // What Prometheus sends, and what a browser sends.
        let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                          text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let (content_type, body) = read(Some(prometheus), "one").await;
        assert_eq!(content_type, OPEN_METRICS_TYPE);
        assert!(
            body.contains("# TYPE pingfleet_requests counter\n"),
            "{body}"
        );
        assert!(
            body.contains("# UNIT pingfleet_lag_seconds seconds\n"),
            "{body}"
        );
        assert!(body.ends_with("# EOF\n"), "{body}");
        for accept in [
            None,
            Some("*/*"),
            Some("text/html,application/xhtml+xml,*/*;q=0.8"),
            Some("application/openmetrics-text;q=0, text/plain"),
            Some("application/openmetrics-text;q=0.2, text/plain;q=0.9"),
        ] {
            let (content_type, body) = read(accept, "one").await;
            assert_eq!(content_type, prometheus_text::CONTENT_TYPE, "{accept:?}");
            assert!(
                body.contains("# TYPE pingfleet_requests_total counter\n"),
                "{body}"
            );
            assert!(!body.contains("# EOF"), "{body}");
        }
    }

    #[tokio::test]
    async fn names_and_units_are_whole_and_label_values_are_escaped() {
        let (_, body) = read(None, "a\"b\\c\nd{}").await;
        for line in [
            r#"pingfleet_build_info{program="ping-worker",version="1.2.3"} 1"#,
            r#"pingfleet_requests_total{worker="a\"b\\c\nd{}"} 3"#,
            "pingfleet_lag_seconds 0.5",
            "# TYPE pingfleet_alarm gauge",
            "# TYPE pingfleet_worker_info gauge",
            r#"pingfleet_worker_info{name="two"} 1"#,
            r#"pingfleet_commit_seconds_bucket{le="0.25"} 1"#,
            r#"pingfleet_commit_seconds_bucket{le="1"} 3"#,
            r#"pingfleet_commit_seconds_bucket{le="+Inf"} 4"#,
            "pingfleet_commit_seconds_sum 4.5",
            "pingfleet_commit_seconds_count 4",
        ] {
            assert!(body.lines().any(|found| found == line), "{line}\n{body}");
        }
        // What is not known has no value.
        assert!(!body.contains("\npingfleet_alarm "), "{body}");
    }
}
