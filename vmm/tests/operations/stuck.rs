//! A thread that stops as if it were in the kernel for ever.

#![expect(
    unsafe_code,
    reason = "ptrace(2) stops one thread of a process and lets the others go on"
)]

use std::io;

use crate::guests::thread_of;
use crate::process::Husk;

/// A thread that does nothing any more, whatever it is asked. Only the thread that made this may end it.
pub(crate) struct Stuck(libc::pid_t);

impl Stuck {
    pub(crate) fn new(husk: &Husk, name: &str) -> Self {
        let thread = thread_of(husk.child.id(), name);
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: numbers only; the tracee is a thread of a child.
        let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, thread, none, none) };
        assert_eq!(seized, 0, "{}", io::Error::last_os_error());
        // SAFETY: as above.
        let stopped = unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, thread, none, none) };
        assert_eq!(stopped, 0, "{}", io::Error::last_os_error());
        let stuck = Self(thread);
        assert!(libc::WIFSTOPPED(stuck.wait()));
        stuck
    }

    /// Waits until the thread has stopped, or has ended with its process.
    pub(crate) fn wait(&self) -> libc::c_int {
        let mut status = 0;
        // SAFETY: the call fills a number.
        let waited = unsafe { libc::waitpid(self.0, &raw mut status, libc::__WALL) };
        assert_eq!(waited, self.0, "{}", io::Error::last_os_error());
        status
    }

    /// Lets it go on.
    pub(crate) fn release(self) {}
}

impl Drop for Stuck {
    /// Also when a test fails: its process could not be waited for.
    fn drop(&mut self) {
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: numbers only. Fails if it has ended.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, none, none) };
    }
}
