//! Permission to open ICMP sockets. Without it, a program prints the fixes and writes nothing. If the kernel allows
//! every group to ping, no privilege is needed. Each test has its own network namespace.

use anyhow::ensure;
use pingfleet_testbed::Namespace;

use crate::rig::TestDir;

/// A namespace in which these groups may open datagram ICMP sockets.
pub(crate) fn namespace(groups: &str) -> anyhow::Result<Namespace> {
    let namespace = Namespace::answering("10.0.0.0/24")?;
    let set = "printf %s \"$1\" > /proc/sys/net/ipv4/ping_group_range";
    let status = namespace
        .command("sh")
        .args(["-c", set, "set", groups])
        .status()?;
    ensure!(status.success(), "cannot set ping_group_range to {groups}");
    Ok(namespace)
}

/// An empty range of groups.
pub(crate) const NO_GROUP: &str = "1 0";

/// The range of all groups.
pub(crate) const EVERY_GROUP: &str = "0 2147483647";

#[test]
fn without_permission_nothing_is_written_and_both_fixes_are_printed() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    let namespace = namespace(NO_GROUP)?;
    let parts = [
        "net.ipv4.ping_group_range=\"0 2147483647\"",
        "cap_net_raw",
        "root",
    ];
    for (program, arguments) in [
        ("pingfleet", ["sweep", "127.0.0.1"].as_slice()),
        ("ping-worker", &[]),
    ] {
        dir.call_as_nobody(namespace.command("timeout"), program, arguments)?
            .end()?
            .fails(4, &parts);
        assert!(dir.files()?.is_empty());
    }
    Ok(())
}

#[test]
fn any_user_can_sweep_if_the_kernel_allows_every_group() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    let namespace = namespace(EVERY_GROUP)?;
    std::fs::create_dir(dir.path("own"))?;
    std::os::unix::fs::chown(dir.path("own"), Some(65534), Some(65534))?;
    for (target, database) in [("127.0.0.1", "own/v4.db"), ("::1", "own/v6.db")] {
        let arguments = ["sweep", "-a", target, "--db", database];
        let finished = dir
            .call_as_nobody(namespace.command("timeout"), "pingfleet", &arguments)?
            .end()?
            .ends_with(0);
        assert_eq!(finished.stdout.trim(), target);
    }
    Ok(())
}
