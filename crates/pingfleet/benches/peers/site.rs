//! Where the programs run: a namespace from which everything is probed, a folder on a disk, and the release builds of
//! this workspace's programs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};
use pingfleet_store::{Reader, ReportFilter, ReportRow, RunState};
use pingfleet_testbed::Namespace;
use pingfleet_wire::StatusKind;

use crate::{rows::Row, targets};

/// One place for the whole benchmark.
pub(crate) struct Site {
    namespace: Namespace,
    folder: tempfile::TempDir,
    programs: PathBuf,
}

impl Site {
    /// Makes the place.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let pingfleet = Path::new(env!("CARGO_BIN_EXE_pingfleet"));
        let programs = pingfleet.parent().context("a program lies in a folder")?;
        Ok(Self {
            namespace: Namespace::answering(targets::ANSWERING)?,
            folder: tempfile::tempdir_in(scratch())?,
            programs: programs.to_owned(),
        })
    }

    /// Builds the programs that `cargo bench` has not built.
    pub(crate) fn build_roles(&self) -> anyhow::Result<()> {
        let target = self.programs.parent().context("a profile has a folder")?;
        let built = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["build", "--release", "--quiet", "--bins"])
            .args([
                "-p",
                "producer",
                "-p",
                "ping-worker",
                "-p",
                "consumer-writer",
            ])
            .arg("--target-dir")
            .arg(target)
            .current_dir(workspace())
            .status()?;
        ensure!(built.success(), "the programs cannot be built");
        Ok(())
    }

    pub(crate) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A program of this workspace, by its name, without the user's settings.
    pub(crate) fn program(&self, name: &str) -> Command {
        self.within(|path| self.namespace.command(path), name)
    }

    /// The same in another namespace, which `command` enters.
    pub(crate) fn within(&self, command: impl FnOnce(&Path) -> Command, name: &str) -> Command {
        let mut command = command(&self.programs.join(name));
        command.current_dir(self.folder());
        for (key, _) in std::env::vars_os() {
            if key.to_string_lossy().starts_with("PINGFLEET_") {
                command.env_remove(key);
            }
        }
        command
    }

    /// The path of a database that does not exist yet; the one before it is removed.
    pub(crate) fn fresh_database(&self) -> anyhow::Result<PathBuf> {
        for entry in fs::read_dir(self.folder())? {
            let path = entry?.path();
            if path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("pingfleet.db"))
            {
                fs::remove_file(path)?;
            }
        }
        Ok(self.folder().join("pingfleet.db"))
    }
}

/// What is in the database of one complete run, as a row.
pub(crate) fn outcome(database: &Path) -> anyhow::Result<Row> {
    let store = Reader::open(database)?;
    let run = store.find_run("latest")?;
    let summary = store.summary(run)?;
    ensure!(
        summary.state == RunState::Complete,
        "the run is not complete: {summary:?}"
    );
    let mut false_down = 0;
    let down = ReportFilter {
        statuses: vec![StatusKind::Down],
        ..ReportFilter::default()
    };
    for row in report(&store, &down)? {
        false_down += u64::from(targets::answers(&row.target));
    }
    let [up, down] = [StatusKind::Up, StatusKind::Down].map(|status| summary.counts[status]);
    Ok(Row {
        targets: summary.targets.try_into()?,
        up: Some(up.try_into()?),
        down: Some(down.try_into()?),
        other: Some((summary.targets - up - down).try_into()?),
        false_down: Some(false_down),
        ..Row::default()
    })
}

/// The rows of the latest run.
pub(crate) fn report(store: &Reader, filter: &ReportFilter) -> anyhow::Result<Vec<ReportRow>> {
    let mut pages = store.report(store.find_run("latest")?, filter);
    let mut rows = Vec::new();
    loop {
        let page = pages.next_page()?;
        if page.is_empty() {
            return Ok(rows);
        }
        rows.extend(page);
    }
}

/// The workspace's folder: cargo starts a benchmark in its package's.
pub(crate) fn workspace() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.ancestors().nth(2).unwrap_or(package)
}

/// A folder on the same disk as the build, where a commit has its real cost; `/tmp` may be in memory.
pub(crate) fn scratch() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// A path as the user wrote it.
pub(crate) fn in_workspace(path: &Path) -> PathBuf {
    workspace().join(path)
}
