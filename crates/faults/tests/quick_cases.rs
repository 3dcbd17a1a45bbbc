//! The quick form of the cases that prove most for their time, each on its own broker. `scripts/fault-suite` runs all
//! cases in their full form.

use pingfleet_faults::{cases, runner::CaseRunner};

/// Runs a case and its control.
fn holds(name: &str) {
    let case = cases::named(name).expect("the suite has this case");
    let report = CaseRunner::new(false).judge(&case);
    assert!(
        report.passed,
        "{}; control: {}",
        report.summary, report.control
    );
}

macro_rules! quick {
    ($($test:ident: $name:literal,)*) => {
        $(
            #[test]
            fn $test() {
                holds($name);
            }
        )*
    };
}

quick! {
    worker_killed_at_each_boundary: "worker-killed-at-each-boundary",
    writer_killed_at_each_boundary: "writer-killed-at-each-boundary",
    writer_killed_in_its_transaction: "writer-killed-in-its-transaction",
    producer_killed_at_each_boundary: "producer-killed-at-each-boundary",
    random_kills: "random-kills",
    poison_chunk_among_fifty: "poison-chunk-among-fifty",
    network_cut: "network-cut",
    every_message_twice: "every-message-twice",
    disk_full: "disk-full",
    file_deleted: "file-deleted",
    power_loss_of_the_master: "power-loss-of-the-master",
    duplicates_with_other_outcomes: "duplicates-with-other-outcomes",
    writer_in_the_wrong_folder: "writer-in-the-wrong-folder",
    two_databases_on_one_broker: "two-databases-on-one-broker",
}
