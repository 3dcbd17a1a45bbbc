//! A process that is stopped for longer than its timeouts, while replies wait in its socket.

use std::{thread, time::Duration};

use anyhow::ensure;
use pingfleet_testbed::simnet::{Answer, Behaviour, Script, SimNet};
use pingfleet_wire::{Probing, Status};

use crate::{
    counters::{MAX_WAIT, Sockets},
    expectations::all,
    probing_process::{Asked, Prober},
    variants::{at_once, hosts, variants},
};

/// The timeout of every request.
const TIMEOUT: Duration = Duration::from_secs(1);

#[test]
fn replies_that_arrive_while_the_process_is_stopped_count_as_up() -> anyhow::Result<()> {
    at_once(variants(), |variant| {
        let answer = Answer {
            after: TIMEOUT / 2,
            ..Answer::default()
        };
        let slow = Behaviour {
            loss: 0.0,
            answers: vec![answer],
        };
        // The first hosts open the window. The slow ones are few enough for the receive buffer of an unprivileged user.
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
        net.wait_for(320, MAX_WAIT)?;
        running.signal("-STOP")?;
        // The stall itself: there is no event to wait for.
        thread::sleep(TIMEOUT + TIMEOUT / 2);
        let waiting = Sockets::read(&net)?;
        running.signal("-CONT")?;
        let report = running.finish()?;
        ensure!(waiting.unread > 0 && waiting.drops == 0, "{waiting:?}");
        ensure!(report.sockets.drops == 0, "{:?}", report.sockets);
        let (living, silent) = report.outcomes[0].split_at(300);
        // All requests had left, and all answers were kept: no answering target is probed again.
        all(living, |outcome| {
            outcome.status == Status::Up && (outcome.sent, outcome.attempts) == (1, 1)
        })?;
        // They were silent in an attempt without a stall.
        all(silent, |outcome| {
            outcome.status == Status::DOWN && outcome.attempts > 1
        })
    })
}
