//! `latest` in parts: more targets than a part has, and rows with long texts.

use anyhow::{Result, ensure};
use pingfleet_store::{HostFilter, HostOrder, HostPage, Reader, ReportFilter};
use pingfleet_wire::StatusKind;
use rusqlite::Connection;
use tempfile::TempDir;

use crate::sample::options;

/// Two parts have 100,000 targets.
const TARGETS: i64 = 110_000;

/// A complete run of so many targets, each fourth of which is down. Their addresses are in the opposite order of the plan,
/// from 128.0.0.0 on. All have labels of so many letters, if it is not 0.
fn swept(targets: i64, letters: i64) -> Result<(TempDir, Reader)> {
    let folder = TempDir::new()?;
    let path = folder.path().join("fleet.db");
    drop(options(&path).open()?);
    let mut connection = Connection::open(&path)?;
    let transaction = connection.transaction()?;
    transaction.execute(
        "INSERT INTO runs (run, run_id, state, transport, source, probing, started_at_us, finished_at_us, worst_chunk_us,
            targets, chunks, chunks_done)
         VALUES (1, '01890000-0000-7000-8000-000000000001', 'complete', 'sweep', 'hosts.csv', '{}', 1, 1, 1, ?1, 0, 0)",
        [targets],
    )?;
    transaction.execute(
        "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?1)
         INSERT INTO results (run, chunk, position, status, sent, received, attempts, probed_after_us, address)
         SELECT 1, i / 1000, i % 1000, iif(i % 4 = 0, 6, 0), 1, i % 4 > 0, 1, 0, ?1 - 1 - i FROM n",
        [targets],
    )?;
    transaction.execute(
        "INSERT INTO labels SELECT run, chunk, position, json_object('note', printf('%.*c', ?1, 'x')) FROM results
         WHERE ?1 > 0",
        [letters],
    )?;
    transaction.execute_batch(
        "INSERT INTO chunks (run, chunk, targets, state, started_at_us) SELECT DISTINCT run, chunk, 1000, 3, 1 FROM results;
         INSERT INTO latest_rows (target, run, chunk, position, status, probed_at_us, first_seen_us, changed_at_us)
         SELECT address, run, chunk, position, status, 1, 1, address FROM results",
    )?;
    transaction.commit()?;
    Ok((folder, Reader::open(&path)?))
}

/// The pages of all parts.
fn pages(reader: &Reader, filter: &HostFilter, order: HostOrder) -> Result<Vec<HostPage>> {
    let mut all = Vec::new();
    for part in reader.hosts(filter, order)? {
        let mut rest = Some(part?);
        while let Some(part) = rest.take() {
            let (page, behind) = part.read()?;
            rest = behind;
            all.extend(Some(page).filter(|page| !page.is_empty()));
        }
    }
    Ok(all)
}

/// The numbers of the addresses from 128.0.0.0 on.
fn numbers(pages: &[HostPage]) -> Result<Vec<u32>> {
    let hosts = pages.iter().flat_map(HostPage::hosts);
    let numbers = hosts.map(|host| {
        let address: std::net::Ipv4Addr = host.row.target.parse()?;
        Ok(address.to_bits() - (1 << 31))
    });
    numbers.collect()
}

#[test]
fn all_pages_together_have_each_target_once_in_its_order() -> Result<()> {
    let (_folder, reader) = swept(TARGETS, 0)?;
    let all = pages(&reader, &HostFilter::default(), HostOrder::Target)?;
    ensure!(all.len() == 3 && all[0].len() == 50_000 && all[2].len() == 10_000);
    ensure!(numbers(&all)?.into_iter().eq(0..TARGETS as u32));
    let newest = pages(&reader, &HostFilter::default(), HostOrder::Changed)?;
    ensure!(newest.len() == 3);
    ensure!(numbers(&newest)?.into_iter().eq((0..TARGETS as u32).rev()));
    let down = HostFilter {
        rows: ReportFilter {
            statuses: vec![StatusKind::Down],
            ..ReportFilter::default()
        },
        ..HostFilter::default()
    };
    let down = numbers(&pages(&reader, &down, HostOrder::Target)?)?;
    let last = TARGETS as u32 - 1;
    ensure!(
        down.into_iter()
            .eq((0..TARGETS as u32).filter(|number| (last - number).is_multiple_of(4)))
    );
    Ok(())
}

#[test]
fn long_labels_make_the_pages_smaller() -> Result<()> {
    const HOSTS: i64 = 9000;
    for order in [HostOrder::Target, HostOrder::Changed] {
        let (_folder, reader) = swept(HOSTS, 4000)?;
        let all = pages(&reader, &HostFilter::default(), order)?;
        for page in &all {
            let labels = page.hosts().filter_map(|host| host.row.labels);
            let bytes: usize = labels.map(|labels| labels.len()).sum();
            ensure!(bytes > 4000 && bytes <= 16 * 1024 * 1024, "{bytes}");
        }
        let mut numbers = numbers(&all)?;
        if order == HostOrder::Changed {
            numbers.reverse();
        }
        ensure!(numbers.into_iter().eq(0..HOSTS as u32));
        ensure!(all.len() > 2, "{} pages", all.len());
        // The control: with short labels it is one page.
        let (_folder, reader) = swept(HOSTS, 4)?;
        ensure!(pages(&reader, &HostFilter::default(), order)?.len() == 1);
    }
    Ok(())
}
