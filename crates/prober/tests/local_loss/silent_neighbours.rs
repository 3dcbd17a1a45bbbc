//! Neighbours that are silent to ping and answer ARP or neighbour discovery.

use std::time::Duration;

use anyhow::ensure;
use pingfleet_testbed::{Namespace, simnet::IpVersion};
use pingfleet_wire::{DownReason, LinkAddress, Probing, Status};

use crate::{
    expectations::{all, tally},
    pair,
    probing_process::{Asked, Prober},
    variants::{Far, Network, Variant, addresses, at_once, variants},
};

/// Targets of each kind.
const EACH: u32 = 5;

/// The link address of the far end.
const FAR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// A link address that nobody has.
const NOBODYS_MAC: &str = "02:00:00:00:00:99";

/// The addresses of a link: the prober's own one, and the first of each kind of target.
struct Addresses {
    own: &'static str,
    silent: &'static str,
    answering: &'static str,
    dead: &'static str,
    stale: &'static str,
    known: &'static str,
    remembered: &'static str,
    bits: u8,
}

const V4: Addresses = Addresses {
    own: "192.0.2.254",
    silent: "192.0.2.10",
    answering: "192.0.2.20",
    dead: "192.0.2.30",
    stale: "192.0.2.40",
    known: "192.0.2.50",
    remembered: "192.0.2.60",
    bits: 24,
};

const V6: Addresses = Addresses {
    own: "fd00:2::fe",
    silent: "fd00:2::a",
    answering: "fd00:2::14",
    dead: "fd00:2::1e",
    stale: "fd00:2::28",
    known: "fd00:2::32",
    remembered: "fd00:2::3c",
    bits: 120,
};

/// Of one of them the kernel has an old entry, which it confirms while we wait. The controls: a neighbour that does not answer ARP, and ones that are gone although the kernel still has an entry for
/// them, which was confirmed before the first request or never.
#[test]
fn a_neighbour_that_answers_only_arp_is_down_with_its_link_address() -> anyhow::Result<()> {
    // All namespaces of a machine share one neighbour table.
    let variants: Vec<_> = variants().collect();
    for some in variants.chunks(4) {
        at_once(some.iter().copied(), silent_neighbours)?;
    }
    Ok(())
}

fn silent_neighbours(variant: Variant) -> anyhow::Result<()> {
    let addresses_of = match variant.family {
        IpVersion::V4 => V4,
        IpVersion::V6 => V6,
    };
    let pair = pair::make()?;
    prepare(&pair, &addresses_of)?;
    let Addresses {
        silent,
        answering,
        dead,
        stale,
        known,
        remembered,
        ..
    } = addresses_of;
    let firsts = [silent, remembered, answering, dead, stale, known];
    let asked = Asked {
        probing: Probing {
            retries: 0,
            // The kernel gives a neighbour up after three seconds.
            timeout: Duration::from_secs(5),
            rate: None,
            ..Probing::default()
        },
        targets: firsts
            .iter()
            .flat_map(|first| addresses(first, EACH))
            .collect(),
    };
    let report = Prober::default().run(&pair, variant, vec![asked])?;
    let groups: Vec<_> = report.outcomes[0].chunks(EACH as usize).collect();
    let mac = LinkAddress::new(&FAR_MAC).expect("six bytes");
    let arp_answered = Status::Down(DownReason::ArpAnswered(mac));
    for silent in &groups[..2] {
        all(silent, |outcome| {
            outcome.status == arp_answered && outcome.sent > 0
        })?;
    }
    all(groups[2], |outcome| outcome.status == Status::Up)?;
    // The kernel does not report each neighbour that it gives up; the busier it is, the fewer it reports.
    let no_arp = Status::Down(DownReason::NoArp);
    for gone in &groups[3..] {
        all(gone, |outcome| {
            outcome.status == no_arp || outcome.status == Status::DOWN
        })?;
    }
    let reported = groups[3].iter().any(|outcome| outcome.status == no_arp);
    ensure!(reported, "{:?}", tally(groups[3]));
    Ok(())
}

/// Gives both sides their addresses, and the near side its old entries of neighbours.
fn prepare(pair: &Namespace, of: &Addresses) -> anyhow::Result<()> {
    let far = Far(pair);
    let (own, bits) = (of.own, of.bits);
    pair.sh(&format!("ip addr add {own}/{bits} dev veth0 nodad"))?;
    pair::wait_for_address(pair, own)?;
    pair::know(&far, own)?;
    let there = [of.silent, of.answering, of.remembered];
    for neighbour in there.into_iter().flat_map(texts) {
        far.sh(&format!("ip addr add {neighbour}/{bits} dev veth0 nodad"))?;
        pair::wait_for_address(&far, &neighbour)?;
    }
    drop_echo_requests_to(&far, &[texts(of.silent), texts(of.remembered)].concat())?;
    for (first, mac, state) in [
        (of.stale, NOBODYS_MAC, "stale"),
        (of.known, NOBODYS_MAC, "reachable"),
        (of.remembered, "02:00:00:00:00:02", "stale"),
    ] {
        for neighbour in texts(first) {
            pair.sh(&format!(
                "ip neigh replace {neighbour} lladdr {mac} dev veth0 nud {state}"
            ))?;
        }
    }
    // Their confirmation must be older than the first request by more than the kernel's clock shows.
    let last = texts(of.known).pop().expect("there are some");
    pair::wait_until_confirmed_for_a_second(pair, &last)
}

/// The addresses of one kind of target.
fn texts(first: &str) -> Vec<String> {
    let targets = addresses(first, EACH).into_iter();
    targets.map(|target| target.to_string()).collect()
}

fn drop_echo_requests_to(far: &Far<'_>, neighbours: &[String]) -> anyhow::Result<()> {
    far.sh("nft add table inet silent
         nft add chain inet silent in '{ type filter hook input priority 0; }'")?;
    for neighbour in neighbours {
        let (family, request) = if neighbour.contains(':') {
            ("ip6", "icmpv6")
        } else {
            ("ip", "icmp")
        };
        far.sh(&format!(
            "nft add rule inet silent in {family} daddr {neighbour} {request} type echo-request drop"
        ))?;
    }
    Ok(())
}
