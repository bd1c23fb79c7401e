//! vsock streams, of a guest or of its host (vsock(7)): system calls that the standard library does not offer.
#![expect(unsafe_code, reason = "sockets of a family that the standard library does not know")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// The context of a guest's host.
pub const HOST: u32 = libc::VMADDR_CID_HOST;

/// Listens on port `port` for connections from any context.
///
/// # Errors
///
/// The kernel has no vsock, or the port is taken.
pub fn listen(port: u32) -> io::Result<OwnedFd> {
    let socket = socket()?;
    let (address, length) = address_of(libc::VMADDR_CID_ANY, port)?;
    // SAFETY: pointer and length describe `address`.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    // SAFETY: no memory is involved.
    check(unsafe { libc::listen(socket.as_raw_fd(), 1024) })?;
    Ok(socket)
}

/// Connects to port `port` of context `cid`; a guest's host is 2.
///
/// # Errors
///
/// The kernel has no vsock, or nobody listens there.
pub fn connect(cid: u32, port: u32) -> io::Result<UnixStream> {
    let socket = socket()?;
    let (address, length) = address_of(cid, port)?;
    // SAFETY: pointer and length describe `address`.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    Ok(UnixStream::from(socket))
}

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    let fd = check(unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the call made the descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address_of(cid: u32, port: u32) -> io::Result<(libc::sockaddr_vm, libc::socklen_t)> {
    // SAFETY: sockaddr_vm is integers; all zeroes is a value.
    let mut address: libc::sockaddr_vm = unsafe { MaybeUninit::zeroed().assume_init() };
    address.svm_family = libc::sa_family_t::try_from(libc::AF_VSOCK).map_err(io::Error::other)?;
    address.svm_cid = cid;
    address.svm_port = port;
    let length = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
    Ok((address, length))
}

/// The next connection of a listening socket. `UnixStream` reads, writes and shuts down any stream socket.
///
/// # Errors
///
/// As accept(2).
pub fn accept(listener: &OwnedFd) -> io::Result<UnixStream> {
    // SAFETY: no address is asked for.
    let fd = check(unsafe {
        libc::accept4(
            listener.as_raw_fd(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            libc::SOCK_CLOEXEC,
        )
    })?;
    // SAFETY: the call made the descriptor, and nobody else has it.
    Ok(UnixStream::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}
