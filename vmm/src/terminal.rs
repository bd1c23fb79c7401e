//! husk's own standard input and output as a guest's terminal.
//!
//! [`RawMode`] hands every key to the guest and puts the terminal back whatever happens. [`Input`]
//! reads it, with a way out ([`Escape`]); [`ProcessOutputs`], and a [`PortOutput`] for whatever
//! else takes a guest's output, write to a [`NonBlockingFile`], the [`Journal`] or a
//! [`WriterThread`], which has files written by a thread, without ever holding up a vCPU; a
//! [`Chardev`] is what others attach to instead; [`Signals`] turns signals into events of the main
//! loop.
//!
//! | how husk ends | who restores the terminal |
//! |---|---|
//! | the VM ends; SIGTERM, SIGHUP, SIGINT, SIGQUIT (events, see [`Signals`]) | [`RawMode`]'s drop |
//! | `exit` | an `atexit` function |
//! | a panic, also with `panic = "abort"` | a panic hook, before the message |
//! | any other signal that ends a process | its handler ([`fatal`](crate::fatal)), which then lets the signal take its course |
//! | SIGTSTP, SIGCONT | [`RawMode::suspend`] and [`RawMode::resume`] |
//! | SIGKILL | nobody can |

#![expect(unsafe_code, reason = "termios and poll of libc")]

mod buffered_output;
mod chardev;
mod escape;
mod files;
mod input;
mod journal;
mod lost_lines;
mod non_blocking_file;
mod output;
mod output_target;
mod protected_files;
mod signals;
#[cfg(test)]
pub(crate) mod testing;
mod writer_thread;

use std::io::{self, IsTerminal, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::time::{Duration, Instant};

pub use buffered_output::BufferedOutput;
pub use chardev::Chardev;
pub use escape::{Escape, Quit};
pub use files::{Files, numbered};
pub use input::{Arrival, Input};
pub use journal::Journal;
pub use lost_lines::{LossReport, LostLines, PendingLines};
pub use non_blocking_file::{NonBlockingFile, OpenOutputError};
pub use output::{PortOutput, ProcessOutputs};
pub use output_target::OutputTarget;
pub use protected_files::{FileId, ProtectedFiles};
pub use signals::{Signal, Signals};
pub use writer_thread::{Content, UnwrittenLines, WriteProgress, WriterThread};

/// Printed when the terminal becomes the guest's.
pub const ESCAPE_HINT: &str = "Ctrl-A x ends the VM, Ctrl-A Ctrl-A sends one Ctrl-A to the guest";

/// Where a call on what has no offsets reads or writes (preadv2(2)).
pub(crate) const NO_OFFSET: u64 = u64::MAX;

/// What [`restore`] puts back. Never freed once published, because a signal handler may be reading it.
struct Saved {
    fd: RawFd,
    termios: libc::termios,
}

/// The terminal that is raw at present, or null.
static RAW: AtomicPtr<Saved> = AtomicPtr::new(ptr::null_mut());
static GUARDS: Once = Once::new();

/// What fills the window has a screen of its own, without a cursor (xterm's private modes 1049 and 25); and the screen
/// of before.
const OWN_SCREEN: &str = "\x1b[?1049h\x1b[?25l";
const FIRST_SCREEN: &str = "\x1b[?25h\x1b[?1049l";
/// Whether the terminal on standard output shows [`OWN_SCREEN`].
static ON_OWN_SCREEN: AtomicBool = AtomicBool::new(false);

/// What a terminal is made of what it was.
type Change = fn(libc::termios) -> libc::termios;

/// While it lives, the terminal passes every key on. One at a time in a process.
#[derive(Debug)]
pub struct RawMode {
    fd: RawFd,
    change: Change,
}

impl RawMode {
    /// Makes standard input raw and prints [`ESCAPE_HINT`] on standard error; `None` when standard
    /// input is no terminal. A process in the background stops here until it is brought to the
    /// foreground, as terminal programs do.
    ///
    /// # Errors
    /// What the terminal says.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        crate::log::tell(&format!("husk: {ESCAPE_HINT}\n"));
        Self::enter_on(stdin.as_fd(), raw).map(Some)
    }

    /// Has standard input pass keys on one by one and unseen, but for those that are signals;
    /// `None` when it is no terminal.
    ///
    /// # Errors
    /// What the terminal says.
    pub fn enter_for_keys() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        Self::enter_on(stdin.as_fd(), keys).map(Some)
    }

    fn enter_on(fd: BorrowedFd<'_>, change: Change) -> io::Result<Self> {
        let fd = fd.as_raw_fd();
        let termios = get_attributes(fd)?;
        GUARDS.call_once(install_guards);
        RAW.store(Box::into_raw(Box::new(Saved { fd, termios })), Ordering::Release);
        set_attributes(fd, &change(termios)).inspect_err(|_| RAW.store(ptr::null_mut(), Ordering::Release))?;
        Ok(Self { fd, change })
    }

    /// Restores the terminal and stops the process, as SIGTSTP asks. Returns when the process has
    /// been continued; the terminal is raw again only after [`RawMode::resume`].
    pub fn suspend(&self) {
        restore();
        stop_process();
    }

    /// Makes the terminal raw again after the process was stopped, unless it goes on in the background.
    ///
    /// # Errors
    /// What the terminal says.
    pub fn resume(&self) -> io::Result<()> {
        if in_background(self.fd) {
            return Ok(());
        }
        let termios = get_attributes(self.fd)?;
        if RAW.load(Ordering::Acquire).is_null() {
            RAW.store(
                Box::into_raw(Box::new(Saved { fd: self.fd, termios })),
                Ordering::Release,
            );
        }
        set_attributes(self.fd, &(self.change)(termios))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Has the terminal on standard output show a screen that is this program's alone, without a cursor, until
/// [`show_first_screen`], or until the process ends.
///
/// # Errors
/// What the terminal says.
pub fn show_own_screen() -> io::Result<()> {
    GUARDS.call_once(install_guards);
    ON_OWN_SCREEN.store(true, Ordering::Release);
    let mut out = io::stdout().lock();
    out.write_all(OWN_SCREEN.as_bytes())?;
    out.flush()
}

/// Puts the screen back as it was before [`show_own_screen`]. Safe in signal handlers: an atomic, poll and write
/// (signal-safety(7)).
pub fn show_first_screen() {
    // SAFETY: standard output is never closed.
    let stdout = unsafe { BorrowedFd::borrow_raw(libc::STDOUT_FILENO) };
    if ON_OWN_SCREEN.swap(false, Ordering::AcqRel) && has_room(stdout) {
        // A terminal that is gone needs nothing put back.
        let _ = rustix::io::write(stdout, FIRST_SCREEN.as_bytes());
    }
}

/// Stops the process until it is continued, as SIGTSTP asks.
pub fn stop_process() {
    // SAFETY: no memory is involved.
    unsafe { libc::raise(libc::SIGSTOP) };
}

/// How a line on standard error ends: a raw terminal does not return the carriage by itself.
pub fn line_end() -> &'static str {
    if RAW.load(Ordering::Relaxed).is_null() {
        "\n"
    } else {
        "\r\n"
    }
}

/// Whether `fd` takes a short write (up to `PIPE_BUF` bytes into a pipe) without blocking. Also
/// true of what is broken: the write will say so.
pub fn has_room(fd: BorrowedFd<'_>) -> bool {
    writable_within(fd, 0)
}

/// Whether `fd` takes a write within `timeout_ms`; also true of a descriptor that is broken.
fn writable_within(fd: BorrowedFd<'_>, timeout_ms: i32) -> bool {
    ready_within(fd, libc::POLLOUT, timeout_ms)
}

/// Whether `fd` takes a write by `deadline`.
fn writable_by(fd: impl AsFd, deadline: Instant) -> bool {
    let left = deadline.saturating_duration_since(Instant::now()).as_micros();
    let left = i32::try_from(left.div_ceil(1000)).unwrap_or(i32::MAX);
    writable_within(fd.as_fd(), left)
}

/// Sleeps. Safe in signal handlers (signal-safety(7), poll).
fn pause(time: Duration) {
    let time_ms = i32::try_from(time.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: no descriptor is looked at.
    unsafe { libc::poll(ptr::null_mut(), 0, time_ms) };
}

/// Whether `fd` is ready for one of `events` within `timeout_ms`; also true of a descriptor that is broken.
pub(crate) fn ready_within(fd: BorrowedFd<'_>, events: i16, timeout_ms: i32) -> bool {
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events,
        revents: 0,
    };
    // SAFETY: one pollfd, as the count says.
    unsafe { libc::poll(&raw mut poll, 1, timeout_ms) > 0 }
}

/// Columns and rows of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSize {
    /// Characters in a line.
    pub columns: u16,
    /// Lines on the screen.
    pub rows: u16,
}

/// The size of the terminal on standard output, if there is one that knows it.
pub fn window_size() -> Option<WindowSize> {
    window_size_of(io::stdout().as_fd())
}

fn window_size_of(fd: BorrowedFd<'_>) -> Option<WindowSize> {
    let mut size = MaybeUninit::<libc::winsize>::zeroed();
    // SAFETY: TIOCGWINSZ fills one winsize.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, size.as_mut_ptr()) };
    // SAFETY: plain integers, zero at least.
    let size = unsafe { size.assume_init() };
    (done == 0 && size.ws_col > 0 && size.ws_row > 0).then_some(WindowSize {
        columns: size.ws_col,
        rows: size.ws_row,
    })
}

/// Puts the terminal back as it was, if it is raw or shows another screen. Safe in signal handlers: atomics, poll,
/// write, tcgetpgrp and tcsetattr (signal-safety(7)).
pub(crate) fn restore() {
    show_first_screen();
    let saved = RAW.swap(ptr::null_mut(), Ordering::AcqRel);
    if saved.is_null() {
        return;
    }
    // SAFETY: published by `enter_on` or `resume`, which leak it.
    let saved = unsafe { &*saved };
    // In the background the terminal is the shell's, which has set it as it likes.
    if !in_background(saved.fd) {
        let _ = set_attributes(saved.fd, &saved.termios);
    }
}

/// Whether another process group has the terminal. Not so when `fd` is no controlling terminal.
fn in_background(fd: RawFd) -> bool {
    // SAFETY: numbers only.
    let (foreground, own) = unsafe { (libc::tcgetpgrp(fd), libc::getpgrp()) };
    foreground > 0 && foreground != own
}

fn raw(mut termios: libc::termios) -> libc::termios {
    // SAFETY: changes the structure it is given. Output processing goes as well: the guest's terminal does its own.
    unsafe { libc::cfmakeraw(&raw mut termios) };
    termios
}

fn keys(mut termios: libc::termios) -> libc::termios {
    termios.c_lflag &= !(libc::ICANON | libc::ECHO);
    termios
}

fn get_attributes(fd: RawFd) -> io::Result<libc::termios> {
    let mut termios = MaybeUninit::uninit();
    // SAFETY: fills the structure when it returns 0.
    if unsafe { libc::tcgetattr(fd, termios.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: filled, as just checked.
    Ok(unsafe { termios.assume_init() })
}

fn set_attributes(fd: RawFd, termios: &libc::termios) -> io::Result<()> {
    // SAFETY: reads the structure.
    if unsafe { libc::tcsetattr(fd, libc::TCSANOW, termios) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Installs, once, whatever restores the terminal when drop does not.
fn install_guards() {
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        restore();
        previous(info);
    }));
    // SAFETY: a function that may run at any time before the process ends.
    unsafe { libc::atexit(at_exit) };
    crate::fatal::install();
}

extern "C" fn at_exit() {
    restore();
}

#[cfg(test)]
#[path = "terminal_test.rs"]
mod tests;
