//! The process of the writer, and what it uses.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
};

use anyhow::{Context as _, ensure};

use crate::writer::PAGE_THREAD;

/// A running writer. It is killed when it is dropped.
pub(crate) struct WriterProcess {
    child: Child,
    stdin: Option<ChildStdin>,
    database: PathBuf,
    page: Option<SocketAddr>,
}

impl WriterProcess {
    /// Starts a writer with a new database in a folder, and waits until it is ready.
    pub(crate) fn start(broker: &str, folder: &Path, with_page: bool) -> anyhow::Result<Self> {
        let database = folder.join("pingfleet.db");
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("--writer")
            .arg(&database)
            .args(["--broker", broker]);
        if with_page {
            command.arg("--with-page");
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("a pipe")?;
        let mut writer = Self {
            child,
            stdin,
            database,
            page: None,
        };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line.ends_with('\n'), "the writer ended");
        if with_page {
            writer.page = Some(line.trim().parse()?);
        }
        Ok(writer)
    }

    pub(crate) fn database(&self) -> &Path {
        &self.database
    }

    pub(crate) fn page(&self) -> Option<SocketAddr> {
        self.page
    }

    pub(crate) fn page_address(&self) -> anyhow::Result<SocketAddr> {
        self.page.context("a writer without a page")
    }

    /// Stops it in order.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        drop(self.stdin.take());
        let status = self.child.wait()?;
        ensure!(status.success(), "the writer ended: {status}");
        Ok(())
    }

    /// The processor time of the page's threads so far, in seconds.
    pub(crate) fn page_seconds(&self) -> anyhow::Result<f64> {
        let by_name = self.seconds_by_name()?;
        by_name
            .get(PAGE_THREAD)
            .copied()
            .context("no thread of the page")
    }

    /// The processor time of all threads by their name, as text.
    pub(crate) fn threads(&self) -> anyhow::Result<String> {
        let by_name = self.seconds_by_name()?;
        let texts = by_name
            .iter()
            .map(|(name, seconds)| format!("{name} {seconds:.2}"));
        Ok(texts.collect::<Vec<_>>().join(", "))
    }

    /// `/proc/PID/task/TID/schedstat` (Linux, Documentation/scheduler/sched-stats.rst): the first number is the time on a
    /// processor in nanoseconds.
    fn seconds_by_name(&self) -> anyhow::Result<BTreeMap<String, f64>> {
        let mut by_name = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let task = entry?.path();
            let (Ok(name), Ok(times)) = (
                fs::read_to_string(task.join("comm")),
                fs::read_to_string(task.join("schedstat")),
            ) else {
                // It has ended.
                continue;
            };
            let nanos = times.split_whitespace().next().context("a time")?;
            let nanos: u64 = nanos.parse()?;
            *by_name.entry(name.trim().to_owned()).or_insert(0.0) += nanos as f64 / 1e9;
        }
        Ok(by_name)
    }

    /// Its resident memory, in KiB.
    pub(crate) fn memory_kib(&self) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next());
        Ok(kib.context("no VmRSS")?.parse()?)
    }
}

impl Drop for WriterProcess {
    fn drop(&mut self) {
        // It has ended already, unless something failed.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
