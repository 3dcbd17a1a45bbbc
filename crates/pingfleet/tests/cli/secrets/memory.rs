//! The memory and the variables of a program, which have its password, are hidden from the other processes of its user, and
//! no core file has them.

use std::{
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    live::until,
    rig::{NO_BROKER, TestDir},
};

const PASSWORD: &str = "frobozz9Right";

/// Makes a network in which everybody may open ICMP sockets, and runs what follows in it. It may write core files.
const IN_A_NETWORK: &str = "ulimit -c unlimited; ip link set lo up && \
    echo '0 2147483647' >/proc/sys/net/ipv4/ping_group_range && exec \"$@\"";

/// Runs what follows as the user `nobody`, and ends it with this process.
const AS_NOBODY: [&str; 10] = [
    "setpriv",
    "--pdeathsig",
    "KILL",
    "--reuid",
    "65534",
    "--regid",
    "65534",
    "--clear-groups",
    "--bounding-set=-all",
    "--inh-caps=-all",
];

fn as_nobody() -> Command {
    let [setpriv, arguments @ ..] = AS_NOBODY;
    let mut command = Command::new(setpriv);
    command.args(arguments);
    command
}

/// A program of `nobody` that may write core files, with a password in its environment.
fn started(folder: &Path, program: &Path, arguments: &[&str], broker: &str) -> Result<Child> {
    Command::new("unshare")
        .args(["--net", "bash", "-c", IN_A_NETWORK, "bash"])
        .args(AS_NOBODY)
        .arg(program)
        .args(arguments)
        .current_dir(folder)
        .env("PINGFLEET_BROKER__URL", broker)
        .env("PINGFLEET_BROKER__PASSWORD", PASSWORD)
        .env("PINGFLEET_DASHBOARD__LISTEN", "off")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| program.display().to_string())
}

/// Whether a process is this program by now, and no shell before it.
fn is_program(child: &mut Child, program: &str) -> Result<bool> {
    ensure!(child.try_wait()?.is_none(), "{program} has ended");
    let name = std::fs::read_to_string(format!("/proc/{}/comm", child.id()))?;
    Ok(name.trim() == program)
}

/// What another process of `nobody` gets: the variables, and whether it may open the memory.
fn read_by_another(child: &Child) -> Result<(String, bool)> {
    let pid = child.id();
    let variables = as_nobody()
        .args(["cat", &format!("/proc/{pid}/environ")])
        .output()?;
    let memory = as_nobody()
        .args(["bash", "-c", &format!("exec 3</proc/{pid}/mem")])
        .output()?;
    let text = String::from_utf8_lossy(&variables.stdout).into_owned();
    Ok((text, memory.status.success()))
}

/// Aborts a program, and returns whether the kernel has written a core file.
fn core_dumped(mut child: Child) -> Result<bool> {
    let pid = child.id().to_string();
    ensure!(
        Command::new("kill")
            .args(["-ABRT", &pid])
            .status()?
            .success()
    );
    Ok(child.wait()?.core_dumped())
}

#[test]
fn no_other_process_of_the_user_reads_the_password_of_a_program_and_no_core_file_has_it()
-> Result<()> {
    let dir = TestDir::new()?;
    // Core files are written where the program runs.
    let folder = tempfile::tempdir()?;
    std::os::unix::fs::chown(folder.path(), Some(65534), Some(65534))?;
    // Both wait for a broker that never comes.
    for program in ["ping-worker", "consumer-writer"] {
        let mut child = started(folder.path(), &dir.for_everybody(program)?, &[], NO_BROKER)?;
        until("a program that hides", || {
            // First, because the programs that start it hide for moments as well.
            let is_program = is_program(&mut child, program)?;
            let (variables, has_memory) = read_by_another(&child)?;
            Ok((is_program && variables.is_empty() && !has_memory).then_some(()))
        })?;
        ensure!(!core_dumped(child)?, "{program}");
    }
    // The control: a program that does not hide.
    let mut child = started(folder.path(), Path::new("sleep"), &["1000"], NO_BROKER)?;
    until("a program that does not hide", || {
        let is_program = is_program(&mut child, "sleep")?;
        let (variables, has_memory) = read_by_another(&child)?;
        // With Yama only the ancestors of a process may open its memory (the kernel's Yama.rst, ptrace_scope).
        let is_yama = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope")
            .is_ok_and(|scope| scope.trim() != "0");
        let shows_all = variables.contains(PASSWORD) && (has_memory || is_yama);
        Ok((is_program && shows_all).then_some(()))
    })?;
    ensure!(
        core_dumped(child)?,
        "this machine writes no core files: see core(5)"
    );
    Ok(())
}
