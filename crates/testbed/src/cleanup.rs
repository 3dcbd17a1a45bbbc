//! Cleans up after the test process, even when that is killed: a shell waits until its standard input is closed. Only
//! the test process has the other end.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use anyhow::Context;

/// Runs a cleanup when it is dropped, or when the process ends.
#[derive(Debug)]
pub(crate) struct Cleanup(Child);

impl Cleanup {
    /// `script` is the cleanup, in the shell's language; `arguments` are its `$1`, `$2` and so on.
    pub(crate) fn new(script: &str, arguments: &[&str]) -> anyhow::Result<Self> {
        let cleanup = Command::new("sh")
            .arg("-c")
            .arg(format!("cat >/dev/null; {script}"))
            .arg("cleanup")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // An interrupt from the terminal must not reach it: it has to outlive the test.
            .process_group(0)
            .spawn()
            .context("cannot start a shell")?;
        Ok(Self(cleanup))
    }
}

impl Cleanup {
    /// There is nothing left to clean up.
    pub(crate) fn dismiss(mut self) -> anyhow::Result<()> {
        self.0.kill().context("cannot end a shell")
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        if let Err(error) = self.0.wait() {
            eprintln!("cleanup of a test did not end: {error}");
        }
    }
}
