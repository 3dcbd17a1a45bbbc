//! What surge-ping alone would get wrong, on the loopback address. Needs ICMP sockets.

use std::{future::poll_fn, net::Ipv4Addr, task::Poll, thread, time::Duration};

use pingfleet_wire::Status;

use super::*;

fn loopback(hosts: u8) -> Vec<Destination> {
    (1..=hosts)
        .map(|host| IpAddr::from(Ipv4Addr::new(127, 0, 0, host)).into())
        .collect()
}

fn once(timeout: Duration) -> Probing {
    Probing {
        retries: 0,
        timeout,
        rate: None,
        ..Probing::default()
    }
}

/// The thread stands still from when the requests have left until long after their timeout. The replies lie in the
/// socket by then, and timers and replies become ready together.
async fn stalled(opener: SurgePing) -> Vec<Finding> {
    // More than one turn of the socket's reader takes in, so that timeouts come up between its turns.
    const HOSTS: u8 = 250;
    let sent = Arc::new(RequestsSent::default());
    let prober = opener
        .open(Arc::clone(&sent))
        .expect("ICMP sockets are needed");
    let probing = once(Duration::from_millis(100));
    let pace = Pace::unlimited();
    let destinations = loopback(HOSTS);
    // The window opens with the first answers.
    for _ in 0..4 {
        prober.probe(&probing, &destinations, &pace).await;
    }
    let before = sent.get();
    let stall = poll_fn(|context| {
        if sent.get() < before + u64::from(HOSTS) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        // Nothing to wait for: a thread that stands still for this long is what happens.
        thread::sleep(Duration::from_millis(600));
        Poll::Ready(())
    });
    let (findings, ()) = tokio::join!(prober.probe(&probing, &destinations, &pace), stall);
    findings
}

#[tokio::test]
async fn a_stall_of_our_own_makes_nobody_down() {
    for opener in [SurgePing::new(), SurgePing::raw()] {
        let findings = stalled(opener).await;
        for finding in &findings {
            let answered = matches!(finding.status, Status::Up | Status::Late);
            assert!(answered, "{finding:?}");
        }
    }
}

#[tokio::test]
async fn chunks_that_are_given_up_leave_their_places_in_the_window() {
    let prober = SurgeProber {
        prefer_raw: false,
        log_once: Arc::default(),
        requests_sent: Arc::default(),
        clients: RefCell::default(),
    };
    let probing = once(Duration::from_mins(1));
    let pace = Pace::unlimited();
    let destinations = loopback(40);
    for _ in 0..50 {
        // Given up in the middle: at its first wait.
        let probe = prober.probe(&probing, &destinations, &pace);
        tokio::select! {
            biased;
            _ = probe => {}
            () = tokio::task::yield_now() => {}
        }
    }
    let findings = prober.probe(&probing, &destinations, &pace).await;
    assert!(findings.iter().all(|found| found.status == Status::Up));
    let clients = prober.clients.borrow();
    assert!(clients.iter().all(|(_, client)| client.in_flight() == 0));
}

#[tokio::test]
async fn no_two_sockets_share_an_identifier() {
    let open = || Client::open(&Egress::plain(false), Type::RAW).expect("ICMP sockets are needed");
    let clients = [open(), open(), open()];
    let identifiers: std::collections::HashSet<_> =
        clients.iter().map(Client::identifier).collect();
    assert_eq!(identifiers.len(), clients.len());
}

#[test]
fn own_addresses_are_known() {
    assert!(is_own(Ipv4Addr::LOCALHOST.into()));
    assert!(!is_own(Ipv4Addr::new(192, 0, 2, 1).into()));
}
