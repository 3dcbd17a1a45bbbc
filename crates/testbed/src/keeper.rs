//! Cleans up behind the test process, even when that is killed: a shell that waits for the end of its standard input,
//! whose other end only this process holds.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use anyhow::Context;

/// Runs a cleanup when it is dropped, or when the process ends.
#[derive(Debug)]
pub(crate) struct Keeper(Child);

impl Keeper {
    /// `script` is the cleanup, in the shell's language; `arguments` are its `$1`, `$2` and so on.
    pub(crate) fn new(script: &str, arguments: &[&str]) -> anyhow::Result<Self> {
        let keeper = Command::new("sh")
            .arg("-c")
            .arg(format!("cat >/dev/null; {script}"))
            .arg("keeper")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // An interrupt from the terminal ends the test; this has to outlive it.
            .process_group(0)
            .spawn()
            .context("cannot start a shell")?;
        Ok(Self(keeper))
    }
}

impl Keeper {
    /// There is nothing left to clean up.
    pub(crate) fn dismiss(mut self) -> anyhow::Result<()> {
        self.0.kill().context("cannot end a shell")
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        if let Err(error) = self.0.wait() {
            eprintln!("cleanup of a test did not end: {error}");
        }
    }
}
