//! Round-trip times beside those of ping, on the same targets of a simulated network, at pingfleet's default rate.

use std::{io::Write, time::Duration};

use anyhow::{Context, ensure};
use pingfleet_store::{Reader, ReportFilter};
use pingfleet_testbed::simnet::{Answer, Behaviour, IpVersion, Script, SimNet};

use crate::{
    program::run,
    rows::{Row, Rows, Spread, judge},
    site::{Site, report},
};

/// Targets, and so samples of pingfleet in a round.
const TARGETS: u32 = 1000;

/// How many targets ping probes, one after the other, and its interval: as many samples at the same rate.
const PING_TARGETS: u32 = 50;
const INTERVAL_S: &str = "0.001";

/// How long targets take to answer. ping's precision is 1 us below 1 ms, and 10 us below 10 ms.
const CASES: [(&str, Duration); 2] = [
    ("rtt, answered at once", Duration::ZERO),
    ("rtt, answered after 2 ms", Duration::from_millis(2)),
];

/// Both, in turns.
pub(crate) fn rtt(site: &Site, rows: &mut Rows, rounds: u32) -> anyhow::Result<()> {
    let hosts = site.folder().join("simulated.txt");
    let mut file = std::fs::File::create(&hosts)?;
    for host in 0..TARGETS {
        writeln!(file, "{}", IpVersion::V4.address(host))?;
    }
    for (case, after) in CASES {
        let behaviour = Behaviour {
            answers: vec![Answer {
                after,
                ..Answer::default()
            }],
            ..Behaviour::default()
        };
        let network = SimNet::start(Script {
            hosts: vec![(0..=TARGETS, behaviour)],
            ..Script::default()
        })?;
        for round in 1..=rounds {
            let samples = ping(&network)?;
            rows.note(row(case, "ping", round, samples))?;
            let database = site.fresh_database()?;
            let mut sweep = site.within(|path| network.command(path), "pingfleet");
            sweep
                .arg("sweep")
                .arg(&hosts)
                .args(["--quiet", "--db"])
                .arg(&database);
            let ran = run(vec![sweep])?;
            ensure!(ran.success, "pingfleet: {}", ran.stderr);
            let mut samples = Vec::new();
            let store = Reader::open(&database)?;
            for row in report(&store, &ReportFilter::default())? {
                samples.extend(row.rtt_ms[1].map(|ms| ms * 1000.0));
            }
            rows.note(row(case, "pingfleet sweep", round, samples))?;
        }
        network.stop()?;
        let [ping, own] = ["ping", "pingfleet sweep"].map(|program| {
            let median = rows.spread(case, program, |row| row.rtt_median_us);
            let p99 = rows.spread(case, program, |row| row.rtt_p99_us);
            println!("  {case}: {program:<16} median {median} us   99th percentile {p99} us");
            median.median
        });
        judge(
            "microseconds between the medians",
            (own - ping).abs(),
            0.0..=50.0,
        );
    }
    Ok(())
}

fn ping(network: &SimNet) -> anyhow::Result<Vec<f64>> {
    let mut samples = Vec::new();
    let count = (TARGETS / PING_TARGETS).to_string();
    for host in 0..PING_TARGETS {
        let mut command = network.command("ping");
        command
            .args(["-n", "-c", &count, "-i", INTERVAL_S])
            .arg(IpVersion::V4.address(host).to_string());
        let ran = run(vec![command])?;
        ensure!(ran.success, "ping: {}{}", ran.stdout, ran.stderr);
        for line in ran.stdout.lines() {
            if let Some((_, time)) = line.split_once("time=") {
                let time = time
                    .strip_suffix(" ms")
                    .with_context(|| format!("ping says {line:?}"))?;
                samples.push(time.parse::<f64>()? * 1000.0);
            }
        }
    }
    Ok(samples)
}

fn row(case: &'static str, program: &'static str, round: u32, samples: Vec<f64>) -> Row {
    let (up, p99) = (samples.len(), percentile(&samples, 0.99));
    Row {
        case,
        round,
        program,
        targets: TARGETS,
        up: Some(up as u64),
        rtt_median_us: Some(Spread::of(samples).median),
        rtt_p99_us: Some(p99),
        ..Row::default()
    }
}

/// The smallest sample that is not exceeded by this share of them.
pub(crate) fn percentile(samples: &[f64], share: f64) -> f64 {
    let mut samples = samples.to_vec();
    samples.sort_by(f64::total_cmp);
    let place = (samples.len() as f64 * share).ceil() as usize;
    samples
        .get(place.saturating_sub(1))
        .copied()
        .unwrap_or(f64::NAN)
}
