//! Whether something waits in an eventfd, without taking it and without waiting.

#![expect(unsafe_code, reason = "poll(2)")]

use std::os::fd::AsRawFd;

use vmm_sys_util::eventfd::EventFd;

/// Whether `event` has been written to and not been read since.
pub(super) fn is_readable(event: &EventFd) -> bool {
    let mut polled = libc::pollfd {
        fd: event.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: the kernel writes to the local alone, during the call only.
    unsafe { libc::poll(&raw mut polled, 1, 0) > 0 }
}
