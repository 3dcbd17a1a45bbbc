//! The flags and settings of probing, for programs that plan a run.

use std::{net::IpAddr, time::Duration};

use clap::Args;
use pingfleet_wire::{Family, Probing};

use crate::{
    AnyKey, Layers, SettingsError,
    flags::{Flags, ProbingKeys},
    keys,
};

/// A chunk is made smaller until sending it takes at most this long.
const MAX_SENDING: Duration = Duration::from_mins(1);

/// Flags of probing.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Probing")]
pub struct ProbingArgs {
    /// The flags that are plain settings.
    #[command(flatten)]
    pub flags: Flags<ProbingKeys>,
    /// IPv4 only
    #[arg(short = '4', long = "ipv4", conflicts_with = "v6")]
    pub v4: bool,
    /// IPv6 only
    #[arg(short = '6', long = "ipv6")]
    pub v6: bool,
}

/// The resolved settings of probing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbingSettings {
    /// How every target is probed.
    pub probing: Probing,
    /// Targets in a chunk, at most; 1 to 10,000.
    pub chunk_size: usize,
}

impl ProbingArgs {
    /// Whether any flag is given.
    #[must_use]
    pub fn is_given(&self) -> bool {
        !self.flags.given().is_empty() || self.v4 || self.v6
    }

    /// The settings of an earlier run, except for what a flag gives anew. The settings file and the environment do not
    /// count. `origin` names that run in a message.
    ///
    /// # Errors
    /// [`SettingsError`] with all problems.
    pub fn resolve_after(
        &self,
        earlier: &ProbingSettings,
        origin: &str,
    ) -> Result<ProbingSettings, SettingsError> {
        let mut layers = Layers::default();
        earlier.set(&mut layers, origin);
        let settings = self.resolve(&mut layers);
        layers.finish()?;
        Ok(settings)
    }

    /// Resolves the settings of probing; problems are collected in `layers`.
    pub fn resolve(&self, layers: &mut Layers) -> ProbingSettings {
        layers.set_flags(&self.flags);
        if self.v4 {
            layers.set(&keys::PROBING_FAMILY, "-4", "ipv4");
        }
        if self.v6 {
            layers.set(&keys::PROBING_FAMILY, "-6", "ipv6");
        }
        let (source, family) = source_and_family(layers);
        let probing = Probing {
            count: layers.get(&keys::PROBING_COUNT),
            interval: layers.get(&keys::PROBING_INTERVAL),
            timeout: layers.get(&keys::PROBING_TIMEOUT),
            retries: layers.get(&keys::PROBING_RETRIES),
            backoff_permille: layers.get(&keys::PROBING_BACKOFF),
            late_window: layers.get(&keys::PROBING_LATE_WINDOW),
            size: layers.get(&keys::PROBING_SIZE),
            ttl: layers.optional(&keys::PROBING_TTL).map(Into::into),
            source,
            interface: layers.optional(&keys::PROBING_INTERFACE),
            family,
            rate: layers.get(&keys::PROBING_RATE),
        };
        check_times(&probing, layers);
        let wanted = layers.get(&keys::PROBING_CHUNK_SIZE);
        ProbingSettings {
            chunk_size: fitting_chunk(&probing, wanted),
            probing,
        }
    }
}

impl ProbingSettings {
    /// Sets every key of probing to its value here. An absent value is the default.
    fn set(&self, layers: &mut Layers, origin: &str) {
        let Self {
            probing:
                Probing {
                    count,
                    interval,
                    timeout,
                    retries,
                    backoff_permille,
                    late_window,
                    size,
                    ttl,
                    source,
                    ref interface,
                    family,
                    rate,
                },
            chunk_size,
        } = *self;
        let text = |time| humantime::format_duration(time).to_string();
        let family = match family {
            Family::Any => "any",
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
        };
        let backoff = f64::from(backoff_permille) / 1000.0;
        let given: [(&dyn AnyKey, Option<String>); 13] = [
            (&keys::PROBING_COUNT, Some(count.to_string())),
            (&keys::PROBING_INTERVAL, Some(text(interval))),
            (&keys::PROBING_TIMEOUT, Some(text(timeout))),
            (&keys::PROBING_RETRIES, Some(retries.to_string())),
            (&keys::PROBING_BACKOFF, Some(backoff.to_string())),
            (&keys::PROBING_LATE_WINDOW, Some(text(late_window))),
            (&keys::PROBING_SIZE, Some(size.to_string())),
            (&keys::PROBING_TTL, ttl.map(|ttl| ttl.to_string())),
            (
                &keys::PROBING_SOURCE,
                source.map(|source| source.to_string()),
            ),
            (&keys::PROBING_INTERFACE, interface.clone()),
            (&keys::PROBING_FAMILY, Some(family.to_owned())),
            (
                &keys::PROBING_RATE,
                Some(rate.map_or_else(|| "unlimited".to_owned(), |rate| rate.to_string())),
            ),
            (&keys::PROBING_CHUNK_SIZE, Some(chunk_size.to_string())),
        ];
        for (key, value) in given {
            if let Some(value) = value {
                layers.set(key, &format!("{origin}: {}", key.name()), &value);
            }
        }
    }
}

/// The source address, and the address family of the targets: a source address can only reach its own family.
fn source_and_family(layers: &mut Layers) -> (Option<IpAddr>, Family) {
    let requested = layers.get(&keys::PROBING_FAMILY);
    let source = layers.optional_as(&keys::PROBING_SOURCE, |address| {
        // An IPv4-mapped address is an IPv4 address (RFC 4291, section 2.5.5.2).
        let address = address.to_canonical();
        match (requested, address) {
            (Family::V4, IpAddr::V6(_)) | (Family::V6, IpAddr::V4(_)) => {
                Err(format!("{address} is not of the requested address family"))
            }
            _ => Ok(address),
        }
    });
    let family = match source {
        Some(IpAddr::V4(_)) => Family::V4,
        Some(IpAddr::V6(_)) => Family::V6,
        None => requested,
    };
    (source, family)
}

/// Refuses settings with which a chunk could take too long.
fn check_times(probing: &Probing, layers: &mut Layers) {
    if !probing.is_timely() {
        let seconds = |time: Duration| {
            humantime::format_duration(Duration::from_secs(time.as_secs())).to_string()
        };
        layers.problem(&format!(
            "with these settings one target can take {} and its sending {}; the limit is 10 minutes: lower --count, \
             --interval, --timeout, --retries or --backoff, or raise --rate",
            seconds(probing.worst_target()),
            seconds(probing.sending(probing.most_requests().into()))
        ));
    }
}

/// The largest chunk up to `wanted` whose sending takes at most [`MAX_SENDING`].
fn fitting_chunk(probing: &Probing, wanted: usize) -> usize {
    let fitting = probing.rate.map_or(usize::MAX, |rate| {
        let requests = u64::from(rate.get()) * MAX_SENDING.as_secs();
        usize::try_from(requests / u64::from(probing.most_requests())).unwrap_or(usize::MAX)
    });
    wanted.min(fitting).max(1)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use clap::FromArgMatches as _;

    use super::*;

    fn resolved(values: &[(&dyn AnyKey, &str)]) -> (Probing, String) {
        let mut layers = Layers::default();
        for (key, text) in values {
            layers.set(*key, "a flag", text);
        }
        let settings = ProbingArgs::default().resolve(&mut layers);
        let message = layers.finish().err().map(|error| error.to_string());
        (settings.probing, message.unwrap_or_default())
    }

    #[test]
    fn the_defaults_are_those_of_a_work_message() {
        assert_eq!(resolved(&[]), (Probing::default(), String::new()));
    }

    #[test]
    fn the_source_decides_the_family() {
        for (source, family) in [
            ("192.0.2.1", Family::V4),
            ("2001:db8::1", Family::V6),
            ("::ffff:192.0.2.1", Family::V4),
        ] {
            let (probing, message) = resolved(&[(&keys::PROBING_SOURCE, source)]);
            assert_eq!((probing.family, message.as_str()), (family, ""));
            let is_v4 = probing.source.is_some_and(|source| source.is_ipv4());
            assert_eq!(is_v4, family == Family::V4, "{source}");
        }
        let (probing, message) = resolved(&[(&keys::PROBING_FAMILY, "ipv6")]);
        assert_eq!((probing.family, message.as_str()), (Family::V6, ""));
    }

    #[test]
    fn an_earlier_run_keeps_all_its_settings_but_those_that_a_flag_gives_anew() {
        // No field has its default value.
        let earlier = ProbingSettings {
            probing: Probing {
                count: 3,
                interval: Duration::from_micros(1_234_567),
                timeout: Duration::from_micros(2_345_678),
                retries: 4,
                backoff_permille: 2250,
                late_window: Duration::from_micros(345_678),
                size: 1200,
                ttl: Some(17),
                source: Some(IpAddr::from([192, 0, 2, 9])),
                interface: Some("eth7".to_owned()),
                family: Family::V4,
                rate: None,
            },
            chunk_size: 99,
        };
        let same = ProbingArgs::default().resolve_after(&earlier, "run 3");
        assert_eq!(same.unwrap(), earlier);
        let command = ProbingArgs::augment_args(clap::Command::new("retry"));
        let matches = command.get_matches_from(["retry", "-t", "5s", "--rate", "7"]);
        let flags = ProbingArgs::from_arg_matches(&matches).unwrap();
        let other = flags.resolve_after(&earlier, "run 3").unwrap();
        let mut expected = earlier.clone();
        expected.probing.timeout = Duration::from_secs(5);
        expected.probing.rate = NonZeroU32::new(7);
        // The slow rate makes chunks smaller.
        expected.chunk_size = other.chunk_size;
        assert_eq!(other, expected);
        assert_eq!(other.chunk_size, 60);
        // What cannot be kept is reported with the run.
        let mut bad = earlier;
        bad.probing.timeout = Duration::from_hours(2);
        let message = ProbingArgs::default().resolve_after(&bad, "run 3");
        let message = message.unwrap_err().to_string();
        assert!(message.contains("run 3: probing.timeout"), "{message}");
    }

    #[test]
    fn a_source_that_cannot_send_to_the_family_is_refused() {
        for (family, source) in [
            ("ipv4", "2001:db8::1"),
            ("ipv6", "192.0.2.1"),
            ("any", "fe80::1"),
        ] {
            let (_, message) = resolved(&[
                (&keys::PROBING_FAMILY, family),
                (&keys::PROBING_SOURCE, source),
            ]);
            assert!(message.contains(source), "{message}");
        }
        let (_, message) = resolved(&[(&keys::PROBING_FAMILY, "ip6")]);
        assert!(message.contains("\"ip6\""), "{message}");
    }

    #[test]
    fn a_slow_rate_makes_chunks_smaller() {
        let slow = Probing {
            rate: NonZeroU32::new(10),
            ..Probing::default()
        };
        let chunk = fitting_chunk(&slow, 250);
        assert_eq!(chunk, 200);
        assert!(slow.sending(chunk as u64 * 3) <= MAX_SENDING);
        assert_eq!(fitting_chunk(&Probing::default(), 250), 250);
    }
}
