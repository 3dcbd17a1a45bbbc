//! Looks names up: in the hosts file, and then by DNS servers and search domains as `resolv.conf(5)` says. Answers are
//! cached for their TTL. Does I/O on the caller's runtime.

use std::{net::IpAddr, sync::Arc, time::Duration};

use hickory_resolver::{
    Hosts, TokioResolver,
    config::{ResolveHosts, ResolverConfig, ResolverOpts},
    net::{DnsError, NetError, NoRecords, runtime::TokioRuntimeProvider},
    proto::{
        op::{Query, ResponseCode},
        rr::{Name, RData, Record, RecordType},
    },
};
use pingfleet_wire::{DnsFailure, Family, Probing};
use tokio::sync::Semaphore;
use tracing::{debug, warn};

use super::{
    Unresolved,
    choice::{Choice, HasRoute},
    literal::literal,
};
use crate::{prober::Destination, route::check_route};

/// The most queries in flight, over all chunks.
pub(super) const MAX_QUERIES: usize = 100;

/// How often a query is sent when it fails or times out.
const MAX_TRIES: u32 = 3;

/// The errnos of a machine without a free socket: too many open files in the system or in the process, no memory, no
/// buffer space (ENFILE, EMFILE, ENOMEM, ENOBUFS).
pub(super) const OUT_OF_SOCKETS: [i32; 4] = [23, 24, 12, 105];

/// How long a query waits for other queries to close their sockets.
const OUT_OF_SOCKETS_PAUSE: Duration = Duration::from_millis(500);

/// Where names are looked up. Clones share the caches.
#[derive(Debug, Clone)]
pub(super) struct NameService {
    /// `None` when the system has no DNS server.
    pub(super) dns: Option<Dns>,
    pub(super) hosts: Arc<Hosts>,
    queries: Arc<Semaphore>,
    pub(super) has_route: HasRoute,
}

impl NameService {
    /// At most as many queries as `queries` has permits are in flight.
    pub(super) fn new(dns: Option<Dns>, hosts: Arc<Hosts>, queries: Arc<Semaphore>) -> Self {
        Self {
            dns,
            hosts,
            queries,
            has_route: |to, interface| check_route(to, interface).is_ok(),
        }
    }

    /// The destination of a text: see [`Resolver::resolve`](super::Resolver::resolve).
    pub(super) async fn resolve(
        &self,
        text: &str,
        probing: &Probing,
    ) -> Result<Destination, Unresolved> {
        if let Some(read) = literal(text) {
            return read;
        }
        let Ok(name) = Name::from_ascii(text) else {
            return Err(Unresolved::Name(DnsFailure::Nxdomain));
        };
        let kinds: &[RecordType] = match probing.family {
            Family::Any => &[RecordType::A, RecordType::AAAA],
            Family::V4 => &[RecordType::A],
            Family::V6 => &[RecordType::AAAA],
        };
        let mut choice = Choice::new(probing, self.has_route);
        for kind in kinds {
            if let Some(chosen) = choice.offer(&self.in_hosts(&name, *kind)) {
                return Ok(chosen);
            }
        }
        let mut failure = DnsFailure::Nxdomain;
        if choice.is_offered() {
            return choice.without_route(failure);
        }
        for kind in kinds {
            match self.in_dns(&name, *kind).await {
                Ok(addresses) => {
                    if let Some(chosen) = choice.offer(&addresses) {
                        return Ok(chosen);
                    }
                }
                // A name that exists for one family exists.
                Err(Unresolved::Name(DnsFailure::Nxdomain)) => {}
                Err(Unresolved::Name(DnsFailure::NoData)) => failure = DnsFailure::NoData,
                Err(other) => return choice.interrupted(other),
            }
        }
        choice.without_route(failure)
    }

    fn in_hosts(&self, name: &Name, kind: RecordType) -> Vec<IpAddr> {
        let query = Query::query(name.clone(), kind);
        let lookup = self.hosts.lookup_static_host(&query);
        lookup.map_or(Vec::new(), |lookup| addresses(lookup.answers()))
    }

    /// The addresses of the first full name that has any. Without one: the name exists if any of the full names does, and
    /// does not exist only if no server said anything else.
    async fn in_dns(&self, name: &Name, kind: RecordType) -> Result<Vec<IpAddr>, Unresolved> {
        let Some(dns) = &self.dns else {
            return Err(Unresolved::Name(DnsFailure::Servfail));
        };
        let mut failure = DnsFailure::Nxdomain;
        for full_name in dns.full_names(name) {
            match self.ask(dns, &full_name, kind).await {
                Ok(addresses) => return Ok(addresses),
                Err(Unresolved::Name(DnsFailure::Nxdomain)) => {}
                Err(Unresolved::Name(DnsFailure::NoData)) => {
                    if failure == DnsFailure::Nxdomain {
                        failure = DnsFailure::NoData;
                    }
                }
                // Another server may be responsible for the next domain.
                Err(Unresolved::Name(DnsFailure::Servfail)) => failure = DnsFailure::Servfail,
                Err(other) => return Err(other),
            }
        }
        Err(Unresolved::Name(failure))
    }

    /// The addresses of a full name; at least one.
    async fn ask(
        &self,
        dns: &Dns,
        name: &Name,
        kind: RecordType,
    ) -> Result<Vec<IpAddr>, Unresolved> {
        let mut tried = 0;
        loop {
            let permit = self.queries.acquire().await;
            let answer = dns.resolver.lookup(name.clone(), kind).await;
            drop(permit);
            tried += 1;
            let failure = match answer {
                Ok(lookup) => {
                    let found = addresses(lookup.answers());
                    return if found.is_empty() {
                        Err(Unresolved::Name(DnsFailure::NoData))
                    } else {
                        Ok(found)
                    };
                }
                Err(error) => {
                    let failure = meaning(&error);
                    debug!(%name, %kind, %error, tried, "name not resolved");
                    failure
                }
            };
            let final_answers = [DnsFailure::Nxdomain, DnsFailure::NoData].map(Unresolved::Name);
            if final_answers.contains(&failure) || tried == MAX_TRIES {
                return Err(failure);
            }
            if let Unresolved::NoSocket { .. } = failure {
                tokio::time::sleep(OUT_OF_SOCKETS_PAUSE).await;
            }
        }
    }
}

/// DNS servers, and how a name becomes a full one.
#[derive(Debug, Clone)]
pub(super) struct Dns {
    resolver: TokioResolver,
    /// The addresses of the servers.
    #[cfg(test)]
    pub(super) servers: Vec<IpAddr>,
    /// The domains in which a name is looked for.
    search: Vec<Name>,
    /// A name with this many dots is first taken as a full one.
    ndots: usize,
}

impl Dns {
    /// From a configuration. `None`, with a warning, when it cannot be used.
    pub(super) fn new(config: ResolverConfig, mut options: ResolverOpts) -> Option<Self> {
        // This module handles search domains, retries, the hosts file and the bound on queries itself.
        options.attempts = 0;
        options.use_hosts_file = ResolveHosts::Never;
        options.num_concurrent_reqs = 1;
        options.max_active_requests = MAX_QUERIES;
        let ndots = options.ndots;
        let (domain, mut search, servers) = config.into_parts();
        search.splice(..0, domain);
        #[cfg(test)]
        let addresses = servers.iter().map(|server| server.ip).collect();
        let config = ResolverConfig::from_parts(None, Vec::new(), servers);
        let resolver = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            .with_options(options)
            .build()
            .inspect_err(|error| warn!(%error, "no DNS: names outside the hosts file fail"))
            .ok()?;
        Some(Self {
            resolver,
            #[cfg(test)]
            servers: addresses,
            search,
            ndots,
        })
    }

    /// The full names that a name may stand for, in the order in which they are asked for.
    fn full_names(&self, name: &Name) -> Vec<Name> {
        if name.is_fqdn() {
            return vec![name.clone()];
        }
        let mut as_given = name.clone();
        as_given.set_fqdn(true);
        // A label more than there are dots.
        let is_full = usize::from(name.num_labels()) > self.ndots || name.is_localhost();
        let (first, last) = if is_full {
            (Some(as_given), None)
        } else {
            (None, Some(as_given))
        };
        let in_domains = self
            .search
            .iter()
            .filter_map(|domain| name.clone().append_domain(domain).ok());
        let mut names = Vec::with_capacity(self.search.len() + 1);
        for name in first.into_iter().chain(in_domains).chain(last) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }
}

fn addresses(records: &[Record]) -> Vec<IpAddr> {
    let address = |record: &Record| match &record.data {
        RData::A(address) => Some(address.0.into()),
        RData::AAAA(address) => Some(address.0.into()),
        _ => None,
    };
    records.iter().filter_map(address).collect()
}

/// What an error of a lookup says about the name.
pub(super) fn meaning(error: &NetError) -> Unresolved {
    Unresolved::Name(match error {
        NetError::Dns(DnsError::NoRecordsFound(NoRecords { response_code, .. })) => {
            match *response_code {
                ResponseCode::NXDomain => DnsFailure::Nxdomain,
                ResponseCode::NoError => DnsFailure::NoData,
                _ => DnsFailure::Servfail,
            }
        }
        NetError::Io(error) => match error.raw_os_error() {
            Some(errno) if OUT_OF_SOCKETS.contains(&errno) => {
                return Unresolved::NoSocket { errno };
            }
            // The server's port is closed or there is no route to it: no server answered.
            _ => DnsFailure::Timeout,
        },
        NetError::Timeout | NetError::NoConnections => DnsFailure::Timeout,
        _ => DnsFailure::Servfail,
    })
}
