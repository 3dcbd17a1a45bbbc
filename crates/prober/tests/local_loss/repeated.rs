//! What happens again and again beside a test.

use std::{
    io::Read as _,
    process::{Child, Stdio},
};

use anyhow::{Context, ensure};

use crate::variants::Network;

/// A shell script that runs until this is dropped.
pub(crate) struct Repeated(Child);

impl Repeated {
    pub(crate) fn start(net: &impl Network, script: &str) -> anyhow::Result<Self> {
        let script = format!("while :; do {script}\necho; done");
        let mut shell = net.command("sh");
        let shell = shell.args(["-e", "-c", &script]).stdout(Stdio::piped());
        Ok(Self(shell.spawn()?))
    }

    /// Stops it, and returns how often it has run. It must not have failed.
    pub(crate) fn stop(mut self) -> anyhow::Result<usize> {
        let ended = self.0.try_wait()?;
        ensure!(ended.is_none(), "the script failed: {ended:?}");
        self.0.kill()?;
        let mut lines = String::new();
        let output = self.0.stdout.as_mut().context("its output is piped")?;
        output.read_to_string(&mut lines)?;
        Ok(lines.len())
    }
}

impl Drop for Repeated {
    fn drop(&mut self) {
        // Both calls fail if it has ended already.
        let ended = (self.0.kill(), self.0.wait());
        drop(ended);
    }
}
