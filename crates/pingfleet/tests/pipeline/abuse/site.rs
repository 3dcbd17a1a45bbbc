//! A writer with its page, a broker and a worker, on loopback; and clients of the page.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use pingfleet_faults::{ChildProcess, Deployment, MAX_WAIT};
use pingfleet_testbed::Rabbit;

/// The targets of a run. The kernel answers for all of 127.0.0.0/8.
const TARGETS: &str = "127.1.0.0/20";

/// Rows in many commits.
const RUN: [&str; 6] = ["--rate", "1000", "--chunk-size", "50", "--retries", "1"];

/// A deployment whose writer serves a page.
pub(super) struct Site {
    writer: ChildProcess,
    _worker: ChildProcess,
    pub(super) address: SocketAddr,
    /// Dropped last: the others have files in its folder.
    deployment: Deployment,
}

impl Site {
    pub(super) fn start(token: Option<&str>) -> Result<Self> {
        let deployment = Deployment::with_shared_broker(Rabbit::start()?, "pingfleet")?;
        deployment.set_env("PINGFLEET_DASHBOARD__LISTEN", "127.0.0.1:0");
        if let Some(token) = token {
            let file = deployment.folder().join("token");
            fs::write(&file, token)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
            deployment.set_env("PINGFLEET_DASHBOARD__TOKEN_FILE", crate::text(&file));
        }
        let mut writer = deployment.start("consumer-writer", &[])?;
        writer.wait_for_output("live page ready")?;
        writer.wait_for_output("writer ready")?;
        let log = writer.output();
        let address = log.split_once("http://").map(|(_, rest)| rest);
        let address = address.and_then(|rest| Some(rest.split_once('/')?.0));
        let mut worker = deployment.start("ping-worker", &["--name", "one"])?;
        worker.wait_for_output("worker ready")?;
        Ok(Self {
            address: address.context("the address of the page")?.parse()?,
            deployment,
            writer,
            _worker: worker,
        })
    }

    /// Starts a run.
    pub(super) fn start_run(&self) -> Result<ChildProcess> {
        let arguments = [&[TARGETS][..], &RUN].concat();
        self.deployment.start("producer", &arguments)
    }

    /// A run from its start to its end.
    pub(super) fn run(&self) -> Result<()> {
        let status = self.start_run()?.wait()?;
        ensure!(status.success(), "the producer ended: {status}");
        self.assert_complete()
    }

    /// Every target of the newest run has exactly one row.
    pub(super) fn assert_complete(&self) -> Result<()> {
        let proof = self.deployment.verify()?;
        ensure!(
            proof.is_complete() && proof.proven_targets > 4000,
            "{proof:?}"
        );
        Ok(())
    }

    /// The answer to a request with these headers, up to its end; of an event stream, its head.
    pub(super) fn ask(&self, path: &str, headers: &str) -> Result<String> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(MAX_WAIT))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\n{headers}\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = Vec::new();
        let mut part = [0; 4096];
        loop {
            let count = stream.read(&mut part)?;
            answer.extend_from_slice(&part[..count]);
            let is_whole = path == "/events" && answer.windows(4).any(|end| end == b"\r\n\r\n");
            if count == 0 || is_whole {
                return Ok(String::from_utf8_lossy(&answer).into_owned());
            }
        }
    }

    /// Waits until a page is answered.
    pub(super) fn wait_until_answered(&self) -> Result<()> {
        let began = Instant::now();
        let own = format!("Host: {}", self.address);
        loop {
            // While connections of the attack still count, another one is closed.
            if let Ok(answer) = self.ask("/", &own)
                && status(&answer) == 200
            {
                return Ok(());
            }
            ensure!(began.elapsed() < MAX_WAIT, "the page is not answered");
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// The process of the writer.
    pub(super) fn writer(&self) -> u32 {
        self.writer.pid()
    }

    /// The memory of the writer now, in KiB.
    pub(super) fn memory_kib(&self) -> Result<u64> {
        memory_kib(self.writer())
    }
}

/// The resident memory of a process, in KiB (`proc_pid_status(5)`).
pub(super) fn memory_kib(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.context("no VmRSS")?.parse()?)
}

/// How many sockets a process has open.
pub(super) fn sockets(pid: u32) -> Result<usize> {
    let mut sockets = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // One that was closed meanwhile does not count.
        if let Ok(target) = fs::read_link(entry?.path()) {
            sockets += usize::from(target.to_string_lossy().starts_with("socket:"));
        }
    }
    Ok(sockets)
}

/// The status of an answer; 0 if there is none.
pub(super) fn status(answer: &str) -> u16 {
    let code = answer
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3));
    code.and_then(|code| code.parse().ok()).unwrap_or(0)
}
