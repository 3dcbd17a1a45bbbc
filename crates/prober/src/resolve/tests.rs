//! Resolving with a DNS server that the test runs on loopback. The name decides what it answers.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use futures_util::future::join_all;
use hickory_resolver::{
    config::{ConnectionConfig, NameServerConfig},
    net::NetError,
    proto::{
        op::{Message, Query, ResponseCode},
        rr::{
            Name, RData, Record, RecordType,
            rdata::{A, AAAA},
        },
    },
};
use pingfleet_wire::Family;
use tokio::{net::UdpSocket, task::JoinSet};

use super::{
    choice::HasRoute,
    name_service::{OUT_OF_SOCKETS, meaning},
    *,
};

mod files;
mod time_budget;

const V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// Message ids of the queries so far, by name and type. The client sends a query again over UDP with the same id.
type Seen = Arc<Mutex<HashMap<(String, RecordType), HashSet<u16>>>>;

struct Server {
    resolver: Resolver,
    seen: Seen,
    /// Ends the server with the test.
    _task: JoinSet<()>,
}

/// A resolver for which every address has a route, whatever machine the test runs on.
fn resolver_for(server: SocketAddr, search: Vec<Name>, timeout: Duration) -> Resolver {
    let mut connection = ConnectionConfig::udp();
    connection.port = server.port();
    let servers = vec![NameServerConfig::new(server.ip(), true, vec![connection])];
    let mut options = ResolverOpts::default();
    options.timeout = timeout;
    let config = ResolverConfig::from_parts(None, search, servers);
    let resolver = Resolver::with_servers(config, options);
    set_routes(&resolver, |_, _| true);
    resolver
}

fn set_routes(resolver: &Resolver, has_route: HasRoute) {
    let mut current = resolver.current.lock().unwrap();
    Arc::make_mut(&mut current.service).has_route = has_route;
}

fn probing(family: Family) -> Probing {
    Probing {
        family,
        ..Probing::default()
    }
}

async fn server() -> Server {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let seen = Seen::default();
    let mut task = JoinSet::new();
    task.spawn(serve(socket, Arc::clone(&seen)));
    let search = vec![Name::from_ascii("search.test.").unwrap()];
    Server {
        resolver: resolver_for(address, search, Duration::from_secs(1)),
        seen,
        _task: task,
    }
}

async fn serve(socket: UdpSocket, seen: Seen) {
    let mut buffer = [0; 1500];
    loop {
        let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
        let query = Message::from_vec(&buffer[..length]).unwrap();
        let asked = query.queries[0].clone();
        let name = asked.name().to_ascii().to_lowercase();
        let tried = {
            let mut seen = seen.lock().unwrap();
            let ids = seen.entry((name.clone(), asked.query_type())).or_default();
            ids.insert(query.metadata.id);
            ids.len()
        };
        if let Some(answer) = answer(&query, &asked, &name, tried) {
            socket
                .send_to(&answer.to_vec().unwrap(), client)
                .await
                .unwrap();
        }
    }
}

fn answer(query: &Message, asked: &Query, name: &str, tried: usize) -> Option<Message> {
    let mut answer = query.clone().into_response();
    let kind = asked.query_type();
    let v4 = Record::from_rdata(asked.name().clone(), 60, RData::A(A(V4)));
    let v6 = Record::from_rdata(asked.name().clone(), 60, RData::AAAA(AAAA(V6)));
    if let Some(addresses) = unusual_addresses(name, kind) {
        for text in addresses {
            let data = match text.parse().unwrap() {
                IpAddr::V4(v4) => RData::A(A(v4)),
                IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
            };
            answer.add_answer(Record::from_rdata(asked.name().clone(), 60, data));
        }
        return Some(answer);
    }
    match (name, kind) {
        ("silent.test.", _) => return None,
        ("broken.test." | "broken.search.test.", _) => {
            answer.metadata.response_code = ResponseCode::ServFail;
        }
        ("flaky.test.", _) if tried < 3 => answer.metadata.response_code = ResponseCode::ServFail,
        ("both.test." | "flaky.test." | "short.search.test.", RecordType::A) => {
            answer.add_answer(v4);
        }
        ("both.test." | "v6only.test." | "v6only.search.test.", RecordType::AAAA) => {
            answer.add_answer(v6);
        }
        ("v6only.test." | "v6only.search.test." | "nothing.test." | "nothing.search.test.", _) => {}
        _ => answer.metadata.response_code = ResponseCode::NXDomain,
    }
    Some(answer)
}

/// Addresses that a name server may return, and a host may not have or that are written in another way.
fn unusual_addresses(name: &str, kind: RecordType) -> Option<&'static [&'static str]> {
    let v4 = kind == RecordType::A;
    Some(match name {
        "dns-blocker.test." | "v6-of-both.test." if v4 => &["0.0.0.0"],
        "dns-blocker.test." => &["::"],
        "multicast.test." if v4 => &["224.0.0.1"],
        "multicast.test." => &["ff02::1"],
        "broadcast.test." if v4 => &["255.255.255.255"],
        "mapped.test." if !v4 => &["::ffff:192.0.2.1"],
        "mapped-multicast.test." if !v4 => &["::ffff:224.0.0.1"],
        "one-of-two.test." if v4 => &["0.0.0.0", "192.0.2.1"],
        "v6-of-both.test." => &["2001:db8::1"],
        "link-local.test." if !v4 => &["fe80::1"],
        "two-routes.test." if v4 => &["198.51.100.1", "192.0.2.1"],
        "broadcast.test."
        | "mapped.test."
        | "mapped-multicast.test."
        | "one-of-two.test."
        | "link-local.test."
        | "two-routes.test." => &[],
        _ => return None,
    })
}

impl Server {
    async fn resolve(&self, name: &str, family: Family) -> Result<IpAddr, Unresolved> {
        let destination = self.resolver.resolve(name, &probing(family)).await?;
        Ok(destination.address)
    }

    fn queries(&self, name: &str, kind: RecordType) -> usize {
        let seen = self.seen.lock().unwrap();
        seen.get(&(name.to_owned(), kind)).map_or(0, HashSet::len)
    }
}

fn failed(failure: DnsFailure) -> Result<IpAddr, Unresolved> {
    Err(Unresolved::Name(failure))
}

#[tokio::test]
async fn a_comes_before_aaaa_unless_the_plan_says_otherwise() {
    let server = server().await;
    let cases = [
        ("both.test.", Family::Any, Ok(V4.into())),
        ("both.test.", Family::V4, Ok(V4.into())),
        ("both.test.", Family::V6, Ok(V6.into())),
        ("v6only.test.", Family::Any, Ok(V6.into())),
        ("v6only.test.", Family::V4, failed(DnsFailure::NoData)),
    ];
    for (name, family, expected) in cases {
        let found = server.resolve(name, family).await;
        assert_eq!(found, expected, "{name} {family:?}");
    }
}

#[tokio::test]
async fn each_failure_has_its_own_reason() {
    let server = server().await;
    let cases = [
        ("gone.test.", DnsFailure::Nxdomain),
        ("nothing.test.", DnsFailure::NoData),
        ("broken.test.", DnsFailure::Servfail),
        ("silent.test.", DnsFailure::Timeout),
        ("a..b", DnsFailure::Nxdomain),
    ];
    for (name, failure) in cases {
        let found = server.resolve(name, Family::Any).await;
        assert_eq!(found, failed(failure), "{name}");
    }
}

#[tokio::test]
async fn servfail_and_timeout_are_tried_three_times() {
    let server = server().await;
    for name in ["broken.test.", "silent.test."] {
        server.resolve(name, Family::V4).await.unwrap_err();
        assert_eq!(server.queries(name, RecordType::A), 3, "{name}");
    }
    assert_eq!(
        server.resolve("flaky.test.", Family::V4).await,
        Ok(V4.into())
    );
    server.resolve("gone.test.", Family::V4).await.unwrap_err();
    assert_eq!(server.queries("gone.test.", RecordType::A), 1);
}

#[tokio::test]
async fn addresses_that_no_host_can_have_are_blocked() {
    let server = server().await;
    let blocked = failed(DnsFailure::BlockedAddress);
    let cases = [
        ("dns-blocker.test.", Family::Any, blocked),
        ("dns-blocker.test.", Family::V4, blocked),
        ("dns-blocker.test.", Family::V6, blocked),
        ("multicast.test.", Family::Any, blocked),
        ("multicast.test.", Family::V6, blocked),
        ("broadcast.test.", Family::Any, blocked),
        ("mapped-multicast.test.", Family::Any, blocked),
        // Without a zone it cannot be probed.
        ("link-local.test.", Family::Any, blocked),
        // A usable address is used.
        ("one-of-two.test.", Family::Any, Ok(V4.into())),
        ("v6-of-both.test.", Family::Any, Ok(V6.into())),
        ("v6-of-both.test.", Family::V4, blocked),
    ];
    for (name, family, expected) in cases {
        let found = server.resolve(name, family).await;
        assert_eq!(found, expected, "{name} {family:?}");
    }
    let status = Unresolved::Name(DnsFailure::BlockedAddress).status();
    assert_eq!(status.reason().as_deref(), Some("blocked_address"));
    // Requests that leave by one interface need no zone.
    let by_interface = Probing {
        interface: Some("lo".to_owned()),
        ..Probing::default()
    };
    let found = server
        .resolver
        .resolve("link-local.test.", &by_interface)
        .await;
    assert_eq!(found.map(|to| to.address), Ok("fe80::1".parse().unwrap()));
}

#[tokio::test]
async fn a_mapped_address_is_probed_as_ipv4() {
    let server = server().await;
    let found = server.resolve("mapped.test.", Family::Any).await;
    assert_eq!(found, Ok(V4.into()));
    let found = server.resolve("mapped.test.", Family::V6).await;
    assert_eq!(found, failed(DnsFailure::BlockedAddress));
    let found = server.resolve("::ffff:192.0.2.1", Family::Any).await;
    assert_eq!(found, Ok(V4.into()));
}

#[tokio::test]
async fn an_address_with_a_route_comes_before_one_without() {
    let server = server().await;
    let cases: [(HasRoute, &str, Family, IpAddr); 7] = [
        (|_, _| true, "both.test.", Family::Any, V4.into()),
        (
            |to, _| to.address == V6,
            "both.test.",
            Family::Any,
            V6.into(),
        ),
        (
            |to, _| to.address == V6,
            "both.test.",
            Family::V4,
            V4.into(),
        ),
        (
            |to, _| to.address == V4,
            "both.test.",
            Family::Any,
            V4.into(),
        ),
        (|_, _| false, "both.test.", Family::Any, V4.into()),
        (|_, _| false, "v6only.test.", Family::Any, V6.into()),
        (
            |to, _| to.address == V4,
            "two-routes.test.",
            Family::Any,
            V4.into(),
        ),
    ];
    for (number, (has_route, name, family, expected)) in cases.into_iter().enumerate() {
        set_routes(&server.resolver, has_route);
        let found = server.resolve(name, family).await;
        assert_eq!(found, Ok(expected), "case {number}: {name} {family:?}");
    }
}

#[tokio::test]
async fn a_name_without_addresses_exists_also_with_a_search_domain() {
    let server = server().await;
    let cases = [
        ("nothing.test", DnsFailure::NoData),
        ("nothing", DnsFailure::NoData),
        ("gone.test", DnsFailure::Nxdomain),
        ("gone", DnsFailure::Nxdomain),
        // Whether the name exists in the search domain is not known.
        ("broken", DnsFailure::Servfail),
    ];
    for (name, failure) in cases {
        for family in [Family::Any, Family::V4, Family::V6] {
            let found = server.resolve(name, family).await;
            assert_eq!(found, failed(failure), "{name} {family:?}");
        }
    }
    // The search domain was asked as well, and has no such name.
    let in_domain = server.queries("nothing.test.search.test.", RecordType::A);
    assert_ne!(in_domain, 0);
}

#[tokio::test]
async fn search_domains_are_used() {
    let server = server().await;
    assert_eq!(server.resolve("short", Family::Any).await, Ok(V4.into()));
    assert_eq!(server.resolve("v6only", Family::Any).await, Ok(V6.into()));
}

#[tokio::test]
async fn an_answer_is_cached() {
    let server = server().await;
    for _ in 0..5 {
        server.resolve("both.test.", Family::V4).await.unwrap();
    }
    assert_eq!(server.queries("both.test.", RecordType::A), 1);
}

#[tokio::test]
async fn no_server_at_all_is_servfail_and_no_panic() {
    let resolver = Resolver::new(None, Hosts::default(), Versions::default(), None);
    let any = Probing::default();
    let found = resolver.resolve("both.test.", &any).await;
    assert_eq!(found, Err(Unresolved::Name(DnsFailure::Servfail)));
    let found = resolver.resolve("192.0.2.7", &any).await;
    assert_eq!(found, Ok(IpAddr::from([192, 0, 2, 7]).into()));
}

/// The server collects all queries that are in flight, and then answers them.
#[tokio::test]
async fn at_most_100_queries_are_in_flight() {
    const NAMES: usize = 250;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    // Long enough that no query times out on a slow machine: its retry would be counted as well.
    let timeout = Duration::from_mins(1);
    let resolver = resolver_for(socket.local_addr().unwrap(), Vec::new(), timeout);
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut buffer = [0; 1500];
        let mut outstanding = HashMap::new();
        let (mut answered, mut max) = (HashSet::new(), 0);
        while answered.len() < NAMES {
            // All queries are here when nothing more comes for a while: absence has no event.
            let wait = Duration::from_millis(30);
            while let Ok(received) = tokio::time::timeout(wait, socket.recv_from(&mut buffer)).await
            {
                let (length, client) = received.unwrap();
                let query = Message::from_vec(&buffer[..length]).unwrap();
                let name = query.queries[0].name().to_ascii();
                if !answered.contains(&name) {
                    outstanding.insert(name, (query, client));
                }
            }
            max = max.max(outstanding.len());
            for (name, (query, client)) in outstanding.drain() {
                let mut answer = query.clone().into_response();
                let asked = query.queries[0].name().clone();
                answer.add_answer(Record::from_rdata(asked, 60, RData::A(A(V4))));
                let bytes = answer.to_vec().unwrap();
                socket.send_to(&bytes, client).await.unwrap();
                answered.insert(name);
            }
        }
        assert_eq!(max, MAX_QUERIES);
    });
    let names: Vec<_> = (0..NAMES).map(|name| format!("n{name}.test.")).collect();
    let v4 = probing(Family::V4);
    let found = join_all(names.iter().map(|name| resolver.resolve(name, &v4))).await;
    assert!(found.iter().all(Result::is_ok), "{found:?}");
    task.join_next().await.unwrap().unwrap();
}

#[test]
fn texts_of_addresses_are_parsed_in_any_spelling() {
    let cases = [
        ("192.0.2.1", Some(V4.into())),
        ("2001:DB8:0:0::1", Some(V6.into())),
        ("2001:db8::0001", Some(V6.into())),
        ("example.test", None),
        ("192.0.2", None),
        ("example.test%1", None),
        ("192.0.2.1%1", None),
    ];
    for (text, expected) in cases {
        let read = literal(text).map(|read| read.unwrap().address);
        assert_eq!(read, expected, "{text}");
    }
}

#[test]
fn a_zone_is_an_index_or_the_name_of_an_interface() {
    let read = |text| literal(text).unwrap().map(|read| read.scope_id);
    assert_eq!(read("fe80::1%7"), Ok(7));
    for none in [
        "fe80::1%no-such-if",
        "fe80::1%",
        "fe80::1%0",
        "fe80::1%../lo",
    ] {
        assert_eq!(read(none), Err(Unresolved::Zone), "{none}");
    }
    assert_eq!(Unresolved::Zone.status(), Status::SendFailed { errno: 19 });
    #[cfg(target_os = "linux")]
    assert_eq!(read("fe80::1%lo"), Ok(1));
}

#[test]
fn a_lack_of_sockets_here_says_nothing_about_the_name() {
    let of = |errno| meaning(&NetError::from(std::io::Error::from_raw_os_error(errno)));
    for errno in OUT_OF_SOCKETS {
        let status = Status::SendFailed { errno };
        assert_eq!(of(errno).status(), status);
    }
    // ECONNREFUSED comes from the network.
    assert_eq!(of(111), Unresolved::Name(DnsFailure::Timeout));
}
