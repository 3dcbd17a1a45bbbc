//! A temporary folder for one test, and programs that run in it.

use std::{
    collections::BTreeMap,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io::{BufRead, BufReader, Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, ensure};

/// Seconds after which a program is killed because it hangs.
const MAX_SECONDS: &str = "90";

/// Nothing listens there, so that no test uses a broker that it did not start.
pub(crate) const NO_BROKER: &str = "amqp://guest:guest@127.0.0.1:1/%2f";

/// The user and group `nobody`.
const NOBODY: &str = "65534";

/// A folder in which programs run. It is removed on drop.
pub(crate) struct TestDir {
    folder: tempfile::TempDir,
    /// Copies of the programs that every user can start: the build folder may be in a private home folder.
    programs: tempfile::TempDir,
}

/// The files of a folder by name, with length and hash.
type Files = BTreeMap<String, (usize, u64)>;

/// A program that is not started yet.
pub(crate) struct Call {
    command: Command,
    stdin: Vec<u8>,
    name: String,
}

/// A program that has ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) name: String,
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl TestDir {
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            folder: open_folder()?,
            programs: open_folder()?,
        })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file, and returns its full name.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> anyhow::Result<String> {
        let path = self.path(name);
        fs::write(&path, content)?;
        Ok(path
            .to_str()
            .context("the test's folders have plain names")?
            .to_owned())
    }

    /// All files of the folder, to notice what a failure leaves behind or changes.
    pub(crate) fn files(&self) -> anyhow::Result<Files> {
        let mut files = Files::new();
        for entry in fs::read_dir(self.folder.path())? {
            let entry = entry?;
            let content = if entry.file_type()?.is_file() {
                fs::read(entry.path())?
            } else {
                Vec::new()
            };
            let mut hasher = DefaultHasher::new();
            content.hash(&mut hasher);
            let name = entry.file_name().to_string_lossy().into_owned();
            files.insert(name, (content.len(), hasher.finish()));
        }
        Ok(files)
    }

    /// A program with its arguments, to run in this folder, without a broker and without the caller's settings.
    pub(crate) fn call(&self, program: &str, arguments: &[&str]) -> anyhow::Result<Call> {
        self.call_as(Command::new("timeout"), program, arguments)
    }

    /// The same inside `wrapped`, a command such as `ip netns exec NAME timeout`.
    pub(crate) fn call_as(
        &self,
        mut wrapped: Command,
        program: &str,
        arguments: &[&str],
    ) -> anyhow::Result<Call> {
        wrapped
            .args(["--kill-after=30", MAX_SECONDS])
            .arg(built(program)?);
        Ok(self.prepare(wrapped, program, arguments))
    }

    /// The same as the user `nobody`, without any capability.
    pub(crate) fn call_as_nobody(
        &self,
        mut wrapped: Command,
        program: &str,
        arguments: &[&str],
    ) -> anyhow::Result<Call> {
        wrapped
            .args(["--kill-after=30", MAX_SECONDS, "setpriv"])
            .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"])
            .args(["--bounding-set=-all", "--inh-caps=-all"])
            .arg(self.for_everybody(program)?);
        Ok(self.prepare(wrapped, program, arguments))
    }

    fn for_everybody(&self, program: &str) -> anyhow::Result<PathBuf> {
        let copy = self.programs.path().join(program);
        let own = built(program)?;
        if !copy.exists() && fs::hard_link(&own, &copy).is_err() {
            fs::copy(&own, &copy)?;
        }
        Ok(copy)
    }

    fn prepare(&self, mut command: Command, program: &str, arguments: &[&str]) -> Call {
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PINGFLEET_") {
                command.env_remove(name);
            }
        }
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env_remove("NO_COLOR")
            .env("PINGFLEET_BROKER__URL", NO_BROKER)
            // Tests run at the same time, and all pages would have the same port.
            .env("PINGFLEET_DASHBOARD__LISTEN", "off");
        Call {
            command,
            stdin: Vec::new(),
            name: format!("{program} {}", arguments.join(" ")),
        }
    }

    /// Starts a program without waiting for its end. It is killed on drop, or when this process ends.
    pub(crate) fn start(
        &self,
        program: &str,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> anyhow::Result<Started> {
        let mut wrapped = Command::new("setpriv");
        wrapped.args(["--pdeathsig", "KILL"]).arg(built(program)?);
        let mut call = self.prepare(wrapped, program, arguments);
        let child = call
            .command
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", call.name))?;
        Ok(Started(child))
    }

    /// The same with its standard error in the file `log` of this folder.
    pub(crate) fn start_with_log(
        &self,
        program: &str,
        arguments: &[&str],
        log: &str,
    ) -> anyhow::Result<Started> {
        self.start_logged(Command::new("setpriv"), program, arguments, log, |_| {})
    }

    /// The same with more variables, and as a service: without a terminal.
    pub(crate) fn start_as_service(
        &self,
        program: &str,
        arguments: &[&str],
        environment: &[(&str, String)],
        log: &str,
    ) -> anyhow::Result<Started> {
        let mut wrapped = Command::new("setsid");
        wrapped.arg("setpriv");
        self.start_logged(wrapped, program, arguments, log, |command| {
            command.envs(environment.iter().map(|(name, value)| (name, value)));
        })
    }

    /// The same with the broker and the login of a settings file.
    pub(crate) fn start_with_login(
        &self,
        program: &str,
        file: &str,
        arguments: &[&str],
        log: &str,
    ) -> anyhow::Result<Started> {
        let arguments = [&["--config", file], arguments].concat();
        self.start_logged(
            Command::new("setpriv"),
            program,
            &arguments,
            log,
            |command| {
                command.env_remove("PINGFLEET_BROKER__URL");
            },
        )
    }

    /// Starts it by way of `setpriv`, with which `wrapped` ends.
    fn start_logged(
        &self,
        mut wrapped: Command,
        program: &str,
        arguments: &[&str],
        log: &str,
        change: impl FnOnce(&mut Command),
    ) -> anyhow::Result<Started> {
        wrapped.args(["--pdeathsig", "KILL"]).arg(built(program)?);
        let mut call = self.prepare(wrapped, program, arguments);
        change(&mut call.command);
        let child = call
            .command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(self.path(log))?)
            .spawn()
            .with_context(|| format!("cannot start {}", call.name))?;
        Ok(Started(child))
    }

    /// Runs `pingfleet` to its end.
    pub(crate) fn pingfleet(&self, arguments: &[&str]) -> anyhow::Result<Finished> {
        self.call("pingfleet", arguments)?.end()
    }

    /// Runs a shell command in this folder, with the programs on its path.
    pub(crate) fn shell(&self, line: &str) -> anyhow::Result<Finished> {
        let folder = built("pingfleet")?;
        let folder = folder.parent().context("a program lies in a folder")?;
        let path = std::env::var("PATH")?;
        let mut wrapped = Command::new("timeout");
        wrapped
            .args(["--kill-after=30", MAX_SECONDS, "bash"])
            .env("PATH", format!("{}:{path}", folder.display()));
        self.prepare(wrapped, line, &["-c", line]).end()
    }

    /// The output of `sqlite3` for a statement.
    pub(crate) fn sqlite3(&self, database: &str, statement: &str) -> anyhow::Result<String> {
        let output = Command::new("sqlite3")
            .arg(self.path(database))
            .arg(statement)
            .output()
            .context("no sqlite3: apt-get install sqlite3")?;
        ensure!(
            output.status.success(),
            "sqlite3: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// A database with one complete run, of 127.0.0.1.
    pub(crate) fn swept(&self, database: &str) -> anyhow::Result<()> {
        self.pingfleet(&["sweep", "--db", database, "127.0.0.1"])?
            .ends_with(0);
        Ok(())
    }
}

impl Call {
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn stdin(mut self, text: &str) -> Self {
        text.as_bytes().clone_into(&mut self.stdin);
        self
    }

    /// Sends SIGINT after its first printed line, and waits for its end.
    pub(crate) fn interrupted(self) -> anyhow::Result<Finished> {
        self.signalled("INT")
    }

    /// Sends a signal after its first printed line, and waits for its end. `timeout` forwards the signal twice, to the
    /// program and to its process group; that must not count as a second signal.
    pub(crate) fn signalled(mut self, signal: &str) -> anyhow::Result<Finished> {
        let mut child = self
            .command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", self.name))?;
        let mut stdout = BufReader::new(child.stdout.take().context("standard output is a pipe")?);
        let mut printed = String::new();
        stdout.read_line(&mut printed)?;
        let pid = child.id().to_string();
        let status = Command::new("kill")
            .args([&format!("-{signal}"), &pid])
            .status()?;
        ensure!(status.success(), "{} finished after {printed:?}", self.name);
        stdout.read_to_string(&mut printed)?;
        let output = child.wait_with_output()?;
        Ok(Finished {
            name: self.name,
            code: output.status.code(),
            stdout: printed,
            stderr: String::from_utf8(output.stderr)?,
        })
    }

    /// Runs it to its end.
    pub(crate) fn end(mut self) -> anyhow::Result<Finished> {
        let mut child = self
            .command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", self.name))?;
        let mut stdin = child.stdin.take().context("standard input is a pipe")?;
        // Fails if the program does not read its input.
        drop(stdin.write_all(&self.stdin));
        drop(stdin);
        let output = child.wait_with_output()?;
        Ok(Finished {
            name: self.name,
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout)?,
            stderr: String::from_utf8(output.stderr)?,
        })
    }
}

/// A running program.
pub(crate) struct Started(Child);

impl Started {
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Its command line, which every user of this machine can read.
    pub(crate) fn command_line(&self) -> anyhow::Result<String> {
        let line = fs::read(format!("/proc/{}/cmdline", self.0.id()))?;
        Ok(String::from_utf8(line)?.replace('\0', " "))
    }
}

impl Started {
    /// Waits for its end, and returns its exit code.
    pub(crate) fn wait(&mut self) -> anyhow::Result<Option<i32>> {
        Ok(self.0.wait()?.code())
    }

    /// Whether it has not ended.
    pub(crate) fn is_running(&mut self) -> anyhow::Result<bool> {
        Ok(self.0.try_wait()?.is_none())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Finished {
    /// Checks that it ended with this code and without a panic.
    #[track_caller]
    pub(crate) fn ends_with(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}: {self:#?}", self.name);
        assert!(!self.stderr.contains("panicked"), "{self:#?}");
        self
    }

    /// Checks that it failed with this code and with one message that contains all `parts`, and printed no data.
    #[track_caller]
    pub(crate) fn fails(self, code: i32, parts: &[&str]) -> Self {
        let finished = self.ends_with(code);
        assert_eq!(finished.stdout, "", "{finished:#?}");
        let messages = finished
            .stderr
            .lines()
            .filter(|line| line.starts_with("error: "))
            .count();
        assert_eq!(messages, 1, "{finished:#?}");
        let message = &finished.stderr[finished.stderr.find("error: ").unwrap_or(0)..];
        for part in parts {
            assert!(message.contains(part), "no {part:?} in {finished:#?}");
        }
        finished
    }

    /// Checks that its output does not contain this text.
    #[track_caller]
    pub(crate) fn hides(self, secret: &str) -> Self {
        assert!(!self.stdout.contains(secret), "{self:#?}");
        assert!(!self.stderr.contains(secret), "{self:#?}");
        self
    }

    /// The lines on standard output, each read as JSON.
    pub(crate) fn json(&self) -> anyhow::Result<Vec<serde_json::Value>> {
        self.stdout
            .lines()
            .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
            .collect()
    }
}

/// The path of a program of the workspace, in the same folder as the program under test.
pub(crate) fn built(program: &str) -> anyhow::Result<PathBuf> {
    let own = Path::new(env!("CARGO_BIN_EXE_pingfleet"));
    let path = own
        .parent()
        .context("a program lies in a folder")?
        .join(program);
    ensure!(
        path.exists(),
        "no {}: build it with `cargo build --workspace --bins`",
        path.display()
    );
    Ok(path)
}

/// A folder that other users can read.
fn open_folder() -> anyhow::Result<tempfile::TempDir> {
    let folder = tempfile::Builder::new()
        .prefix("pingfleet-cli-")
        .tempdir()?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    Ok(folder)
}
