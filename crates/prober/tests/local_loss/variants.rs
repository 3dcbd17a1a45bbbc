//! The variants of a test: who probes, with which kind of socket, over which version of IP.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    process::Command,
    thread,
};

use anyhow::ensure;
use pingfleet_testbed::{
    Namespace,
    simnet::{IpVersion, SimNet, be_nice},
};
use pingfleet_wire::Target;

/// The user without privileges, and its group.
pub(crate) const NOBODY: u32 = 65534;

/// A user who may open one kind of socket.
#[derive(Debug)]
pub(crate) struct Caller {
    name: &'static str,
    pub(crate) is_raw: bool,
    pub(crate) is_root: bool,
    /// What `setpriv` takes away from root.
    setpriv: &'static [&'static str],
}

/// All users who may probe. Root may have buffers of any size; for the others `net.core.rmem_max` is the limit.
const CALLERS: [Caller; 4] = [
    Caller {
        name: "root/datagram",
        is_raw: false,
        is_root: true,
        setpriv: &[],
    },
    Caller {
        name: "root/raw",
        is_raw: true,
        is_root: true,
        setpriv: &[],
    },
    Caller {
        name: "nobody/datagram",
        is_raw: false,
        is_root: false,
        setpriv: &["--inh-caps=-all", "--bounding-set=-all"],
    },
    // As with a file capability.
    Caller {
        name: "nobody/raw",
        is_raw: true,
        is_root: false,
        setpriv: &["--inh-caps=-all,+net_raw", "--ambient-caps=-all,+net_raw"],
    },
];

/// One way to run a test.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Variant {
    pub(crate) caller: &'static Caller,
    pub(crate) family: IpVersion,
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.caller.name, self.family.name())
    }
}

/// All variants.
pub(crate) fn variants() -> impl Iterator<Item = Variant> {
    CALLERS.iter().flat_map(|caller| {
        let families = IpVersion::ALL.into_iter();
        families.map(move |family| Variant { caller, family })
    })
}

/// Runs a test for all of these variants at once, because they mostly wait.
pub(crate) fn at_once(
    variants: impl IntoIterator<Item = Variant>,
    test: impl Fn(Variant) -> anyhow::Result<()> + Sync,
) -> anyhow::Result<()> {
    let test = &test;
    let failures: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = variants
            .into_iter()
            .map(|variant| {
                let run = move || {
                    // On a busy machine, an event that a test triggers during a sweep must not come after its end.
                    be_nice(-10)?;
                    test(variant)
                };
                (variant, scope.spawn(run))
            })
            .collect();
        running
            .into_iter()
            .filter_map(|(variant, thread)| {
                let result = thread.join().expect("no thread panics");
                result.err().map(|error| format!("{variant}: {error:#}"))
            })
            .collect()
    });
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// A network in which commands can be run.
pub(crate) trait Network {
    /// A command in this network.
    fn command(&self, program: &str) -> Command;

    /// Runs a shell script in this network.
    fn sh(&self, script: &str) -> anyhow::Result<()> {
        run(self.command("sh").args(["-e", "-c", script]))
    }
}

impl Network for SimNet {
    fn command(&self, program: &str) -> Command {
        SimNet::command(self, program)
    }
}

impl Network for Namespace {
    fn command(&self, program: &str) -> Command {
        Namespace::command(self, program)
    }
}

/// The other side of a pair of namespaces.
pub(crate) struct Far<'a>(pub(crate) &'a Namespace);

impl Network for Far<'_> {
    fn command(&self, program: &str) -> Command {
        self.0.answering_command(program)
    }
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {errors}");
    Ok(())
}

impl Caller {
    /// A command that runs `program` in a network as this caller. Sockets of the other kind are forbidden there: a prober
    /// that falls back to them would prove nothing.
    pub(crate) fn command(&self, net: &impl Network, program: &str) -> anyhow::Result<Command> {
        let groups = if self.is_raw { "1 0" } else { "0 2147483647" };
        net.sh(&format!(
            "echo '{groups}' > /proc/sys/net/ipv4/ping_group_range"
        ))?;
        let mut command = net.command("nice");
        // Other processes must not stall the prober.
        command.args(["-n", "-10"]);
        if !self.setpriv.is_empty() {
            let id = NOBODY.to_string();
            command.args(["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups"]);
            command.args(self.setpriv);
        }
        command.arg(program);
        Ok(command)
    }
}

/// Some hosts of a simulated network, as targets.
pub(crate) fn hosts(family: IpVersion, hosts: RangeInclusive<u32>) -> Vec<Target> {
    hosts
        .map(|host| Target::Address(family.address(host)))
        .collect()
}

/// `count` addresses from `first` on, as targets.
pub(crate) fn addresses(first: &str, count: u32) -> Vec<Target> {
    let first: IpAddr = first.parse().expect("an address");
    (0..count)
        .map(|more| {
            Target::Address(match first {
                IpAddr::V4(first) => Ipv4Addr::from(u32::from(first) + more).into(),
                IpAddr::V6(first) => Ipv6Addr::from(u128::from(first) + u128::from(more)).into(),
            })
        })
        .collect()
}
