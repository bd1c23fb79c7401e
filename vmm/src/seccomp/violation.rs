//! The end of a process that made a call which its filter does not allow.
//!
//! The call has not been carried out when the kernel sends SIGSYS (seccomp(2), `SECCOMP_RET_TRAP`).
//! The handler of signals ([`fatal`](crate::fatal)) has what was tried said here, and the process
//! ended; whatever else it would do, it would do in a process that can no longer be trusted.

#![expect(
    unsafe_code,
    reason = "part of a signal handler, which keeps to signal-safe functions"
)]

use super::names::name;
use crate::fatal::LineBuffer;

/// What the process's exit code is then: that of a shell's command killed by SIGSYS.
pub const EXIT_CODE: libc::c_int = 128 + libc::SIGSYS;

/// `SYS_SECCOMP` (asm-generic/siginfo.h): why a filter sends SIGSYS.
const SYS_SECCOMP: libc::c_int = 1;

/// The head of `siginfo_t`, with the fields of SIGSYS (sigaction(2)).
#[repr(C)]
struct SigsysInfo {
    signo: libc::c_int,
    errno: libc::c_int,
    code: libc::c_int,
    call_addr: *mut libc::c_void,
    syscall: libc::c_int,
    arch: libc::c_uint,
}

const _: () = assert!(size_of::<SigsysInfo>() <= size_of::<libc::siginfo_t>());

/// Whether a filter sent this signal. Anybody who may can send SIGSYS, too.
pub fn is_violation(signal: libc::c_int, info: &libc::siginfo_t) -> bool {
    signal == libc::SIGSYS && info.si_code == SYS_SECCOMP
}

/// Says which call was tried, and ends the process with [`EXIT_CODE`].
pub fn end_on_violation(info: &libc::siginfo_t) -> ! {
    // SAFETY: the structure begins as siginfo_t does, and is no longer; every field is a number.
    let info = unsafe { &*(&raw const *info).cast::<SigsysInfo>() };
    let mut line = LineBuffer::default();
    compose(&mut line, info.syscall);
    line.say();
    // SAFETY: ends the process at once, without the functions that `exit` would call.
    unsafe { libc::_exit(EXIT_CODE) }
}

fn compose(line: &mut LineBuffer, call: libc::c_int) {
    line.push(b"seccomp: thread ");
    line.push_thread();
    line.push(b" of process ");
    line.push_process();
    line.push(b" made system call ");
    line.push_number(call);
    if let Some(name) = name(call) {
        line.push(b" (");
        line.push(name.as_bytes());
        line.push(b")");
    }
    line.push(b", which it has no need of; husk ends here (see docs/seccomp.md)");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_names_thread_and_call() {
        let named = std::thread::Builder::new().name("vcpu0".into()).spawn(|| {
            let mut line = LineBuffer::default();
            compose(&mut line, 59);
            line.text()
        });
        assert_eq!(
            named.unwrap().join().unwrap(),
            format!(
                "seccomp: thread vcpu0 of process {} made system call 59 (execve), which it has no need of; husk ends here (see \
                 docs/seccomp.md)",
                std::process::id()
            )
        );
    }
}
