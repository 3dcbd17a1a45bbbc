//! ICMP sockets, by what the kernel permits: refused with the lines that mend it before anything is written, and no
//! privilege needed where the kernel lets everybody ping. Each test has a network namespace of its own.

use anyhow::ensure;
use pingfleet_testbed::Namespace;

use crate::rig::Room;

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

/// A range that no group is in.
pub(crate) const NO_GROUP: &str = "1 0";

pub(crate) const EVERY_GROUP: &str = "0 2147483647";

#[test]
fn without_permission_nothing_is_written_and_both_ways_out_are_told() -> anyhow::Result<()> {
    let room = Room::new()?;
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
        room.call_as_nobody(namespace.command("timeout"), program, arguments)?
            .end()?
            .fails(4, &parts);
        assert!(room.files()?.is_empty());
    }
    Ok(())
}

#[test]
fn any_user_sweeps_where_the_kernel_lets_everybody_ping() -> anyhow::Result<()> {
    let room = Room::new()?;
    let namespace = namespace(EVERY_GROUP)?;
    std::fs::create_dir(room.path("own"))?;
    std::os::unix::fs::chown(room.path("own"), Some(65534), Some(65534))?;
    for (target, database) in [("127.0.0.1", "own/v4.db"), ("::1", "own/v6.db")] {
        let arguments = ["sweep", "-a", target, "--db", database];
        let ended = room
            .call_as_nobody(namespace.command("timeout"), "pingfleet", &arguments)?
            .end()?
            .ends_with(0);
        assert_eq!(ended.stdout.trim(), target);
    }
    Ok(())
}
