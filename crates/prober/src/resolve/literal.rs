//! The texts of addresses, with or without a zone. Reads the indexes of interfaces.

use std::net::IpAddr;

use super::Unresolved;
use crate::prober::Destination;

/// Parses the text of an address, with or without a zone. `None` when the text can only be a name.
#[must_use]
pub fn literal(text: &str) -> Option<Result<Destination, Unresolved>> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(Ok(address.into()));
    }
    let (address, zone) = text.split_once('%')?;
    let address = IpAddr::V6(address.parse().ok()?);
    Some(
        interface_index(zone)
            .map(|scope_id| Destination { address, scope_id })
            .ok_or(Unresolved::Zone),
    )
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
