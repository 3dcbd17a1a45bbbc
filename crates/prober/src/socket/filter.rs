//! A filter for raw sockets, which otherwise receive all ICMP messages of the machine.
//!
//! Source: Linux `linux/filter.h` (classic BPF).

use std::io;

use socket2::{SockFilter, Socket};

/// Lets a raw socket receive echo replies to `identifier`, and with `errors` also ICMP messages that are neither echo
/// requests nor replies. The error queue is not filtered.
pub(crate) fn receive_only(
    socket: &Socket,
    identifier: u16,
    v6: bool,
    errors: bool,
) -> io::Result<()> {
    const LDX_IMM: u16 = 0x01;
    const LDX_MSH: u16 = 0xb1;
    const LDB_IND: u16 = 0x50;
    const LDH_IND: u16 = 0x48;
    const JEQ: u16 = 0x15;
    const RET: u16 = 0x06;
    // An IPv4 raw socket receives the IP header, an IPv6 one begins at ICMPv6.
    let (header, request, reply) = if v6 {
        (LDX_IMM, 128, 129)
    } else {
        (LDX_MSH, 8, 0)
    };
    // Instructions to skip for a message that is no reply: to the acceptance, or to the rejection.
    let no_reply = if errors { 2 } else { 3 };
    socket.attach_filter(&[
        SockFilter::new(header, 0, 0, 0),
        SockFilter::new(LDB_IND, 0, 0, 0),
        SockFilter::new(JEQ, 4, 0, request),
        SockFilter::new(JEQ, 0, no_reply, reply),
        SockFilter::new(LDH_IND, 0, 0, 4),
        SockFilter::new(JEQ, 0, 1, identifier.into()),
        SockFilter::new(RET, 0, 0, u32::MAX),
        SockFilter::new(RET, 0, 0, 0),
    ])
}
