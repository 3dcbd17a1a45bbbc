//! Probing in simulated networks that scenario files describe. The test `NAME` runs `data/NAME.toml` on datagram and on raw
//! sockets, over IPv4 and IPv6, with every prober. Needs root.

#[path = "../support/chunk_files.rs"]
mod chunk_files;
mod engines;
mod exact;
mod judging;
mod probing;
mod reply_table;
mod scenario;

use std::{sync::Mutex, thread};

use anyhow::Context;
use pingfleet_testbed::simnet::{IpVersion, SimNet};

use crate::{
    engines::{ENGINES, Kind},
    probing::Plan,
    scenario::{Scenario, Variant, folder},
};

/// Makes a test of each scenario file.
macro_rules! scenarios {
    ($($name:ident)*) => {
        $(#[test] fn $name() { run(stringify!($name)); })*
        const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}

scenarios! {
    a_duplicate_changes_no_loss
    a_large_payload_is_answered
    a_late_reply_is_not_credited_to_a_newer_request
    a_living_host_is_up_with_its_round_trip_time
    a_payload_of_a_few_bytes_is_answered
    a_stopped_prober_credits_what_came_in_time
    a_stopped_prober_makes_no_target_down
    a_quench_or_a_redirect_does_not_count_as_error
    a_reply_from_another_source_makes_no_target_up
    a_reply_outweighs_an_error_to_the_same_request
    a_reply_to_one_request_is_not_credited_to_the_next
    a_reply_with_another_identifier_makes_no_target_up
    a_reply_with_another_payload_makes_no_target_up
    a_reply_with_another_sequence_number_makes_no_target_up
    a_shortened_or_padded_reply_makes_its_target_up
    a_slow_first_answer_is_one_slow_answer
    an_answer_after_its_timeout_is_late
    an_answer_after_several_timeouts_is_late
    an_answer_after_the_end_counts_nowhere
    an_answer_in_time_outweighs_a_late_one
    an_answer_to_the_nth_request_alone_is_enough
    an_empty_payload_is_answered
    an_error_stops_no_retry
    an_error_that_quotes_a_foreign_request_is_ignored
    an_error_with_a_short_quote_counts
    an_icmp_error_is_unreachable_with_its_reporter
    answers_that_a_full_socket_drops_make_no_target_down
    foreign_errors_cost_no_answer
    foreign_replies_cost_no_answer
    many_hosts_in_many_chunks_each_get_their_outcome
    silence_is_down
    the_loss_of_the_network_is_the_loss_reported
}

#[test]
fn every_scenario_file_is_run() {
    let mut files: Vec<_> = folder()
        .read_dir()
        .expect("the folder is there")
        .map(|file| file.expect("it can be listed").path())
        .map(|path| path.file_stem().map(ToOwned::to_owned))
        .collect();
    files.sort();
    let mut names: Vec<_> = NAMES.iter().map(|name| Some((*name).into())).collect();
    names.sort();
    assert_eq!(files, names);
}

/// The most deviations that are shown; those of the targets of a group are often the same.
const MAX_SHOWN: usize = 20;

/// All variants of a test.
fn variants() -> impl Iterator<Item = Variant> {
    ENGINES.iter().flat_map(|engine| {
        Kind::ALL.into_iter().flat_map(move |kind| {
            IpVersion::ALL.into_iter().map(move |family| Variant {
                engine,
                kind,
                family,
            })
        })
    })
}

/// Runs every variant of a scenario.
fn run(name: &str) {
    let scenario = Scenario::read(name).expect("the file is a scenario");
    let cases: Vec<_> = variants()
        .filter(|variant| scenario.is_for(*variant))
        .map(|variant| (variant, &scenario))
        .collect();
    assert!(!cases.is_empty(), "no variant of {name} is run");
    run_at_once(&cases);
}

/// Runs variants, each with its scenario, all at once, because they mostly wait.
fn run_at_once(cases: &[(Variant, &Scenario)]) {
    let needless = Mutex::new(Vec::new());
    let needless = &needless;
    let mut faults: Vec<_> = thread::scope(|scope| {
        let variants: Vec<_> = cases
            .iter()
            .map(|(variant, scenario)| {
                let run = move || run_one(scenario, *variant, needless);
                (variant, scope.spawn(run))
            })
            .collect();
        variants
            .into_iter()
            .flat_map(|(variant, thread)| {
                let faults = thread.join().expect("no thread panics");
                let faults = faults.unwrap_or_else(|error| vec![format!("{error:#}")]);
                faults
                    .into_iter()
                    .map(move |fault| format!("{variant}: {fault}"))
            })
            .collect()
    });
    // On a busy machine one variant may probe silent targets again, but hardly all variants.
    let needless = needless.lock().expect("no thread panics");
    if !needless.is_empty() && needless.iter().all(|all| *all) {
        faults.push("every silent target was probed again, in every variant".to_owned());
    }
    let shown = &faults[..faults.len().min(MAX_SHOWN)];
    assert!(
        faults.is_empty(),
        "{} faults:\n{}",
        faults.len(),
        shown.join("\n")
    );
}

/// Runs a variant, and adds to `needless` whether it probed all silent targets again.
fn run_one(
    scenario: &Scenario,
    variant: Variant,
    needless: &Mutex<Vec<bool>>,
) -> anyhow::Result<Vec<String>> {
    let net = SimNet::start(scenario.script())?;
    let plan = Plan {
        probing: scenario.probing.probing(),
        hosts: scenario.probed().collect(),
        chunks: scenario.chunks,
        threads: scenario.threads,
        stall: scenario.stall,
        receive_buffer: scenario.receive_buffer,
    };
    let found = plan.run(&net, variant)?;
    let traffic = net.stop().context("the network failed")?;
    if let Some(all) = judging::repeats_all_silent(scenario, variant, &found.outcomes) {
        needless.lock().expect("no thread panics").push(all);
    }
    Ok(judging::faults(scenario, variant, &found, &traffic))
}
