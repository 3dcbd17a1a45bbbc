//! Runs programs and measures them: seconds, and the kernel's figures for processor time and peak memory.

use std::{
    fs,
    io::{Read, Seek},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

/// Ticks of processor time a second in `/proc` (`USER_HZ`), on every architecture that Ubuntu has.
const TICKS_PER_SECOND: f64 = 100.0;

/// How often the peak of memory is read. The kernel keeps the peak, so only growth in the last moment can be missed.
const SAMPLE: Duration = Duration::from_millis(5);

/// A program that takes longer to start hangs.
const MAX_START_TIME: Duration = Duration::from_mins(1);

/// The result of programs that ran at once.
#[derive(Debug)]
pub(crate) struct Ran {
    /// From the start of the first to the end of the last.
    pub(crate) seconds: f64,
    /// User and system time of all of them.
    pub(crate) cpu_seconds: f64,
    /// The sum of their peaks.
    pub(crate) peak_kb: u64,
    /// Whether all of them succeeded.
    pub(crate) success: bool,
    /// What they printed.
    pub(crate) stdout: String,
    /// Their standard error.
    pub(crate) stderr: String,
}

/// Runs programs at once until all have exited.
pub(crate) fn run(commands: Vec<Command>) -> anyhow::Result<Ran> {
    let mut outputs = Vec::new();
    for _ in &commands {
        outputs.push([tempfile::tempfile()?, tempfile::tempfile()?]);
    }
    let began = Instant::now();
    let mut children = Vec::new();
    for (mut command, [stdout, stderr]) in commands.into_iter().zip(&outputs) {
        command
            .stdin(Stdio::null())
            .stdout(stdout.try_clone()?)
            .stderr(stderr.try_clone()?);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        children.push(Killed(child));
    }
    let pids: Vec<u32> = children.iter().map(|child| child.0.id()).collect();
    let ended = AtomicBool::new(false);
    let (waited, peak_kb) = thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let mut peaks = vec![0; pids.len()];
            while !ended.load(Ordering::Relaxed) {
                for (peak, pid) in peaks.iter_mut().zip(&pids) {
                    *peak = peak_kb(*pid).unwrap_or(*peak);
                }
                thread::sleep(SAMPLE);
            }
            peaks.into_iter().sum()
        });
        let waited = wait(&pids);
        let seconds = began.elapsed().as_secs_f64();
        ended.store(true, Ordering::Relaxed);
        let peak_kb = sampler
            .join()
            .map_err(|_| anyhow::anyhow!("the sampler panicked"));
        (waited.map(|cpu_seconds| (seconds, cpu_seconds)), peak_kb)
    });
    let (seconds, cpu_seconds) = waited?;
    let mut success = true;
    for child in &mut children {
        success &= child.0.wait()?.success();
    }
    let [mut stdout, mut stderr] = [String::new(), String::new()];
    for [out, err] in &mut outputs {
        for (file, text) in [(out, &mut stdout), (err, &mut stderr)] {
            file.rewind()?;
            file.read_to_string(text)?;
        }
    }
    Ok(Ran {
        seconds,
        cpu_seconds,
        peak_kb: peak_kb?,
        success,
        stdout,
        stderr,
    })
}

/// Waits until all have exited, and returns their processor time. They are not reaped yet.
fn wait(pids: &[u32]) -> anyhow::Result<f64> {
    for pid in pids {
        waitid(
            WaitId::Pid(process(*pid)?),
            WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
        )?;
    }
    pids.iter().map(|pid| cpu_seconds(*pid)).sum()
}

/// A program that runs until it is stopped, at the latest when this value is dropped.
#[derive(Debug)]
pub(crate) struct Service {
    name: String,
    child: Killed,
    log: tempfile::NamedTempFile,
}

impl Service {
    /// Starts it and waits until its log contains `ready`.
    pub(crate) fn start(mut command: Command, name: &str, ready: &str) -> anyhow::Result<Self> {
        let log = tempfile::NamedTempFile::new()?;
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.reopen()?)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let mut service = Self {
            name: name.to_owned(),
            child: Killed(child),
            log,
        };
        let began = Instant::now();
        // A log cannot be awaited.
        while !service.said()?.contains(ready) {
            let ended = service.child.0.try_wait()?;
            ensure!(
                ended.is_none() && began.elapsed() < MAX_START_TIME,
                "{name} is not ready:\n{}",
                service.said()?
            );
            thread::sleep(SAMPLE);
        }
        Ok(service)
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.0.id()
    }

    /// Its processor time so far.
    pub(crate) fn cpu_seconds(&self) -> anyhow::Result<f64> {
        cpu_seconds(self.child.0.id())
    }

    /// Its peak of memory so far.
    pub(crate) fn peak_kb(&self) -> anyhow::Result<u64> {
        peak_kb(self.child.0.id()).with_context(|| format!("{} has ended", self.name))
    }

    /// Stops it (SIGTERM) and waits until it has exited.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        kill_process(process(self.child.0.id())?, Signal::TERM)?;
        let status = self.child.0.wait()?;
        ensure!(
            status.success(),
            "{} ended with {status}:\n{}",
            self.name,
            self.said()?
        );
        Ok(())
    }

    fn said(&self) -> anyhow::Result<String> {
        Ok(fs::read_to_string(self.log.path())?)
    }
}

/// A child that does not outlive this value.
#[derive(Debug)]
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It has exited already, unless something failed.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn process(pid: u32) -> anyhow::Result<Pid> {
    Pid::from_raw(pid.try_into()?).context("no process has the number 0")
}

/// `VmHWM` (`proc_pid_status(5)`); `None` when the process has exited.
fn peak_kb(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// `utime` and `stime` (`proc_pid_stat(5)`), also of a process that has ended and was not waited for.
fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is a name in parentheses, which may hold anything.
    let Some((_, fields)) = stat.rsplit_once(')') else {
        bail!("/proc/{pid}/stat: {stat}");
    };
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(str::parse::<u64>)
        .sum::<Result<_, _>>()?;
    Ok(ticks as f64 / TICKS_PER_SECOND)
}
