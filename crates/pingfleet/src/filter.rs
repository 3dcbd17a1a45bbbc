//! Flags that select rows of a run, for all commands that print rows.

use std::net::IpAddr;

use clap::{Args, builder::PossibleValuesParser};
use ipnet::IpNet;
use pingfleet_settings::Failure;
use pingfleet_store::{Condition, Reader, ReportFilter, StoreError};
use pingfleet_wire::{Status, StatusKind};
use serde::{Serialize, Serializer};

/// Flags that select rows. All that are given must hold.
#[derive(Debug, Clone, Default, Args, Serialize)]
#[command(next_help_heading = "Filters")]
pub(crate) struct FilterArgs {
    /// Only targets of this status. May be repeated
    #[arg(long, value_name = "STATUS", value_parser = PossibleValuesParser::new(Status::NAMES))]
    status: Vec<String>,
    /// Only targets with this label. May be repeated: another key must match as well,
    /// another value of the same key is an alternative
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// Only targets whose probed address is in this network. May be repeated
    #[arg(long, value_name = "CIDR", value_parser = subnet)]
    #[serde(serialize_with = "as_texts")]
    subnet: Vec<IpNet>,
    /// Only rows for which this condition is true. Its columns are those of the view `report`; for
    /// `hosts`, those of the view `latest`
    #[arg(long = "where", value_name = "SQL")]
    #[serde(rename = "where")]
    condition: Option<String>,
}

impl FilterArgs {
    /// Whether any flag is given.
    pub(crate) fn is_given(&self) -> bool {
        !self.status.is_empty()
            || !self.label.is_empty()
            || !self.subnet.is_empty()
            || self.condition.is_some()
    }

    /// The filter, with its condition checked by SQLite.
    pub(crate) fn resolve(&self, reader: &Reader) -> Result<ReportFilter, Failure> {
        self.resolve_by(|condition| reader.report_condition(condition))
    }

    /// The same for the view `latest`.
    pub(crate) fn resolve_for_latest(&self, reader: &Reader) -> Result<ReportFilter, Failure> {
        self.resolve_by(|condition| reader.latest_condition(condition))
    }

    fn resolve_by(
        &self,
        check: impl FnOnce(&str) -> Result<Condition, StoreError>,
    ) -> Result<ReportFilter, Failure> {
        Ok(ReportFilter {
            statuses: self
                .status
                .iter()
                .filter_map(|name| StatusKind::from_name(name))
                .collect(),
            labels: self.label.clone(),
            subnets: self.subnet.clone(),
            condition: self.condition.as_deref().map(check).transpose()?,
        })
    }
}

fn as_texts<S: Serializer>(subnets: &[IpNet], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(subnets.iter().map(IpNet::to_string))
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("a label is KEY=VALUE, such as site=berlin".to_owned()),
    }
}

/// A network, or an address as a network of one. Bits behind the prefix are ignored.
fn subnet(text: &str) -> Result<IpNet, String> {
    let network = text
        .parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    network
        .map_err(|_| "a network is ADDRESS/PREFIX, such as 10.0.0.0/24 or 2001:db8::/64".to_owned())
}
