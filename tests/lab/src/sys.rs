//! The system calls that the standard library does not offer. The only unsafe code of the lab.
#![expect(unsafe_code, reason = "signals, terminal settings and size")]

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

/// Makes the kernel end `command`'s process when the thread that starts it ends, however that happens.
pub fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    let hook = move || {
        // SAFETY: a signal number and no pointers.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) } != 0 {
            return Err(io::Error::last_os_error());
        }
        if std::os::unix::process::parent_id() != parent {
            return Err(io::Error::other("the lab has ended"));
        }
        Ok(())
    };
    // SAFETY: the hook makes two system calls and allocates only when it fails, after which the process ends.
    unsafe { command.pre_exec(hook) };
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note_interrupt(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From now on `SIGINT`, `SIGTERM` and `SIGHUP` do not end the lab but are seen by [`interrupted`], so that it can clean up. Programs
/// that it starts are not affected: exec resets handlers.
pub fn watch_interrupts() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler only touches an atomic, which is async-signal-safe.
        unsafe { libc::signal(signal, note_interrupt as *const () as libc::sighandler_t) };
    }
}

/// Whether the user asked the lab to end since [`watch_interrupts`].
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Kills `process` and everything that it has started, as far as that is not orphaned. Nobody must have waited for it yet: until then
/// the number is its own.
pub fn kill_tree(process: u32) {
    let tasks = fs::read_dir(format!("/proc/{process}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let children = tasks.map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default());
    let children: Vec<u32> = children
        .flat_map(|list| {
            list.split_whitespace()
                .filter_map(|child| child.parse().ok())
                .collect::<Vec<_>>()
        })
        .collect();
    if let Ok(process) = libc::pid_t::try_from(process) {
        // SAFETY: numbers only.
        unsafe { libc::kill(process, libc::SIGKILL) };
    }
    children.into_iter().for_each(kill_tree);
}

/// Rows and columns of the terminal on standard output.
pub fn window() -> Option<(u16, u16)> {
    let mut size = MaybeUninit::<libc::winsize>::zeroed();
    // SAFETY: the request fills a winsize.
    let result = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, size.as_mut_ptr()) };
    // SAFETY: integers, zeroed before the call.
    let size = unsafe { size.assume_init() };
    (result == 0 && size.ws_row > 0).then_some((size.ws_row, size.ws_col))
}

/// The settings of the terminal on standard input, put back when this is dropped.
pub struct SavedTerminal(Option<libc::termios>);

impl SavedTerminal {
    /// Remembers the settings; nothing if standard input is not a terminal.
    pub fn save() -> Self {
        let mut settings = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: the pointer is to a termios that the call fills.
        let result = unsafe { libc::tcgetattr(libc::STDIN_FILENO, settings.as_mut_ptr()) };
        // SAFETY: filled, as the call succeeded.
        Self((result == 0).then(|| unsafe { settings.assume_init() }))
    }
}

impl Drop for SavedTerminal {
    fn drop(&mut self) {
        if let Some(settings) = &self.0 {
            // SAFETY: a valid termios that the same terminal had before.
            unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, settings) };
        }
    }
}
