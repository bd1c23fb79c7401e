//! Signals as events of the main loop (signalfd(2)).

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::ptr;

use vmm_sys_util::signal::create_sigset;

use crate::fatal::is_ignored;

/// What is delivered as an event, in place of its default action.
const WATCHED: [libc::c_int; 9] = [
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGHUP,
    libc::SIGWINCH,
    libc::SIGTSTP,
    libc::SIGCONT,
    libc::SIGUSR1,
    libc::SIGUSR2,
];

/// Bytes of one `signalfd_siginfo`.
const INFO_BYTES: usize = size_of::<libc::signalfd_siginfo>();

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// End the VM (SIGTERM, SIGINT, SIGQUIT).
    Terminate,
    /// The terminal is gone: end the VM (SIGHUP).
    Hangup,
    /// The terminal has another size (SIGWINCH).
    WindowChange,
    /// Give the terminal back and stop (SIGTSTP).
    Suspend,
    /// Running again (SIGCONT).
    Continue,
    /// Log more (SIGUSR1).
    LogMore,
    /// Log less (SIGUSR2).
    LogLess,
}

/// A descriptor that is readable when a signal waits.
#[derive(Debug)]
pub struct Signals {
    file: File,
}

impl Signals {
    /// Diverts the signals of the whole process, from now until it ends: a signal that arrives
    /// while husk is already on its way out must not cut that short. To be called before any thread
    /// is started, because threads inherit the mask.
    ///
    /// A signal that the parent had ignored (`nohup`, a shell's `&`) stays ignored, but for
    /// SIGTERM: Kata's Rust shim ignores that for itself and its children inherit it, and a VM that
    /// cannot be asked to end can only be killed. A blocked signal waits even if it is ignored.
    ///
    /// # Errors
    /// What the host says.
    pub fn new() -> io::Result<Self> {
        Self::of(&WATCHED, libc::SFD_NONBLOCK)
    }

    /// The same of what asks a process to end alone (SIGTERM, SIGINT, SIGHUP), for a thread that does nothing but
    /// [wait](Signals::wait).
    ///
    /// # Errors
    /// What the host says.
    pub fn to_end() -> io::Result<Self> {
        Self::of(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP], 0)
    }

    fn of(signals: &[libc::c_int], flags: libc::c_int) -> io::Result<Self> {
        let set = block(signals)?;
        // SAFETY: reads the set.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor that nobody else owns yet.
        let file = unsafe { File::from_raw_fd(fd) };
        Ok(Self { file })
    }

    /// Has the signals wait for [`Signals::new`]: one that comes before there is a descriptor for
    /// it ends nothing. Takes no descriptor itself, so that the numbers of those that were passed
    /// to this process are still theirs.
    ///
    /// # Errors
    /// What the host says.
    pub fn hold() -> io::Result<()> {
        block(&WATCHED).map(drop)
    }

    /// Waits for a signal, of those of [`Signals::to_end`].
    ///
    /// # Errors
    /// What reading says.
    pub fn wait(&mut self) -> io::Result<()> {
        // One is read whole, or none.
        self.file.read_exact(&mut [0; INFO_BYTES])
    }

    /// The next signal that waits, without blocking.
    ///
    /// # Errors
    /// What reading says.
    #[expect(clippy::should_implement_trait, reason = "it can fail, and None is no end")]
    pub fn next(&mut self) -> io::Result<Option<Signal>> {
        let mut info = [0; INFO_BYTES];
        match self.file.read(&mut info) {
            Ok(_) => {
                let [a, b, c, d, ..] = info;
                Ok(decode(u32::from_ne_bytes([a, b, c, d])))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Blocks `signals`, less those that stay ignored; returns them.
fn block(signals: &[libc::c_int]) -> io::Result<libc::sigset_t> {
    let wanted: Vec<libc::c_int> = signals
        .iter()
        .copied()
        .filter(|signal| *signal == libc::SIGTERM || !is_ignored(*signal))
        .collect();
    let set = create_sigset(&wanted).map_err(|e| io::Error::from_raw_os_error(e.errno()))?;
    // SAFETY: reads the set.
    let blocked = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) };
    match blocked {
        0 => Ok(set),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// `ssi_signo` is the first field of `signalfd_siginfo`.
fn decode(number: u32) -> Option<Signal> {
    match i32::try_from(number).ok()? {
        libc::SIGTERM | libc::SIGINT | libc::SIGQUIT => Some(Signal::Terminate),
        libc::SIGHUP => Some(Signal::Hangup),
        libc::SIGWINCH => Some(Signal::WindowChange),
        libc::SIGTSTP => Some(Signal::Suspend),
        libc::SIGCONT => Some(Signal::Continue),
        libc::SIGUSR1 => Some(Signal::LogMore),
        libc::SIGUSR2 => Some(Signal::LogLess),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_of_this_thread_become_events_in_order_of_arrival() {
        // A thread of its own: the mask stays. Two signals that no usual parent has ignored.
        std::thread::spawn(|| {
            let mut signals = Signals::new().unwrap();
            assert_eq!(signals.next().unwrap(), None);
            for (number, event) in [
                (libc::SIGWINCH, Signal::WindowChange),
                (libc::SIGTERM, Signal::Terminate),
            ] {
                // SAFETY: numbers only.
                unsafe { libc::pthread_kill(libc::pthread_self(), number) };
                assert_eq!(signals.next().unwrap(), Some(event));
            }
            assert_eq!(signals.next().unwrap(), None);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn every_watched_signal_has_a_meaning() {
        for signal in WATCHED {
            assert!(decode(u32::try_from(signal).unwrap()).is_some(), "{signal}");
        }
        assert_eq!(decode(u32::MAX), None);
    }
}
