//! A folder for one test, and programs that run in it to their end.

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

/// Nothing here takes longer, in seconds, unless it hangs.
const LONGEST: &str = "90";

/// Nobody listens there: no test meets a broker that it did not start.
pub(crate) const NO_BROKER: &str = "amqp://guest:guest@127.0.0.1:1/%2f";

/// The user and group `nobody`.
const NOBODY: &str = "65534";

/// A folder in which programs run. It is removed when it is dropped.
pub(crate) struct Room {
    folder: tempfile::TempDir,
    /// Programs where every user may start them: the target folder may lie in somebody's home.
    programs: tempfile::TempDir,
}

/// The files of a folder by their names, with their lengths and fingerprints.
type Files = BTreeMap<String, (usize, u64)>;

/// A program that is yet to run.
pub(crate) struct Call {
    command: Command,
    stdin: Vec<u8>,
    name: String,
}

/// A program that has run.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) name: String,
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Room {
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

    /// All files of the folder: whatever a failure leaves behind or changes shows here.
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

    /// A program with its arguments, to run in this folder. It meets no broker, and no settings of the caller.
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
            .args(["--kill-after=30", LONGEST])
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
            .args(["--kill-after=30", LONGEST, "setpriv"])
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
            .env("PINGFLEET_BROKER__URL", NO_BROKER);
        Call {
            command,
            stdin: Vec::new(),
            name: format!("{program} {}", arguments.join(" ")),
        }
    }

    /// Starts a program, for what happens before its end. It is killed with its value, or with this process.
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

    /// Runs `pingfleet` to its end.
    pub(crate) fn pingfleet(&self, arguments: &[&str]) -> anyhow::Result<Ended> {
        self.call("pingfleet", arguments)?.end()
    }

    /// Runs a line of the shell in this folder, with the programs on its path.
    pub(crate) fn shell(&self, line: &str) -> anyhow::Result<Ended> {
        let folder = built("pingfleet")?;
        let folder = folder.parent().context("a program lies in a folder")?;
        let path = std::env::var("PATH")?;
        let mut wrapped = Command::new("timeout");
        wrapped
            .args(["--kill-after=30", LONGEST, "bash"])
            .env("PATH", format!("{}:{path}", folder.display()));
        self.prepare(wrapped, line, &["-c", line]).end()
    }

    /// What `sqlite3` says to a statement.
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
        self.pingfleet(&["--db", database, "sweep", "127.0.0.1"])?
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

    /// Sends SIGINT when it has printed its first line, and waits for its end. `timeout` passes it on twice, to the
    /// program and to its group: that must not count as a second signal.
    pub(crate) fn interrupted(mut self) -> anyhow::Result<Ended> {
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
        let status = Command::new("kill").args(["-INT", &pid]).status()?;
        ensure!(status.success(), "{} ended after {printed:?}", self.name);
        stdout.read_to_string(&mut printed)?;
        let output = child.wait_with_output()?;
        Ok(Ended {
            name: self.name,
            code: output.status.code(),
            stdout: printed,
            stderr: String::from_utf8(output.stderr)?,
        })
    }

    /// Runs it to its end.
    pub(crate) fn end(mut self) -> anyhow::Result<Ended> {
        let mut child = self
            .command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", self.name))?;
        let mut stdin = child.stdin.take().context("standard input is a pipe")?;
        // One that reads no input has closed it.
        drop(stdin.write_all(&self.stdin));
        drop(stdin);
        let output = child.wait_with_output()?;
        Ok(Ended {
            name: self.name,
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout)?,
            stderr: String::from_utf8(output.stderr)?,
        })
    }
}

/// A program that runs.
pub(crate) struct Started(Child);

impl Started {
    /// Its command line, as everybody on this machine can read it.
    pub(crate) fn command_line(&self) -> anyhow::Result<String> {
        let line = fs::read(format!("/proc/{}/cmdline", self.0.id()))?;
        Ok(String::from_utf8(line)?.replace('\0', " "))
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Ended {
    /// It ended with this code, and without a panic.
    #[track_caller]
    pub(crate) fn ends_with(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}: {self:#?}", self.name);
        assert!(!self.stderr.contains("panicked"), "{self:#?}");
        self
    }

    /// It failed with this code and one message, which has all of `parts`, and printed no data.
    #[track_caller]
    pub(crate) fn fails(self, code: i32, parts: &[&str]) -> Self {
        let ended = self.ends_with(code);
        assert_eq!(ended.stdout, "", "{ended:#?}");
        let messages = ended
            .stderr
            .lines()
            .filter(|line| line.starts_with("error: "))
            .count();
        assert_eq!(messages, 1, "{ended:#?}");
        let message = &ended.stderr[ended.stderr.find("error: ").unwrap_or(0)..];
        for part in parts {
            assert!(message.contains(part), "no {part:?} in {ended:#?}");
        }
        ended
    }

    /// It shows this text nowhere.
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

/// A program of the workspace, as it was built beside this test's own.
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

/// A folder that other users may look into.
fn open_folder() -> anyhow::Result<tempfile::TempDir> {
    let folder = tempfile::Builder::new()
        .prefix("pingfleet-cli-")
        .tempdir()?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    Ok(folder)
}
