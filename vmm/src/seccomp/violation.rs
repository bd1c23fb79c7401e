//! The end of a process that made a call which its filter does not allow.
//!
//! The call has not been carried out when the kernel sends SIGSYS (seccomp(2), `SECCOMP_RET_TRAP`). The handler says what was tried
//! and ends the process; whatever else it would do, it would do in a process that can no longer be trusted.

#![expect(unsafe_code, reason = "a signal handler, which keeps to signal-safe functions")]

use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::ptr;
use std::sync::Once;

use crate::terminal;

/// What the process's exit code is then: that of a shell's command killed by SIGSYS.
pub const EXIT_CODE: libc::c_int = 128 + libc::SIGSYS;

/// `SYS_SECCOMP` (asm-generic/siginfo.h): why a filter sends SIGSYS.
const SYS_SECCOMP: libc::c_int = 1;
/// A thread's name with its NUL (prctl(2), `PR_GET_NAME`).
const NAME_BYTES: usize = 16;

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

/// From now on a forbidden call ends the process with a message and [`EXIT_CODE`].
pub(super) fn report() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: all zeroes is a sigaction with an empty mask.
        let mut action = unsafe { MaybeUninit::<libc::sigaction>::zeroed().assume_init() };
        action.sa_sigaction = on_sigsys as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: a handler of the right form. Cannot fail for this signal; if it did, the kernel would end the process, silently.
        unsafe { libc::sigaction(libc::SIGSYS, &raw const action, ptr::null_mut()) };
    });
}

extern "C" fn on_sigsys(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    terminal::restore();
    // SAFETY: the kernel gives an SA_SIGINFO handler a siginfo; every field is a number, whoever sent the signal.
    let info = unsafe { &*info.cast::<SigsysInfo>() };
    let mut name = [0_u8; NAME_BYTES];
    // SAFETY: fills the name, which has room for it.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    let call = (info.code == SYS_SECCOMP).then_some(info.syscall);
    let mut text = Text::default();
    compose(&mut text, &name, call);
    // SAFETY: standard error is open for as long as the process, or the write fails.
    let stderr = unsafe { BorrowedFd::borrow_raw(libc::STDERR_FILENO) };
    // A reader that does not read must not keep this process alive.
    if terminal::has_room(stderr) {
        // SAFETY: the bytes are the text's own.
        unsafe { libc::write(libc::STDERR_FILENO, text.bytes.as_ptr().cast(), text.len) };
    }
    // SAFETY: ends the process at once, without the functions that `exit` would call.
    unsafe { libc::_exit(EXIT_CODE) }
}

fn compose(text: &mut Text, name: &[u8; NAME_BYTES], call: Option<libc::c_int>) {
    text.push(b"ERRO: seccomp: ");
    match call {
        None => text.push(b"somebody sent SIGSYS to thread "),
        Some(_) => text.push(b"thread "),
    }
    text.push(name.split(|byte| *byte == 0).next().unwrap_or_default());
    if let Some(call) = call {
        text.push(b" made system call ");
        text.push_number(call);
        text.push(b", which it has no need of");
    }
    text.push(b"; husk ends here (see docs/seccomp.md)");
    text.push(terminal::line_end().as_bytes());
}

/// A line of text that needs no allocation. What does not fit is left out.
struct Text {
    bytes: [u8; 192],
    len: usize,
}

impl Default for Text {
    fn default() -> Self {
        Self {
            bytes: [0; 192],
            len: 0,
        }
    }
}

impl Text {
    fn push(&mut self, text: &[u8]) {
        for (place, byte) in self.bytes.iter_mut().skip(self.len).zip(text) {
            *place = *byte;
            self.len += 1;
        }
    }

    fn push_number(&mut self, number: libc::c_int) {
        let mut digits = [0_u8; 10];
        let mut rest = number.unsigned_abs();
        let mut first = digits.len();
        for (at, digit) in digits.iter_mut().enumerate().rev() {
            *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
            (rest, first) = (rest / 10, at);
            if rest == 0 {
                break;
            }
        }
        if number < 0 {
            self.push(b"-");
        }
        self.push(digits.get(first..).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(name: &[u8; NAME_BYTES], call: Option<libc::c_int>) -> String {
        let mut text = Text::default();
        compose(&mut text, name, call);
        String::from_utf8(text.bytes[..text.len].to_vec()).unwrap()
    }

    #[test]
    fn the_message_names_thread_and_call() {
        assert_eq!(
            said(b"vcpu0\0garbage\0\0\0", Some(59)),
            "ERRO: seccomp: thread vcpu0 made system call 59, which it has no need of; husk ends here (see docs/seccomp.md)\n"
        );
        assert!(said(b"a-name-of-16-byt", Some(i32::MIN)).contains("a-name-of-16-byt made system call -2147483648,"));
        assert!(said(&[0; NAME_BYTES], Some(0)).contains("call 0,"));
    }

    #[test]
    fn a_signal_that_no_filter_sent_is_told_apart() {
        assert!(said(b"husk\0\0\0\0\0\0\0\0\0\0\0\0", None).contains("somebody sent SIGSYS to thread husk; husk ends"));
    }
}
