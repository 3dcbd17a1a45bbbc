//! Addresses of an answering prefix answer, others are silent, and a node inside is reached from inside only.

use std::net::{Ipv4Addr, TcpStream};

use anyhow::ensure;
use pingfleet_testbed::{Namespace, Rabbit};

fn answers(namespace: &Namespace, address: &str) -> anyhow::Result<bool> {
    let ping = namespace
        .command("ping")
        .args(["-q", "-n", "-c", "1", "-W", "1", address])
        .output()?;
    // 1 is ping's word for "no answer"; anything else is a failure to ask.
    ensure!(
        matches!(ping.status.code(), Some(0 | 1)),
        "{}",
        String::from_utf8_lossy(&ping.stderr)
    );
    Ok(ping.status.success())
}

#[test]
fn a_prefix_answers_and_its_neighbours_are_silent() -> anyhow::Result<()> {
    let namespace = Namespace::answering("10.0.0.0/9")?;
    namespace.answer("fd00:10::/64")?;
    for address in ["10.0.0.1", "10.127.255.254", "fd00:10::1", "fd00:10::abcd"] {
        assert!(answers(&namespace, address)?, "{address}");
    }
    for address in ["10.128.0.1", "fd00:11::1"] {
        assert!(!answers(&namespace, address)?, "{address}");
    }
    let name = namespace.prober().to_owned();
    drop(namespace);
    assert!(!std::path::Path::new("/run/netns").join(name).exists());
    Ok(())
}

#[test]
fn a_node_in_a_namespace_serves_that_alone() -> anyhow::Result<()> {
    let namespace = Namespace::answering("10.0.0.0/24")?;
    let rabbit = Rabbit::start_in(&namespace)?;
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, rabbit.port())).is_err());
    let connect = format!("exec 3<>/dev/tcp/127.0.0.1/{}", rabbit.port());
    let connected = namespace.command("bash").args(["-c", &connect]).status()?;
    assert!(connected.success());
    Ok(())
}
