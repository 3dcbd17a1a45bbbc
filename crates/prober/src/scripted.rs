//! A prober without a network, for tests and fault suites. The finding of an address is a pure function of a seed and the
//! address. So two probings of a chunk agree, and a test knows what must be stored.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use pingfleet_wire::{DownReason, Probing, Rtt, Status};

use crate::{
    prober::{Destination, Finding, OpenProber, ProbeCounters, ProbeError, Prober},
    schedule::pacing::Pace,
};

/// Opens probers that answer from a seed.
#[derive(Debug, Clone, Default)]
pub struct Scripted {
    /// Decides all findings.
    pub seed: u64,
    /// How long the probing of a chunk takes.
    pub delay: Duration,
    /// Probing this address panics, for tests of a panic in a probing thread.
    pub panics_at: Option<IpAddr>,
}

impl Scripted {
    /// The finding of `address`; `at` is the time of its first request. About seven of ten addresses are up, and every status
    /// of a probed address occurs.
    #[must_use]
    pub fn finding(&self, probing: &Probing, address: IpAddr, at: Instant) -> Finding {
        let mut hasher = DefaultHasher::new();
        (self.seed, address).hash(&mut hasher);
        let dice = hasher.finish();
        let rtt = Duration::from_nanos(50_000 + dice % 100_000_000);
        let every = probing.most_requests() as u16;
        let answered = |status, sent| Finding {
            status,
            sent,
            received: 1,
            rtt: Rtt::of(&[rtt]),
            attempts: 1,
            first_request: at,
        };
        let silent = |status| Finding {
            status,
            sent: every,
            received: 0,
            rtt: None,
            attempts: 1,
            first_request: at,
        };
        match dice >> 32 & 0xff {
            0..180 => answered(Status::Up, probing.count),
            180..190 => answered(Status::Late, every),
            190..200 => silent(Status::Unreachable {
                icmp_type: 3,
                code: 1,
                reporter: address,
            }),
            200..205 => Finding::refused(101, at),
            205..210 => silent(Status::Down(DownReason::NoArp)),
            _ => silent(Status::DOWN),
        }
    }
}

impl OpenProber for Scripted {
    fn open(&self, counters: Arc<ProbeCounters>) -> Result<Box<dyn Prober>, ProbeError> {
        Ok(Box::new(ScriptedProber {
            script: self.clone(),
            counters,
        }))
    }
}

struct ScriptedProber {
    script: Scripted,
    counters: Arc<ProbeCounters>,
}

#[async_trait(?Send)]
impl Prober for ScriptedProber {
    async fn probe(
        &self,
        probing: &Probing,
        destinations: &[Destination],
        pace: &Pace,
    ) -> Vec<Finding> {
        let mut findings = Vec::with_capacity(destinations.len());
        for destination in destinations {
            assert!(
                self.script.panics_at != Some(destination.address),
                "the script panics at this address"
            );
            pace.acquire().await;
            let at = tokio::time::Instant::now().into_std();
            let finding = self.script.finding(probing, destination.address, at);
            self.counters.add_requests(u64::from(finding.sent));
            findings.push(finding);
        }
        tokio::time::sleep(self.script.delay).await;
        findings
    }
}
