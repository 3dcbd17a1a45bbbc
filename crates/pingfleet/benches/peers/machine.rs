//! The machine, the versions and the command that the figures belong to; and what the benchmark needs but does not
//! install.

use std::{
    fmt::Write,
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::ensure;

use crate::{
    Case,
    site::{scratch, workspace},
};

/// Fails with all that is missing.
pub(crate) fn require(cases: &[Case]) -> anyhow::Result<()> {
    let mut missing = Vec::new();
    let mut program = |name: &str, package: &str| {
        let found = Command::new(name)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok();
        if !found {
            missing.push(format!("{name} (apt-get install {package})"));
        }
    };
    program("ip", "iproute2");
    program("fping", "fping");
    if cases.contains(&Case::Rtt) {
        program("ping", "iputils-ping");
    }
    if cases.iter().any(|case| case.needs_broker()) && !scripts().join("rabbitmq-server").exists() {
        missing.push(
            "rabbitmq-server (apt-get install rabbitmq-server, or RABBITMQ_BIN=its folder)"
                .to_owned(),
        );
    }
    if !rustix::process::geteuid().is_root() {
        missing.push("root, for network namespaces".to_owned());
    }
    ensure!(
        missing.is_empty(),
        "the benchmark needs {}",
        missing.join(", ")
    );
    Ok(())
}

/// Where the testbed finds RabbitMQ.
fn scripts() -> PathBuf {
    std::env::var_os("RABBITMQ_BIN").map_or_else(|| "/usr/lib/rabbitmq/bin".into(), Into::into)
}

/// Lines of the form `key: value`.
pub(crate) fn describe() -> anyhow::Result<String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let load = fs::read_to_string("/proc/loadavg")?;
    let memory = fs::read_to_string("/proc/meminfo")?;
    let mut lines = String::new();
    for (key, value) in [
        (
            "cpu",
            model.map_or("unknown", |(_, model)| model).to_owned(),
        ),
        ("cores", std::thread::available_parallelism()?.to_string()),
        (
            "memory",
            memory
                .lines()
                .next()
                .unwrap_or_default()
                .replace("MemTotal:", "")
                .trim()
                .to_owned(),
        ),
        ("kernel", said("uname", &["-sr"])),
        (
            "file system",
            said(
                "findmnt",
                &["-n", "-o", "FSTYPE", "-T", &scratch().to_string_lossy()],
            ),
        ),
        (
            "load at the start",
            load.split(' ').next().unwrap_or_default().to_owned(),
        ),
        ("fping", said("fping", &["--version"])),
        ("ping", said("ping", &["-V"])),
        ("rabbitmq", rabbitmq()),
        ("sqlite", rusqlite::version().to_owned()),
        ("rustc", said("rustc", &["--version"])),
        (
            "pingfleet",
            said("git", &["describe", "--always", "--dirty"]),
        ),
        ("date", said("date", &["-u", "+%Y-%m-%d %H:%M UTC"])),
        (
            "command",
            format!("cargo bench -p pingfleet --bench peers -- {}", arguments()),
        ),
    ] {
        writeln!(lines, "{key}: {}", value.trim())?;
    }
    Ok(lines)
}

fn arguments() -> String {
    let arguments: Vec<_> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    arguments.join(" ")
}

/// The first line of a program's output.
fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(workspace())
        .output();
    output.map_or_else(
        |_| "none".to_owned(),
        |output| {
            String::from_utf8_lossy(&output.stdout)
                .lines()
                .next()
                .unwrap_or_default()
                .to_owned()
        },
    )
}

/// RabbitMQ's version, from the name of the folder of its scripts.
fn rabbitmq() -> String {
    let scripts = scripts()
        .join("rabbitmq-server")
        .canonicalize()
        .unwrap_or_default();
    let names = scripts.iter().map(|name| name.to_string_lossy());
    let versions: Vec<_> = names
        .filter_map(|name| Some(name.strip_prefix("rabbitmq_server-")?.to_owned()))
        .collect();
    versions
        .first()
        .map_or_else(|| "unknown".to_owned(), Clone::clone)
}
