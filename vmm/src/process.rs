//! What is set up once, while the process has a single thread and nobody has to be waited for.

#![expect(
    unsafe_code,
    reason = "descriptors by their numbers: those of the parent, and a high one that makes the table grow; mallopt(3)"
)]

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

use rustix::process::{Resource, Rlimit, setrlimit};

/// Descriptors that a VM may need.
const DESCRIPTORS: RawFd = 255;
/// Descriptors that a server of files has use for.
const MOST_DESCRIPTORS: u64 = 1_000_000;

/// Closes what the parent has left open and no argument names, but for standard input, output and error: a lock or the
/// end of a pipe, which husk would hold for its whole life. To be called before the process has opened anything: a
/// number is nobody's else then.
///
/// An argument names a descriptor by `fd=N` or `fd=N:M…`, by `--fd N`, and by a path such as `/dev/fd/N`.
pub fn close_inherited(args: &[OsString]) {
    let mut first = 3;
    for kept in named_descriptors(args) {
        if kept > first {
            close_range(first, kept - 1);
        }
        first = first.max(kept.saturating_add(1));
    }
    close_range(first, u32::MAX);
}

/// close_range(2). What the host refuses stays open.
fn close_range(first: u32, last: u32) {
    // SAFETY: numbers only, of descriptors that nothing in this process has: its caller is the first to look at any.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
}

/// The descriptors that `args` name.
fn named_descriptors(args: &[OsString]) -> BTreeSet<u32> {
    let mut named = BTreeSet::new();
    for (at, arg) in args.iter().enumerate() {
        let bytes = arg.as_bytes();
        for (start, window) in bytes.windows(3).enumerate() {
            if matches!(window, b"fd=" | b"fd/") {
                named.extend(leading_numbers(&bytes[start + 3..]));
            }
        }
        if arg == "--fd" {
            named.extend(
                args.get(at + 1)
                    .map(OsString::as_os_str)
                    .map(OsStr::as_bytes)
                    .into_iter()
                    .flat_map(leading_numbers),
            );
        }
    }
    named
}

/// The numbers that `text` begins with, with colons between them.
fn leading_numbers(text: &[u8]) -> impl Iterator<Item = u32> {
    let is_number = |byte: &u8| byte.is_ascii_digit() || *byte == b':';
    let end = text.iter().position(|byte| !is_number(byte)).unwrap_or(text.len());
    let numbers = text[..end].split(|byte| *byte == b':');
    numbers.filter_map(|number| str::from_utf8(number).ok()?.parse().ok())
}

/// Prepares the process for the threads it will have. To be called before the first of them, and before any filter.
pub fn prepare() {
    grow_descriptor_table();
    share_heap();
    allow_all_descriptors();
}

/// The same for a process that serves files. Most descriptors, 0 for as many as there are now; if
/// nothing is said, as many as the host allows, up to a million.
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
    // SAFETY: duplicates a descriptor to a number of at least DESCRIPTORS; failure leaves the table
    // small, which only costs time.
    let high = unsafe { libc::fcntl(libc::STDERR_FILENO, libc::F_DUPFD_CLOEXEC, DESCRIPTORS) };
    if high >= 0 {
        // SAFETY: closes the duplicate that was just made.
        unsafe { libc::close(high) };
    }
}

/// Has every thread allocate where the first one does. glibc gives threads heaps of their own, of
/// 64 MiB of addresses each, which grow by mprotect and look into `/proc` before they shrink: no
/// thread that is confined to its role can do either. The process's first heap needs brk, and is
/// enough: what is hot here allocates nothing.
fn share_heap() {
    // SAFETY: numbers only; malloc takes its own lock.
    let done = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    debug_assert_eq!(done, 1, "glibc knows M_ARENA_MAX");
}

/// Raises the limit on open descriptors as far as the process may: each vsock stream is one. With
/// less, streams are refused earlier.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_name_descriptors_by_option_and_by_path() {
        let named = |args: &[&str]| {
            let args: Vec<OsString> = args.iter().map(OsString::from).collect();
            named_descriptors(&args).into_iter().collect::<Vec<_>>()
        };
        assert_eq!(named(&["husk", "--api-socket", "fd=3", "--metrics=fd=12"]), [3, 12]);
        assert_eq!(
            named(&["husk", "run", "--net", "id=a,fd=4:5:60,mac=02:00:00:00:00:07"]),
            [4, 5, 60]
        );
        assert_eq!(named(&["husk", "fs", "--fd", "3", "--shared-dir=/d"]), [3]);
        assert_eq!(named(&["virtiofsd", "--fd=7"]), [7]);
        let paths = [
            "husk",
            "run",
            "--kernel",
            "/dev/fd/63",
            "--disk",
            "path=/proc/self/fd/9,readonly=on",
        ];
        assert_eq!(named(&paths), [9, 63]);
        assert!(
            named(&[
                "husk",
                "--api-socket",
                "/run/3/api.sock",
                "--fd",
                "x",
                "fd=-1",
                "fd=99999999999"
            ])
            .is_empty()
        );
    }
}
