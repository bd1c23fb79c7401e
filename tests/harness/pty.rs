//! Pseudo-terminals and signals. The only unsafe code of the harness.
#![expect(unsafe_code, reason = "pseudo-terminals, sessions and signals")]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::guest::Streams;
use crate::process::terminal;

/// A new terminal: the test's end and the VMM's.
#[derive(Debug)]
pub struct Pty {
    master: File,
    slave: File,
}

/// What a test compares of a terminal's settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `c_iflag`.
    pub input: u32,
    /// `c_oflag`.
    pub output: u32,
    /// `c_lflag`.
    pub local: u32,
}

impl Settings {
    /// Whether lines are edited and keys turned into signals.
    pub fn is_cooked(&self) -> bool {
        self.local & (libc::ICANON | libc::ISIG) == libc::ICANON | libc::ISIG
    }
}

fn check(result: libc::c_int, what: &str) {
    assert!(result >= 0, "cannot {what}: {}", io::Error::last_os_error());
}

impl Pty {
    /// A terminal of this size, with the kernel's default settings.
    pub fn open(rows: u16, columns: u16) -> Self {
        let (master, slave) = terminal().unwrap_or_else(|error| panic!("cannot open a terminal: {error}"));
        let pty = Self {
            master: master.into(),
            slave: slave.into(),
        };
        resize(&pty.master, rows, columns);
        pty
    }

    /// Makes this the standard input and output, and the controlling terminal, of what `command` starts.
    pub(crate) fn give_to(&self, command: &mut Command) {
        command.stdin(self.slave_copy()).stdout(self.slave_copy());
        let hook = || {
            // SAFETY: no arguments; the child of a fork leads no session.
            if unsafe { libc::setsid() } < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: standard input is the terminal by now; 0 means not to steal it.
            if unsafe { libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0) } < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        };
        // SAFETY: the hook makes two system calls and does not allocate.
        unsafe { command.pre_exec(hook) };
    }

    /// Closes the VMM's end here and gives out the test's.
    pub(crate) fn into_streams(self) -> Streams {
        let copy = || match self.master.try_clone() {
            Ok(file) => Some(file),
            Err(error) => panic!("cannot copy a terminal: {error}"),
        };
        Streams {
            input: copy(),
            output: copy(),
            terminal: copy(),
        }
    }

    /// A handle on the terminal that outlives the VMM.
    pub fn slave_copy(&self) -> Stdio {
        self.watch().into()
    }

    /// The VMM's end, kept open by the test to look at its settings.
    pub fn watch(&self) -> File {
        self.slave
            .try_clone()
            .unwrap_or_else(|error| panic!("cannot copy a terminal: {error}"))
    }
}

/// Resizes a terminal; the kernel signals `SIGWINCH` to what runs there.
pub fn resize(terminal: &File, rows: u16, columns: u16) {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the request reads a winsize.
    check(
        unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) },
        "resize a terminal",
    );
}

/// The settings of a terminal.
pub fn settings(terminal: &File) -> Settings {
    let mut settings = MaybeUninit::<libc::termios>::uninit();
    // SAFETY: the pointer is to a termios that the call fills.
    check(
        unsafe { libc::tcgetattr(terminal.as_raw_fd(), settings.as_mut_ptr()) },
        "read a terminal's settings",
    );
    // SAFETY: filled above, as the call succeeded.
    let settings = unsafe { settings.assume_init() };
    Settings {
        input: settings.c_iflag,
        output: settings.c_oflag,
        local: settings.c_lflag,
    }
}

/// Waits until `file` has something to read, or its other side is closed; whether it has.
pub(crate) fn readable(file: &File, patience: Duration) -> bool {
    let mut poll = libc::pollfd {
        fd: file.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let patience = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: one pollfd, and the count says so.
    unsafe { libc::poll(&raw mut poll, 1, patience) > 0 }
}

/// Sends `signal` to the process `pid`.
///
/// # Errors
///
/// There is no such process.
pub fn kill(pid: u32, signal: i32) -> io::Result<()> {
    let pid = i32::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: two integers.
    if unsafe { libc::kill(pid, signal) } < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
