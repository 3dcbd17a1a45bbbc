//! A private node keeps its data over a kill, and is gone when it is dropped.

use std::net::{Ipv4Addr, Ipv6Addr, TcpStream};

use pingfleet_testbed::Rabbit;

#[test]
fn a_node_comes_back_after_a_kill_with_its_data_and_ends_when_dropped() -> anyhow::Result<()> {
    let mut rabbit = Rabbit::start()?;
    let port = rabbit.port();
    TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    TcpStream::connect((Ipv6Addr::LOCALHOST, port))?;
    rabbit.ctl(&["add_vhost", "kept"])?;

    rabbit.kill();
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err());
    rabbit.start_again()?;
    assert!(rabbit.ctl(&["list_vhosts"])?.contains("kept"));

    rabbit.stop()?;
    rabbit.start_again()?;
    assert!(rabbit.ctl(&["list_vhosts"])?.contains("kept"));
    assert!(rabbit.start_again().is_err(), "it runs already");

    drop(rabbit);
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err());
    Ok(())
}
