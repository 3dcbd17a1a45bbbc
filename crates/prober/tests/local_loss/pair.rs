//! A pair of joined networks: the prober's, and behind its gateway one in which many addresses answer.

use std::time::Instant;

use anyhow::ensure;
use pingfleet_testbed::{Namespace, simnet::Family};

use crate::{
    counters::PATIENCE,
    variants::{Far, Network},
};

/// The gateway's link address; the far end of the link.
const NEAR_MAC: &str = "02:00:00:00:00:01";

/// Both ends of the link, the near one first.
pub(crate) fn ends(family: Family) -> [&'static str; 2] {
    match family {
        Family::V4 => ["169.254.77.1", "169.254.77.2"],
        Family::V6 => ["fd77::1", "fd77::2"],
    }
}

/// The first of the addresses that answer.
pub(crate) fn living(family: Family) -> &'static str {
    match family {
        Family::V4 => "10.0.0.0",
        Family::V6 => "fd00:10::",
    }
}

/// The first of the addresses that are silent.
pub(crate) fn silent(family: Family) -> &'static str {
    match family {
        Family::V4 => "10.200.0.0",
        Family::V6 => "fd00:20::",
    }
}

/// Makes the pair.
pub(crate) fn make() -> anyhow::Result<Namespace> {
    let pair = Namespace::answering("10.0.0.0/16")?;
    pair.answer("fd00:10::/64")?;
    let far = Far(&pair);
    far.sh("ip route add blackhole fd00:20::/64")?;
    let [near_end, far_end] = ends(Family::V6);
    wait_for_address(&pair, near_end)?;
    wait_for_address(&far, far_end)?;
    Ok(pair)
}

/// Sets the far end of the link up again, with all that it lost.
pub(crate) fn set_up(far: &Far<'_>) -> anyhow::Result<()> {
    let [near_end, far_end] = ends(Family::V6);
    far.sh(&format!(
        "ip link set veth0 up; ip addr replace {far_end}/64 dev veth0 nodad"
    ))?;
    know(far, near_end)?;
    // The kernel sends nothing by a link before it has taken note of its carrier.
    wait_for(far, &["link", "show", "veth0"], "state UP")?;
    wait_for_address(far, far_end)
}

/// Lets the far side know the near one's link address, so that what is lost while it asks is not its own answers.
pub(crate) fn know(far: &Far<'_>, near: &str) -> anyhow::Result<()> {
    far.sh(&format!(
        "ip neigh replace {near} lladdr {NEAR_MAC} dev veth0 nud permanent"
    ))
}

/// From now on the far side hears no question for a link address. Whether an address is in use (RFC 4862 section 5.4.2) is
/// asked from no address, whenever the kernel sees fit, and is none of them.
pub(crate) fn deafen(far: &Far<'_>) -> anyhow::Result<()> {
    far.sh("nft add table netdev deaf
         nft add counter netdev deaf questions
         nft add chain netdev deaf in '{ type filter hook ingress device veth0 priority 0; }'
         nft add rule netdev deaf in ether type arp counter name questions drop
         nft add rule netdev deaf in ip6 saddr != :: icmpv6 type nd-neighbor-solicit counter name questions drop")
}

/// Waits until a question was asked in vain; from then on the far side hears them: the next one comes a second later.
pub(crate) fn hear_the_next_question(far: &Far<'_>) -> anyhow::Result<()> {
    let list = ["list", "counter", "netdev", "deaf", "questions"];
    wait_while(far, "nft", &list, |shown| shown.contains("packets 0 "))?;
    far.sh("nft delete table netdev deaf")
}

/// The kernel takes a new IPv6 address into use on a work queue; what is sent to it before is lost.
pub(crate) fn wait_for_address(net: &impl Network, address: &str) -> anyhow::Result<()> {
    wait_for(net, &["route", "get", address], "local ")
}

/// Waits until `ip` shows a text.
pub(crate) fn wait_for(net: &impl Network, arguments: &[&str], text: &str) -> anyhow::Result<()> {
    wait_while(net, "ip", arguments, |shown| !shown.contains(text))
}

/// Waits as long as a program shows something of which this holds.
fn wait_while(
    net: &impl Network,
    program: &str,
    arguments: &[&str],
    holds: impl Fn(&str) -> bool,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
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
