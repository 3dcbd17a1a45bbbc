//! A program of a deployment as a child process, with its output in a file. Dropping it kills it.

use std::{
    fs::File,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    rc::Rc,
    time::Instant,
};

use anyhow::{Context, bail, ensure};

use crate::{MAX_WAIT, POLL_INTERVAL, resource_usage::ResourceUsage};

/// A running or exited program of a deployment. Dropping it kills it.
#[derive(Debug)]
pub struct ChildProcess {
    name: String,
    child: Child,
    log: PathBuf,
    usage: Rc<ResourceUsage>,
    /// Its index in `usage`.
    usage_index: usize,
}

impl ChildProcess {
    /// Starts a command with its standard output and error in the file `log`, and records its resources in `usage`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start(
        name: &str,
        mut command: Command,
        log: PathBuf,
        usage: &Rc<ResourceUsage>,
    ) -> anyhow::Result<Self> {
        // Both write at one offset, so neither overwrites what the other has written.
        let output = File::create(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Self {
            name: name.to_owned(),
            usage_index: usage.started(name, child.id()),
            usage: Rc::clone(usage),
            child,
            log,
        })
    }

    /// The program's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGKILL, and waits for the exit.
    ///
    /// # Errors
    /// When it had exited before.
    pub fn kill(mut self) -> anyhow::Result<()> {
        ensure!(
            self.send_sigkill()?,
            "{} exited before it could be killed:\n{}",
            self.name,
            self.output()
        );
        Ok(())
    }

    /// Sends SIGKILL unless it has exited by itself. Returns whether the signal ended it.
    ///
    /// # Errors
    /// When its status cannot be read.
    pub fn kill_if_running(mut self) -> anyhow::Result<bool> {
        self.send_sigkill()
    }

    fn send_sigkill(&mut self) -> anyhow::Result<bool> {
        if self.try_wait()?.is_some() {
            return Ok(false);
        }
        self.child.kill()?;
        let status = self.child.wait()?;
        self.usage.exited(self.usage_index);
        Ok(status.signal() == Some(9))
    }

    /// Sends a signal by its name, such as `STOP`.
    ///
    /// # Errors
    /// When it has exited.
    pub fn signal(&self, signal: &str) -> anyhow::Result<()> {
        // It may exit before the next sample.
        self.usage.sample(self.usage_index);
        let pid = self.pid().to_string();
        let status = Command::new("kill")
            .args([&format!("-{signal}"), &pid])
            .status()?;
        ensure!(status.success(), "kill -{signal} {pid}");
        Ok(())
    }

    /// Sends SIGTERM, and waits for the exit.
    ///
    /// # Errors
    /// When it does not exit.
    pub fn terminate(self) -> anyhow::Result<ExitStatus> {
        self.signal("TERM")?;
        self.wait()
    }

    /// Waits for the exit.
    ///
    /// # Errors
    /// When it does not exit.
    pub fn wait(mut self) -> anyhow::Result<ExitStatus> {
        self.wait_for_exit()
    }

    /// Waits for the exit, and keeps the value so that its output can be read.
    ///
    /// # Errors
    /// When it does not exit.
    pub fn wait_for_exit(&mut self) -> anyhow::Result<ExitStatus> {
        let began = Instant::now();
        while began.elapsed() < MAX_WAIT {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        bail!("{} does not exit:\n{}", self.name, self.output())
    }

    /// Waits until SIGKILL ends it.
    ///
    /// # Errors
    /// When it exits in another way, or not at all.
    pub fn expect_sigkill(mut self) -> anyhow::Result<()> {
        let status = self.wait_for_exit()?;
        ensure!(
            status.signal() == Some(9),
            "{} should have been killed, but exited with {status}:\n{}",
            self.name,
            self.output()
        );
        Ok(())
    }

    /// The exit status, if it has exited. If not, its resources are sampled.
    ///
    /// # Errors
    /// When its status cannot be read.
    pub fn try_wait(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.usage.sample(self.usage_index);
        let status = self.child.try_wait()?;
        if status.is_some() {
            self.usage.exited(self.usage_index);
        }
        Ok(status)
    }

    /// Waits until it has written a text.
    ///
    /// # Errors
    /// When it never does, or exits.
    pub fn wait_for_output(&mut self, text: &str) -> anyhow::Result<()> {
        let began = Instant::now();
        while began.elapsed() < MAX_WAIT {
            if self.output().contains(text) {
                return Ok(());
            }
            if let Some(status) = self.try_wait()? {
                bail!("{} exited ({status}):\n{}", self.name, self.output());
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        bail!("{} never wrote {text:?}:\n{}", self.name, self.output())
    }

    /// All output so far.
    #[must_use]
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        self.usage.sample(self.usage_index);
        // Both fail when it has already been waited for.
        drop(self.child.kill());
        drop(self.child.wait());
        self.usage.exited(self.usage_index);
    }
}

/// The path of a program of the workspace, which is built into the same folder as the running one.
///
/// # Errors
/// When it is not built.
pub(crate) fn program_path(program: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own.parent().context("a program is in a folder")?;
    // Tests are one folder deeper than programs.
    let folder = match folder.file_name() {
        Some(name) if name == "deps" => folder.parent().unwrap_or(folder),
        _ => folder,
    };
    let path: &Path = &folder.join(program);
    ensure!(
        path.exists(),
        "{} is not built: run `cargo build --workspace --bins --examples`, or scripts/test",
        path.display()
    );
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_and_errors_are_in_the_log_in_their_order() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let mut command = Command::new("sh");
        command.args(["-c", "echo first >&2; echo second; echo third >&2"]);
        let log = folder.path().join("log");
        let usage = Rc::new(ResourceUsage::new(&folder.path().join("pingfleet.db")));
        let mut child = ChildProcess::start("sh", command, log, &usage)?;
        ensure!(child.wait_for_exit()?.success());
        assert_eq!(child.output(), "first\nsecond\nthird\n");
        Ok(())
    }
}
