//! The texts of addresses, with or without a zone. Reads the indexes of interfaces.

use std::net::IpAddr;

use pingfleet_wire::is_host_address;

use super::Unresolved;
use crate::prober::Destination;

/// Parses the text of an address, with or without a zone. `None` when the text can only be a name.
#[must_use]
pub fn literal(text: &str) -> Option<Result<Destination, Unresolved>> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(of_host(address));
    }
    let (address, zone) = text.split_once('%')?;
    let address = IpAddr::V6(address.parse().ok()?);
    if let Err(unresolved) = of_host(address) {
        return Some(Err(unresolved));
    }
    Some(
        interface_index(zone)
            .map(|scope_id| Destination { address, scope_id })
            .ok_or(Unresolved::Zone),
    )
}

/// The destination of an address. The plan has checked its targets, but another program may write work messages, too.
pub(crate) fn of_host(address: IpAddr) -> Result<Destination, Unresolved> {
    if is_host_address(address) {
        Ok(address.into())
    } else {
        Err(Unresolved::NotHost)
    }
}

/// The index of a network interface, by its name or by the index itself.
fn interface_index(zone: &str) -> Option<u32> {
    if let Ok(index) = zone.parse() {
        return Some(index).filter(|index| *index > 0);
    }
    // These names would lead out of the folder of interfaces.
    if !cfg!(target_os = "linux") || zone.contains('/') || matches!(zone, "" | "." | "..") {
        return None;
    }
    std::fs::read_to_string(format!("/sys/class/net/{zone}/ifindex"))
        .ok()?
        .trim()
        .parse()
        .ok()
}
