//! The flags and settings of probing, for programs that plan a run.

use std::{net::IpAddr, time::Duration};

use clap::Args;
use pingfleet_wire::{Family, MAX_CHUNK_TARGETS, Probing};

use crate::{Layers, duration, number, rate, values::Rate};

/// Targets in a chunk.
const DEFAULT_CHUNK_SIZE: usize = 250;

/// A chunk is made smaller until sending it takes at most this long.
const MAX_SENDING: Duration = Duration::from_mins(1);

/// The resolution of the timers: a shorter timeout could not be measured.
const MIN_TIMEOUT: Duration = Duration::from_millis(1);

/// Flags of probing. Durations carry a unit.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Probing")]
pub struct ProbingArgs {
    /// Requests to each target [default: 1]
    #[arg(short, long, value_name = "N")]
    pub count: Option<String>,
    /// Gap between the requests to one target [default: 1s]
    #[arg(short = 'p', long, value_name = "DURATION")]
    pub interval: Option<String>,
    /// How long to wait for an answer [default: 1s]
    #[arg(short, long, value_name = "DURATION")]
    pub timeout: Option<String>,
    /// More requests if none was answered [default: 2]
    #[arg(short, long, value_name = "N")]
    pub retries: Option<String>,
    /// Factor by which the timeout grows with each retry [default: 1.5]
    #[arg(long, value_name = "FACTOR")]
    pub backoff: Option<String>,
    /// How long to wait for late answers at the end [default: 0s]
    #[arg(long, value_name = "DURATION")]
    pub late_window: Option<String>,
    /// Bytes of payload [default: 56]
    #[arg(short = 'b', long, value_name = "BYTES")]
    pub size: Option<String>,
    /// Time to live, or hop limit [default: the system's]
    #[arg(long, value_name = "N")]
    pub ttl: Option<String>,
    /// Source address. Names then resolve to its address family
    #[arg(short = 'S', long, value_name = "ADDRESS")]
    pub source: Option<String>,
    /// Network interface
    #[arg(short = 'I', long, value_name = "NAME")]
    pub interface: Option<String>,
    /// IPv4 only
    #[arg(short = '4', long = "ipv4", conflicts_with = "v6")]
    pub v4: bool,
    /// IPv6 only
    #[arg(short = '6', long = "ipv6")]
    pub v6: bool,
    /// Requests per second and worker, or `unlimited` [default: 1000]
    #[arg(long, value_name = "RATE")]
    pub rate: Option<String>,
    /// Targets in a chunk [default: 250]
    #[arg(long, value_name = "N")]
    pub chunk_size: Option<String>,
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
        for (key, flag, text) in [
            ("probing.count", "--count", &self.count),
            ("probing.interval", "--interval", &self.interval),
            ("probing.timeout", "--timeout", &self.timeout),
            ("probing.retries", "--retries", &self.retries),
            ("probing.backoff", "--backoff", &self.backoff),
            ("probing.late_window", "--late-window", &self.late_window),
            ("probing.size", "--size", &self.size),
            ("probing.ttl", "--ttl", &self.ttl),
            ("probing.source", "--source", &self.source),
            ("probing.interface", "--interface", &self.interface),
            ("probing.rate", "--rate", &self.rate),
            ("probing.chunk_size", "--chunk-size", &self.chunk_size),
        ] {
            layers.flag(key, flag, text.as_deref());
        }
        if self.v4 {
            layers.flag("probing.family", "-4", Some("ipv4"));
        }
        if self.v6 {
            layers.flag("probing.family", "-6", Some("ipv6"));
        }
        let requested = layers.get("probing.family", Family::Any, family);
        let source = layers.get("probing.source", None, |text| {
            source(text, requested).map(Some)
        });
        // A source address can only reach targets of its own family.
        let family = match source {
            Some(IpAddr::V4(_)) => Family::V4,
            Some(IpAddr::V6(_)) => Family::V6,
            None => requested,
        };
        let default = Probing::default();
        let backoff_permille = layers.get("probing.backoff", default.backoff_permille, |text| {
            let factor = number(1.0_f64, 10.0)(text)?;
            Ok((factor * 1000.0).round() as u16)
        });
        let probing = Probing {
            count: layers.get("probing.count", default.count, number(1, 1000)),
            interval: layers.get("probing.interval", default.interval, duration),
            timeout: layers.get("probing.timeout", default.timeout, |text| {
                match duration(text)? {
                    short if short < MIN_TIMEOUT => Err("a timeout is at least 1ms".to_owned()),
                    timeout => Ok(timeout),
                }
            }),
            retries: layers.get("probing.retries", default.retries, number(0, 100)),
            backoff_permille,
            late_window: layers.get("probing.late_window", default.late_window, duration),
            size: layers.get("probing.size", default.size, number(0, 65_507)),
            ttl: layers.get("probing.ttl", default.ttl, |text| {
                number(1, 255)(text).map(Some)
            }),
            source,
            interface: layers.get("probing.interface", None, |text| {
                let plain = text.bytes().all(|byte| byte.is_ascii_graphic());
                if (1..=64).contains(&text.len()) && plain {
                    Ok(Some(text.to_owned()))
                } else {
                    Err(format!("{text:?} is not the name of an interface"))
                }
            }),
            family,
            rate: layers.get::<Rate>("probing.rate", default.rate, rate),
        };
        if !probing.is_timely() {
            layers.problem(format!(
                "with these settings one target can take {} and its sending {}; the limit is 10 minutes: lower --count, \
                 --interval, --timeout, --retries or --backoff, or raise --rate",
                humantime::format_duration(Duration::from_secs(probing.worst_target().as_secs())),
                humantime::format_duration(Duration::from_secs(
                    probing.sending(probing.most_requests().into()).as_secs()
                ))
            ));
        }
        let wanted = layers.get(
            "probing.chunk_size",
            DEFAULT_CHUNK_SIZE,
            number(1, MAX_CHUNK_TARGETS),
        );
        let chunk_size = fitting_chunk(&probing, wanted);
        ProbingSettings {
            probing,
            chunk_size,
        }
    }
}

fn family(text: &str) -> Result<Family, String> {
    match text {
        "any" => Ok(Family::Any),
        "ipv4" => Ok(Family::V4),
        "ipv6" => Ok(Family::V6),
        _ => Err(format!("{text:?} is neither any, ipv4 nor ipv6")),
    }
}

fn source(text: &str, family: Family) -> Result<IpAddr, String> {
    let address: IpAddr = text
        .parse()
        .map_err(|_| format!("{text:?} is not an address"))?;
    match (family, address) {
        (Family::V4, IpAddr::V6(_)) | (Family::V6, IpAddr::V4(_)) => {
            Err(format!("{address} is not of the requested address family"))
        }
        // A link-local address is only unique together with its interface, and here no interface can be given with it.
        (_, IpAddr::V6(local)) if local.is_unicast_link_local() => Err(format!(
            "{address} is a link-local address: use one of a wider scope, or only name the interface with -I"
        )),
        _ => Ok(address),
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

    fn resolved(flags: &[(&str, &str)]) -> (Probing, String) {
        let mut layers = Layers::default();
        for (key, text) in flags {
            layers.flag(key, "a flag", Some(text));
        }
        let settings = ProbingArgs::default().resolve(&mut layers);
        let message = layers.finish().err().map(|error| error.to_string());
        (settings.probing, message.unwrap_or_default())
    }

    #[test]
    fn the_source_decides_the_family() {
        for (source, family) in [("192.0.2.1", Family::V4), ("2001:db8::1", Family::V6)] {
            let (probing, message) = resolved(&[("probing.source", source)]);
            assert_eq!((probing.family, message.as_str()), (family, ""));
        }
        let (probing, message) = resolved(&[("probing.family", "ipv6")]);
        assert_eq!((probing.family, message.as_str()), (Family::V6, ""));
    }

    #[test]
    fn a_source_that_cannot_send_to_the_family_is_refused() {
        for (family, source) in [
            ("ipv4", "2001:db8::1"),
            ("ipv6", "192.0.2.1"),
            ("any", "fe80::1"),
        ] {
            let (_, message) = resolved(&[("probing.family", family), ("probing.source", source)]);
            assert!(message.contains(source), "{message}");
        }
        let (_, message) = resolved(&[("probing.family", "ip6")]);
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
