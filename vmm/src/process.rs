//! What is set up once, while the process has a single thread and nobody has to be waited for.

#![expect(
    unsafe_code,
    reason = "descriptors by their numbers: those of the parent, and a high one that makes the table grow; mallopt(3)"
)]

use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use rustix::process::{Resource, Rlimit, setrlimit};

/// Descriptors that a VM may need.
const DESCRIPTORS: RawFd = 255;
/// Descriptors that a server of files has use for.
const MOST_DESCRIPTORS: u64 = 1_000_000;

/// Prepares the process for the threads it will have. To be called before the first of them, and before any filter.
pub fn prepare() {
    grow_descriptor_table();
    share_heap();
    allow_all_descriptors();
}

/// The same for a process that serves files. Most descriptors, 0 for as many as there are now; if nothing is said, as many as the host
/// allows, up to a million.
///
/// # Errors
/// Of a limit that was asked for, what the host says.
pub fn prepare_files(most: Option<u64>) -> std::io::Result<()> {
    grow_descriptor_table();
    share_heap();
    let Some(most) = most else {
        let allowed = std::fs::read_to_string("/proc/sys/fs/nr_open").ok();
        let allowed = allowed.and_then(|text| text.trim().parse().ok());
        if limit_descriptors(allowed.unwrap_or(MOST_DESCRIPTORS).min(MOST_DESCRIPTORS)).is_err() {
            allow_all_descriptors();
        }
        return Ok(());
    };
    if most == 0 { Ok(()) } else { limit_descriptors(most) }
}

fn limit_descriptors(most: u64) -> std::io::Result<()> {
    let limit = Rlimit {
        current: Some(most),
        maximum: Some(most),
    };
    Ok(setrlimit(Resource::Nofile, limit)?)
}

/// A copy of descriptor `fd`, which this process was started with.
///
/// # Errors
/// There is none of that number.
pub fn inherited(fd: RawFd) -> std::io::Result<OwnedFd> {
    // SAFETY: not -1, and only duplicated at once, which fails for a number that is no open descriptor.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    fd.try_clone_to_owned()
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
