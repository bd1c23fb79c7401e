//! The end of husk by a signal that it did not expect, or by a panic: one line on standard error
//! and in the log that says which, then the death that the signal stands for, so that the parent
//! sees it.
//!
//! | signal | what comes of it |
//! |---|---|
//! | SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT, SIGSYS | a line, then the signal's default action; from a fault or from a sender alike |
//! | SIGXCPU, SIGALRM, SIGRTMIN to SIGRTMAX and others that end a process by default | the same, unless whoever started husk has them ignored |
//! | SIGSYS from a system call filter | `seccomp/violation.rs` |
//! | SIGABRT after a panic | the panic's line, which was there before, and no second one |
//! | SIGPIPE, SIGXFSZ | ignored: the write fails with `EPIPE`, `EFBIG`, and its caller knows what to do |
//! | 32, 33 | ignored, as the C library's own, which it has for threads only and keeps everybody from handling |
//! | SIGURG | a vCPU's, which does not end a process ([`Kicker`](crate::kvm::Kicker)) |
//! | SIGTERM, SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2 and those of a terminal | events of the main loop, where there is one ([`Signals`](crate::terminal::Signals)) |
//!
//! The standard library's own handler of SIGSEGV and SIGBUS is replaced: it takes a signal that
//! somebody has sent for a fault that will happen again, and lets the process live.

#![expect(unsafe_code, reason = "signal handlers, which keep to signal-safe functions")]

mod line;

use std::fmt::Write;
use std::mem::MaybeUninit;
use std::ops::RangeInclusive;
use std::panic::PanicHookInfo;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

pub use line::LineBuffer;

use crate::seccomp;
use crate::terminal;

/// What a fault of the process's own raises. Their handlers stay until the process ends: two
/// threads may have a fault at once.
pub(crate) const FAULTS: [libc::c_int; 5] = [libc::SIGABRT, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE];
/// What else ends a process by default, beside [`real_time`]. A confined thread may not change what these do, so that
/// the kernel resets their handlers.
pub(crate) const OTHERS: [libc::c_int; 11] = [
    libc::SIGSYS,
    libc::SIGTRAP,
    libc::SIGXCPU,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGSTKFLT,
];
/// What tells of a write that fails, which the write does by itself.
const IGNORED: [libc::c_int; 2] = [libc::SIGPIPE, libc::SIGXFSZ];
/// What glibc has for its own threads (SIGCANCEL and SIGSETXID, nptl(7)), and lets nobody handle. From elsewhere they
/// end a process.
const OF_THE_LIBRARY: [libc::c_int; 2] = [32, 33];
/// How long a second thread lets the first one finish its line.
const TURN_MS: libc::c_long = 10;
const TURNS: u32 = 100;

/// From now on an unexpected signal ends the process with a line, and a write beyond a limit fails.
/// A second call does nothing.
pub fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let handler = on_fatal as *const () as libc::sighandler_t;
        let flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        for signal in FAULTS {
            set(signal, handler, flags);
        }
        for signal in OTHERS.into_iter().chain(real_time()) {
            if signal == libc::SIGSYS || !is_ignored(signal) {
                set(signal, handler, flags | libc::SA_RESETHAND);
            }
        }
        for signal in IGNORED {
            set(signal, libc::SIG_IGN, 0);
        }
        for signal in OF_THE_LIBRARY {
            ignore_past_the_library(signal);
        }
        if cfg!(panic = "abort") {
            report_panics();
        }
    });
}

/// Signals without a meaning of their own, all of which end a process by default (signal(7)).
pub(crate) fn real_time() -> RangeInclusive<libc::c_int> {
    libc::SIGRTMIN()..=libc::SIGRTMAX()
}

/// Has the process ignore `signal` if that would end it: should the C library have a handler, or get one later, that
/// stays.
fn ignore_past_the_library(signal: libc::c_int) {
    /// Linux' `struct sigaction` of x86 (uapi/asm/signal.h): handler, flags, restorer, mask.
    type Action = [usize; 4];
    const MASK_BYTES: usize = size_of::<u64>();
    let mut action: Action = [libc::SIG_IGN; 4];
    // SAFETY: a query, which fills the structure.
    let found = unsafe {
        let none = ptr::null::<Action>();
        libc::syscall(libc::SYS_rt_sigaction, signal, none, &raw mut action, MASK_BYTES)
    };
    if found == 0 && action[0] == libc::SIG_DFL {
        let (none, ignore): (_, Action) = (ptr::null_mut::<Action>(), [libc::SIG_IGN, 0, 0, 0]);
        // SAFETY: reads the structure, which names no handler.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, &raw const ignore, none, MASK_BYTES) };
    }
}

/// From now on a panic is told by one line, as a signal is. For a program that a panic ends; one
/// that reads its own file for a backtrace would be stopped by its filter.
fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        terminal::restore();
        if claim_last_word() == Word::Own {
            let mut line = LineBuffer::default();
            compose_panic(&mut line, panic);
            line.say();
        }
    }));
}

fn compose_panic(line: &mut LineBuffer, panic: &PanicHookInfo<'_>) {
    line.push(b"panic in thread ");
    line.push_thread();
    line.push(b" of process ");
    line.push_process();
    if let Some(place) = panic.location() {
        // A line takes everything, as far as there is room.
        let _ = write!(line, " at {}:{}", place.file(), place.line());
    }
    line.push(b"; husk ends here: ");
    for found in panic.payload_as_str().unwrap_or("it does not say why").chars() {
        let _ = line.write_char(if found.is_control() { ' ' } else { found });
    }
}

/// Whose the last word is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    /// This thread's, which has not spoken yet.
    Own,
    /// This thread's, which has said why already.
    Said,
    /// Another thread's.
    Others,
}

/// Takes the last word, unless somebody has it.
fn claim_last_word() -> Word {
    /// Number of the thread that has it.
    static SPEAKER: AtomicI32 = AtomicI32::new(0);
    // SAFETY: a number.
    let own = unsafe { libc::gettid() };
    match SPEAKER.compare_exchange(0, own, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Word::Own,
        Err(speaker) if speaker == own => Word::Said,
        Err(_) => Word::Others,
    }
}

/// From now on what asks a process to end (SIGTERM, SIGINT, SIGHUP unless ignored) ends this one at
/// once, with `CODE`: for one that has nothing to finish. As the first process of a container it
/// would not be ended at all otherwise.
pub fn end_when_asked<const CODE: libc::c_int>() {
    extern "C" fn end<const CODE: libc::c_int>(_: libc::c_int) {
        // SAFETY: may be called in a signal handler.
        unsafe { libc::_exit(CODE) };
    }
    let handler = end::<CODE> as *const () as libc::sighandler_t;
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        if !is_ignored(signal) {
            set(signal, handler, 0);
        }
    }
}

/// Whether somebody has asked this process to end.
static ASKED: AtomicBool = AtomicBool::new(false);

/// From now on what asks a process to end (SIGTERM, SIGINT, SIGHUP unless ignored) is only
/// [noted](is_asked_to_end): for one that has something to clear away. The second time it ends the
/// process as it does by default.
pub fn note_when_asked() {
    extern "C" fn note(_: libc::c_int) {
        ASKED.store(true, Ordering::Relaxed);
    }
    let handler = note as *const () as libc::sighandler_t;
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        if !is_ignored(signal) {
            set(signal, handler, libc::SA_RESETHAND);
        }
    }
}

/// Whether this process has been asked to end since [`note_when_asked`].
pub fn is_asked_to_end() -> bool {
    ASKED.load(Ordering::Relaxed)
}

fn set(signal: libc::c_int, handler: libc::sighandler_t, flags: libc::c_int) {
    // SAFETY: all zeroes is a sigaction with an empty mask.
    let mut action = unsafe { MaybeUninit::<libc::sigaction>::zeroed().assume_init() };
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    // SAFETY: a handler of the form that the flags say, or none. It cannot fail for these signals.
    unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) };
}

/// Whether the process, or whoever started it, has `signal` ignored.
pub fn is_ignored(signal: libc::c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a query; all zeroes is the default action should it fail.
    let action = unsafe {
        libc::sigaction(signal, ptr::null(), action.as_mut_ptr());
        action.assume_init()
    };
    action.sa_sigaction == libc::SIG_IGN
}

extern "C" fn on_fatal(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    terminal::restore();
    // SAFETY: the kernel passes a valid siginfo to an SA_SIGINFO handler; every field is a number,
    // whoever sent the signal.
    let info = unsafe { &*info };
    if seccomp::is_violation(signal, info) {
        seccomp::end_on_violation(info);
    }
    match claim_last_word() {
        Word::Own => {
            let mut line = LineBuffer::default();
            compose(&mut line, signal, cause(signal, info));
            line.say();
        }
        Word::Said => {}
        Word::Others => wait_for_the_first(),
    }
    if FAULTS.contains(&signal) {
        set(signal, libc::SIG_DFL, 0);
    }
    // SAFETY: numbers only; the signal is blocked until the handler has returned, and then does
    // what it does by default.
    unsafe { libc::raise(signal) };
}

/// Lets the thread that speaks end the process.
fn wait_for_the_first() {
    let turn = libc::timespec {
        tv_sec: 0,
        tv_nsec: TURN_MS * 1_000_000,
    };
    for _ in 0..TURNS {
        // SAFETY: reads the time.
        unsafe { libc::clock_nanosleep(libc::CLOCK_MONOTONIC, 0, &raw const turn, ptr::null_mut()) };
    }
}

/// Where a signal came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// An instruction, at or on an address.
    Address(usize),
    /// Another process.
    Sender(libc::pid_t),
    /// This process, or the kernel without saying more.
    Unknown,
}

fn cause(signal: libc::c_int, info: &libc::siginfo_t) -> Cause {
    /// The kernel, without an address (asm-generic/siginfo.h).
    const SI_KERNEL: libc::c_int = 0x80;
    match info.si_code {
        SI_KERNEL => Cause::Unknown,
        1.. if FAULTS.contains(&signal) || signal == libc::SIGTRAP => {
            // SAFETY: a fault's siginfo has an address.
            Cause::Address(unsafe { info.si_addr() }.addr())
        }
        libc::SI_USER | libc::SI_QUEUE | libc::SI_TKILL => {
            // SAFETY: the siginfo of a signal that was sent has a sender.
            let sender = unsafe { info.si_pid() };
            // SAFETY: a number.
            match sender == unsafe { libc::getpid() } {
                true => Cause::Unknown,
                false => Cause::Sender(sender),
            }
        }
        _ => Cause::Unknown,
    }
}

fn compose(line: &mut LineBuffer, signal: libc::c_int, cause: Cause) {
    push_name(line, signal);
    match cause {
        Cause::Address(address) => {
            line.push(b" at address ");
            line.push_hex(address);
        }
        Cause::Sender(pid) => {
            line.push(b" sent by process ");
            line.push_number(pid);
            line.push(b",");
        }
        Cause::Unknown => {}
    }
    line.push(b" in thread ");
    line.push_thread();
    line.push(b" of process ");
    line.push_process();
    line.push(b"; husk ends here");
}

fn push_name(line: &mut LineBuffer, signal: libc::c_int) {
    line.push(name(signal));
    if real_time().contains(&signal) && signal != libc::SIGRTMIN() {
        line.push(b"+");
        line.push_number(signal - libc::SIGRTMIN());
    }
}

fn name(signal: libc::c_int) -> &'static [u8] {
    match signal {
        libc::SIGABRT => b"SIGABRT",
        libc::SIGSEGV => b"SIGSEGV",
        libc::SIGBUS => b"SIGBUS",
        libc::SIGILL => b"SIGILL",
        libc::SIGFPE => b"SIGFPE",
        libc::SIGSYS => b"SIGSYS",
        libc::SIGTRAP => b"SIGTRAP",
        libc::SIGXCPU => b"SIGXCPU (the limit of processor time)",
        libc::SIGUSR1 => b"SIGUSR1",
        libc::SIGUSR2 => b"SIGUSR2",
        libc::SIGALRM => b"SIGALRM",
        libc::SIGVTALRM => b"SIGVTALRM",
        libc::SIGPROF => b"SIGPROF",
        libc::SIGIO => b"SIGIO",
        libc::SIGPWR => b"SIGPWR",
        libc::SIGSTKFLT => b"SIGSTKFLT",
        _ if real_time().contains(&signal) => b"SIGRTMIN",
        _ => b"a signal",
    }
}

#[cfg(test)]
#[path = "fatal_test.rs"]
mod tests;
