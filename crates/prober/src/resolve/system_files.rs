//! The system's files for name resolution, and whether they have changed. Only their metadata is read each time.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use hickory_resolver::{
    Hosts,
    config::{ResolverConfig, ResolverOpts},
    net::NetError,
    system_conf,
};
use tracing::warn;

use super::name_service::Dns;

/// The two files, `resolv.conf(5)` and `hosts(5)`.
#[derive(Debug, Clone)]
pub(super) struct SystemFiles {
    resolv_conf: PathBuf,
    hosts: PathBuf,
}

/// Which version of a file was read: a changed or replaced file has another one. `None` when it cannot be read.
type Version = Option<(SystemTime, u64, [i64; 4])>;

/// The versions of both files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Versions {
    pub(super) resolv_conf: Version,
    pub(super) hosts: Version,
}

impl SystemFiles {
    pub(super) fn new(resolv_conf: PathBuf, hosts: PathBuf) -> Self {
        Self { resolv_conf, hosts }
    }

    /// Of the files as they are now.
    pub(super) fn versions(&self) -> Versions {
        Versions {
            resolv_conf: version(&self.resolv_conf),
            hosts: version(&self.hosts),
        }
    }

    /// The DNS servers. `None`, with a warning, without a usable configuration.
    pub(super) fn dns(&self) -> Option<Dns> {
        let path = self.resolv_conf.display();
        read_servers(&self.resolv_conf)
            .inspect_err(|error| warn!(%error, %path, "no DNS servers configured"))
            .ok()
            .and_then(|(config, options)| Dns::new(config, options))
    }

    /// The hosts file; an empty one when there is none.
    ///
    /// # Errors
    /// When it is there, and cannot be read.
    pub(super) fn hosts(&self) -> io::Result<Hosts> {
        let mut hosts = Hosts::default();
        match File::open(&self.hosts) {
            Ok(file) => hosts.read_hosts_conf(file)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(hosts)
    }
}

type Servers = (ResolverConfig, ResolverOpts);

#[cfg(target_os = "linux")]
fn read_servers(path: &Path) -> Result<Servers, NetError> {
    system_conf::parse_resolv_conf(fs::read(path)?)
}

/// Windows has no such file.
#[cfg(not(target_os = "linux"))]
fn read_servers(_: &Path) -> Result<Servers, NetError> {
    system_conf::read_system_conf().map_err(NetError::from)
}

fn version(path: &Path) -> Version {
    let metadata = fs::metadata(path).ok()?;
    #[cfg(unix)]
    let identity = {
        use std::os::unix::fs::MetadataExt;
        // The time of the last change of a file differs also where its other time was set back.
        let (seconds, nanoseconds) = (metadata.ctime(), metadata.ctime_nsec());
        let [device, inode] = [metadata.dev(), metadata.ino()].map(u64::cast_signed);
        [device, inode, seconds, nanoseconds]
    };
    #[cfg(not(unix))]
    let identity = [0; 4];
    Some((metadata.modified().ok()?, metadata.len(), identity))
}
