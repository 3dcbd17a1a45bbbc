//! Resolving against a DNS server of the test's own on loopback. What it answers follows from the first label.

use std::{
    collections::{HashMap, HashSet},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Mutex,
    time::Duration,
};

use futures_util::future::join_all;
use hickory_resolver::{
    config::{ConnectionConfig, NameServerConfig},
    proto::op::Message,
    proto::rr::rdata::{A, AAAA},
};
use tokio::{net::UdpSocket, task::JoinSet};

use super::*;

const V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// Distinct queries so far, by name and type. A client repeats a query over UDP by itself, with the same message id.
type Seen = Arc<Mutex<HashMap<(String, RecordType), HashSet<u16>>>>;

struct Server {
    resolver: Resolver,
    seen: Seen,
    /// Ends the server with the test.
    _task: JoinSet<()>,
}

fn resolver_for(server: SocketAddr, search: Vec<Name>, timeout: Duration) -> Resolver {
    let mut connection = ConnectionConfig::udp();
    connection.port = server.port();
    let servers = vec![NameServerConfig::new(server.ip(), true, vec![connection])];
    let mut options = ResolverOpts::default();
    options.timeout = timeout;
    Resolver::with_servers(ResolverConfig::from_parts(None, search, servers), options)
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
    match (name, kind) {
        ("silent.test.", _) => return None,
        ("broken.test.", _) => answer.metadata.response_code = ResponseCode::ServFail,
        ("flaky.test.", _) if tried < 3 => answer.metadata.response_code = ResponseCode::ServFail,
        ("both.test." | "flaky.test." | "short.search.test.", RecordType::A) => {
            answer.add_answer(v4);
        }
        ("both.test." | "v6only.test." | "v6only.search.test.", RecordType::AAAA) => {
            answer.add_answer(v6);
        }
        ("v6only.test." | "v6only.search.test." | "nothing.test.", _) => {}
        _ => answer.metadata.response_code = ResponseCode::NXDomain,
    }
    Some(answer)
}

impl Server {
    async fn resolve(&self, name: &str, family: Family) -> Result<IpAddr, Unresolved> {
        let destination = self.resolver.resolve(name, family).await?;
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
async fn the_reasons_of_a_failure_are_told_apart() {
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
async fn servfail_and_timeout_are_tried_three_times_in_all() {
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
async fn search_domains_are_tried() {
    let server = server().await;
    assert_eq!(server.resolve("short", Family::Any).await, Ok(V4.into()));
    assert_eq!(server.resolve("v6only", Family::Any).await, Ok(V6.into()));
}

#[tokio::test]
async fn an_answer_is_asked_for_once() {
    let server = server().await;
    for _ in 0..5 {
        server.resolve("both.test.", Family::V4).await.unwrap();
    }
    assert_eq!(server.queries("both.test.", RecordType::A), 1);
}

#[tokio::test]
async fn no_server_at_all_is_servfail_and_no_panic() {
    let resolver = Resolver::new(None, Hosts::default());
    let found = resolver.resolve("both.test.", Family::Any).await;
    assert_eq!(found, Err(Unresolved::Name(DnsFailure::Servfail)));
    let found = resolver.resolve("192.0.2.7", Family::Any).await;
    assert_eq!(found, Ok(IpAddr::from([192, 0, 2, 7]).into()));
}

/// The server answers nothing until the bound is reached, and then one query after the other.
#[tokio::test]
async fn at_most_100_queries_are_outstanding() {
    const NAMES: usize = 250;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    // So long that none is given up on a slow machine, and counted here beside the one that takes its place.
    let timeout = Duration::from_mins(1);
    let resolver = resolver_for(socket.local_addr().unwrap(), Vec::new(), timeout);
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut buffer = [0; 1500];
        let mut outstanding = HashMap::new();
        let (mut answered, mut most) = (HashSet::new(), 0);
        while answered.len() < NAMES {
            // All that was sent is here when nothing more comes for a while: absence has no event.
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
            most = most.max(outstanding.len());
            for (name, (query, client)) in outstanding.drain() {
                let mut answer = query.clone().into_response();
                let asked = query.queries[0].name().clone();
                answer.add_answer(Record::from_rdata(asked, 60, RData::A(A(V4))));
                let bytes = answer.to_vec().unwrap();
                socket.send_to(&bytes, client).await.unwrap();
                answered.insert(name);
            }
        }
        assert_eq!(most, MAX_QUERIES);
    });
    let names: Vec<_> = (0..NAMES).map(|name| format!("n{name}.test.")).collect();
    let found = join_all(names.iter().map(|name| resolver.resolve(name, Family::V4))).await;
    assert!(found.iter().all(Result::is_ok), "{found:?}");
    task.join_next().await.unwrap().unwrap();
}

#[test]
fn texts_of_addresses_are_read_in_any_spelling() {
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
fn a_want_of_sockets_here_says_nothing_about_the_name() {
    let of = |errno| meaning(&NetError::from(std::io::Error::from_raw_os_error(errno)));
    for errno in WANT {
        let status = Status::SendFailed { errno };
        assert_eq!(of(errno).status(), status);
    }
    // ECONNREFUSED is an answer of the network.
    assert_eq!(of(111), Unresolved::Name(DnsFailure::Timeout));
}
