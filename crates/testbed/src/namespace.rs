//! Two network namespaces that are joined: one to probe from, and one that answers for whole prefixes.
//!
//! Everything is inside the namespaces; the machine's own interfaces, routes and settings stay as they are. It needs
//! root, as `ip netns` does.

use std::{
    ffi::OsStr,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, ensure};

use crate::{capture::Capture, cleanup::Cleanup};

/// One end of the link. All targets are routed by the far end, so one neighbour serves all addresses.
struct End {
    mac: &'static str,
    v4: &'static str,
    v6: &'static str,
}

/// In the prober's namespace. No test probes these addresses.
const NEAR: End = End {
    mac: "02:00:00:00:00:01",
    v4: "169.254.77.1",
    v6: "fd77::1",
};

/// In the answering namespace.
const FAR: End = End {
    mac: "02:00:00:00:00:02",
    v4: "169.254.77.2",
    v6: "fd77::2",
};

/// Settings of both namespaces; those that a kernel does not have are left out. Any user may open ping sockets, no source
/// address is dropped, and answers are not rate-limited.
const SETTINGS: &[(&str, &str)] = &[
    ("ipv4/ping_group_range", "0 2147483647"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/conf/veth0/rp_filter", "0"),
    ("ipv4/icmp_ratelimit", "0"),
    ("ipv4/icmp_msgs_per_sec", "100000000"),
    ("ipv4/icmp_msgs_burst", "1000000"),
    ("ipv6/icmp/ratelimit", "0"),
];

/// A pair of joined namespaces. Dropping it removes both.
#[derive(Debug)]
pub struct Namespace {
    prober: String,
    answering: String,
    _cleanup: Cleanup,
}

impl Namespace {
    /// Makes the pair, in which every address of `prefix` (`10.0.0.0/9`, `fd00:10::/64`) answers. All other addresses
    /// are routed the same way and stay silent.
    ///
    /// # Errors
    /// When a namespace cannot be made, mostly because the test does not run as root.
    pub fn answering(prefix: &str) -> anyhow::Result<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("pingfleet-{}-{number}", std::process::id());
        let (prober, answering) = (format!("{name}-prober"), format!("{name}-answering"));
        let cleanup = Cleanup::new(
            "ip netns delete \"$1\"; ip netns delete \"$2\"",
            &[&prober, &answering],
        )?;
        let namespace = Self {
            prober,
            answering,
            _cleanup: cleanup,
        };
        namespace.make()?;
        namespace.answer(prefix)?;
        Ok(namespace)
    }

    /// Makes one more prefix answer.
    ///
    /// # Errors
    /// When it is no prefix.
    pub fn answer(&self, prefix: &str) -> anyhow::Result<()> {
        ip(&[
            "-n",
            &self.answering,
            "route",
            "add",
            "local",
            prefix,
            "dev",
            "lo",
        ])
    }

    /// A command that runs where probes are sent from.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        Self::command_in(&self.prober, program)
    }

    /// A command that runs where the answers come from, such as a packet capture.
    #[must_use]
    pub fn answering_command(&self, program: impl AsRef<OsStr>) -> Command {
        Self::command_in(&self.answering, program)
    }

    /// A command that runs in one of the two.
    pub(crate) fn command_in(namespace: &str, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]).arg(program);
        command
    }

    /// The name, for `ip netns`, of the namespace where probes are sent from.
    #[must_use]
    pub fn prober(&self) -> &str {
        &self.prober
    }

    /// Begins to capture the echo messages on the link, where probes are sent from.
    ///
    /// # Errors
    /// When there is no packet socket.
    pub fn capture(&self) -> anyhow::Result<Capture> {
        Capture::start(&self.prober)
    }

    fn make(&self) -> anyhow::Result<()> {
        let (prober, answering) = (self.prober.as_str(), self.answering.as_str());
        for name in [prober, answering] {
            ip(&["netns", "add", name]).context("network namespaces need root")?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
        }
        // Both ends have the same name, each in its own namespace.
        ip(&[
            "-n", prober, "link", "add", "name", "veth0", "address", NEAR.mac, "type", "veth",
            "peer", "name", "veth0", "address", FAR.mac, "netns", answering,
        ])?;
        for (name, own, peer) in [(prober, &NEAR, &FAR), (answering, &FAR, &NEAR)] {
            let (v4, v6) = (format!("{}/30", own.v4), format!("{}/64", own.v6));
            ip(&["-n", name, "address", "add", &v4, "dev", "veth0"])?;
            ip(&["-n", name, "address", "add", &v6, "dev", "veth0", "nodad"])?;
            ip(&["-n", name, "link", "set", "veth0", "up"])?;
            for address in [peer.v4, peer.v6] {
                // The kernel may take a second to find a neighbour on a fresh link, and drops what waits for it.
                ip(&[
                    "-n",
                    name,
                    "neighbour",
                    "replace",
                    address,
                    "lladdr",
                    peer.mac,
                    "dev",
                    "veth0",
                    "nud",
                    "permanent",
                ])?;
            }
            Self::set(name)?;
        }
        ip(&["-n", prober, "route", "add", "default", "via", FAR.v4])?;
        ip(&["-n", prober, "-6", "route", "add", "default", "via", FAR.v6])
    }

    fn set(namespace: &str) -> anyhow::Result<()> {
        for (name, value) in SETTINGS {
            let mut shell = Self::command_in(namespace, "sh");
            shell.args([
                "-c",
                "[ ! -e \"$1\" ] || printf %s \"$2\" > \"$1\"",
                "set",
                &format!("/proc/sys/net/{name}"),
                value,
            ]);
            ensure!(shell.status()?.success(), "cannot set {name} to {value}");
        }
        Ok(())
    }
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .context("no ip command: apt-get install iproute2")?;
    ensure!(
        output.status.success(),
        "ip {} failed: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
