//! The kernel's counters in a network, which prove that a loss happened.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context, ensure};
use pingfleet_testbed::simnet::IpVersion;

use crate::{chunk_files::SOCKET_TABLES, variants::Network};

/// The longest wait for an event of the kernel or of another process.
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(30);

/// Echo requests that a network's kernel has sent and received, and replies that it has sent (Linux: `proc_pid_net(5)`, `snmp` and `snmp6`).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Echoes {
    pub(crate) requests_out: u64,
    pub(crate) requests_in: u64,
    pub(crate) replies_out: u64,
}

impl Echoes {
    /// The counters now.
    pub(crate) fn read(net: &impl Network, family: IpVersion) -> anyhow::Result<Self> {
        Self::parse(&cat(net, &["snmp", "snmp6"])?, family)
    }

    /// From the text of both files, one after the other.
    pub(crate) fn parse(text: &str, family: IpVersion) -> anyhow::Result<Self> {
        let mut icmp = text.lines().filter_map(|line| line.strip_prefix("Icmp: "));
        let (names, values) = icmp.next().zip(icmp.next()).context("no ICMP counters")?;
        let v4 = std::iter::zip(names.split(' '), values.split(' '));
        let v6 = text
            .lines()
            .filter_map(|line| line.split_once(char::is_whitespace));
        let counts: HashMap<_, _> = v4.chain(v6).collect();
        let count = |v4, v6| {
            let name = match family {
                IpVersion::V4 => v4,
                IpVersion::V6 => v6,
            };
            let value = counts.get(name).context("a counter is missing")?;
            anyhow::Ok(value.trim().parse()?)
        };
        Ok(Self {
            requests_out: count("OutEchos", "Icmp6OutEchos")?,
            requests_in: count("InEchos", "Icmp6InEchos")?,
            replies_out: count("OutEchoReps", "Icmp6OutEchoReplies")?,
        })
    }
}

/// All ICMP sockets of a network together.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Sockets {
    /// How many there are.
    pub(crate) open: usize,
    /// Bytes that are unread.
    pub(crate) unread: u64,
    /// Messages for which there was no room.
    pub(crate) drops: u64,
}

impl Sockets {
    /// Their state now.
    pub(crate) fn read(net: &impl Network) -> anyhow::Result<Self> {
        Self::parse(&cat(net, &SOCKET_TABLES)?)
    }

    /// Reads lines such as `1: 00000000:0001 00000000:0000 07 00000000:00000300 ... DROPS`.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let mut all = Self::default();
        for line in text.lines() {
            let fields: Vec<_> = line.split_ascii_whitespace().collect();
            let is_socket = fields
                .first()
                .is_some_and(|first| first.strip_suffix(':').is_some_and(is_number));
            if !is_socket {
                continue;
            }
            let queues = fields.get(4).and_then(|queues| queues.split_once(':'));
            let (_, unread) = queues.context("no queues")?;
            all.open += 1;
            all.unread += u64::from_str_radix(unread, 16)?;
            all.drops += fields.last().context("no drops")?.parse::<u64>()?;
        }
        Ok(all)
    }
}

fn is_number(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

fn cat(net: &impl Network, files: &[&str]) -> anyhow::Result<String> {
    let paths = files.iter().map(|file| format!("/proc/net/{file}"));
    let output = net.command("cat").args(paths).output()?;
    ensure!(output.status.success(), "cannot read the kernel's counters");
    Ok(String::from_utf8(output.stdout)?)
}
