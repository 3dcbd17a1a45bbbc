//! Scenario files: a network, how its hosts are probed, and what is expected of each.

use std::{fmt, fs, num::NonZeroU32, ops::RangeInclusive, path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use pingfleet_testbed::simnet::{Answer, Behaviour, IpVersion, Noise, Script, Send, duration};
use pingfleet_wire::Probing;
use serde::{Deserialize, Deserializer, de};

use crate::engines::{Engine, Kind};

/// A scenario file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scenario {
    /// Variants that are not run.
    #[serde(default)]
    not_with: Vec<Except>,
    #[serde(default)]
    pub(crate) probing: Asked,
    /// Number of chunks, all probed at once.
    #[serde(default = "one")]
    pub(crate) chunks: usize,
    /// Number of probing threads.
    #[serde(default = "one")]
    pub(crate) threads: usize,
    /// Size of the prober's receive buffer in bytes, instead of a large one.
    pub(crate) receive_buffer: Option<usize>,
    #[serde(default)]
    seed: u64,
    #[serde(default)]
    noise: Vec<Noise>,
    /// The least number of messages that must arrive before the prober ends. For scenarios whose outcomes are the same
    /// without them.
    #[serde(default)]
    pub(crate) at_least_delivered: u64,
    /// Whether the prober's sockets must have dropped something.
    #[serde(default)]
    pub(crate) drops: bool,
    /// When the prober is stopped.
    pub(crate) stall: Option<Stall>,
    pub(crate) targets: Vec<Group>,
}

/// The prober is stopped for a while.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Stall {
    /// After it has sent this many requests.
    pub(crate) after_requests: usize,
    /// For this time.
    #[serde(rename = "for", deserialize_with = "duration")]
    pub(crate) time: Duration,
}

/// The settings of the probing. What a file omits has the product's default, except the rate: without one there is no
/// pacing.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Asked {
    pub(crate) count: Option<u16>,
    pub(crate) retries: Option<u16>,
    backoff_permille: Option<u16>,
    pub(crate) size: Option<u16>,
    pub(crate) rate: Option<NonZeroU32>,
    #[serde(deserialize_with = "some_duration")]
    pub(crate) interval: Option<Duration>,
    #[serde(deserialize_with = "some_duration")]
    pub(crate) timeout: Option<Duration>,
    #[serde(deserialize_with = "some_duration")]
    late_window: Option<Duration>,
}

impl Asked {
    pub(crate) fn probing(&self) -> Probing {
        let usual = Probing::default();
        Probing {
            count: self.count.unwrap_or(usual.count),
            retries: self.retries.unwrap_or(usual.retries),
            backoff_permille: self.backoff_permille.unwrap_or(usual.backoff_permille),
            size: self.size.unwrap_or(usual.size),
            rate: self.rate,
            interval: self.interval.unwrap_or(usual.interval),
            timeout: self.timeout.unwrap_or(usual.timeout),
            late_window: self.late_window.unwrap_or(usual.late_window),
            ..usual
        }
    }
}

/// Hosts with the same behaviour.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Group {
    /// Numbers of the first and the last host.
    hosts: [u32; 2],
    /// See [`Behaviour::loss`].
    #[serde(default)]
    loss: f64,
    #[serde(default)]
    answers: Vec<Answer>,
    /// What is expected of each host. Without it they are not probed.
    pub(crate) expect: Option<Expected>,
}

impl Group {
    pub(crate) fn hosts(&self) -> RangeInclusive<u32> {
        self.hosts[0]..=self.hosts[1]
    }
}

/// What is expected of a target.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Expected {
    /// The name of the status; several, separated by `|`, when each is permitted.
    pub(crate) status: String,
    /// The ICMP error that the reason names.
    pub(crate) error: Option<Reported>,
    /// What the reason contains; of several permitted statuses, if the status has a reason. Without this, `error` and
    /// `answered_by` there must be no reason.
    pub(crate) reason: Option<String>,
    /// The host that the reason names as the one that answered instead of the target. A prober that does not see such
    /// replies must give no reason.
    pub(crate) answered_by: Option<u32>,
    pub(crate) sent: Option<u16>,
    pub(crate) received: Option<u16>,
    /// Whether `received` must be the number of requests that the network answered, for hosts that lose requests.
    #[serde(default)]
    pub(crate) received_as_answered: bool,
    /// Bounds of every round-trip time, for a prober with the kernel's timestamps. Another prober may wait for a processor
    /// before it reads its clock: for it only the lower bound holds, less [`crate::judging::EARLY`].
    #[serde(default, deserialize_with = "some_durations")]
    pub(crate) rtt: Option<[Duration; 2]>,
    /// Narrow bounds of the median of the targets' shortest round-trip times. They hold as those of `rtt`.
    #[serde(default, deserialize_with = "some_durations")]
    pub(crate) median_rtt: Option<[Duration; 2]>,
    /// Bounds of the mean of a target's round-trip times, for a prober with the kernel's timestamps.
    #[serde(default, deserialize_with = "some_durations")]
    pub(crate) mean_rtt: Option<[Duration; 2]>,
    /// The most attempts at a target that answers.
    #[serde(default = "one_attempt")]
    pub(crate) attempts: u8,
    /// Whether some targets must be up only after more than one attempt.
    #[serde(default)]
    pub(crate) some_up_again: bool,
    /// Variants that cannot keep this promise.
    #[serde(default)]
    not_with: Vec<Except>,
}

impl Expected {
    pub(crate) fn is_of(&self, variant: Variant) -> bool {
        !self.not_with.iter().any(|except| except.means(variant))
    }
}

/// An ICMP error, as its host reports it.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reported {
    pub(crate) send: Send,
    /// The reporting host; the target itself if none is named.
    pub(crate) source: Option<u32>,
}

/// One variant of a scenario.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Variant {
    pub(crate) engine: &'static Engine,
    pub(crate) kind: Kind,
    pub(crate) family: IpVersion,
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            engine,
            kind,
            family,
        } = self;
        write!(f, "{}/{}/{}", engine.name, kind.name(), family.name())
    }
}

/// A set of variants, such as `surge`, `v6`, `surge/datagram` or `surge/raw/v4`.
#[derive(Debug)]
struct Except(String);

impl Except {
    fn means(&self, variant: Variant) -> bool {
        let words = [
            variant.engine.name,
            variant.kind.name(),
            variant.family.name(),
        ];
        self.0.split('/').all(|word| words.contains(&word))
    }
}

impl<'de> Deserialize<'de> for Except {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const WORDS: [&str; 6] = ["surge", "linux", "datagram", "raw", "v4", "v6"];
        let text = String::deserialize(deserializer)?;
        // A misspelt word would match no variant. The name of a new prober must be added here.
        match text.split('/').find(|word| !WORDS.contains(word)) {
            Some(word) => Err(de::Error::unknown_variant(word, &WORDS)),
            None => Ok(Self(text)),
        }
    }
}

/// The folder of the scenario files.
pub(crate) fn folder() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "scenarios", "data"]
        .iter()
        .collect()
}

impl Scenario {
    pub(crate) fn read(name: &str) -> anyhow::Result<Self> {
        let path = folder().join(name).with_extension("toml");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let scenario: Self = toml::from_str(&text).with_context(|| path.display().to_string())?;
        let mut probed: Vec<_> = scenario.probed().collect();
        probed.sort_unstable();
        if probed.windows(2).any(|pair| pair[0] == pair[1]) {
            bail!("{}: a host is probed twice", path.display());
        }
        Ok(scenario)
    }

    pub(crate) fn is_for(&self, variant: Variant) -> bool {
        !self.not_with.iter().any(|except| except.means(variant))
    }

    /// The hosts that are probed.
    pub(crate) fn probed(&self) -> impl Iterator<Item = u32> {
        self.targets
            .iter()
            .filter(|group| group.expect.is_some())
            .flat_map(Group::hosts)
    }

    pub(crate) fn script(&self) -> Script {
        let hosts = self.targets.iter().map(|group| {
            let behaviour = Behaviour {
                loss: group.loss,
                answers: group.answers.clone(),
            };
            (group.hosts(), behaviour)
        });
        Script {
            hosts: hosts.collect(),
            noise: self.noise.clone(),
            seed: self.seed,
        }
    }
}

fn one() -> usize {
    1
}

fn one_attempt() -> u8 {
    1
}

fn some_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    duration(deserializer).map(Some)
}

fn some_durations<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<[Duration; 2]>, D::Error> {
    #[derive(Deserialize)]
    struct Text(#[serde(deserialize_with = "duration")] Duration);

    let [low, high] = <[Text; 2]>::deserialize(deserializer)?;
    Ok(Some([low.0, high.0]))
}
