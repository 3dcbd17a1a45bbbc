//! The quick form of the cases that prove most for their time, each on a broker of its own. `scripts/fault-suite` runs
//! all of them, and thoroughly.

use pingfleet_faults::{bench::Bench, cases};

/// Runs a case and its control.
fn holds(name: &str) {
    let case = cases::named(name).expect("the suite has this case");
    let judgement = Bench::new(false).judge(&case);
    assert!(
        judgement.passed,
        "{}; control: {}",
        judgement.story, judgement.control
    );
}

macro_rules! bounded {
    ($($test:ident: $name:literal,)*) => {
        $(
            #[test]
            fn $test() {
                holds($name);
            }
        )*
    };
}

bounded! {
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
}
