//! This machine's own path to its first hop: its routes, addresses, link, gateway and filter, each of which is away for a
//! moment again and again, or for good. Nothing of that is an answer of the network.

use std::{
    fmt::Write,
    num::NonZeroU32,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::ensure;
use pingfleet_testbed::{Namespace, simnet::IpVersion};
use pingfleet_wire::{LocalLoss, Outcome, Probing, Status};

use crate::{
    counters::Echoes,
    expectations::{all, all_silent, is_unknown, repeated, tally},
    pair,
    probing_process::{Asked, Prober, Running},
    repeated::Repeated,
    variants::{Far, Network, Variant, addresses, at_once, variants},
};

/// Targets, all of which answer: they take more than six seconds to send to.
const LIVING: u32 = 8190;

/// Targets where each takes nine requests.
const FEW: u32 = 2000;

/// Requests a second.
const RATE: u32 = 1250;

/// Requests that have left when the path is changed.
const MIDDLE: u64 = 400;

/// Targets behind a filter that limits the rate.
const LIMITED: u32 = 3000;

/// Targets that are silent.
const SILENT: u32 = 50;

/// Root probes with one request for each target, the user without privileges with the default settings.
fn probing(variant: Variant) -> Probing {
    let defaults = Probing::default();
    Probing {
        retries: if variant.caller.is_root {
            0
        } else {
            defaults.retries
        },
        rate: NonZeroU32::new(RATE),
        ..defaults
    }
}

/// A pair in which the prober's side has to find the gateway by itself.
fn network(family: IpVersion) -> anyhow::Result<Namespace> {
    let pair = pair::make()?;
    let [_, gateway] = pair::ends(family);
    // A solicitation by a link whose carrier the kernel has not noticed is lost, and the next one comes a second later.
    pair::wait_for_carrier(&pair)?;
    pair::wait_for_carrier(&Far(&pair))?;
    pair.sh(&format!("ip neigh del {gateway} dev veth0"))?;
    Ok(pair)
}

/// Begins to probe so many of the targets that answer.
fn start(pair: &Namespace, variant: Variant, targets: u32) -> anyhow::Result<Running> {
    let targets = addresses(pair::living(variant.family), targets);
    let asked = Asked {
        probing: probing(variant),
        targets,
    };
    Prober::default().start(pair, variant, vec![asked])
}

/// How many requests came to the far side, and to how many of them it sent no reply. On a busy machine its kernel discards
/// replies, as an overloaded host does: the buffer of its own ICMP sockets is full with replies that the near side has not
/// yet received (Linux `icmpv6_echo_reply`, counted in `Ip6OutDiscards`). These are losses of the network.
fn at_far_side(pair: &Namespace, family: IpVersion) -> anyhow::Result<(u64, u64)> {
    let far = Echoes::read(&Far(pair), family)?;
    Ok((far.requests_in, far.requests_in - far.replies_out))
}

/// Every target has answered, or is `unknown` with one of `causes`: no more of them than requests were lost on the way, or
/// never left. As many may be `down` as the far side did not answer. Returns how many were lost on the way.
fn nearly_all_up(
    pair: &Namespace,
    variant: Variant,
    outcomes: &[Outcome],
    causes: LocalLoss,
) -> anyhow::Result<u64> {
    all(outcomes, |outcome| match outcome.status {
        // What waited for the gateway may be late.
        Status::Up | Status::Late | Status::DOWN => true,
        Status::Unknown(found) => found.has(causes.and(LocalLoss::STALLED)),
        _ => false,
    })?;
    let sent = Echoes::read(pair, variant.family)?;
    let (came, unanswered) = at_far_side(pair, variant.family)?;
    // Requests that arrive on the near side are canaries.
    let lost = (sent.requests_out - sent.requests_in).saturating_sub(came);
    let count = |is: fn(&Outcome) -> bool| outcomes.iter().filter(|outcome| is(outcome)).count();
    let down = count(|outcome| outcome.status == Status::DOWN) as u64;
    let unknown = count(|outcome| matches!(outcome.status, Status::Unknown(_))) as u64;
    let never_sent = count(|outcome| outcome.sent == 0) as u64;
    let found = tally(outcomes);
    ensure!(down <= unanswered, "{unanswered} not answered, {found:?}");
    ensure!(
        unknown <= lost + unanswered + never_sent,
        "{lost} lost, {unanswered} not answered, {never_sent} never sent, {found:?}"
    );
    Ok(lost)
}

/// The command `ip` for a version of IP, and the gateway.
fn ip(family: IpVersion) -> (&'static str, &'static str) {
    let [_, gateway] = pair::ends(family);
    match family {
        IpVersion::V4 => ("ip -4", gateway),
        IpVersion::V6 => ("ip -6", gateway),
    }
}

/// Takes the path away for 0.2 s again and again, by one script, and brings it back by another.
fn comes_and_goes(away: &str, back: &str) -> anyhow::Result<()> {
    at_once(variants(), |variant| {
        let pair = network(variant.family)?;
        let (ip, gateway) = ip(variant.family);
        let [near, _] = pair::ends(variant.family);
        let bits = match variant.family {
            IpVersion::V4 => 30,
            IpVersion::V6 => 64,
        };
        let script = |text: &str| {
            let text = text.replace("IP", ip).replace("GATEWAY", gateway);
            text.replace("NEAR", &format!("{near}/{bits}"))
        };
        let mut running = start(&pair, variant, LIVING)?;
        running.wait_for(variant.family, MIDDLE)?;
        let [away, back] = [away, back].map(script);
        // The outages themselves: there is no event to wait for.
        let pause = "[ -z \"$again\" ] || sleep 1.2\nagain=1";
        let outages = Repeated::start(&pair, &format!("{pause}\n{away}\nsleep 0.2\n{back}"))?;
        let report = running.finish()?;
        let outages = outages.stop()?;
        ensure!(outages > 1, "{outages} outages");
        let causes = LocalLoss::NO_ADDRESS.and(LocalLoss::NO_ROUTE);
        nearly_all_up(&pair, variant, &report.outcomes[0], causes)?;
        Ok(())
    })
}

#[test]
fn an_address_that_comes_and_goes_costs_no_target() -> anyhow::Result<()> {
    comes_and_goes(
        "IP addr del NEAR dev veth0; IP route del default 2>/dev/null || true",
        "IP addr add NEAR dev veth0 $([ 'IP' = 'ip -4' ] || echo nodad); IP route replace default via GATEWAY",
    )
}

#[test]
fn a_blackhole_route_that_comes_and_goes_costs_no_target() -> anyhow::Result<()> {
    comes_and_goes(
        "IP route del default; IP route add blackhole default",
        "IP route del blackhole default; IP route add default via GATEWAY",
    )
}

#[test]
fn an_unreachable_route_that_comes_and_goes_costs_no_target() -> anyhow::Result<()> {
    comes_and_goes(
        "IP route del default; IP route add unreachable default",
        "IP route del unreachable default; IP route add default via GATEWAY",
    )
}

#[test]
fn a_route_that_comes_and_goes_costs_no_target() -> anyhow::Result<()> {
    comes_and_goes("IP route del default", "IP route add default via GATEWAY")
}

#[test]
fn a_carrier_that_comes_and_goes_makes_no_target_down() -> anyhow::Result<()> {
    at_once(variants(), |variant| {
        let pair = network(variant.family)?;
        let far = Far(&pair);
        let mut running = start(&pair, variant, LIVING)?;
        running.wait_for(variant.family, MIDDLE)?;
        let is_over = AtomicBool::new(false);
        let (report, outages) = thread::scope(|scope| {
            let outages = scope.spawn(|| {
                let mut outages = 0;
                while !is_over.load(Ordering::Relaxed) {
                    far.sh("ip link set veth0 down")?;
                    // The outage itself, and the time until the next one: there is no event to wait for.
                    thread::sleep(Duration::from_millis(200));
                    pair::set_up(&far)?;
                    outages += 1;
                    thread::sleep(Duration::from_secs(2));
                }
                anyhow::Ok(outages)
            });
            let report = running.finish();
            is_over.store(true, Ordering::Relaxed);
            (report, outages.join().expect("no thread panics"))
        });
        let (report, outages) = (report?, outages?);
        ensure!(outages > 1, "{outages} outages");
        let outcomes = &report.outcomes[0];
        let lost = nearly_all_up(&pair, variant, outcomes, LocalLoss::LINK_DOWN)?;
        ensure!(lost > 0, "nothing was lost");
        Ok(())
    })
}

/// The control: what is sent long after an outage to a network that answers nothing is `down`, at once.
#[test]
fn a_network_that_stays_silent_after_an_outage_is_down() -> anyhow::Result<()> {
    const SLOW: u64 = 100;
    const TARGETS: u32 = 1600;
    at_once(variants(), |variant| {
        let pair = network(variant.family)?;
        let far = Far(&pair);
        let asked = Asked {
            probing: Probing {
                retries: 0,
                rate: NonZeroU32::new(SLOW as u32),
                ..Probing::default()
            },
            targets: addresses(pair::silent(variant.family), TARGETS),
        };
        let mut running = Prober::default().start(&pair, variant, vec![asked])?;
        running.wait_for(variant.family, SLOW)?;
        far.sh("ip link set veth0 down")?;
        running.wait_for(variant.family, SLOW + 20)?;
        pair::set_up(&far)?;
        let sent = Echoes::read(&pair, variant.family)?;
        let report = running.finish()?;
        // At this rate they left more than five seconds after the outage.
        let later = sent.requests_out - sent.requests_in + 6 * SLOW;
        let later = report.outcomes[0].get(later as usize..);
        let later = later.unwrap_or_default();
        ensure!(later.len() > 100, "{} are left", later.len());
        all_silent(later)?;
        ensure!(repeated(later) < later.len(), "{:?}", tally(later));
        Ok(())
    })
}

#[test]
fn targets_behind_a_gateway_that_is_lost_for_a_moment_are_up() -> anyhow::Result<()> {
    at_once(variants(), |variant| {
        let pair = network(variant.family)?;
        let (_, gateway) = ip(variant.family);
        let mut running = start(&pair, variant, LIVING)?;
        running.wait_for(variant.family, MIDDLE)?;
        pair::ignore_resolution(&Far(&pair))?;
        pair.sh(&format!("ip neigh del {gateway} dev veth0"))?;
        pair::answer_next_resolution(&Far(&pair))?;
        let report = running.finish()?;
        let outcomes = &report.outcomes[0];
        nearly_all_up(&pair, variant, outcomes, LocalLoss::GATEWAY_NO_ARP)?;
        Ok(())
    })
}

#[test]
fn targets_behind_a_gateway_that_stays_away_are_unknown() -> anyhow::Result<()> {
    at_once(variants(), |variant| {
        let pair = network(variant.family)?;
        let (_, gateway) = ip(variant.family);
        // Slowly: the gateway must be lost before the last of them.
        let asked = Asked {
            probing: Probing {
                rate: NonZeroU32::new(RATE / 4),
                ..probing(variant)
            },
            targets: addresses(pair::living(variant.family), FEW),
        };
        let mut running = Prober::default().start(&pair, variant, vec![asked])?;
        running.wait_for(variant.family, MIDDLE)?;
        pair::ignore_resolution(&Far(&pair))?;
        pair.sh(&format!("ip neigh del {gateway} dev veth0"))?;
        let report = running.finish()?;
        let outcomes = &report.outcomes[0];
        all(outcomes, |outcome| {
            outcome.status == Status::Up || is_unknown(outcome.status, LocalLoss::GATEWAY_NO_ARP)
        })?;
        let lost = |outcome: &Outcome| outcome.status != Status::Up;
        ensure!(outcomes.iter().any(lost), "{:?}", tally(outcomes));
        Ok(())
    })
}

/// More gateways than the prober watches one by one: the last two share a number, and one of them is not there.
#[test]
fn of_many_gateways_the_targets_behind_one_that_is_not_there_are_unknown() -> anyhow::Result<()> {
    const GATEWAYS: u32 = 8;
    const EACH: u32 = 20;
    at_once(variants(), |variant| {
        let pair = network(variant.family)?;
        let (ip, _) = ip(variant.family);
        let mut targets = Vec::new();
        for number in 1..=GATEWAYS {
            let (prefix, first, gateway) = match variant.family {
                IpVersion::V4 => {
                    let network = format!("10.0.{number}.0");
                    (
                        format!("{network}/24"),
                        network,
                        format!("169.254.78.{number}"),
                    )
                }
                IpVersion::V6 => {
                    let network = format!("fd00:10::{number}:0");
                    (format!("{network}/112"), network, format!("fd78::{number}"))
                }
            };
            pair.sh(&format!(
                "{ip} route add {prefix} via {gateway} dev veth0 onlink"
            ))?;
            if number != GATEWAYS {
                pair.sh(&format!(
                    "ip neigh replace {gateway} lladdr 02:00:00:00:00:02 dev veth0 nud permanent"
                ))?;
            }
            targets.extend(addresses(&first, EACH));
        }
        let asked = Asked {
            probing: Probing {
                retries: 0,
                ..Probing::default()
            },
            targets,
        };
        let report = Prober::default().run(&pair, variant, vec![asked])?;
        let (up, lost) = report.outcomes[0].split_at(((GATEWAYS - 1) * EACH) as usize);
        all(up, |outcome| outcome.status == Status::Up)?;
        all(lost, |outcome| {
            is_unknown(outcome.status, LocalLoss::GATEWAY_NO_ARP)
        })
    })
}

/// The requests that wait for the gateway are thrown away with its entry, and the kernel reports them as "host unreachable".
#[test]
fn a_gateway_that_is_forgotten_again_and_again_costs_no_target() -> anyhow::Result<()> {
    at_once(variants(), |variant| {
        let pair = network(variant.family)?;
        let (_, gateway) = ip(variant.family);
        let mut running = start(&pair, variant, LIVING)?;
        running.wait_for(variant.family, MIDDLE)?;
        let script = format!("ip neigh del {gateway} dev veth0 2>/dev/null || true\nsleep 0.05");
        let outages = Repeated::start(&pair, &script)?;
        let report = running.finish()?;
        ensure!(outages.stop()? > 1, "the gateway was not forgotten");
        let outcomes = &report.outcomes[0];
        nearly_all_up(&pair, variant, outcomes, LocalLoss::GATEWAY_NO_ARP)?;
        Ok(())
    })
}

/// A filter that admits only a part of what is sent. To an IPv6 datagram socket the kernel reports no refusal.
#[test]
fn a_filter_that_limits_the_rate_costs_no_target() -> anyhow::Result<()> {
    at_once(variants(), |variant| {
        let pair = network(variant.family)?;
        let request = match variant.family {
            IpVersion::V4 => "icmp type echo-request",
            IpVersion::V6 => "icmpv6 type echo-request",
        };
        pair.sh(&format!(
            "nft add table inet strict
             nft add counter inet strict refused
             nft add chain inet strict out '{{ type filter hook output priority 0; }}'
             nft add rule inet strict out oifname veth0 {request} limit rate over 600/second counter name refused drop"
        ))?;
        let asked = Asked {
            probing: Probing {
                rate: None,
                ..probing(variant)
            },
            targets: addresses(pair::living(variant.family), LIMITED),
        };
        let report = Prober::default().run(&pair, variant, vec![asked])?;
        let list = ["list", "counter", "inet", "strict", "refused"];
        let shown = Network::command(&pair, "nft").args(list).output()?;
        let shown = String::from_utf8(shown.stdout)?;
        ensure!(
            !shown.contains("packets 0 "),
            "nothing was refused: {shown}"
        );
        let causes = LocalLoss::LOCAL_FIREWALL.and(LocalLoss::SEND_PATH);
        all(&report.outcomes[0], |outcome| match outcome.status {
            Status::Up => true,
            Status::Unknown(found) => found.has(causes),
            _ => false,
        })?;
        let up = report.outcomes[0].iter();
        let up = up.filter(|outcome| outcome.status == Status::Up).count();
        ensure!(
            up > LIMITED as usize * 99 / 100,
            "{:?}",
            tally(&report.outcomes[0])
        );
        Ok(())
    })
}

/// Routes that refuse are added while the targets before theirs are probed. Theirs had a way out before.
#[test]
fn targets_that_a_route_begins_to_refuse_are_unknown_while_others_are_up() -> anyhow::Result<()> {
    const KINDS: [&str; 3] = ["unreachable", "prohibit", "blackhole"];
    at_once(variants(), |variant| {
        let pair = network(variant.family)?;
        let (ip, _) = ip(variant.family);
        let mut targets = addresses(pair::living(variant.family), LIVING);
        let mut refuse = String::new();
        for (number, kind) in KINDS.iter().enumerate() {
            let (prefix, first) = match variant.family {
                IpVersion::V4 => (format!("10.9{number}.0.0/16"), format!("10.9{number}.0.0")),
                IpVersion::V6 => (format!("fd00:9{number}::/64"), format!("fd00:9{number}::")),
            };
            writeln!(refuse, "{ip} route add {kind} {prefix}")?;
            targets.extend(addresses(&first, SILENT));
        }
        targets.extend(
            addresses(pair::living(variant.family), LIVING + FEW / 2).split_off(LIVING as usize),
        );
        let asked = Asked {
            probing: probing(variant),
            targets,
        };
        let mut running = Prober::default().start(&pair, variant, vec![asked])?;
        running.wait_for(variant.family, MIDDLE)?;
        pair.sh(&refuse)?;
        let report = running.finish()?;
        let outcomes = &report.outcomes[0];
        let (before, others) = outcomes.split_at(LIVING as usize);
        let (refused, after) = others.split_at(KINDS.len() * SILENT as usize);
        all(refused, |outcome| {
            is_unknown(outcome.status, LocalLoss::NO_ROUTE) && outcome.sent == 0
        })?;
        nearly_all_up(
            &pair,
            variant,
            &[before, after].concat(),
            LocalLoss::default(),
        )?;
        Ok(())
    })
}

/// The control for all refusals: a target that never had a way out, while the others had.
#[test]
fn a_target_without_a_route_from_beginning_to_end_is_send_failed_among_others() -> anyhow::Result<()>
{
    at_once(variants(), |variant| {
        let pair = network(variant.family)?;
        let (ip, _) = ip(variant.family);
        let (prefix, refused) = match variant.family {
            IpVersion::V4 => ("10.99.0.0/16", "10.99.0.0"),
            IpVersion::V6 => ("fd00:99::/64", "fd00:99::"),
        };
        pair.sh(&format!("{ip} route add unreachable {prefix}"))?;
        let mut targets = addresses(refused, SILENT);
        targets.extend(addresses(pair::living(variant.family), LIVING));
        let asked = Asked {
            probing: probing(variant),
            targets,
        };
        let report = Prober::default().run(&pair, variant, vec![asked])?;
        let (refused, living) = report.outcomes[0].split_at(SILENT as usize);
        all(refused, |outcome| {
            matches!(outcome.status, Status::SendFailed { errno: 113 }) && outcome.attempts == 1
        })?;
        all(living, |outcome| {
            outcome.attempts == 1 && matches!(outcome.status, Status::Up | Status::DOWN)
        })?;
        let (_, unanswered) = at_far_side(&pair, variant.family)?;
        let down = living
            .iter()
            .filter(|outcome| outcome.status == Status::DOWN);
        ensure!(
            down.count() as u64 <= unanswered,
            "{unanswered} not answered, {:?}",
            tally(living)
        );
        Ok(())
    })
}
