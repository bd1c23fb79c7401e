//! A vCPU whose guest waits for a page that will never come is found, and the VM can end.
//!
//! When the host has no page for an access (a file that was shortened, a file system that is full,
//! no huge page left), KVM does not fail: it takes the page for one that has to be read first,
//! halts the vCPU while a worker fetches it (asynchronous page fault), ignores that the worker
//! could not, lets the guest try again, and so on for ever. It fails, with the address, where it
//! may not wait: while the guest takes no interrupts (`kvm_can_do_async_pf` in Linux'
//! `arch/x86/kvm/x86.c`).
//!
//! So for every second of processor time that a vCPU's thread has used, its next instruction is run
//! in the shadow of an STI, as it were: interrupts wait for one instruction. If that is the one
//! that cannot go on, `KVM_RUN` says so. An idle guest uses no time, a busy one leaves KVM once a
//! second. (QEMU's emulation of AMD-V forgets the shadow when it enters a guest: there this finds
//! nothing.)
//!
//! A timer of the thread's own counts that second. It takes one of the signals that its user may have waiting
//! (`RLIMIT_SIGPENDING`, which all processes of the user share): where there is none left, the control thread counts
//! ([`Cpus::remind`](crate::cpus::Cpus::remind)).

#![expect(unsafe_code, reason = "POSIX timers have no safe wrapper in the standard library")]

use std::io;
use std::mem;
use std::ptr;
use std::time::Duration;

use kvm_bindings::{KVM_MP_STATE_RUNNABLE, KVM_VCPUEVENT_VALID_SHADOW, KVM_X86_SHADOW_INT_STI, kvm_vcpu_events};
use kvm_ioctls::VcpuFd;

use super::kick::KICK;

/// How much processor time a vCPU's thread uses between two looks: whole seconds.
pub const BETWEEN_LOOKS: Duration = Duration::from_secs(1);
/// Interrupts are on (Intel SDM vol. 1 §3.4.3.3).
const RFLAGS_IF: u64 = 1 << 9;

/// Kicks the thread that made it, for every [`BETWEEN_LOOKS`] of its processor time, until it is dropped.
#[derive(Debug)]
pub struct Reminder(libc::timer_t);

impl Reminder {
    /// For the thread that calls it.
    ///
    /// # Errors
    /// `EAGAIN` where the user has no signal left for it (`RLIMIT_SIGPENDING`, timer_create(2)).
    pub fn new() -> io::Result<Self> {
        // SAFETY: all zeroes is a value of this plain structure.
        let mut event: libc::sigevent = unsafe { mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = KICK;
        // SAFETY: a number.
        event.sigev_notify_thread_id = unsafe { libc::gettid() };
        let mut timer: libc::timer_t = ptr::null_mut();
        // SAFETY: both structures live for the call.
        let made = unsafe { libc::timer_create(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut event, &raw mut timer) };
        if made != 0 {
            return Err(io::Error::last_os_error());
        }
        let reminder = Self(timer);
        let between = libc::timespec {
            tv_sec: BETWEEN_LOOKS.as_secs().cast_signed(),
            tv_nsec: 0,
        };
        let times = libc::itimerspec {
            it_interval: between,
            it_value: between,
        };
        // SAFETY: the timer was just made, the structure lives for the call.
        let set = unsafe { libc::timer_settime(reminder.0, 0, &raw const times, ptr::null_mut()) };
        if set != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(reminder)
    }
}

impl Drop for Reminder {
    fn drop(&mut self) {
        // SAFETY: made by `new`, deleted once.
        unsafe { libc::timer_delete(self.0) };
    }
}

/// Has KVM say of `vcpu`'s next instruction whether it can go on. To be called between two `KVM_RUN`.
pub(super) fn look(vcpu: &VcpuFd) {
    // A vCPU that halts waits for an interrupt: that must not be held off.
    let runs = vcpu
        .get_mp_state()
        .is_ok_and(|state| state.mp_state == KVM_MP_STATE_RUNNABLE);
    // Without interrupts KVM says so anyway, and no processor takes this state (Intel SDM vol. 3C §27.3.1.5).
    let interrupts = || vcpu.get_regs().is_ok_and(|regs| regs.rflags & RFLAGS_IF != 0);
    if !runs || !interrupts() {
        return;
    }
    if let Ok(events) = vcpu.get_vcpu_events()
        && let Some(shadowed) = in_shadow(events)
        && let Err(errno) = vcpu.set_vcpu_events(&shadowed)
    {
        log::debug!("a vCPU's state cannot be set: {errno}");
    }
}

/// `events` with interrupts held off for one instruction; `None` while something is being
/// delivered, which is not to be disturbed.
fn in_shadow(mut events: kvm_vcpu_events) -> Option<kvm_vcpu_events> {
    let delivering = [
        events.exception.injected,
        events.exception.pending,
        events.interrupt.injected,
        events.nmi.injected,
        events.nmi.pending,
        events.smi.smm,
        events.smi.pending,
    ];
    if delivering.iter().any(|part| *part != 0) {
        return None;
    }
    events.flags = KVM_VCPUEVENT_VALID_SHADOW;
    events.interrupt.shadow = u8::try_from(KVM_X86_SHADOW_INT_STI).ok()?;
    Some(events)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_thread_is_reminded() {
        let busy = std::thread::spawn(|| {
            vmm_sys_util::signal::block_signal(KICK).unwrap();
            let _reminder = Reminder::new().unwrap();
            // SAFETY: all zeroes is a value of this plain structure.
            let mut pending: libc::sigset_t = unsafe { mem::zeroed() };
            loop {
                // SAFETY: the structure lives for both calls.
                let found = unsafe {
                    libc::sigpending(&raw mut pending);
                    libc::sigismember(&raw const pending, KICK)
                };
                if found == 1 {
                    return;
                }
            }
        });
        busy.join().unwrap();
    }

    #[test]
    fn nothing_but_the_shadow_changes() {
        let shadowed = in_shadow(kvm_vcpu_events::default()).unwrap();
        let expected = {
            let mut events = kvm_vcpu_events {
                flags: KVM_VCPUEVENT_VALID_SHADOW,
                ..Default::default()
            };
            events.interrupt.shadow = 2;
            events
        };
        assert_eq!(shadowed, expected);
    }

    #[test]
    fn what_is_being_delivered_is_not_disturbed() {
        let disturb: [fn(&mut kvm_vcpu_events); 5] = [
            |events| events.exception.injected = 1,
            |events| events.interrupt.injected = 1,
            |events| events.nmi.injected = 1,
            |events| events.nmi.pending = 1,
            |events| events.smi.smm = 1,
        ];
        for set in disturb {
            let mut events = kvm_vcpu_events::default();
            set(&mut events);
            assert_eq!(in_shadow(events), None);
        }
    }
}
