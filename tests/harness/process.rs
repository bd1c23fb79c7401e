//! What a shim does to a process before it runs the VMM in it. The only unsafe code of the pod's harness.
#![expect(unsafe_code, reason = "namespaces, limits and pseudo-terminals")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Makes what `command` starts run in a network namespace of its own, if this user may, and with at
/// most `nofile` descriptors.
pub(crate) fn isolate(command: &mut Command, nofile: Option<u64>) {
    let hook = move || {
        // SAFETY: a flag. Without the privilege the process stays where it is, as with a shim that
        // ignores a failing `setns`.
        let _ = check(unsafe { libc::unshare(libc::CLONE_NEWNET) });
        if let Some(limit) = nofile {
            let limit = libc::rlimit {
                rlim_cur: limit,
                rlim_max: limit,
            };
            // SAFETY: the pointer is to an rlimit that the call reads.
            check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })?;
        }
        Ok(())
    };
    // SAFETY: the hook makes two system calls and does not allocate.
    unsafe { command.pre_exec(hook) };
}

/// `TUNSETIFF`, include/uapi/linux/if_tun.h.
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;

/// Opens a new tap interface as the Rust shim does, non-blocking and with a vnet header. It is gone
/// with its last descriptor.
///
/// # Errors
///
/// There is no `/dev/net/tun`, this user may not, or the name is taken.
pub fn tap(name: &str) -> io::Result<File> {
    let mut tun = std::fs::OpenOptions::new();
    tun.read(true).write(true);
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut tun, libc::O_NONBLOCK);
    let tun = tun.open("/dev/net/tun")?;
    // SAFETY: a structure of integers; all zeroes is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, byte) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = byte.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags.try_into().map_err(io::Error::other)?;
    // SAFETY: the request reads and fills an ifreq.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF, &raw mut request) })?;
    Ok(tun)
}

/// A new pseudo-terminal: its master and its other side, neither of which a program inherits.
pub(crate) fn terminal() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, flags)?;
    Ok((master, slave))
}
