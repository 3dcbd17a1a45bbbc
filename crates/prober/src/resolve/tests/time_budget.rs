//! Names on a dead name server, in simulated time.

use pingfleet_wire::timing::BROKER_CONSUMER_TIMEOUT;

use super::*;

/// Chunks that a worker has in hand at the default rate.
const CHUNKS: usize = 21;

/// Names in each of them.
const NAMES: usize = 50;

/// A server that never answers, and a resolver that waits long for it.
async fn dead_server() -> (UdpSocket, Resolver) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let resolver = resolver_for(address, Vec::new(), Duration::from_mins(1));
    (socket, resolver)
}

fn names(chunk: usize) -> Vec<String> {
    (0..NAMES)
        .map(|name| format!("n{chunk}-{name}.test."))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn chunks_of_names_on_a_dead_name_server_end_before_the_broker_loses_patience() {
    let (_socket, resolver) = dead_server().await;
    let probing = Probing::default();
    let start = Instant::now();
    let chunks = join_all((0..CHUNKS).map(async |chunk| {
        let names = names(chunk);
        let names = names.iter().map(String::as_str);
        resolver.resolve_chunk(names, &probing).await
    }))
    .await;
    for answers in chunks {
        assert_eq!(answers.len(), NAMES);
        for answer in answers {
            assert_eq!(answer, Err(Unresolved::Name(DnsFailure::Timeout)));
        }
    }
    // Simulated time: no machine is too slow for it. A timer is exact to a millisecond.
    let took = start.elapsed();
    assert!(
        took <= MAX_RESOLUTION_TIME + Duration::from_secs(1),
        "{took:?}"
    );
}

/// The control: one name after the other, in the order of the queries, the same takes too long.
#[tokio::test(start_paused = true)]
async fn without_the_bound_they_would_end_later() {
    let (_socket, resolver) = dead_server().await;
    let probing = Probing::default();
    let start = Instant::now();
    let names: Vec<_> = (0..CHUNKS).flat_map(names).collect();
    join_all(names.iter().map(|name| resolver.resolve(name, &probing))).await;
    assert!(start.elapsed() > BROKER_CONSUMER_TIMEOUT);
}

/// What was resolved in time is probed.
#[tokio::test(start_paused = true)]
async fn names_that_were_resolved_in_time_keep_their_addresses() {
    let (_socket, resolver) = dead_server().await;
    let found = resolver
        .resolve_chunk(["n.test.", "192.0.2.1"].into_iter(), &Probing::default())
        .await;
    let timeout = Err(Unresolved::Name(DnsFailure::Timeout));
    assert_eq!(found, [timeout, Ok(IpAddr::from(V4).into())]);
}
