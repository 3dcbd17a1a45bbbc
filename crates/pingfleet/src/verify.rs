//! `verify`: prints whether a run is complete and matches its plan, or whether the database has no damage.

use std::io::{self, Write};

use clap::Args;
use pingfleet_settings::{Exit, Failure, Layers, printed};
use pingfleet_store::{DatabaseSettings, Reader, RunState, Transport, Verification};

use crate::RunArgs;

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Check the whole database for damage instead of a run; reads all of the file
    #[arg(long = "database", conflicts_with = "run")]
    whole_database: bool,
    #[command(flatten)]
    run: RunArgs,
}

pub(crate) fn verify(args: &VerifyArgs, mut layers: Layers) -> Result<Exit, Failure> {
    let database = DatabaseSettings::resolve(&args.run.database, &mut layers);
    layers.finish()?;
    let reader = Reader::open(&database.path)?;
    if args.whole_database {
        verify_database(&reader)
    } else {
        verify_run(&args.run.run, &reader, database.as_flags())
    }
}

fn verify_database(reader: &Reader) -> Result<Exit, Failure> {
    reader.check()?;
    let path = reader.path().display();
    printed(writeln!(io::stdout(), "{path}: no damage found"))?;
    Ok(Exit::Complete)
}

fn verify_run(wanted: &str, reader: &Reader, flags: &str) -> Result<Exit, Failure> {
    let run = reader.find_run(wanted)?;
    let proof = reader.verify(run)?;
    let mut text = Vec::new();
    printed(print_proof(&mut text, &proof, flags))?;
    printed(io::stdout().lock().write_all(&text))?;
    Ok(if !proof.is_consistent() {
        Exit::System
    } else if is_complete(&proof) {
        Exit::Complete
    } else {
        Exit::Incomplete
    })
}

/// A run in state `planning` is never complete: its plan is not finished.
fn is_complete(proof: &Verification) -> bool {
    proof.is_complete() && proof.summary.state != RunState::Planning
}

/// `flags` are those of the commands that it names.
fn print_proof(out: &mut dyn Write, proof: &Verification, flags: &str) -> io::Result<()> {
    let summary = &proof.summary;
    let verdict = if !proof.is_consistent() {
        "contradicts its plan"
    } else if is_complete(proof) {
        "complete"
    } else {
        "incomplete"
    };
    writeln!(out, "run {} {verdict} ({})", summary.run, summary.run_id)?;
    writeln!(
        out,
        "  {} of {} targets have exactly one row, at the position that the plan gives them",
        proof.proven_targets, proof.planned_targets
    )?;
    writeln!(
        out,
        "  {} chunks: {} done, {} outstanding, {} dead",
        summary.chunks,
        summary.chunks - proof.outstanding_chunks - proof.dead_count,
        proof.outstanding_chunks,
        proof.dead_count
    )?;
    for (chunk, reason) in &proof.dead_chunks {
        writeln!(out, "  dead: chunk {chunk} ({reason})")?;
    }
    for finding in &proof.findings {
        writeln!(out, "  contradiction: {}", finding.0)?;
    }
    let unlisted = proof.finding_count - proof.findings.len() as i64;
    if unlisted > 0 {
        writeln!(out, "  and {unlisted} more contradictions")?;
    }
    let run = summary.run;
    if proof.is_consistent() && proof.dead_count > 0 {
        writeln!(
            out,
            "  publish the dead chunks again: pingfleet retry{flags} {run}"
        )?;
        print_broker_note(out, summary.transport)?;
    }
    if proof.is_consistent() && proof.outstanding_chunks > 0 {
        match summary.state {
            RunState::Planning => writeln!(
                out,
                "  its plan is not finished; if its producer is gone, the next run removes it"
            )?,
            RunState::Running => writeln!(out, "  a producer is working on it")?,
            RunState::Cancelled => writeln!(out, "  the run was cancelled")?,
            _ => {
                writeln!(out, "  continue it: pingfleet resume{flags} {run}")?;
                print_broker_note(out, summary.transport)?;
            }
        }
    }
    Ok(())
}

/// The database does not say which broker a run uses, so a printed command cannot name it.
fn print_broker_note(out: &mut dyn Write, transport: Transport) -> io::Result<()> {
    if transport == Transport::Broker {
        writeln!(
            out,
            "    with --broker URL, unless the settings name the broker of the run"
        )?;
    }
    Ok(())
}
