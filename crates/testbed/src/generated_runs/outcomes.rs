//! The targets of the generated runs and what became of each. Everything follows from the seed. No I/O.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fastrand::Rng;
use pingfleet_wire::{DnsFailure, DownReason, LinkAddress, LocalLoss, Status, Target};

/// Networks among which the targets are divided. One in ten has IPv6 addresses.
pub(super) const SUBNETS: u64 = 200;

/// The share of targets that get a new outcome in a run, in thousandths.
const CHANGES_PERMILLE: u64 = 30;

const SITES: [&str; 4] = ["berlin", "hamburg", "munich", "vienna"];

/// A target with what the plan says about it.
pub(super) struct GeneratedTarget {
    number: u64,
    subnet: u64,
    /// The name, for one in ten.
    pub(super) name: Option<String>,
    pub(super) address: IpAddr,
    /// JSON, for three in ten.
    pub(super) labels: Option<String>,
}

/// The final state of a target in a run.
pub(super) struct GeneratedOutcome {
    pub(super) status: Status,
    pub(super) sent: u16,
    pub(super) attempts: u8,
    pub(super) rtt_ns: Option<i64>,
}

/// A generator that gives the same numbers for the same parts.
pub(super) fn random(seed: u64, parts: [u64; 2]) -> Rng {
    let mixed = parts.iter().fold(seed, |mixed, part| {
        (mixed ^ part)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29)
    });
    Rng::with_seed(mixed)
}

impl GeneratedTarget {
    /// Target `number` of `count`.
    pub(super) fn new(seed: u64, number: u64, count: u64) -> Self {
        let size = count.div_ceil(SUBNETS);
        let (subnet, host) = (number / size, number % size);
        let mut random = random(seed, [number, u64::MAX]);
        let name = (random.u8(..10) == 0).then(|| format!("host-{host}.net-{subnet}.example"));
        let labels = (random.u8(..10) < 3).then(|| {
            let site = SITES[(subnet % SITES.len() as u64) as usize];
            format!(r#"{{"rack":"r{}","site":"{site}"}}"#, random.u8(1..40))
        });
        Self {
            number,
            subnet,
            name,
            address: address(subnet, host),
            labels,
        }
    }

    pub(super) fn planned(&self) -> Target {
        self.name
            .as_ref()
            .map_or(Target::Address(self.address), |name| {
                Target::Text(name.clone())
            })
    }

    /// Its outcome in a run. Most targets keep theirs from run to run.
    pub(super) fn outcome(&self, seed: u64, run: u64) -> GeneratedOutcome {
        let mut this_run = random(seed, [self.number, run]);
        let changes = this_run.u64(..1000) < CHANGES_PERMILLE;
        let mut choice = random(seed, [self.number, if changes { run } else { 0 }]);
        let status = self.status(seed, &mut choice);
        let (sent, attempts) = match status {
            Status::Up if this_run.u8(..10) > 0 => (1, 1),
            Status::Up | Status::Late | Status::Unreachable { .. } => (2, 1),
            Status::Unknown(_) => (3, 3),
            Status::Down(_) => (3, 1),
            Status::DnsFailed(_) | Status::SendFailed { .. } => (0, 1),
        };
        let rtt_ns = match status {
            Status::Up => Some(self.rtt_ns(seed, &mut this_run)),
            Status::Late => Some(1_000_000_000 + this_run.i64(0..1_200_000_000)),
            _ => None,
        };
        GeneratedOutcome {
            status,
            sent,
            attempts,
            rtt_ns,
        }
    }

    fn status(&self, seed: u64, choice: &mut Rng) -> Status {
        if choice.f64() >= share_not_up(seed, self.subnet) {
            return if choice.u8(..100) == 0 {
                Status::Late
            } else {
                Status::Up
            };
        }
        let gateway = address(self.subnet, 0);
        match choice.u8(..100) {
            0..20 if self.name.is_some() => Status::DnsFailed(match choice.u8(..10) {
                0..7 => DnsFailure::Nxdomain,
                7 => DnsFailure::NoData,
                8 => DnsFailure::Servfail,
                _ => DnsFailure::Timeout,
            }),
            0..62 => Status::DOWN,
            62..70 => Status::Down(DownReason::NoArp),
            70..76 => {
                let bytes = [0x52, 0x54, 0, choice.u8(..), choice.u8(..), choice.u8(..)];
                Status::Down(
                    LinkAddress::new(&bytes).map_or(DownReason::NoArp, DownReason::ArpAnswered),
                )
            }
            76 => Status::Down(DownReason::PayloadChanged),
            77 => Status::Down(DownReason::AnsweredBy(gateway)),
            78..91 => Status::Unreachable {
                icmp_type: if gateway.is_ipv4() { 3 } else { 1 },
                code: [0, 1, 3][choice.usize(..3)],
                reporter: gateway,
            },
            91..95 => Status::SendFailed { errno: 101 },
            _ => Status::Unknown([LocalLoss::SOCKET_DROPS, LocalLoss::STALLED][choice.usize(..2)]),
        }
    }

    /// A round-trip time: log-normal around that of the subnet, and far longer for two in a thousand.
    fn rtt_ns(&self, seed: u64, this_run: &mut Rng) -> i64 {
        let mut subnet = random(seed, [self.subnet, u64::MAX - 2]);
        let distance = 200_000.0 * (subnet.f64() * 6.0).exp();
        let own = (0.35 * normal(&mut random(seed, [self.number, u64::MAX - 3]))).exp();
        let noise = (0.15 * normal(this_run)).exp();
        let congestion = if this_run.u16(..500) == 0 {
            5.0 + 35.0 * this_run.f64()
        } else {
            1.0
        };
        (distance * own * noise * congestion).min(990_000_000.0) as i64
    }
}

fn address(subnet: u64, host: u64) -> IpAddr {
    if subnet % 10 == 9 {
        let base = u128::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0));
        return Ipv6Addr::from_bits(base | u128::from(subnet) << 64 | u128::from(host + 1)).into();
    }
    let octets = [10, subnet as u8, (host / 254) as u8, (host % 254 + 1) as u8];
    Ipv4Addr::from(octets).into()
}

/// How many of a subnet's targets are not up. It is a quarter over all subnets: one in twenty is almost silent.
fn share_not_up(seed: u64, subnet: u64) -> f64 {
    match (subnet + seed) % 20 {
        7 => 0.95,
        3 | 13 => 0.6,
        _ => 0.168,
    }
}

/// A number of the standard normal distribution, by the method of Box and Muller.
fn normal(random: &mut Rng) -> f64 {
    let radius = (-2.0 * (1.0 - random.f64()).ln()).sqrt();
    radius * (std::f64::consts::TAU * random.f64()).cos()
}
