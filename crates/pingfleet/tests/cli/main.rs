//! The four programs from outside: exit codes, the one message of each failure, what is printed to which stream, and
//! that a failure leaves nothing behind.

mod broker;
mod database;
mod doctor;
mod export;
mod filters;
mod help;
mod html;
mod linked;
mod logging;
mod machine;
mod next_command;
mod output;
mod permission;
mod report;
mod rig;
mod routes;
mod settings;
mod sweeping;
mod targets;
