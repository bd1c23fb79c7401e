//! What is set up once, while the process has a single thread and nobody has to be waited for.

#![expect(
    unsafe_code,
    reason = "growing the descriptor table by duplicating a descriptor to a high number, and mallopt(3)"
)]

use std::os::fd::RawFd;

/// Descriptors that a VM may need.
const DESCRIPTORS: RawFd = 255;

/// Prepares the process for the threads it will have. To be called before the first of them, and before any filter.
pub fn prepare() {
    grow_descriptor_table();
    share_heap();
    allow_all_descriptors();
}

/// A table that has to grow when there are several threads makes the kernel wait for all of them.
fn grow_descriptor_table() {
    // SAFETY: duplicates a descriptor to a number of at least DESCRIPTORS; failure leaves the table small, which only costs time.
    let high = unsafe { libc::fcntl(libc::STDERR_FILENO, libc::F_DUPFD_CLOEXEC, DESCRIPTORS) };
    if high >= 0 {
        // SAFETY: closes the duplicate that was just made.
        unsafe { libc::close(high) };
    }
}

/// Has every thread allocate where the first one does. glibc gives threads heaps of their own, of 64 MiB of addresses each, which grow by
/// mprotect and look into `/proc` before they shrink: no thread that is confined to its role can do either. The process's first heap needs
/// brk, and is enough: what is hot here allocates nothing.
fn share_heap() {
    // SAFETY: numbers only; malloc takes its own lock.
    let done = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    debug_assert_eq!(done, 1, "glibc knows M_ARENA_MAX");
}

/// Raises the limit on open descriptors as far as the process may: each vsock stream is one. With less, streams are refused earlier.
fn allow_all_descriptors() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the call fills the structure.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0 {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: the call reads the structure.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    }
}
