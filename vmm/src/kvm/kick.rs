//! Getting a vCPU thread out of `KVM_RUN` (KVM api.rst 5, `immediate_exit`).
//!
//! A signal alone loses a race: it may land after the loop has looked at its flags and before it
//! enters the kernel. Its handler therefore sets `immediate_exit` in the thread's own `kvm_run`,
//! which makes the next `KVM_RUN` return at once.
//!
//! No kick is lost. A real-time signal would be refused when as many signals wait for all processes of husk's user
//! together as `RLIMIT_SIGPENDING` allows (setrlimit(2)); a standard one always stays pending, if without saying who
//! sent it (`__send_signal_locked` in Linux' `kernel/signal.c`).

#![expect(unsafe_code, reason = "a signal handler that writes to the shared kvm_run page")]

use std::cell::Cell;
use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::sync::atomic::{AtomicU8, Ordering, compiler_fence};
use std::thread::JoinHandle;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{register_signal_handler, unblock_signal};

/// What interrupts a vCPU's thread. Nobody else in husk has a use for it, and a process that does not handle it ignores
/// it.
pub(super) const KICK: libc::c_int = libc::SIGURG;

thread_local! {
    /// `kvm_run.immediate_exit` of the vCPU that this thread runs.
    static IMMEDIATE_EXIT: Cell<*const AtomicU8> = const { Cell::new(ptr::null()) };
}

/// Interrupts vCPU threads. Making one installs the handler for the whole process.
#[derive(Clone, Copy, Debug)]
pub struct Kicker(());

impl Kicker {
    /// Installs the signal handler.
    ///
    /// # Errors
    /// What `sigaction` says.
    pub fn install() -> io::Result<Self> {
        register_signal_handler(KICK, on_kick)
            .map(|()| Self(()))
            .map_err(|e| io::Error::from_raw_os_error(e.errno()))
    }

    /// Makes the vCPU that `thread` runs leave, or not enter, `KVM_RUN`. A thread that has ended is left alone.
    pub fn kick<T>(self, thread: &JoinHandle<T>) {
        // SAFETY: the handle has not been joined, so the pthread_t is valid even if the thread has returned.
        let sent = unsafe { libc::pthread_kill(thread.as_pthread_t(), KICK) };
        debug_assert!(sent == 0 || sent == libc::ESRCH, "pthread_kill: {sent}");
    }
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: `Armed` keeps the pointer non-null only while the kvm_run mapping is alive on this very thread.
        unsafe { (*flag).store(1, Ordering::Relaxed) };
    }
}

/// While it lives, a kick reaches the vCPU that it was made for. Must stay on the thread that made it.
#[derive(Debug)]
pub struct Armed(*const AtomicU8);

impl Armed {
    /// Points this thread's handler at `vcpu`. Lets kicks through, should whoever started husk have blocked them:
    /// threads inherit that.
    ///
    /// # Safety
    /// What this returns has to be dropped, on this thread, before `vcpu` is: until then the handler writes to what
    /// `vcpu` has mapped.
    pub unsafe fn new(vcpu: &mut VcpuFd) -> Self {
        let unblocked = unblock_signal(KICK);
        debug_assert!(unblocked.is_ok(), "{unblocked:?}");
        let flag = (&raw mut vcpu.get_kvm_run().immediate_exit)
            .cast::<AtomicU8>()
            .cast_const();
        IMMEDIATE_EXIT.set(flag);
        Self(flag)
    }

    /// Forgets a kick that has been noticed. What the caller looks at next, to find out what it was for, it looks at
    /// after this: a kick that comes later is not forgotten.
    pub fn clear(&self) {
        // SAFETY: points into the mapping of the vCPU, which outlives `self`, as `new` demands.
        unsafe { (*self.0).store(0, Ordering::Relaxed) };
        // The handler runs on this very thread, so it is the compiler alone that could bring a look forward.
        compiler_fence(Ordering::SeqCst);
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null());
    }
}
