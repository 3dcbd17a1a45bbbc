//! A process that stands still for longer than its timeouts, while replies wait in its socket.

use std::{thread, time::Duration};

use anyhow::ensure;
use pingfleet_testbed::simnet::{Answer, Behaviour, Script, SimNet};
use pingfleet_wire::{Probing, Status};

use crate::{
    counters::{PATIENCE, Sockets},
    expectations::all,
    probing_process::{Asked, Prober},
    variants::{at_once, hosts, variants},
};

/// The timeout of every request.
const TIMEOUT: Duration = Duration::from_secs(1);

#[test]
fn what_came_while_the_process_stood_still_is_up_and_nobody_is_down() -> anyhow::Result<()> {
    at_once(variants(), |variant| {
        let answer = Answer {
            after: TIMEOUT / 2,
            ..Answer::default()
        };
        let slow = Behaviour {
            loss: 0.0,
            answers: vec![answer],
        };
        // Some open the window; and no more are slow than the buffer of nobody's socket holds.
        let mut script = Script::alive(1..=100);
        script.hosts.push((101..=300, slow));
        let net = SimNet::start(script)?;
        let asked = Asked {
            probing: Probing {
                retries: 0,
                timeout: TIMEOUT,
                rate: None,
                ..Probing::default()
            },
            targets: hosts(variant.family, 1..=320),
        };
        let running = Prober::default().start(&net, variant, vec![asked])?;
        net.wait_for(320, PATIENCE)?;
        running.signal("-STOP")?;
        // Nothing to wait for: standing still for this long is what happens.
        thread::sleep(TIMEOUT + TIMEOUT / 2);
        let waiting = Sockets::read(&net)?;
        running.signal("-CONT")?;
        let report = running.finish()?;
        ensure!(waiting.unread > 0 && waiting.drops == 0, "{waiting:?}");
        ensure!(report.sockets.drops == 0, "{:?}", report.sockets);
        let (living, silent) = report.outcomes[0].split_at(300);
        // All requests had left, and all answers were kept: none of these is asked again.
        all(living, |outcome| {
            outcome.status == Status::Up && (outcome.sent, outcome.attempts) == (1, 1)
        })?;
        // Silent in a pass that nothing disturbed.
        all(silent, |outcome| {
            outcome.status == Status::Down { no_arp: false } && outcome.attempts > 1
        })
    })
}
