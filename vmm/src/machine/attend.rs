//! The main thread while the guest runs: signals, the keyboard, and the end.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::Machine;
use crate::terminal::{self, Arrival, Input, RawMode, Signal, Signals, StdoutSink};

const ENDED: u64 = 0;
const SIGNAL: u64 = 1;
const KEYS: u64 = 2;
const OUTPUT: u64 = 3;

/// Keys read ahead of a guest that does not read them. More stay with the terminal.
const BACKLOG_BYTES: usize = 4096;
/// How often a guest with a full FIFO is offered the backlog again.
const RETRY_MS: i32 = 20;

/// Why the main thread stopped attending to the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attended {
    /// The VM has ended; its board says why.
    Ended,
    /// The user wants it to end.
    Interrupted,
}

/// Serves the VM until it ends.
pub fn attend(machine: &Machine, signals: Signals, raw: Option<&RawMode>, out: &StdoutSink) -> io::Result<Attended> {
    let input = if machine.keyboard().is_some() {
        Input::stdin()?
    } else {
        None
    };
    let epoll = Epoll::new()?;
    watch(&epoll, machine.ended().as_raw_fd(), ENDED)?;
    watch(&epoll, signals.as_raw_fd(), SIGNAL)?;
    watch(&epoll, out.as_raw_fd(), OUTPUT)?;
    if let Some(input) = &input {
        watch(&epoll, input.as_raw_fd(), KEYS)?;
    }
    let keys = Keys {
        machine,
        input,
        backlog: Vec::new(),
    };
    Attendant {
        machine,
        signals,
        raw,
        out,
        epoll,
        keys,
    }
    .run()
}

fn watch(epoll: &Epoll, fd: RawFd, token: u64) -> io::Result<()> {
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token))
}

struct Attendant<'a> {
    machine: &'a Machine,
    signals: Signals,
    raw: Option<&'a RawMode>,
    out: &'a StdoutSink,
    epoll: Epoll,
    keys: Keys<'a>,
}

impl Attendant<'_> {
    fn run(mut self) -> io::Result<Attended> {
        let mut events = [EpollEvent::default(); 4];
        loop {
            let timeout = if self.keys.backlog.is_empty() { -1 } else { RETRY_MS };
            let ready = match self.epoll.wait(timeout, &mut events) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                ready => ready?,
            };
            self.keys.offer();
            for event in events.iter().take(ready) {
                let done = match event.data() {
                    ENDED => Some(Attended::Ended),
                    SIGNAL => self.on_signals()?,
                    KEYS => self.on_keys()?,
                    _ => {
                        self.out.drain();
                        None
                    }
                };
                if let Some(done) = done {
                    return Ok(done);
                }
            }
        }
    }

    fn on_signals(&mut self) -> io::Result<Option<Attended>> {
        while let Some(signal) = self.signals.next()? {
            match (signal, self.raw) {
                (Signal::Terminate | Signal::Hangup, _) => return Ok(Some(Attended::Interrupted)),
                (Signal::WindowChange, _) => self.machine.fit_window(),
                (Signal::Suspend, Some(raw)) => raw.suspend(),
                (Signal::Continue, Some(raw)) => raw.resume()?,
                (Signal::Suspend, None) => terminal::stop_process(),
                (Signal::Continue, None) => {}
            }
        }
        Ok(None)
    }

    fn on_keys(&mut self) -> io::Result<Option<Attended>> {
        match self.keys.read() {
            Arrival::Bytes => {}
            Arrival::Ended => {
                if let Some(input) = self.keys.input.take() {
                    self.epoll
                        .ctl(ControlOperation::Delete, input.as_raw_fd(), EpollEvent::default())?;
                }
            }
            Arrival::Hangup | Arrival::Quit => return Ok(Some(Attended::Interrupted)),
        }
        Ok(None)
    }
}

/// Standard input on its way to the guest.
struct Keys<'a> {
    machine: &'a Machine,
    input: Option<Input>,
    backlog: Vec<u8>,
}

impl Keys<'_> {
    fn read(&mut self) -> Arrival {
        let Some(input) = &mut self.input else {
            return Arrival::Ended;
        };
        let room = BACKLOG_BYTES.saturating_sub(self.backlog.len());
        let arrival = input.read(room, &mut self.backlog);
        self.offer();
        arrival
    }

    fn offer(&mut self) {
        if let (Some(keyboard), false) = (self.machine.keyboard(), self.backlog.is_empty()) {
            let taken = keyboard.press(&self.backlog);
            self.backlog.drain(..taken.min(self.backlog.len()));
        }
    }
}
