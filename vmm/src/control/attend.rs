//! The main thread in between: commands, signals, the keyboard, what the guest lets go of, and its end.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::Controller;
use crate::api::{Execute, Inbox};
use crate::machine::Ending;
use crate::terminal::{self, Arrival, Input, RawMode, Signal, Signals, StdoutSink};
use crate::trim;

const ENDED: u64 = 0;
const SIGNAL: u64 = 1;
const KEYS: u64 = 2;
const OUTPUT: u64 = 3;
const COMMANDS: u64 = 4;
const LET_GO: u64 = 5;

/// Keys read ahead of a guest that does not read them. More stay with the terminal.
const BACKLOG_BYTES: usize = 4096;
/// How often a guest with a full FIFO is offered the backlog again.
const RETRY_MS: i32 = 20;
/// How soon, and at the latest how often, the guest is reminded of what it has been told.
const REMIND_MS: std::ops::RangeInclusive<i32> = 20..=5000;

/// How long nothing has happened before what the start needed is given back.
const QUIET_MS: i32 = 1000;

/// Why the main thread stopped attending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The guest has ended.
    Guest(Ending),
    /// The user wants the end: by a signal, or on the terminal.
    Interrupted,
    /// A client wants it.
    Asked,
}

/// Carries out the commands in `inbox`, and serves the VM that `controller` has, until the end.
///
/// # Errors
/// What the host refuses of a loop's needs.
pub fn attend(
    controller: &mut Controller,
    signals: Signals,
    out: &StdoutSink,
    inbox: Option<&Inbox>,
) -> io::Result<Ended> {
    let epoll = Epoll::new()?;
    watch(&epoll, signals.as_raw_fd(), SIGNAL)?;
    watch(&epoll, out.as_raw_fd(), OUTPUT)?;
    if let Some(inbox) = inbox {
        watch(&epoll, inbox.as_raw_fd(), COMMANDS)?;
    }
    let mut attendant = Attendant {
        controller,
        signals,
        out,
        inbox,
        epoll,
        watched: None,
        keys: None,
        remind_ms: None,
        untrimmed: false,
    };
    attendant.meet()?;
    attendant.run()
}

fn watch(epoll: &Epoll, fd: RawFd, token: u64) -> io::Result<()> {
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token))
}

struct Attendant<'a> {
    controller: &'a mut Controller,
    signals: Signals,
    out: &'a StdoutSink,
    inbox: Option<&'a Inbox>,
    epoll: Epoll,
    /// Which of the controller's machines is being watched.
    watched: Option<u64>,
    keys: Option<Keys>,
    /// When to follow up on what the guest has been told.
    remind_ms: Option<i32>,
    /// Memory that only the start needed is still mapped.
    untrimmed: bool,
}

impl Attendant<'_> {
    fn run(mut self) -> io::Result<Ended> {
        let mut events = [EpollEvent::default(); 8];
        loop {
            let ready = match self.epoll.wait(self.timeout(), &mut events) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                ready => ready?,
            };
            self.offer_keys();
            if ready == 0 {
                self.remind();
                if std::mem::take(&mut self.untrimmed) {
                    trim::trim();
                }
            }
            for event in events.iter().take(ready) {
                let done = match event.data() {
                    ENDED => self.on_end(),
                    SIGNAL => self.on_signals()?,
                    KEYS => self.on_keys()?,
                    COMMANDS => self.on_commands()?,
                    LET_GO => {
                        self.controller.settle();
                        None
                    }
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

    /// Watches the machine that there is now. Descriptors of one that is gone have left the set by themselves.
    fn meet(&mut self) -> io::Result<()> {
        if self.controller.machine().is_none() {
            self.leave_keys()?;
        }
        let number = Some(self.controller.boots());
        let Some(machine) = self.controller.machine().filter(|_| self.watched != number) else {
            return Ok(());
        };
        watch(&self.epoll, machine.ended().as_raw_fd(), ENDED)?;
        watch(&self.epoll, machine.let_go().as_raw_fd(), LET_GO)?;
        self.watched = number;
        self.untrimmed = true;
        if machine.keyboard().is_some() && self.keys.is_none() {
            let keys = Keys::new()?;
            if let Some(input) = &keys.input {
                watch(&self.epoll, input.as_raw_fd(), KEYS)?;
            }
            self.keys = Some(keys);
        }
        Ok(())
    }

    /// What is typed while there is no machine stays with the terminal, which is as it was.
    fn leave_keys(&mut self) -> io::Result<()> {
        let Some(input) = self.keys.take().and_then(|keys| keys.input) else {
            return Ok(());
        };
        // Standard input stays open, so closing this duplicate of it would not take it out of the set.
        self.epoll
            .ctl(ControlOperation::Delete, input.as_raw_fd(), EpollEvent::default())
    }

    fn timeout(&self) -> i32 {
        let keys = self.keys.as_ref().filter(|keys| !keys.backlog.is_empty());
        let trim = self.untrimmed.then_some(QUIET_MS);
        let waits = [keys.map(|_| RETRY_MS), self.remind_ms, trim];
        waits.into_iter().flatten().min().unwrap_or(-1)
    }

    /// Reminds the guest, more and more seldom, until it has answered everything.
    fn remind(&mut self) {
        if let Some(last) = self.remind_ms {
            let next = last.saturating_mul(2).min(*REMIND_MS.end());
            self.remind_ms = self.controller.follow_up().then_some(next);
        }
    }

    fn on_end(&mut self) -> Option<Ended> {
        let ending = self.controller.machine()?.ending()?.clone();
        self.controller.say_how(&ending);
        Some(Ended::Guest(ending))
    }

    fn on_commands(&mut self) -> io::Result<Option<Ended>> {
        let Some(inbox) = self.inbox else { return Ok(None) };
        while let Some(request) = inbox.next() {
            let outcome = self.controller.execute(request.command);
            if self.controller.is_leaving() {
                // Whoever asked may kill the process as soon as it has the answer: nothing may be left to do then.
                inbox.close();
            }
            request.respond.send(outcome);
            if self.controller.is_leaving() {
                return Ok(Some(Ended::Asked));
            }
            self.meet()?;
            // One command at a time, but the guest may have ended by it.
            if self
                .controller
                .machine()
                .is_some_and(|machine| machine.ending().is_some())
            {
                break;
            }
        }
        if self.controller.follow_up() {
            self.remind_ms = Some(*REMIND_MS.start());
        }
        Ok(None)
    }

    fn on_signals(&mut self) -> io::Result<Option<Ended>> {
        while let Some(signal) = self.signals.next()? {
            let raw = self.keys.as_ref().and_then(|keys| keys.raw.as_ref());
            match (signal, raw) {
                (Signal::Terminate | Signal::Hangup, _) => return Ok(Some(Ended::Interrupted)),
                (Signal::WindowChange, _) => {
                    if let Some(machine) = self.controller.machine() {
                        machine.fit_window();
                    }
                }
                (Signal::Suspend, Some(raw)) => raw.suspend(),
                (Signal::Continue, Some(raw)) => raw.resume()?,
                (Signal::Suspend, None) => terminal::stop_process(),
                (Signal::Continue, None) => {}
            }
        }
        Ok(None)
    }

    fn on_keys(&mut self) -> io::Result<Option<Ended>> {
        let Some(keys) = &mut self.keys else { return Ok(None) };
        let arrival = keys.read();
        match arrival {
            Arrival::Bytes => self.offer_keys(),
            Arrival::Ended => {
                self.offer_keys();
                if let Some(input) = self.keys.as_mut().and_then(|keys| keys.input.take()) {
                    self.epoll
                        .ctl(ControlOperation::Delete, input.as_raw_fd(), EpollEvent::default())?;
                }
            }
            Arrival::Hangup | Arrival::Quit => return Ok(Some(Ended::Interrupted)),
        }
        Ok(None)
    }

    fn offer_keys(&mut self) {
        let Some(keys) = self.keys.as_mut().filter(|keys| !keys.backlog.is_empty()) else {
            return;
        };
        if let Some(keyboard) = self.controller.machine().and_then(|machine| machine.keyboard()) {
            let taken = keyboard.press(&keys.backlog);
            keys.backlog.drain(..taken.min(keys.backlog.len()));
        }
    }
}

/// Standard input on its way to the guest, and the terminal's settings while it is.
struct Keys {
    input: Option<Input>,
    raw: Option<RawMode>,
    backlog: Vec<u8>,
}

impl Keys {
    fn new() -> io::Result<Self> {
        Ok(Self {
            raw: RawMode::enter()?,
            input: Input::stdin()?,
            backlog: Vec::new(),
        })
    }

    fn read(&mut self) -> Arrival {
        let Some(input) = &mut self.input else {
            return Arrival::Ended;
        };
        let room = BACKLOG_BYTES.saturating_sub(self.backlog.len());
        input.read(room, &mut self.backlog)
    }
}
