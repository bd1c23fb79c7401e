//! What a thread that serves has of its own: umask and working directory, no groups, few
//! capabilities, and the label of what it makes.

use std::cell::Cell;
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::Ordering;

use rustix::io::Errno;
use rustix::process::{fchdir, umask};

use super::{Tree, credentials};

/// Where a thread says what label new files get (`man 5 proc`, SELinux).
pub(super) const FSCREATE: &str = "/proc/thread-self/attr/fscreate";

thread_local! {
    static ENTERED: Cell<bool> = const { Cell::new(false) };
}

impl Tree {
    pub(super) fn enter(&self) -> io::Result<()> {
        super::host::own_directories()?;
        umask(rustix::fs::Mode::empty());
        if !self.policy.label_inherited.load(Ordering::Relaxed) {
            self.set_own_label()?;
        }
        fchdir(self.proc.dir())?;
        if self.who.switches() {
            // Else what a caller makes could have a group that only the server is in.
            credentials::set_groups(&[])?;
        }
        credentials::drop_capabilities(self.policy.xattr)?;
        self.restrict()?;
        ENTERED.set(true);
        Ok(())
    }

    /// See [`crate::fs::server::Server::label_process`].
    pub(super) fn label_process(&self) -> io::Result<()> {
        self.set_own_label()?;
        self.policy.label_inherited.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn set_own_label(&self) -> io::Result<()> {
        match &self.policy.label {
            Some(label) => set_label(Some(label)),
            None => Ok(()),
        }
    }
}

/// Whether the thread was prepared: else a name in `/proc/self/fd` would be one of some other directory.
pub(super) fn check() -> Result<(), Errno> {
    if ENTERED.get() { Ok(()) } else { Err(Errno::IO) }
}

/// Has the thread make files with `label`, or with what the host thinks right.
pub(super) fn set_label(label: Option<&CStr>) -> io::Result<()> {
    write_label(FSCREATE.as_ref(), label)
}

/// In one call, which is the kernel's condition; the end of the text is a part of it
/// (`security_setprocattr`, Linux `fs/proc/base.c`).
pub(super) fn write_label(file: &Path, label: Option<&CStr>) -> io::Result<()> {
    File::options()
        .write(true)
        .open(file)?
        .write_all(label.map_or(&b"\0"[..], CStr::to_bytes_with_nul))
}
