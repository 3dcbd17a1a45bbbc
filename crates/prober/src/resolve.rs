//! From a target's text to its address: texts of addresses are read, names are asked of /etc/hosts and of the DNS
//! servers in /etc/resolv.conf, with its search domains. Answers are cached as long as they say. Does I/O on the
//! caller's runtime.
//!
//! Invariant: a text becomes one destination or one stated reason, and no fault of the name service ends a worker.

use std::{net::IpAddr, sync::Arc, time::Duration};

use hickory_resolver::{
    Hosts, TokioResolver,
    config::{ResolveHosts, ResolverConfig, ResolverOpts},
    net::{DnsError, NetError, NoRecords, runtime::TokioRuntimeProvider},
    proto::{
        op::{Query, ResponseCode},
        rr::{Name, RData, Record, RecordType},
    },
    system_conf::read_system_conf,
};
use pingfleet_wire::{DnsFailure, Family, Status};
use tokio::sync::Semaphore;
use tracing::{debug, warn};

use crate::prober::Destination;

/// Queries outstanding at once, over all chunks.
const MAX_QUERIES: usize = 100;

/// How often a query that failed or timed out is tried in all.
const TRIES: u32 = 3;

/// What the system calls a network interface that does not exist (ENODEV).
const NO_SUCH_DEVICE: i32 = 19;

/// What it calls a want of sockets: too many open files in the system or in the process, no memory, no buffer space
/// (ENFILE, EMFILE, ENOMEM, ENOBUFS).
const WANT: [i32; 4] = [23, 24, 12, 105];

/// How long a query waits for others to give their sockets back.
const WANT_PAUSE: Duration = Duration::from_millis(500);

/// Why a text has no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unresolved {
    /// The name has none.
    Name(DnsFailure),
    /// The zone of the address names no interface of this box (RFC 4007, section 11).
    Zone,
    /// This box had no socket for the question, which says nothing about the name.
    NoSocket {
        /// Why the kernel refused one.
        errno: i32,
    },
}

impl Unresolved {
    /// The status of a target that is not probed for this reason.
    #[must_use]
    pub fn status(self) -> Status {
        match self {
            Self::Name(failure) => Status::DnsFailed(failure),
            Self::Zone => Status::SendFailed {
                errno: NO_SUCH_DEVICE,
            },
            Self::NoSocket { errno } => Status::SendFailed { errno },
        }
    }
}

/// Reads the text of an address, with or without a zone. `None` when the text can only be a name.
#[must_use]
pub fn literal(text: &str) -> Option<Result<Destination, Unresolved>> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(Ok(address.into()));
    }
    let (address, zone) = text.split_once('%')?;
    let address = IpAddr::V6(address.parse().ok()?);
    Some(
        interface_index(zone)
            .map(|scope_id| Destination { address, scope_id })
            .ok_or(Unresolved::Zone),
    )
}

/// The index of a network interface, by its name or by the index itself.
fn interface_index(zone: &str) -> Option<u32> {
    if let Ok(index) = zone.parse() {
        return Some(index).filter(|index| *index > 0);
    }
    // A name with a slash or a dot alone would leave the folder of interfaces.
    if !cfg!(target_os = "linux") || zone.contains('/') || matches!(zone, "" | "." | "..") {
        return None;
    }
    std::fs::read_to_string(format!("/sys/class/net/{zone}/ifindex"))
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// Resolves names. Clones share the cache and the bound on queries.
#[derive(Debug, Clone)]
pub struct Resolver {
    /// None where the system names no DNS server.
    dns: Option<TokioResolver>,
    hosts: Arc<Hosts>,
    queries: Arc<Semaphore>,
}

impl Resolver {
    /// A resolver as the system is configured. A system without a usable configuration gives one that knows
    /// /etc/hosts only, with a warning.
    #[must_use]
    pub fn from_system() -> Self {
        let dns = match read_system_conf() {
            Ok((config, options)) => Self::dns(config, options),
            Err(error) => {
                warn!(%error, "no DNS servers configured: names outside the hosts file fail");
                None
            }
        };
        let hosts = Hosts::from_system().unwrap_or_else(|error| {
            debug!(%error, "no hosts file");
            Hosts::default()
        });
        Self::new(dns, hosts)
    }

    /// A resolver that asks the given servers, and no hosts file.
    #[must_use]
    pub fn with_servers(config: ResolverConfig, options: ResolverOpts) -> Self {
        Self::new(Self::dns(config, options), Hosts::default())
    }

    fn new(dns: Option<TokioResolver>, hosts: Hosts) -> Self {
        Self {
            dns,
            hosts: Arc::new(hosts),
            queries: Arc::new(Semaphore::new(MAX_QUERIES)),
        }
    }

    fn dns(config: ResolverConfig, mut options: ResolverOpts) -> Option<TokioResolver> {
        // The tries, the hosts file and the bound on queries are this module's own.
        options.attempts = 0;
        options.use_hosts_file = ResolveHosts::Never;
        options.num_concurrent_reqs = 1;
        options.max_active_requests = MAX_QUERIES;
        TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            .with_options(options)
            .build()
            .inspect_err(|error| warn!(%error, "no DNS: names outside the hosts file fail"))
            .ok()
    }

    /// The destination of a text. Of a name's addresses the first one of the first family that has any; IPv4 comes
    /// before IPv6. Cancel-safe.
    ///
    /// # Errors
    /// [`Unresolved`], why there is none.
    pub async fn resolve(&self, text: &str, family: Family) -> Result<Destination, Unresolved> {
        if let Some(read) = literal(text) {
            return read;
        }
        let Ok(name) = Name::from_ascii(text) else {
            return Err(Unresolved::Name(DnsFailure::Nxdomain));
        };
        let kinds: &[RecordType] = match family {
            Family::Any => &[RecordType::A, RecordType::AAAA],
            Family::V4 => &[RecordType::A],
            Family::V6 => &[RecordType::AAAA],
        };
        if let Some(address) = kinds.iter().find_map(|kind| self.in_hosts(&name, *kind)) {
            return Ok(address.into());
        }
        let mut failure = DnsFailure::Nxdomain;
        for kind in kinds {
            match self.ask(&name, *kind).await {
                Ok(address) => return Ok(address.into()),
                // With search domains "no such name" is about the last one tried: the other family may stand under
                // another. A name that exists for one family exists.
                Err(Unresolved::Name(DnsFailure::Nxdomain)) => {}
                Err(Unresolved::Name(DnsFailure::NoData)) => failure = DnsFailure::NoData,
                Err(other) => return Err(other),
            }
        }
        Err(Unresolved::Name(failure))
    }

    fn in_hosts(&self, name: &Name, kind: RecordType) -> Option<IpAddr> {
        let lookup = self
            .hosts
            .lookup_static_host(&Query::query(name.clone(), kind))?;
        lookup.answers().iter().find_map(address)
    }

    async fn ask(&self, name: &Name, kind: RecordType) -> Result<IpAddr, Unresolved> {
        let Some(dns) = &self.dns else {
            return Err(Unresolved::Name(DnsFailure::Servfail));
        };
        let mut tried = 0;
        loop {
            let permit = self.queries.acquire().await;
            let answer = dns.lookup(name.clone(), kind).await;
            drop(permit);
            tried += 1;
            let failure = match answer {
                Ok(lookup) => {
                    return lookup
                        .answers()
                        .iter()
                        .find_map(address)
                        .ok_or(Unresolved::Name(DnsFailure::NoData));
                }
                Err(error) => {
                    let failure = meaning(&error);
                    debug!(%name, %kind, %error, tried, "name not resolved");
                    failure
                }
            };
            let final_answers = [DnsFailure::Nxdomain, DnsFailure::NoData].map(Unresolved::Name);
            if final_answers.contains(&failure) || tried == TRIES {
                return Err(failure);
            }
            if let Unresolved::NoSocket { .. } = failure {
                tokio::time::sleep(WANT_PAUSE).await;
            }
        }
    }
}

fn address(record: &Record) -> Option<IpAddr> {
    match &record.data {
        RData::A(address) => Some(address.0.into()),
        RData::AAAA(address) => Some(address.0.into()),
        _ => None,
    }
}

/// What an error of a lookup says about the name.
fn meaning(error: &NetError) -> Unresolved {
    Unresolved::Name(match error {
        NetError::Dns(DnsError::NoRecordsFound(NoRecords { response_code, .. })) => {
            match *response_code {
                ResponseCode::NXDomain => DnsFailure::Nxdomain,
                ResponseCode::NoError => DnsFailure::NoData,
                _ => DnsFailure::Servfail,
            }
        }
        NetError::Io(error) => match error.raw_os_error() {
            Some(errno) if WANT.contains(&errno) => return Unresolved::NoSocket { errno },
            // Nobody listens there, or the way to the server is gone: no server answered.
            _ => DnsFailure::Timeout,
        },
        NetError::Timeout | NetError::NoConnections => DnsFailure::Timeout,
        _ => DnsFailure::Servfail,
    })
}

#[cfg(test)]
mod tests;
