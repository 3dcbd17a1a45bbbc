//! What a file of rows does not say by itself: the run, the filters, the version of the format.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    time::SystemTime,
};

use pingfleet_store::{Reader, RunSummary, StoreError};
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use crate::{filter::FilterArgs, report::settings};

/// Version of the columns and their meaning. It grows when one is removed or changes its meaning, not when one is added.
pub(super) const FORMAT_VERSION: u32 = 1;

/// One object of JSON. Times are RFC 3339, UTC. docs/export.md has its fields.
#[derive(Debug, Serialize)]
pub(super) struct Metadata {
    /// [`FORMAT_VERSION`].
    pub(super) format_version: u32,
    program: &'static str,
    program_version: &'static str,
    exported_at: String,
    /// The UUID of the database.
    database: Uuid,
    run: i64,
    run_id: Uuid,
    /// When the export began. A run that is not complete may have got more rows since.
    state: &'static str,
    transport: &'static str,
    source: String,
    started_at: String,
    finished_at: Option<String>,
    /// The run whose targets this one probes again.
    parent_run: Option<i64>,
    /// The settings of probing, as those of `report --json`. None if a version wrote them that has other settings.
    probing: Option<Value>,
    /// The seed of the random order. None if the order is that of the source.
    seed: Option<u64>,
    targets: i64,
    /// Targets with each status, of the whole run.
    statuses: BTreeMap<&'static str, i64>,
    filter: FilterArgs,
    /// Rows of the export.
    pub(super) rows: u64,
}

impl Metadata {
    pub(super) fn new(
        reader: &Reader,
        summary: &RunSummary,
        filter: &FilterArgs,
    ) -> Result<Self, StoreError> {
        let counts = summary.counts.iter();
        let probing = reader.planned_probing(summary.run)?;
        Ok(Self {
            format_version: FORMAT_VERSION,
            program: "pingfleet",
            program_version: env!("CARGO_PKG_VERSION"),
            exported_at: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            database: reader.database(),
            run: summary.run,
            run_id: summary.run_id,
            state: summary.state.name(),
            transport: summary.transport.name(),
            source: summary.source.clone(),
            started_at: summary.started_at.clone(),
            finished_at: summary.finished_at.clone(),
            parent_run: summary.parent_run,
            probing: probing.as_ref().map(settings),
            seed: reader.seed(summary.run)?,
            targets: summary.targets,
            statuses: counts
                .map(|(status, count)| (status.name(), count))
                .collect(),
            filter: filter.clone(),
            rows: 0,
        })
    }

    /// Writes it as indented JSON.
    pub(super) fn write(&self, mut out: impl Write) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut out, self)?;
        writeln!(out)
    }
}
