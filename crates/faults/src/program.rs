//! A program of a fleet: started with its log in a file, killed, ended, waited for. It ends with its value.

use std::{
    fs::File,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    rc::Rc,
    time::Instant,
};

use anyhow::{Context, bail, ensure};

use crate::{LOOK, PATIENCE, bounds::Bounds};

/// A program of the fleet. It is killed when it is dropped.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    log: PathBuf,
    bounds: Rc<Bounds>,
    /// Its place in the bounds.
    place: usize,
}

impl Program {
    /// Starts a command with both of its outputs in the file `log`, and has its size noted in `bounds`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start(
        name: &str,
        mut command: Command,
        log: PathBuf,
        bounds: &Rc<Bounds>,
    ) -> anyhow::Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .stdout(File::create(&log)?)
            .stderr(File::options().append(true).open(&log)?)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Self {
            name: name.to_owned(),
            place: bounds.started(name, child.id()),
            bounds: Rc::clone(bounds),
            child,
            log,
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process's number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, now.
    ///
    /// # Errors
    /// When it had ended before.
    pub fn kill(mut self) -> anyhow::Result<()> {
        ensure!(
            self.die()?,
            "{} ended before it could be killed:\n{}",
            self.name,
            self.said()
        );
        Ok(())
    }

    /// SIGKILL, now, to one that may end by itself. Tells whether it was this that ended it.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn kill_if_it_runs(mut self) -> anyhow::Result<bool> {
        self.die()
    }

    fn die(&mut self) -> anyhow::Result<bool> {
        if self.has_ended()?.is_some() {
            return Ok(false);
        }
        self.child.kill()?;
        let status = self.child.wait()?;
        self.bounds.ended(self.place);
        Ok(status.signal() == Some(9))
    }

    /// Sends a signal by its name, such as `STOP`.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: &str) -> anyhow::Result<()> {
        // It may be gone before the next look.
        self.bounds.look(self.place);
        let pid = self.pid().to_string();
        let status = Command::new("kill")
            .args([&format!("-{signal}"), &pid])
            .status()?;
        ensure!(status.success(), "kill -{signal} {pid}");
        Ok(())
    }

    /// SIGTERM, then waits for the end.
    ///
    /// # Errors
    /// When it does not end.
    pub fn terminate(self) -> anyhow::Result<ExitStatus> {
        self.signal("TERM")?;
        self.wait()
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// When it does not end.
    pub fn wait(mut self) -> anyhow::Result<ExitStatus> {
        self.ended()
    }

    /// Waits for the end, and keeps the value for its log.
    ///
    /// # Errors
    /// When it does not end.
    pub fn ended(&mut self) -> anyhow::Result<ExitStatus> {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if let Some(status) = self.has_ended()? {
                return Ok(status);
            }
            std::thread::sleep(LOOK);
        }
        bail!("{} does not end:\n{}", self.name, self.said())
    }

    /// Waits for its end by SIGKILL.
    ///
    /// # Errors
    /// When it ends otherwise, or not at all.
    pub fn killed(mut self) -> anyhow::Result<()> {
        let status = self.ended()?;
        ensure!(
            status.signal() == Some(9),
            "{} was to be killed, and ended with {status}:\n{}",
            self.name,
            self.said()
        );
        Ok(())
    }

    /// Whether it has ended. If not, its size is noted.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn has_ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.bounds.look(self.place);
        let status = self.child.try_wait()?;
        if status.is_some() {
            self.bounds.ended(self.place);
        }
        Ok(status)
    }

    /// Waits until it has said something.
    ///
    /// # Errors
    /// When it never does, or ends.
    pub fn wait_for(&mut self, text: &str) -> anyhow::Result<()> {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if self.said().contains(text) {
                return Ok(());
            }
            if let Some(status) = self.has_ended()? {
                bail!("{} ended ({status}):\n{}", self.name, self.said());
            }
            std::thread::sleep(LOOK);
        }
        bail!("{} never said {text:?}:\n{}", self.name, self.said())
    }

    /// All that it has said so far.
    #[must_use]
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.bounds.look(self.place);
        // It has ended already when it was waited for.
        drop(self.child.kill());
        drop(self.child.wait());
        self.bounds.ended(self.place);
    }
}

/// A program of the workspace, as it was built beside the running one.
///
/// # Errors
/// When it is not there.
pub(crate) fn built(program: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own.parent().context("a program lies in a folder")?;
    // Tests lie one folder deeper than programs.
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
