//! The simulated network against iputils' `ping`: a prober of its own that checks checksums, identifiers and payloads.

use std::process::Output;

use super::*;

/// What `ping` says to a host that behaves so, and what the network says of it.
fn ping(behaviour: Behaviour, family: IpVersion, arguments: &[&str]) -> (Output, Traffic) {
    let script = Script {
        hosts: vec![(1..=1, behaviour)],
        ..Script::default()
    };
    let net = SimNet::start(script).expect("root makes networks");
    let host = family.address(1).to_string();
    let output = net
        .command("ping")
        .args(["-n", "-c", "2", "-i", "0.1", "-W", "0.3"])
        .args(arguments)
        .arg(host)
        .output()
        .expect("ping is there");
    (output, net.stop().expect("the network runs"))
}

fn answering(answer: Answer) -> Behaviour {
    Behaviour {
        loss: 0.0,
        answers: vec![answer],
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_living_host_is_alive_for_ping() {
    for family in IpVersion::ALL {
        let delayed = Answer {
            after: Duration::from_millis(40),
            ..Answer::default()
        };
        let (output, traffic) = ping(answering(delayed), family, &["-s", "1001", "-t", "7"]);
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(traffic.requests.len(), 2);
        for request in &traffic.requests {
            assert_eq!(
                (request.host, request.family, request.size),
                (1, family, 1001)
            );
            assert_eq!((request.from, request.hops), (address::own(family), 7));
        }
        let gap = traffic.requests[1].at_ns - traffic.requests[0].at_ns;
        assert!(gap >= 90_000_000, "{gap}");
        let figures = (traffic.messages, traffic.delivered, traffic.lost_before);
        assert_eq!(figures, (2, 2, 0));
        assert_eq!(traffic.answered(1), 2);
    }
}

#[test]
fn forgeries_arrive_and_are_no_answers() {
    let forged = |family| {
        [
            Answer {
                source: Some(9),
                ..Answer::default()
            },
            Answer {
                identifier: 1,
                ..Answer::default()
            },
            Answer {
                payload: Payload::Shorter,
                ..Answer::default()
            },
        ]
        .map(|answer| (family, answer))
    };
    for (family, answer) in IpVersion::ALL.into_iter().flat_map(forged) {
        let (output, traffic) = ping(answering(answer.clone()), family, &[]);
        let figures = (traffic.messages, traffic.delivered, traffic.answered(1));
        assert_eq!(figures, (2, 2, 0), "{answer:?}");
        // ping itself believes any source and any payload.
        let is_believed = answer.identifier == 0;
        assert!(is_believed || output.status.code() == Some(1));
    }
}

#[test]
fn an_error_is_understood_by_ping_with_its_reporter() {
    for (family, text) in [
        (
            IpVersion::V4,
            "From 10.64.0.9 icmp_seq=1 Time to live exceeded",
        ),
        (
            IpVersion::V6,
            "From fd00:64::9 icmp_seq=1 Time exceeded: Hop limit",
        ),
    ] {
        let error = Answer {
            send: Send::TtlExceeded,
            source: Some(9),
            ..Answer::default()
        };
        let (output, traffic) = ping(answering(error), family, &[]);
        assert!(said(&output).contains(text), "{}", said(&output));
        assert_eq!(traffic.delivered, traffic.messages);
    }
}

#[test]
fn losses_are_those_of_the_seed() {
    let lossy = || Behaviour {
        loss: 0.5,
        answers: vec![Answer::default()],
    };
    let answered = || {
        let many = ["-c", "30", "-i", "0.01"];
        let (_, traffic) = ping(lossy(), IpVersion::V4, &many);
        assert_eq!(traffic.requests.len(), 30);
        traffic.answered(1)
    };
    let first = answered();
    assert!((1..30).contains(&first), "{first}");
    assert_eq!(first, answered());
}

#[test]
fn noise_is_sent_at_its_rate_and_answers_no_request() {
    let script = Script {
        noise: vec![Noise {
            messages: 500,
            rate: 5000,
            send: Send::Reply,
            from: 1000,
        }],
        ..Script::default()
    };
    let net = SimNet::start(script).expect("root makes networks");
    let host = IpVersion::V4.address(1).to_string();
    let ping = net
        .command("ping")
        .args(["-c", "1", "-W", "1", &host])
        .output();
    assert_eq!(ping.expect("ping is there").status.code(), Some(1));
    // On a busy machine ping may give up before all of the noise was made.
    let deadline = Instant::now() + KERNEL_TIMEOUT;
    while net.delivered().expect("there are counters") < 500 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    let traffic = net.stop().expect("the network runs");
    assert_eq!((traffic.messages, traffic.delivered), (500, 500));
}

#[test]
fn what_is_sent_can_be_waited_for() {
    let net = SimNet::start(Script::alive(1..=1)).expect("root makes networks");
    let moment = Duration::from_millis(1);
    assert!(net.wait_for(1, moment).is_err());
    let host = IpVersion::V6.address(1).to_string();
    let ping = net.command("ping").args(["-c", "1", &host]).output();
    assert!(ping.expect("ping is there").status.success());
    net.wait_for(1, KERNEL_TIMEOUT)
        .expect("one request has left");
    assert!(net.wait_for(2, moment).is_err());
    drop(net);
}
