//! The four programs from outside, as a new user and as a sceptic meet them: exit codes, the one message of each
//! failure, what is printed and where, and that a failure leaves nothing behind.

mod broker;
mod database;
mod doctor;
mod help;
mod output;
mod permission;
mod rig;
mod settings;
mod sweeping;
mod targets;
