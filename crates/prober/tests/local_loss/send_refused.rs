//! Targets to which the kernel refuses to send, names without an address, and which status takes precedence.

use std::{thread, time::Duration};

use anyhow::ensure;
use pingfleet_testbed::simnet::{Answer, Behaviour, IpVersion, Script, Send, SimNet};
use pingfleet_wire::{Probing, Status, Target};

use crate::{
    counters::MAX_WAIT,
    expectations::all,
    pair,
    probing_process::{Asked, Prober},
    variants::{Network, addresses, at_once, hosts, variants},
};

/// The timeout of requests around a stall.
const TIMEOUT: Duration = Duration::from_millis(500);

/// Kinds of routes that refuse, each with its errno on Linux.
const REFUSING: [(&str, i32); 4] = [
    ("unreachable", 113),
    ("prohibit", 13),
    ("blackhole", 22),
    ("throw", 101),
];

#[test]
fn a_target_that_a_route_refuses_is_send_failed_with_its_errno() -> anyhow::Result<()> {
    at_once(variants(), |variant| {
        let pair = pair::make()?;
        // After a `throw` route the search would continue with the default route.
        let default = match variant.family {
            IpVersion::V4 => "ip route del default; ip route add 10.0.0.0/16 via 169.254.77.2",
            IpVersion::V6 => "ip -6 route del default; ip route add fd00:10::/64 via fd77::2",
        };
        pair.sh(default)?;
        let mut targets = Vec::new();
        for (number, (kind, _)) in REFUSING.iter().enumerate() {
            let (prefix, first, living) = match variant.family {
                IpVersion::V4 => (
                    format!("10.{}.0.0/16", 10 + number),
                    format!("10.{}.0.0", 10 + number),
                    format!("10.0.{number}.0"),
                ),
                IpVersion::V6 => (
                    format!("fd00:{}::/64", 20 + number),
                    format!("fd00:{}::", 20 + number),
                    format!("fd00:10::{number}:0"),
                ),
            };
            pair.sh(&format!("ip route add {kind} {prefix}"))?;
            targets.extend(addresses(&first, 50));
            targets.extend(addresses(&living, 50));
        }
        // There is no name server in this network.
        targets.push(Target::Text("router.example".to_owned()));
        let probing = Probing {
            retries: 1,
            timeout: Duration::from_millis(200),
            rate: None,
            ..Probing::default()
        };
        let asked = Asked { probing, targets };
        let report = Prober::default().run(&pair, variant, vec![asked])?;
        let (name, outcomes) = report.outcomes[0].split_last().expect("there are targets");
        for (refused, (_, errno)) in outcomes.chunks(100).zip(REFUSING) {
            let (refused, living) = refused.split_at(50);
            all(refused, |outcome| {
                outcome.status == Status::SendFailed { errno } && outcome.sent == 0
            })?;
            all(living, |outcome| {
                outcome.status == Status::Up && (outcome.sent, outcome.attempts) == (1, 1)
            })?;
        }
        ensure!(matches!(name.status, Status::DnsFailed(_)), "{name:?}");
        Ok(())
    })
}

/// All targets are probed before a stall, which may have cost an answer. What did arrive decides.
#[test]
fn an_icmp_error_outweighs_a_local_loss_and_an_answer_outweighs_both() -> anyhow::Result<()> {
    at_once(variants(), |variant| {
        let error = || Answer {
            send: Send::Prohibited,
            source: Some(9000),
            ..Answer::default()
        };
        let late = Answer {
            after: TIMEOUT * 7 / 5,
            ..Answer::default()
        };
        let behaviours = [
            vec![error(), Answer::default()],
            vec![error(), late],
            vec![error()],
            vec![],
        ];
        let group = |number: u32| 100 * number + 1..=100 * number + 20;
        let answering = (0..).zip(behaviours).map(|(number, answers)| {
            let loss = 0.0;
            (group(number), Behaviour { loss, answers })
        });
        let net = SimNet::start(Script {
            hosts: answering.collect(),
            ..Script::default()
        })?;
        let asked = Asked {
            probing: Probing {
                retries: 0,
                timeout: TIMEOUT,
                late_window: TIMEOUT,
                rate: None,
                ..Probing::default()
            },
            targets: (0..4)
                .flat_map(|number| hosts(variant.family, group(number)))
                .collect(),
        };
        let running = Prober::default().start(&net, variant, vec![asked])?;
        net.wait_for(80, MAX_WAIT)?;
        running.signal("-STOP")?;
        // The stall itself: there is no event to wait for.
        thread::sleep(TIMEOUT * 5 / 2);
        running.signal("-CONT")?;
        let report = running.finish()?;
        let groups: Vec<_> = report.outcomes[0].chunks(20).collect();
        all(groups[0], |outcome| outcome.status == Status::Up)?;
        all(groups[1], |outcome| outcome.status == Status::Late)?;
        all(groups[2], |outcome| {
            matches!(outcome.status, Status::Unreachable { .. }) && outcome.attempts > 1
        })?;
        all(groups[3], |outcome| {
            outcome.status == Status::DOWN && outcome.attempts > 1
        })
    })
}
