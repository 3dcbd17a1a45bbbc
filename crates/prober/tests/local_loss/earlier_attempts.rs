//! What came in a pass that was followed by another one.

use std::{thread, time::Duration};

use pingfleet_testbed::simnet::{Answer, Behaviour, Script, Send, SimNet};
use pingfleet_wire::{Probing, Status};

use crate::{
    counters::PATIENCE,
    expectations::all,
    probing_process::{Asked, Prober},
    variants::{at_once, hosts, variants},
};

/// The timeout of requests around a stall.
const TIMEOUT: Duration = Duration::from_millis(500);

/// Targets of each kind.
const EACH: u32 = 20;

#[test]
fn an_error_of_a_pass_that_own_loss_concerned_outlives_silence_and_no_answer() -> anyhow::Result<()>
{
    at_once(variants(), |variant| {
        let error = Answer {
            to: vec![1],
            send: Send::Prohibited,
            source: Some(9000),
            ..Answer::default()
        };
        let answer = Answer {
            to: vec![2],
            ..Answer::default()
        };
        let behaviour = |answers| Behaviour { loss: 0.0, answers };
        let net = SimNet::start(Script {
            hosts: vec![
                (1..=EACH, behaviour(vec![error.clone()])),
                (EACH + 1..=2 * EACH, behaviour(vec![error, answer])),
            ],
            ..Script::default()
        })?;
        let asked = Asked {
            probing: Probing {
                retries: 0,
                timeout: TIMEOUT,
                rate: None,
                ..Probing::default()
            },
            targets: hosts(variant.family, 1..=2 * EACH),
        };
        let running = Prober::default().start(&net, variant, vec![asked])?;
        net.wait_for(2 * EACH as usize, PATIENCE)?;
        running.signal("-STOP")?;
        // Nothing to wait for: standing still for this long is what happens.
        thread::sleep(TIMEOUT * 2);
        running.signal("-CONT")?;
        let report = running.finish()?;
        let (silent, answering) = report.outcomes[0].split_at(EACH as usize);
        all(silent, |outcome| {
            matches!(outcome.status, Status::Unreachable { reporter, .. }
                if reporter == variant.family.address(9000))
                && outcome.attempts > 1
                && (outcome.sent, outcome.received) == (1, 0)
        })?;
        all(answering, |outcome| outcome.status == Status::Up)
    })
}
