//! What tests of inputs and outputs need.

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;
use std::path::PathBuf;

use tempfile::TempDir;

/// A new FIFO in `folder`.
pub fn fifo(folder: &TempDir) -> PathBuf {
    let path = folder.path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    path
}

/// A pseudo-terminal: its master, and the other side in raw mode.
pub fn pty() -> (File, File) {
    let (mut master, mut slave) = (-1, -1);
    // SAFETY: all zeroes is a termios, which is filled before it is used.
    let mut raw: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: changes the structure and nothing else.
    unsafe { libc::cfmakeraw(&raw mut raw) };
    // SAFETY: two places for descriptors, and settings to read.
    let made = unsafe {
        libc::openpty(
            &raw mut master,
            &raw mut slave,
            std::ptr::null_mut(),
            &raw const raw,
            std::ptr::null(),
        )
    };
    assert_eq!(made, 0, "{}", io::Error::last_os_error());
    // SAFETY: two descriptors that nobody else owns.
    unsafe { (File::from_raw_fd(master), File::from_raw_fd(slave)) }
}
