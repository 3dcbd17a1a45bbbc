//! A full receive buffer, and floods of messages that belong to no request.

use std::time::{Duration, Instant};

use anyhow::ensure;
use pingfleet_testbed::simnet::{Answer, Behaviour, Noise, Payload, Script, Send, SimNet};
use pingfleet_wire::{LocalLoss, Outcome, Probing, Status};

use crate::{
    counters::{MAX_WAIT, Sockets},
    expectations::{all, is_unknown, tally, up_or_unknown},
    probing_process::{Asked, Prober},
    variants::{at_once, hosts, variants},
};

/// Holds one or two replies: the smallest buffer that the kernel grants (`SOCK_MIN_RCVBUF`).
const TINY: usize = 1;

/// Holds some dozens of replies.
const SMALL: usize = 64 << 10;

/// A host that sends this answer to every request.
fn answering(answer: Answer) -> Behaviour {
    Behaviour {
        loss: 0.0,
        answers: vec![answer],
    }
}

/// How many targets are up after more than one attempt.
fn up_again(outcomes: &[Outcome]) -> usize {
    let again = |outcome: &&Outcome| outcome.status == Status::Up && outcome.attempts > 1;
    outcomes.iter().filter(again).count()
}

/// One request for each target, without pacing.
fn quick(timeout: Duration) -> Probing {
    Probing {
        retries: 0,
        timeout,
        rate: None,
        ..Probing::default()
    }
}

#[test]
fn targets_whose_replies_a_full_socket_drops_are_up_later_or_unknown() -> anyhow::Result<()> {
    at_once(variants(), |variant| {
        let net = SimNet::start(Script::alive(1..=3000))?;
        let prober = Prober {
            receive_buffer: Some(TINY),
            ..Prober::default()
        };
        let asked = Asked {
            probing: quick(Duration::from_millis(700)),
            targets: hosts(variant.family, 1..=3020),
        };
        let report = prober.run(&net, variant, vec![asked])?;
        let traffic = net.stop()?;
        let (living, silent) = report.outcomes[0].split_at(3000);
        ensure!(report.sockets.drops > 0, "the socket held everything");
        ensure!(traffic.delivered >= 3000, "replies never arrived");
        ensure!(up_again(living) > 0, "{:?}", tally(living));
        all(living, |outcome| {
            up_or_unknown(outcome.status, LocalLoss::SOCKET_DROPS) && outcome.attempts <= 3
        })?;
        all(silent, |outcome| {
            outcome.status == Status::DOWN || is_unknown(outcome.status, LocalLoss::SOCKET_DROPS)
        })
    })
}

#[test]
fn icmp_errors_that_a_full_socket_drops_make_no_target_down() -> anyhow::Result<()> {
    at_once(variants(), |variant| {
        let error = Answer {
            send: Send::Prohibited,
            source: Some(9000),
            ..Answer::default()
        };
        let net = SimNet::start(Script {
            hosts: vec![(1..=2000, answering(error))],
            ..Script::default()
        })?;
        let prober = Prober {
            receive_buffer: Some(TINY),
            ..Prober::default()
        };
        let asked = Asked {
            probing: quick(Duration::from_millis(700)),
            targets: hosts(variant.family, 1..=2000),
        };
        let report = prober.run(&net, variant, vec![asked])?;
        let traffic = net.stop()?;
        all(&report.outcomes[0], |outcome| {
            matches!(outcome.status, Status::Unreachable { .. })
                || is_unknown(outcome.status, LocalLoss::SOCKET_DROPS)
        })?;
        // The kernel does not count the errors that it drops. An error arrived for each request, so for an unknown target
        // it was dropped.
        let (left, delivered) = (traffic.requests.len(), traffic.delivered);
        ensure!(delivered == left as u64, "{delivered} errors to {left}");
        let unknown = |outcome: &&Outcome| matches!(outcome.status, Status::Unknown(_));
        let lost = report.outcomes[0].iter().filter(unknown).count();
        ensure!(lost > 0, "the socket held everything");
        ensure!(lost < 2000, "no error was read in the last attempt");
        Ok(())
    })
}

/// Only on raw sockets: without a filter they would receive all of it.
#[test]
fn a_flood_of_foreign_icmp_costs_no_answer() -> anyhow::Result<()> {
    for send in [Send::Reply, Send::Prohibited] {
        let raw = variants().filter(|variant| variant.caller.is_raw);
        at_once(raw, |variant| {
            let flood = Noise {
                messages: 20_000,
                rate: 20_000,
                send,
                from: 100_000,
            };
            let slow = Answer {
                after: Duration::from_millis(200),
                ..Answer::default()
            };
            let net = SimNet::start(Script {
                hosts: vec![(1..=1000, answering(slow))],
                noise: vec![flood],
                ..Script::default()
            })?;
            let prober = Prober {
                bystander: true,
                ..Prober::default()
            };
            let asked = Asked {
                probing: quick(Duration::from_secs(2)),
                targets: hosts(variant.family, 1..=1020),
            };
            let report = prober.run(&net, variant, vec![asked])?;
            let traffic = net.stop()?;
            ensure!(traffic.delivered >= 21_000, "the flood never arrived");
            // The bystander, a socket without a filter that is not read.
            ensure!(report.sockets.drops > 0, "the flood would fit any socket");
            let (living, silent) = report.outcomes[0].split_at(1000);
            all(living, |outcome| outcome.status == Status::Up)?;
            all(silent, |outcome| outcome.status == Status::DOWN)
        })?;
    }
    Ok(())
}

/// The process is stopped, so its socket keeps what it has received.
#[test]
fn a_raw_socket_holds_only_the_replies_to_its_own_requests() -> anyhow::Result<()> {
    const OWN: u32 = 10;
    const FOREIGN: u32 = 4000;
    /// More than the kernel charges for one reply, in bytes.
    const ONE: u64 = 4096;
    let raw = variants().filter(|variant| variant.caller.is_raw);
    at_once(raw, |variant| {
        let slow = Answer {
            after: Duration::from_secs(1),
            ..Answer::default()
        };
        let foreign = Noise {
            messages: FOREIGN,
            rate: 2000,
            send: Send::Reply,
            from: 100_000,
        };
        let net = SimNet::start(Script {
            hosts: vec![(1..=OWN, answering(slow))],
            noise: vec![foreign],
            ..Script::default()
        })?;
        let asked = Asked {
            probing: quick(Duration::from_secs(4)),
            targets: hosts(variant.family, 1..=OWN),
        };
        let running = Prober::default().start(&net, variant, vec![asked])?;
        net.wait_for(OWN as usize, MAX_WAIT)?;
        running.signal("-STOP")?;
        let before = net.delivered()?;
        let deadline = Instant::now() + MAX_WAIT;
        while net.delivered()? < u64::from(FOREIGN + OWN) {
            ensure!(Instant::now() < deadline, "the replies never arrive");
        }
        let waiting = Sockets::read(&net)?;
        running.signal("-CONT")?;
        let report = running.finish()?;
        ensure!(before < u64::from(FOREIGN / 2), "it was stopped too late");
        let own = 1..=u64::from(OWN) * ONE;
        ensure!(own.contains(&waiting.unread), "{waiting:?}");
        ensure!(report.sockets.drops == 0, "{:?}", report.sockets);
        all(&report.outcomes[0], |outcome| {
            outcome.status == Status::Up && outcome.attempts == 1
        })
    })
}

/// The forged replies have our identifier, so the socket receives them all, shortly before the real answers.
#[test]
fn a_flood_of_forged_replies_makes_no_target_up_and_none_down() -> anyhow::Result<()> {
    at_once(variants(), |variant| {
        let forged = Answer {
            payload: Payload::Flipped,
            again: 9999,
            after: Duration::from_millis(100),
            ..Answer::default()
        };
        let slow = Answer {
            after: Duration::from_millis(110),
            ..Answer::default()
        };
        let net = SimNet::start(Script {
            hosts: vec![
                (1..=1000, answering(slow)),
                (2001..=2002, answering(forged)),
            ],
            ..Script::default()
        })?;
        let prober = Prober {
            receive_buffer: Some(SMALL),
            ..Prober::default()
        };
        let mut targets = hosts(variant.family, 1..=1000);
        targets.extend(hosts(variant.family, 2001..=2002));
        let asked = Asked {
            probing: quick(Duration::from_millis(700)),
            targets,
        };
        let report = prober.run(&net, variant, vec![asked])?;
        let traffic = net.stop()?;
        ensure!(traffic.delivered >= 21_000, "the flood never arrived");
        ensure!(report.sockets.drops > 0, "the socket held everything");
        let (living, forgers) = report.outcomes[0].split_at(1000);
        all(living, |outcome| {
            // Some answers are late, because the simulated network sends the flood first.
            outcome.status == Status::Late || up_or_unknown(outcome.status, LocalLoss::SOCKET_DROPS)
        })?;
        all(forgers, |outcome| {
            outcome.received == 0 && !matches!(outcome.status, Status::Unreachable { .. })
        })
    })
}
