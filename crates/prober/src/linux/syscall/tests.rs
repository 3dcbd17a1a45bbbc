//! Stamps of requests over loopback, where they are taken within the call that sends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use socket2::Type;

use super::{
    SendStamps::{Off, On, Paused},
    *,
};
use crate::{
    linux::{clocks::Clocks, message::EchoFormat, socket},
    socket::Egress,
};

/// Sends request number `number`, whose answer nobody waits for, and returns the stamps that are in the error queue then,
/// with the moment of each.
fn stamps_of(
    socket: &Socket,
    outgoing: &mut Outgoing,
    number: usize,
    stamps: SendStamps,
) -> Vec<u32> {
    set_send_stamps(socket, stamps).expect("the kernel stamps");
    let before = std::time::Instant::now();
    let sent = outgoing.send(socket, number..number + 1);
    let after = std::time::Instant::now();
    assert_eq!(sent, Ok(1));
    set_send_stamps(socket, Paused).expect("the kernel stamps");
    let mut queue = ErrorQueue::new();
    let mut keys = Vec::new();
    while queue
        .read(socket, |queued| match queued {
            Queued::Error(error) => panic!("an error of type {}", error.icmp_type),
            Queued::Stamp(stamp) => {
                let left = Clocks::read().departure(stamp.left, before);
                assert!(left.is_some_and(|left| left <= after), "{stamp:?}");
                keys.push(stamp.key);
            }
        })
        .is_ok()
    {}
    let pending = socket.take_error().expect("the socket is open");
    assert!(pending.is_none(), "{pending:?}");
    keys
}

fn check(v6: bool, preferred: Type) {
    let opened = socket::open(&Egress::plain(v6), preferred, None).expect("root opens sockets");
    let to: IpAddr = if v6 {
        Ipv6Addr::LOCALHOST.into()
    } else {
        Ipv4Addr::LOCALHOST.into()
    };
    let echo = EchoFormat::new(v6, opened.kind == Type::RAW, opened.identifier);
    let mut outgoing = Outgoing::new();
    for request_id in 0..3 {
        let write = |bytes: &mut Vec<u8>| echo.write(bytes, request_id, to, 24);
        outgoing.push((to, 0).into(), write);
    }
    let mut keys = |number, stamps| stamps_of(&opened.socket, &mut outgoing, number, stamps);
    assert_eq!(
        keys(0, Off),
        [],
        "control: without stamps the queue is empty"
    );
    // Requests without a stamp are not counted.
    assert_eq!(keys(0, On), [0]);
    assert_eq!(keys(1, Paused), []);
    assert_eq!(keys(2, On), [1]);
    set_send_stamps(&opened.socket, Off).expect("the kernel stamps");
    assert_eq!(keys(0, On), [0], "the count starts again");
    // What is received has its timestamp as before.
    let mut received = 0;
    let mut incoming = Incoming::new(EchoFormat::longest_reply(24));
    while incoming
        .receive(&opened.socket, |message| {
            assert!(message.arrived.is_some());
            received += 1;
        })
        .is_ok()
    {}
    assert_eq!(received, 5);
}

#[tokio::test]
async fn a_stamp_has_a_key_and_leaves_other_messages_alone() {
    for v6 in [false, true] {
        // Without permission for datagram sockets both are raw; a test namespace permits them.
        for preferred in [Type::DGRAM, Type::RAW] {
            check(v6, preferred);
        }
    }
}
