//! A child process for a test: this test binary again, running one of the tests that are marked as ignored.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

/// Names the file that the child works on.
const DATABASE: &str = "PINGFLEET_STORE_TEST_DATABASE";

/// A running child. It is killed, and waited for, when this is dropped.
pub(crate) struct Process {
    child: Child,
    output: BufReader<ChildStdout>,
    input: ChildStdin,
}

impl Process {
    /// Starts the test of that name in a new process.
    pub(crate) fn start(test: &str, database: &Path) -> Result<Self> {
        Self::start_with(test, database, |_| {})
    }

    /// The same, after a last change of the command.
    pub(crate) fn start_with(
        test: &str,
        database: &Path,
        change: impl FnOnce(&mut Command),
    ) -> Result<Self> {
        // Linux opens this path without a lookup: the child's user may have no permission for the real path.
        let mut command = if cfg!(target_os = "linux") {
            Command::new("/proc/self/exe")
        } else {
            Command::new(env::current_exe()?)
        };
        change(
            command
                .args(["--exact", test, "--ignored", "--nocapture"])
                .env(DATABASE, database)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped()),
        );
        let mut child = command.spawn().context("the test binary does not start")?;
        let output = child.stdout.take().context("no standard output")?;
        let input = child.stdin.take().context("no standard input")?;
        Ok(Self {
            child,
            output: BufReader::new(output),
            input,
        })
    }

    /// Waits until the child prints a line with this prefix, and returns the rest of that line.
    pub(crate) fn hear(&mut self, beginning: &str) -> Result<String> {
        let mut all = String::new();
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line)? == 0 {
                bail!("the child ended without {beginning:?}: {all}");
            }
            // The test runner leaves its own line open before a test's first word.
            if let Some((_, rest)) = line.split_once(beginning) {
                return Ok(rest.trim().to_owned());
            }
            all.push_str(&line);
        }
    }

    /// Sends a line to a child that waits in [`wait`].
    pub(crate) fn send_line(&mut self, word: &str) -> Result<()> {
        Ok(writeln!(self.input, "{word}")?)
    }

    /// Waits for the child's end and checks its exit status.
    pub(crate) fn join(mut self) -> Result<()> {
        let status = self.child.wait()?;
        ensure!(status.success(), "the child failed: {status}");
        Ok(())
    }

    /// Ends the child at once, as `kill -9` does.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail for a child that has ended, and there is nothing to do about it.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// In the child: the file to work on.
pub(crate) fn database() -> Result<PathBuf> {
    env::var_os(DATABASE)
        .map(PathBuf::from)
        .context("this is a part of another test, which starts it")
}

/// In the child: waits for a line of the parent. It is empty when the parent has ended.
pub(crate) fn wait() -> Result<String> {
    let mut word = String::new();
    std::io::stdin().read_line(&mut word)?;
    Ok(word.trim().to_owned())
}
