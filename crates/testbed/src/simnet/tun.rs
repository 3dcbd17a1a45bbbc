//! Opens a TUN device: what the kernel routes to it is read from a file, and what is written to that file arrives
//! from it (Linux: Documentation/networking/tuntap.rst). The one system call without a safe wrapper is here.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
};

use nix::libc;

/// `struct ifreq` as TUNSETIFF reads it: a name, flags, and the rest of a union of 24 bytes.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

nix::ioctl_write_ptr_bad!(
    /// Makes a device for the open file, or takes over one of that name.
    set_interface,
    libc::TUNSETIFF,
    InterfaceRequest
);

/// Makes the device `name` in the network namespace of the calling thread. Each read or write is one IP packet. The
/// device is removed with the file. Reading never blocks.
pub(super) fn open(name: &str) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    let mut request = InterfaceRequest {
        name: [0; libc::IFNAMSIZ],
        flags: (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short,
        rest: [0; 22],
    };
    if name.len() >= request.name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the file is open, and the request is a whole, initialised `struct ifreq` that outlives the call.
    unsafe { set_interface(file.as_raw_fd(), &raw const request) }?;
    Ok(file)
}
