//! From a target's text to its address. The text of an address is parsed. A name is looked up in /etc/hosts, and then by
//! the DNS servers and search domains of /etc/resolv.conf, and one of its addresses is chosen.
//!
//! Invariants: a text becomes one destination or one reason. No failure of the name service ends a worker. The names of a
//! chunk are resolved within [`MAX_RESOLUTION_TIME`].

mod choice;
mod literal;
mod name_service;
mod system_files;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future;
use hickory_resolver::{
    Hosts,
    config::{ResolverConfig, ResolverOpts},
};
use pingfleet_wire::{DnsFailure, Probing, Status, timing::MAX_RESOLUTION_TIME};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};
use tracing::{info, warn};

pub use self::literal::literal;
pub(crate) use self::literal::of_host;
use self::{
    name_service::{Dns, MAX_QUERIES, NameService},
    system_files::{SystemFiles, Versions},
};
use crate::prober::Destination;

/// The shortest time between two checks whether the system's files have changed.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// The errno of an address to which no echo request can be sent (EINVAL).
const INVALID_ARGUMENT: i32 = 22;

/// The errno of a network interface that does not exist (ENODEV).
const NO_SUCH_DEVICE: i32 = 19;

/// Why a text has no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unresolved {
    /// The name has no address that can be probed.
    Name(DnsFailure),
    /// No host can have the address (see [`pingfleet_wire::is_host_address`]), and nothing is sent to it.
    NotHost,
    /// The zone of the address names no interface of this machine (RFC 4007, section 11).
    Zone,
    /// This machine had no socket for the query, which says nothing about the name.
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
            Self::NotHost => Status::SendFailed {
                errno: INVALID_ARGUMENT,
            },
            Self::Zone => Status::SendFailed {
                errno: NO_SUCH_DEVICE,
            },
            Self::NoSocket { errno } => Status::SendFailed { errno },
        }
    }
}

/// Resolves names. Clones share the caches and the bound on queries.
#[derive(Debug, Clone)]
pub struct Resolver {
    /// The files that are read again when they change; `None` with servers that were given.
    files: Option<SystemFiles>,
    current: Arc<Mutex<Current>>,
    queries: Arc<Semaphore>,
}

/// What was read last.
#[derive(Debug)]
struct Current {
    service: Arc<NameService>,
    versions: Versions,
    checked: Instant,
}

impl Resolver {
    /// A resolver with the system's configuration. Without a usable configuration it uses /etc/hosts only, and logs a
    /// warning. On Linux the files are read again when they have changed; elsewhere the hosts file is.
    #[must_use]
    pub fn from_system() -> Self {
        let hosts = if cfg!(windows) {
            let root = std::env::var_os("SystemRoot").unwrap_or_else(|| "C:\\Windows".into());
            PathBuf::from(root).join("System32\\drivers\\etc\\hosts")
        } else {
            PathBuf::from("/etc/hosts")
        };
        Self::from_files(PathBuf::from("/etc/resolv.conf"), hosts)
    }

    /// The same with these files instead of the system's.
    #[must_use]
    pub fn from_files(resolv_conf: PathBuf, hosts: PathBuf) -> Self {
        let files = SystemFiles::new(resolv_conf, hosts);
        // Before the files are read: what changes meanwhile is read again.
        let versions = files.versions();
        let hosts = files.hosts().unwrap_or_else(|error| {
            warn!(%error, "the hosts file cannot be read");
            Hosts::default()
        });
        Self::new(files.dns(), hosts, versions, Some(files))
    }

    /// A resolver with the given servers and without a hosts file.
    #[must_use]
    pub fn with_servers(config: ResolverConfig, options: ResolverOpts) -> Self {
        let dns = Dns::new(config, options);
        Self::new(dns, Hosts::default(), Versions::default(), None)
    }

    fn new(dns: Option<Dns>, hosts: Hosts, versions: Versions, files: Option<SystemFiles>) -> Self {
        let queries = Arc::new(Semaphore::new(MAX_QUERIES));
        let service = NameService::new(dns, Arc::new(hosts), Arc::clone(&queries));
        let current = Current {
            service: Arc::new(service),
            versions,
            checked: Instant::now(),
        };
        Self {
            files,
            current: Arc::new(Mutex::new(current)),
            queries,
        }
    }

    /// Whether as many queries are in flight as there may be: more names would only wait, and their time would pass.
    #[must_use]
    pub fn is_at_limit(&self) -> bool {
        self.queries.available_permits() == 0
    }

    /// The destination of a text, for a target with these settings. A name has its first address that may be probed and
    /// that this machine has a route to, else its first address that may be probed; IPv4 comes before IPv6. Cancel-safe.
    ///
    /// # Errors
    /// [`Unresolved`], why there is none.
    pub async fn resolve(&self, text: &str, probing: &Probing) -> Result<Destination, Unresolved> {
        self.current().await.resolve(text, probing).await
    }

    /// The destinations of the names of one chunk, in their order. It takes at most [`MAX_RESOLUTION_TIME`]: names that
    /// are not resolved by then have [`DnsFailure::Timeout`]. Cancel-safe.
    pub async fn resolve_chunk(
        &self,
        names: impl Iterator<Item = &str>,
        probing: &Probing,
    ) -> Vec<Result<Destination, Unresolved>> {
        let deadline = Instant::now() + MAX_RESOLUTION_TIME;
        let service = self.current().await;
        let answers = future::join_all(
            names.map(async |name| timeout_at(deadline, service.resolve(name, probing)).await),
        )
        .await;
        let missing = answers.iter().filter(|answer| answer.is_err()).count();
        if missing > 0 {
            let seconds = MAX_RESOLUTION_TIME.as_secs();
            warn!(
                names = missing,
                seconds,
                "the time for resolving the names of a chunk is over: they end as dns_failed, timeout"
            );
        }
        let answers = answers.into_iter();
        answers
            .map(|answer| answer.unwrap_or(Err(Unresolved::Name(DnsFailure::Timeout))))
            .collect()
    }

    /// Where names are looked up at the moment. Reads the system's files again when they have changed; other callers use
    /// what was read before until that is done. Cancel-safe.
    async fn current(&self) -> Arc<NameService> {
        if let Some(files) = &self.files
            && self.is_check_due()
        {
            let (files, current) = (files.clone(), Arc::clone(&self.current));
            // A hosts file may be long, and its disk slow. A panic in it is logged by the panic hook.
            drop(tokio::task::spawn_blocking(move || read_again(&files, &current)).await);
        }
        Arc::clone(&lock(&self.current).service)
    }

    /// Whether it is time for a check of the files. From now on it is not.
    fn is_check_due(&self) -> bool {
        let mut current = lock(&self.current);
        let is_due = current.checked.elapsed() >= CHECK_INTERVAL;
        if is_due {
            current.checked = Instant::now();
        }
        is_due
    }
}

fn lock(current: &Mutex<Current>) -> MutexGuard<'_, Current> {
    current.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads what has changed of the files. What cannot be read stays as it was: a file may just be written. The lock is free
/// meanwhile.
fn read_again(files: &SystemFiles, current: &Mutex<Current>) {
    let versions = files.versions();
    let (before, mut service) = {
        let mut current = lock(current);
        let before = std::mem::replace(&mut current.versions, versions);
        (before, NameService::clone(&current.service))
    };
    if before == versions {
        return;
    }
    if before.resolv_conf != versions.resolv_conf {
        service.dns = files.dns().or(service.dns);
    }
    if before.hosts != versions.hosts {
        match files.hosts() {
            Ok(hosts) => service.hosts = Arc::new(hosts),
            Err(error) => warn!(%error, "the hosts file cannot be read again"),
        }
    }
    info!("the configuration of name resolution has changed and was read again");
    lock(current).service = Arc::new(service);
}

#[cfg(test)]
mod tests;
