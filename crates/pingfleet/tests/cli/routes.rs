//! Targets that the kernel cannot send to are named before anything is probed.

use std::process::Command;

use pingfleet_testbed::Namespace;

use crate::rig::TestDir;

const NEEDS_ZONE: &str = "fe80::1 and 1 more: a link-local address needs its zone";

#[test]
fn a_link_local_address_without_a_zone_is_named_unless_an_interface_is_given() -> anyhow::Result<()>
{
    let dir = TestDir::new()?;
    let targets = ["--dry-run", "fe80::1", "127.0.0.1", "fe80::2", "fe80::3%lo"];
    for (program, command) in [("pingfleet", Some("sweep")), ("producer", None)] {
        let call = |flags: &[&str]| {
            let command: Vec<_> = command.into_iter().collect();
            let arguments = [command.as_slice(), flags, &targets].concat();
            Ok::<_, anyhow::Error>(dir.call(program, &arguments)?.end()?.ends_with(0).stderr)
        };
        let named = call(&[])?;
        assert!(named.contains(NEEDS_ZONE), "{program}: {named}");
        assert!(!named.contains("cannot send"), "{program}: {named}");
        let named = call(&["-I", "lo"])?;
        assert!(!named.contains("needs its zone"), "{program}: {named}");
    }
    Ok(())
}

#[test]
fn targets_without_a_route_are_named_by_the_sweep_and_not_by_the_producer() -> anyhow::Result<()> {
    let dir = TestDir::new()?;
    // A network in which nothing has a route.
    let alone = || {
        let mut command = Command::new("unshare");
        command.args(["--net", "timeout"]);
        command
    };
    let targets = ["--dry-run", "192.0.2.1", "198.51.100.0/24", "2001:db8::1"];
    let sweep = [["sweep"].as_slice(), &targets].concat();
    let finished = dir.call_as(alone(), "pingfleet", &sweep)?.end()?;
    let named = finished.ends_with(0).stderr;
    let warning = "this machine cannot send to 192.0.2.1 and to at least 3 more (Network is";
    assert!(named.contains(warning), "{named}");
    // Workers have other routes.
    let finished = dir.call_as(alone(), "producer", &targets)?.end()?;
    let named = finished.ends_with(0).stderr;
    assert!(!named.contains("cannot send"), "{named}");
    // Where everything has a route, nothing is named.
    let routed = Namespace::answering("192.0.2.0/24")?;
    let finished = dir.call_as(routed.command("timeout"), "pingfleet", &sweep)?;
    let named = finished.end()?.ends_with(0).stderr;
    assert!(!named.contains("cannot send"), "{named}");
    Ok(())
}
