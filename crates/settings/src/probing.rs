//! The flags and settings of probing, for programs that plan a run.

use std::{net::IpAddr, time::Duration};

use clap::Args;
use pingfleet_wire::{Family, Probing};

use crate::{
    Layers,
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
        layers.problem(format!(
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

    use super::*;
    use crate::AnyKey;

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
