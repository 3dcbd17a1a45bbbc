//! A simulated network: a TUN device in a network namespace of its own. One thread of the test answers echo requests as a
//! [`Script`] says, with genuine or forged messages. Another thread records what was sent and when.
//!
//! Invariant: every request that leaves the prober is recorded once, with the kernel's timestamp; every message that the
//! network sends is counted once. [`SimNet::stop`] returns both, and how many messages the prober's kernel received: a
//! forgery that never arrived proves nothing.

mod address;
mod behaviour;
mod echo;
mod observer;
mod responder;
mod traffic;
#[expect(
    unsafe_code,
    reason = "making a TUN device is a system call that no crate of the workspace wraps"
)]
mod tun;

use std::{
    ffi::OsStr,
    fs::File,
    io::{PipeWriter, Write},
    net::IpAddr,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, ensure};
use nix::sched::{CloneFlags, setns};

pub(crate) use self::observer::open as open_packet_socket;
pub use self::{
    address::{HOSTS, IpVersion},
    behaviour::{Answer, Behaviour, Noise, Payload, Script, Send, duration},
    observer::ObservedRequest,
    traffic::Traffic,
};
use self::{
    observer::RequestLog,
    responder::{Responder, ResponderCounters},
};
use crate::{Namespace, cleanup::Cleanup};

/// The device in the namespace.
const DEVICE: &str = "sim0";

/// Settings of the namespace: any user may open ping sockets, and no forged source address is dropped.
const SETTINGS: [(&str, &str); 4] = [
    ("ipv4/ping_group_range", "0 2147483647"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/conf/sim0/rp_filter", "0"),
];

/// How long the kernel may take for its own work.
const KERNEL_TIMEOUT: Duration = Duration::from_secs(10);

/// A running network. Dropping it ends its threads and removes the namespace.
#[derive(Debug)]
pub struct SimNet {
    namespace: String,
    request_log: Arc<RequestLog>,
    /// Closing it stops the threads.
    stop: Option<PipeWriter>,
    responder: Option<JoinHandle<anyhow::Result<ResponderCounters>>>,
    observer: Option<JoinHandle<anyhow::Result<()>>>,
    _cleanup: Cleanup,
}

impl SimNet {
    /// Starts a network.
    ///
    /// # Errors
    /// When the namespace or the device cannot be made, mostly because the test does not run as root.
    pub fn start(script: Script) -> anyhow::Result<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("pingfleet-{}-sim-{number}", std::process::id());
        let cleanup = Cleanup::new("ip netns delete \"$1\"", &[&namespace])?;
        ip(&["netns", "add", &namespace], "").context("network namespaces need root")?;
        let opened = inside(&namespace, || {
            let tun = tun::open(DEVICE).context("no TUN device: `modprobe tun` as root")?;
            let packets = observer::open().context("no packet socket")?;
            Ok((tun, packets))
        });
        let (tun, packets) = opened?;
        configure(&namespace)?;
        let (stopped, stop) = std::io::pipe()?;
        let stopped = Arc::new(stopped);
        let request_log = Arc::new(RequestLog::default());
        let observer = {
            let (request_log, stopped) = (Arc::clone(&request_log), Arc::clone(&stopped));
            thread::Builder::new()
                .name("observer".to_owned())
                .spawn(move || {
                    raise_priority()?;
                    observer::run(&packets, &request_log, &stopped)
                })?
        };
        let responder = Responder::new(tun, script);
        let responder = thread::Builder::new()
            .name("responder".to_owned())
            .spawn(move || {
                raise_priority()?;
                responder.run(&stopped)
            })?;
        Ok(Self {
            namespace,
            request_log,
            stop: Some(stop),
            responder: Some(responder),
            observer: Some(observer),
            _cleanup: cleanup,
        })
    }

    /// A command that runs where probes are sent from.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        Namespace::command_in(&self.namespace, program)
    }

    /// The prober's own address.
    #[must_use]
    pub fn own_address(&self, family: IpVersion) -> IpAddr {
        address::own(family)
    }

    /// Gives the prober one more address, and waits until it is in use.
    ///
    /// # Errors
    /// When the address cannot be added.
    pub fn add_own_address(&self, address: IpAddr) -> anyhow::Result<()> {
        let mut arguments = vec!["address", "add"];
        let address_text = address.to_string();
        arguments.extend([address_text.as_str(), "dev", DEVICE]);
        if address.is_ipv6() {
            arguments.push("nodad");
        }
        self.ip(&arguments)?;
        wait_for_own(&self.namespace, address)
    }

    /// The command `ip` in this network, such as `["link", "set", "sim0", "down"]`.
    ///
    /// # Errors
    /// When it fails.
    pub fn ip(&self, arguments: &[&str]) -> anyhow::Result<()> {
        ip(&[&["-n", &self.namespace], arguments].concat(), "")
    }

    /// Sets `/proc/sys/net/NAME`, of which `name` is the part after `net`.
    ///
    /// # Errors
    /// When there is no such setting, or the kernel refuses the value.
    pub fn set(&self, name: &str, value: &str) -> anyhow::Result<()> {
        let path = format!("/proc/sys/net/{name}");
        let (value, at) = (value.to_owned(), path.clone());
        inside(&self.namespace, move || Ok(std::fs::write(at, value)?))
            .with_context(|| format!("cannot set {path}"))
    }

    /// Waits until `count` requests have left the prober.
    ///
    /// # Errors
    /// When they have not within `timeout`.
    pub fn wait_for(&self, count: usize, timeout: Duration) -> anyhow::Result<()> {
        ensure!(
            self.request_log.wait(count, timeout),
            "fewer than {count} requests in {timeout:?}"
        );
        Ok(())
    }

    /// Messages that the prober's kernel has received so far.
    ///
    /// # Errors
    /// When its counters cannot be read, or one of the messages was malformed.
    pub fn delivered(&self) -> anyhow::Result<u64> {
        let counters = self
            .command("cat")
            .args(["/proc/net/snmp", "/proc/net/snmp6"])
            .output()?;
        ensure!(counters.status.success(), "cannot read the counters");
        delivered(&String::from_utf8(counters.stdout)?)
    }

    /// Stops the network and returns what went through it.
    ///
    /// # Errors
    /// When one of its threads failed, or the prober's kernel found a message of this network to be malformed.
    pub fn stop(mut self) -> anyhow::Result<Traffic> {
        self.stop = None;
        let observed = join(self.observer.take())?;
        let counters = join(self.responder.take())?;
        observed?;
        let counters = counters?;
        let mut requests = self.request_log.take();
        requests.sort_by_key(|request| request.at_ns);
        Ok(Traffic {
            delivered: self.delivered()?,
            lost_before: (requests.len() as u64).saturating_sub(counters.requests),
            requests,
            messages: counters.messages,
            refused: counters.refused,
            answered: counters.answered,
        })
    }
}

impl Drop for SimNet {
    fn drop(&mut self) {
        self.stop = None;
        // After `stop` there is nothing left to join. Without `stop` nobody needs the figures.
        let ended = (join(self.observer.take()), join(self.responder.take()));
        drop(ended);
    }
}

/// Lets the calling thread run before all others: the network must not get slower because the machine is busy.
fn raise_priority() -> anyhow::Result<()> {
    be_nice(-20)
}

/// Sets the calling thread's niceness, from -20 to 19. Threads and processes that it starts later inherit it.
///
/// # Errors
/// A lower niceness than before needs root.
pub fn be_nice(niceness: i32) -> anyhow::Result<()> {
    // On Linux this call works on a thread (setpriority(2)).
    rustix::process::setpriority_process(Some(rustix::thread::gettid()), niceness)
        .context("a higher priority needs root")
}

/// The result of a thread that was not joined before.
fn join<T>(thread: Option<JoinHandle<T>>) -> anyhow::Result<T> {
    let thread = thread.context("the network has ended before")?;
    thread
        .join()
        .map_err(|_| anyhow!("a thread of the simulated network panicked"))
}

/// Runs a closure on a thread in a network namespace.
pub(crate) fn inside<T: std::marker::Send + 'static>(
    namespace: &str,
    act: impl FnOnce() -> anyhow::Result<T> + std::marker::Send + 'static,
) -> anyhow::Result<T> {
    let namespace = File::open(format!("/run/netns/{namespace}"))?;
    let thread = thread::spawn(move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        act()
    });
    join(Some(thread))?
}

fn configure(namespace: &str) -> anyhow::Result<()> {
    let [v4, v6] = IpVersion::ALL.map(address::own);
    let [v4_hosts, v6_hosts] = address::PREFIXES;
    // The queue holds packets while the responder does not run. What does not fit would be lost silently.
    let script = format!(
        "link set lo up
         link set {DEVICE} mtu 65535 txqueuelen 131072
         link set {DEVICE} up
         address add {v4}/32 dev {DEVICE}
         address add {v6}/128 dev {DEVICE} nodad
         route add {v4_hosts} dev {DEVICE}
         route add {v6_hosts} dev {DEVICE}
        "
    );
    ip(&["-n", namespace, "-batch", "-"], &script)?;
    inside(namespace, || {
        for (name, value) in SETTINGS {
            std::fs::write(format!("/proc/sys/net/{name}"), value)
                .with_context(|| format!("cannot set {name}"))?;
        }
        Ok(())
    })?;
    wait_for_own(namespace, v6)
}

/// The kernel activates a new IPv6 address asynchronously; what is sent to it before is lost.
fn wait_for_own(namespace: &str, address: IpAddr) -> anyhow::Result<()> {
    let deadline = Instant::now() + KERNEL_TIMEOUT;
    let is_local = ["-n", namespace, "route", "get", &address.to_string()];
    while let Err(error) = ip(&is_local, "") {
        if Instant::now() > deadline {
            return Err(error.context("the address does not become active"));
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn ip(arguments: &[&str], input: &str) -> anyhow::Result<()> {
    let mut child = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("no ip command: apt-get install iproute2")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "ip {} failed: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// Reads `/proc/net/snmp` and `/proc/net/snmp6` (Linux: `proc_pid_net(5)`): the echo replies and errors in them, without
/// the replies that this kernel sent itself over loopback.
fn delivered(counters: &str) -> anyhow::Result<u64> {
    const V4: [&str; 6] = [
        "InEchoReps",
        "InDestUnreachs",
        "InTimeExcds",
        "InParmProbs",
        "InSrcQuenchs",
        "InRedirects",
    ];
    const V6: [&str; 6] = [
        "Icmp6InEchoReplies",
        "Icmp6InDestUnreachs",
        "Icmp6InTimeExcds",
        "Icmp6InParmProblems",
        "Icmp6InPktTooBigs",
        "Icmp6InRedirects",
    ];
    let mut icmp = counters
        .lines()
        .filter_map(|line| line.strip_prefix("Icmp: "));
    let (names, values) = icmp.next().zip(icmp.next()).context("no ICMP counters")?;
    let v4 = std::iter::zip(names.split(' '), values.split(' '));
    let v6 = counters
        .lines()
        .filter(|line| line.starts_with("Icmp6"))
        .filter_map(|line| line.split_once(char::is_whitespace));
    let (mut all, mut own, mut broken) = (0_u64, 0, 0);
    for (name, value) in v4.chain(v6) {
        let value: u64 = value.trim().parse()?;
        match name {
            "InEchos" | "Icmp6InEchos" => own += value,
            "InCsumErrors" | "Icmp6InCsumErrors" => broken += value,
            name if V4.contains(&name) || V6.contains(&name) => all += value,
            _ => {}
        }
    }
    ensure!(broken == 0, "{broken} messages with a wrong checksum");
    all.checked_sub(own)
        .context("more echo requests than replies came in")
}

#[cfg(test)]
mod tests;
