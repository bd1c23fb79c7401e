//! What tests of inputs and outputs need.

use std::fs::File;
use std::path::PathBuf;

use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
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

/// A pseudo-terminal: its master, and the other side in raw mode. No program inherits either.
pub fn pty() -> (File, File) {
    let (master, slave) = cooked_pty();
    let mut settings = tcgetattr(&slave).unwrap();
    settings.make_raw();
    tcsetattr(&slave, OptionalActions::Now, &settings).unwrap();
    (master, slave)
}

/// A pseudo-terminal as the kernel makes it: its master, and the other side. No program inherits either.
pub fn cooked_pty() -> (File, File) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags).unwrap();
    unlockpt(&master).unwrap();
    let slave = ioctl_tiocgptpeer(&master, flags).unwrap();
    (master.into(), slave.into())
}
