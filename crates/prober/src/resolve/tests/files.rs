//! The system's files are read again when they have changed.

use std::{fs, path::Path};

use tempfile::TempDir;

use super::*;

/// Two files of a test.
struct Files {
    folder: TempDir,
    resolver: Resolver,
}

impl Files {
    fn new(resolv_conf: &str, hosts: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let [resolv_path, hosts_path] =
            ["resolv.conf", "hosts"].map(|name| folder.path().join(name));
        fs::write(&resolv_path, resolv_conf).unwrap();
        fs::write(&hosts_path, hosts).unwrap();
        let resolver = Resolver::from_files(resolv_path, hosts_path);
        Self { folder, resolver }
    }

    fn path(&self, name: &str) -> impl AsRef<Path> + use<> {
        self.folder.path().join(name)
    }

    async fn resolve(&self, name: &str) -> Result<IpAddr, Unresolved> {
        let found = self.resolver.resolve(name, &Probing::default()).await;
        found.map(|to| to.address)
    }

    async fn servers(&self) -> Option<Vec<IpAddr>> {
        let service = self.resolver.current().await;
        service.dns.as_ref().map(|dns| dns.servers.clone())
    }
}

/// No DNS server: a name that is not in the hosts file fails at once.
const NO_SERVERS: &str = "# none\n";

const SERVFAIL: Result<IpAddr, Unresolved> = Err(Unresolved::Name(DnsFailure::Servfail));

#[tokio::test(start_paused = true)]
async fn a_changed_hosts_file_is_read_again() {
    let files = Files::new(NO_SERVERS, "192.0.2.1 name.test\n");
    assert_eq!(files.resolve("name.test").await, Ok(V4.into()));
    fs::write(files.path("hosts"), "2001:db8::1 name.test\n").unwrap();
    // It is looked at every few seconds only.
    assert_eq!(files.resolve("name.test").await, Ok(V4.into()));
    tokio::time::advance(CHECK_INTERVAL).await;
    assert_eq!(files.resolve("name.test").await, Ok(V6.into()));
    // As programs replace it: with the same length, and the same time.
    let modified = fs::metadata(files.path("hosts"))
        .unwrap()
        .modified()
        .unwrap();
    fs::write(files.path("new"), "2001:db8::2 name.test\n").unwrap();
    let new = fs::File::options().write(true).open(files.path("new"));
    new.unwrap().set_modified(modified).unwrap();
    fs::rename(files.path("new"), files.path("hosts")).unwrap();
    tokio::time::advance(CHECK_INTERVAL).await;
    let second = "2001:db8::2".parse().unwrap();
    assert_eq!(files.resolve("name.test").await, Ok(second));
    fs::remove_file(files.path("hosts")).unwrap();
    tokio::time::advance(CHECK_INTERVAL).await;
    assert_eq!(files.resolve("name.test").await, SERVFAIL);
}

#[tokio::test(start_paused = true)]
async fn names_that_the_hosts_file_blocks_are_not_asked_for() {
    let hosts = "0.0.0.0 ads.test\n224.0.0.1 many.test\n::ffff:192.0.2.1 mapped.test\n";
    let files = Files::new(NO_SERVERS, hosts);
    for name in ["ads.test", "many.test"] {
        let found = files.resolve(name).await;
        assert_eq!(found, failed(DnsFailure::BlockedAddress), "{name}");
    }
    assert_eq!(files.resolve("mapped.test").await, Ok(V4.into()));
}

#[cfg(target_os = "linux")]
#[tokio::test(start_paused = true)]
async fn a_changed_resolv_conf_is_read_again() {
    let files = Files::new("nameserver 192.0.2.53\n", "192.0.2.1 name.test\n");
    let [first, second] = [[192, 0, 2, 53], [192, 0, 2, 54]].map(IpAddr::from);
    assert_eq!(files.servers().await, Some(vec![first]));
    fs::write(files.path("resolv.conf"), "nameserver 192.0.2.54\n").unwrap();
    assert_eq!(files.servers().await, Some(vec![first]));
    tokio::time::advance(CHECK_INTERVAL).await;
    assert_eq!(files.servers().await, Some(vec![second]));
    // A file without servers is one that is being written, or a mistake: the last servers stay.
    fs::write(files.path("resolv.conf"), "").unwrap();
    tokio::time::advance(CHECK_INTERVAL).await;
    assert_eq!(files.servers().await, Some(vec![second]));
    fs::remove_file(files.path("resolv.conf")).unwrap();
    tokio::time::advance(CHECK_INTERVAL).await;
    assert_eq!(files.servers().await, Some(vec![second]));
    fs::write(files.path("resolv.conf"), "nameserver 192.0.2.53\n").unwrap();
    tokio::time::advance(CHECK_INTERVAL).await;
    assert_eq!(files.servers().await, Some(vec![first]));
    assert_eq!(files.resolve("name.test").await, Ok(V4.into()));
}
