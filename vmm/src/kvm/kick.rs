//! Getting a vCPU thread out of `KVM_RUN` (KVM api.rst 5, `immediate_exit`).
//!
//! A signal alone loses a race: it may land after the loop has looked at its flags and before it enters the kernel. Its handler
//! therefore sets `immediate_exit` in the thread's own `kvm_run`, which makes the next `KVM_RUN` return at once.

#![expect(unsafe_code, reason = "a signal handler that writes to the shared kvm_run page")]

use std::cell::Cell;
use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

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
        register_signal_handler(SIGRTMIN(), on_kick)
            .map(|()| Self(()))
            .map_err(|e| io::Error::from_raw_os_error(e.errno()))
    }

    /// Makes the vCPU that `thread` runs leave, or not enter, `KVM_RUN`. A thread that has ended is left alone.
    pub fn kick<T>(self, thread: &JoinHandle<T>) {
        // SAFETY: the handle has not been joined, so the pthread_t is valid even if the thread has returned.
        unsafe { libc::pthread_kill(thread.as_pthread_t(), SIGRTMIN()) };
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
    /// Points this thread's handler at `vcpu`.
    pub fn new(vcpu: &mut VcpuFd) -> Self {
        let flag = (&raw mut vcpu.get_kvm_run().immediate_exit)
            .cast::<AtomicU8>()
            .cast_const();
        IMMEDIATE_EXIT.set(flag);
        Self(flag)
    }

    /// Forgets a kick that has been noticed.
    pub fn clear(&self) {
        // SAFETY: points into the mapping that the vCPU holds; the caller keeps the vCPU for as long as `self`.
        unsafe { (*self.0).store(0, Ordering::Relaxed) };
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null());
    }
}
