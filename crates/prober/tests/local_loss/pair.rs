//! A pair of connected networks: the prober's, and behind its gateway one in which many addresses answer.

use std::time::Instant;

use anyhow::ensure;
use pingfleet_testbed::{Namespace, simnet::IpVersion};

use crate::{
    counters::MAX_WAIT,
    variants::{Far, Network},
};

/// The gateway's link address; the far end of the link.
const NEAR_MAC: &str = "02:00:00:00:00:01";

/// The addresses of both ends of the link, the near one first.
pub(crate) fn ends(family: IpVersion) -> [&'static str; 2] {
    match family {
        IpVersion::V4 => ["169.254.77.1", "169.254.77.2"],
        IpVersion::V6 => ["fd77::1", "fd77::2"],
    }
}

/// The first of the addresses that answer.
pub(crate) fn living(family: IpVersion) -> &'static str {
    match family {
        IpVersion::V4 => "10.0.0.0",
        IpVersion::V6 => "fd00:10::",
    }
}

/// The first of the addresses that are silent.
pub(crate) fn silent(family: IpVersion) -> &'static str {
    match family {
        IpVersion::V4 => "10.200.0.0",
        IpVersion::V6 => "fd00:20::",
    }
}

/// Makes the pair.
pub(crate) fn make() -> anyhow::Result<Namespace> {
    let pair = Namespace::answering("10.0.0.0/16")?;
    pair.answer("fd00:10::/64")?;
    let far = Far(&pair);
    far.sh("ip route add blackhole fd00:20::/64")?;
    let [near_end, far_end] = ends(IpVersion::V6);
    wait_for_address(&pair, near_end)?;
    wait_for_address(&far, far_end)?;
    Ok(pair)
}

/// Sets the far end of the link up again, with its address.
pub(crate) fn set_up(far: &Far<'_>) -> anyhow::Result<()> {
    let [near_end, far_end] = ends(IpVersion::V6);
    far.sh(&format!(
        "ip link set veth0 up; ip addr replace {far_end}/64 dev veth0 nodad"
    ))?;
    know(far, near_end)?;
    wait_for_carrier(far)?;
    wait_for_address(far, far_end)
}

/// Waits until the kernel has noticed the carrier of the link. It sends nothing by it before.
pub(crate) fn wait_for_carrier(net: &impl Network) -> anyhow::Result<()> {
    wait_for(net, &["link", "show", "veth0"], "state UP")
}

/// Gives the far side the near one's link address, so that it loses no answers while it resolves it.
pub(crate) fn know(far: &Far<'_>, near: &str) -> anyhow::Result<()> {
    far.sh(&format!(
        "ip neigh replace {near} lladdr {NEAR_MAC} dev veth0 nud permanent"
    ))
}

/// From now on the far side ignores ARP requests and neighbour solicitations. Solicitations from no address are duplicate
/// address detection (RFC 4862 section 5.4.2), which the kernel sends at any time, and are not counted.
pub(crate) fn ignore_resolution(far: &Far<'_>) -> anyhow::Result<()> {
    far.sh("nft add table netdev ignore
         nft add counter netdev ignore requests
         nft add chain netdev ignore in '{ type filter hook ingress device veth0 priority 0; }'
         nft add rule netdev ignore in ether type arp counter name requests drop
         nft add rule netdev ignore in ip6 saddr != :: icmpv6 type nd-neighbor-solicit counter name requests drop")
}

/// Waits until one such request was ignored. From then on the far side answers: the next request comes a second later.
pub(crate) fn answer_next_resolution(far: &Far<'_>) -> anyhow::Result<()> {
    let list = ["list", "counter", "netdev", "ignore", "requests"];
    wait_while(far, "nft", &list, |shown| shown.contains("packets 0 "))?;
    far.sh("nft delete table netdev ignore")
}

/// Waits until an address is in use. The kernel adds a new IPv6 address in the background; messages to it before are lost.
pub(crate) fn wait_for_address(net: &impl Network, address: &str) -> anyhow::Result<()> {
    wait_for(net, &["route", "get", address], "local ")
}

/// Waits until the output of `ip` contains a text.
pub(crate) fn wait_for(net: &impl Network, arguments: &[&str], text: &str) -> anyhow::Result<()> {
    wait_while(net, "ip", arguments, |shown| !shown.contains(text))
}

/// Waits until a neighbour was confirmed a second ago or earlier. `ip -s neigh` shows the seconds since an entry was used,
/// confirmed and updated, as `used 3/2/1`.
pub(crate) fn wait_until_confirmed_for_a_second(
    net: &impl Network,
    address: &str,
) -> anyhow::Result<()> {
    let show = ["-s", "neigh", "show", address];
    wait_while(net, "ip", &show, |shown| {
        let (_, ages) = shown.split_once("used ").unwrap_or_default();
        let confirmed = ages.split('/').nth(1).unwrap_or("0");
        confirmed == "0"
    })
}

/// Waits while `holds` is true for the output of a program.
fn wait_while(
    net: &impl Network,
    program: &str,
    arguments: &[&str],
    holds: impl Fn(&str) -> bool,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + MAX_WAIT;
    loop {
        let output = net.command(program).args(arguments).output()?;
        let shown = String::from_utf8(output.stdout)?;
        if output.status.success() && !holds(&shown) {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "{program} {arguments:?} still shows {shown}"
        );
    }
}
