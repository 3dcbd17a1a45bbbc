//! The four programs from outside: exit codes, the one message of each failure, what is printed to which stream, and
//! that a failure leaves nothing behind.

mod broker;
mod broker_logins;
mod changes;
mod database;
mod doctor;
mod export;
mod filters;
mod help;
mod html;
mod html_diff;
mod linked;
mod live;
mod live_relay;
mod live_run;
mod logging;
mod machine;
mod metrics;
mod next_command;
mod output;
mod pager;
mod permission;
mod prune;
#[cfg(feature = "parquet")]
mod prune_archive;
#[cfg(feature = "parquet")]
mod prune_killed;
mod quarantine;
mod queries;
mod report;
mod retry;
mod rig;
mod routes;
mod screens;
mod settings;
mod sweeping;
mod targets;
mod tls;
mod workers;
