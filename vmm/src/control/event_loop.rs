//! The main thread's loop: commands, signals, the keyboard and what others attach to, wakeups, timers, and the guest's
//! end.
//!
//! Each round serves everything that is ready, the most urgent first, and of each a piece that is
//! bounded: one command, one signal, one read of keys. So nothing that never ceases keeps the rest
//! from its turn, and timers are looked at in every round.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::{Controller, Due, Progress};
use crate::api::{CommandReceiver, Execute};
use crate::background;
use crate::machine::{BuildError, Ending, Machine};
use crate::seccomp::{Mode, Role};
use crate::terminal::{self, Arrival, Input, ProcessOutputs, RawMode, Signal, Signals};
use crate::trim;
use crate::wakeup::whole_millis;

/// What can be ready, in the order in which it is served.
const ENDED: u64 = 0;
const SIGNAL: u64 = 1;
const WAKEUP: u64 = 2;
const COMMANDS: u64 = 3;
const KEYS: u64 = 4;
/// What others attach to, the one or the other.
const CHARDEVS: u64 = 5;
const OUTPUT: u64 = 6;
/// The monitor of events.
const MONITOR: u64 = 7;
/// How many there are: a round hears of all.
const SOURCES: usize = 9;

/// Keys read ahead of a guest that does not read them. More stay with the terminal.
const BACKLOG_BYTES: usize = 4096;
/// How often a guest with a full FIFO is offered the backlog again.
const RETRY: Duration = Duration::from_millis(20);
/// How long the loop waits at most before it confines its thread, when nothing happens: by then the
/// guest runs, and is not waited for.
const NARROW: Duration = Duration::from_millis(5);

/// Why the main thread left its loop.
#[derive(Debug)]
pub enum Ended {
    /// The guest has ended.
    Guest(Ending),
    /// The user wants the end: by a signal, or on the terminal.
    Interrupted,
    /// A client wants it.
    Asked,
    /// There is no machine for the VM that the process is for.
    Unbuilt(BuildError),
}

/// Carries out the commands in `commands`, and serves the VM that `controller` has, until the end.
/// Without it there will be no other machine, and no device more: the thread confines itself to the
/// role of this loop before it serves anything, or once there is a machine.
///
/// # Errors
/// What the host refuses of a loop's needs.
pub fn run_event_loop(
    controller: &mut Controller,
    signals: Signals,
    outputs: &ProcessOutputs,
    commands: Option<&CommandReceiver>,
    seccomp: Mode,
) -> io::Result<Ended> {
    let epoll = Epoll::new()?;
    watch(&epoll, signals.as_raw_fd(), SIGNAL)?;
    watch(&epoll, outputs.as_raw_fd(), OUTPUT)?;
    watch(&epoll, controller.wakeup().as_raw_fd(), WAKEUP)?;
    if let Some(monitor) = controller.events.monitor() {
        watch(&epoll, monitor, MONITOR)?;
    }
    if let Some(commands) = commands {
        watch(&epoll, commands.as_raw_fd(), COMMANDS)?;
    }
    let mut event_loop = EventLoop {
        controller,
        signals,
        outputs,
        commands,
        epoll,
        narrow: commands.is_none().then_some(seccomp),
        watched: None,
        keys: None,
        trims: trim::TrimSchedule::default(),
        is_trim_due: false,
    };
    event_loop.watch_machine()?;
    event_loop.run()
}

fn watch(epoll: &Epoll, fd: RawFd, token: u64) -> io::Result<()> {
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token))
}

struct EventLoop<'a> {
    controller: &'a mut Controller,
    signals: Signals,
    outputs: &'a ProcessOutputs,
    commands: Option<&'a CommandReceiver>,
    epoll: Epoll,
    /// The thread is to be confined to the role of this loop.
    narrow: Option<Mode>,
    watched: Option<Watched>,
    keys: Option<Keys>,
    trims: trim::TrimSchedule,
    /// It is time for one.
    is_trim_due: bool,
}

impl EventLoop<'_> {
    /// Confines the thread, if it is to be, once there is a machine and something to be served, or
    /// soon. Installed at once, the filter would take its time from a guest that is about to begin.
    fn narrow(&mut self) -> io::Result<()> {
        if self.controller.machine().is_none() {
            return Ok(());
        }
        let Some(seccomp) = self.narrow.take() else {
            return Ok(());
        };
        // What is ready stays so. A signal may end the wait.
        let _ = self.epoll.wait(whole_millis(NARROW), &mut [EpollEvent::default()]);
        // Others may do more than this thread from now on, and take apart what it must not wait for.
        background::confine(seccomp);
        seccomp.enter(Role::EventLoop).map_err(io::Error::other)
    }

    fn run(mut self) -> io::Result<Ended> {
        let mut events = [EpollEvent::default(); SOURCES];
        loop {
            self.narrow()?;
            let timeout = self.timeout();
            if std::mem::take(&mut self.is_trim_due) {
                // As late as can be: what this thread does after it has to be found again.
                trim::trim();
            }
            let ready = match self.epoll.wait(timeout, &mut events) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                ready => ready?,
            };
            self.on_time();
            let mut ready: Vec<u64> = events.iter().take(ready).map(EpollEvent::data).collect();
            ready.sort_unstable();
            ready.dedup();
            for source in ready {
                if let Some(ended) = self.serve(source)? {
                    return Ok(ended);
                }
            }
            if let Some(ended) = self.answer() {
                return Ok(ended);
            }
            if let Some(failure) = self.controller.take_failure() {
                return Ok(Ended::Unbuilt(failure));
            }
            self.controller.time_threads();
            self.watch_machine()?;
            if let Some(keys) = &mut self.keys {
                keys.watch(&self.epoll)?;
            }
        }
    }

    /// Serves a piece of what is ready.
    fn serve(&mut self, source: u64) -> io::Result<Option<Ended>> {
        match source {
            ENDED => return Ok(self.on_end()),
            SIGNAL => return self.on_signal(),
            KEYS => return self.on_keys(),
            WAKEUP => self.controller.on_wakeup(),
            COMMANDS => self.on_command(),
            CHARDEVS => self.serve_chardevs(),
            MONITOR => self.controller.events.flush(),
            _ => self.outputs.drain(),
        }
        Ok(None)
    }

    /// Watches the machine that there is now, and no other.
    fn watch_machine(&mut self) -> io::Result<()> {
        if self.controller.machine().is_none() {
            self.leave_keys()?;
        }
        let number = self.controller.machine().map(|_| self.controller.boots());
        if self.watched.as_ref().map(|watched| watched.number) == number {
            return Ok(());
        }
        if let Some(Watched { ended, .. }) = self.watched.take() {
            // A machine that was left behind keeps its own descriptor of this: closing ours would
            // not take it out of the set.
            unwatch(&self.epoll, ended.as_raw_fd())?;
        }
        let (Some(machine), Some(number)) = (self.controller.machine(), number) else {
            return Ok(());
        };
        let ended = machine.ended().try_clone()?;
        watch(&self.epoll, ended.as_raw_fd(), ENDED)?;
        machine.chardevs().try_for_each(|fd| watch(&self.epoll, fd, CHARDEVS))?;
        self.watched = Some(Watched { number, ended });
        if machine.stdin_port().is_some() && self.keys.is_none() {
            self.keys = Some(Keys::of_stdin()?);
        }
        self.trim_soon(trim::Activity::Change);
        self.controller.start_fault_polling();
        Ok(())
    }

    /// What is typed while there is no machine stays with the terminal, which is as it was.
    fn leave_keys(&mut self) -> io::Result<()> {
        match self.keys.take() {
            Some(mut keys) => keys.forget(&self.epoll),
            None => Ok(()),
        }
    }

    /// Milliseconds until a timer is due.
    fn timeout(&self) -> i32 {
        let left = self.controller.timers.until_next(Instant::now());
        left.map_or(-1, whole_millis)
    }

    fn on_time(&mut self) {
        for due in self.controller.on_time(Instant::now()) {
            match due {
                Due::Trim => self.trim(),
                _ => {
                    self.offer_keys();
                    self.serve_chardevs();
                }
            }
        }
    }

    /// What a start or a command needed is to be given back, whether there is a machine or not.
    fn trim_soon(&mut self, activity: trim::Activity) {
        let after = self.trims.begin(activity);
        self.controller.timers.set_if_sooner(Due::Trim, Instant::now() + after);
    }

    fn trim(&mut self) {
        if self.controller.machine().is_none() {
            // The program's pages are needed as soon as there is to be one.
            return trim::trim_heap();
        }
        self.is_trim_due = true;
        if let Some(after) = self.trims.next() {
            self.controller.timers.set_if_sooner(Due::Trim, Instant::now() + after);
        }
    }

    /// The guest has ended; also in the middle of what a client has asked for, unless that is the end.
    fn on_end(&mut self) -> Option<Ended> {
        // Fails only when it has been read: what has ended stays so.
        let _ = self.watched.as_ref()?.ended.read();
        let ending = self.controller.machine()?.ending()?.clone();
        if self.controller.is_stopping() {
            return None;
        }
        self.controller.tell_ending(&ending);
        Some(Ended::Guest(ending))
    }

    fn on_command(&mut self) {
        let Some(request) = self.commands.and_then(CommandReceiver::next) else {
            // A client has gone who waited for an answer.
            self.controller.advance();
            return;
        };
        let activity = match request.command.only_looks() {
            true => trim::Activity::Query,
            false => trim::Activity::Change,
        };
        match self.controller.execute(request.command) {
            Progress::Done(outcome) => self.controller.answers.push((request.respond, outcome)),
            Progress::Later(id) => self.controller.keep(id, request.respond),
        }
        self.trim_soon(activity);
    }

    /// Gives the answers that are ready. The end, if one of them was the last.
    fn answer(&mut self) -> Option<Ended> {
        let leaving = self.controller.is_leaving();
        if let (true, Some(commands)) = (leaving, self.commands) {
            // Whoever asked may kill the process as soon as it has the answer: nothing may be left
            // to do then, but for what threads are writing to files.
            commands.unlink_sockets();
        }
        for (respond, outcome) in self.controller.take_answers() {
            respond.send(outcome);
        }
        leaving.then_some(Ended::Asked)
    }

    fn on_signal(&mut self) -> io::Result<Option<Ended>> {
        if let Some(signal) = self.signals.next()? {
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
                (Signal::LogMore, _) => crate::log::shift_level(true),
                (Signal::LogLess, _) => crate::log::shift_level(false),
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
                if let Some(keys) = &mut self.keys {
                    keys.forget(&self.epoll)?;
                }
                self.offer_keys();
            }
            Arrival::Hangup | Arrival::Quit => return Ok(Some(Ended::Interrupted)),
        }
        Ok(None)
    }

    fn offer_keys(&mut self) {
        let Some(keys) = self.keys.as_mut().filter(|keys| !keys.backlog.is_empty()) else {
            return;
        };
        if let Some(port) = self.controller.machine().and_then(|machine| machine.stdin_port()) {
            let taken = port.send(&keys.backlog);
            keys.backlog.drain(..taken.min(keys.backlog.len()));
        }
        if !keys.backlog.is_empty() {
            self.controller.timers.set(Due::Keys, Instant::now() + RETRY);
        }
    }

    fn serve_chardevs(&mut self) {
        let machine = self.controller.machine_mut();
        if machine.is_some_and(Machine::serve_chardevs) {
            self.controller.timers.set(Due::Keys, Instant::now() + RETRY);
        }
    }
}

/// The machine whose end is waited for.
struct Watched {
    /// Which of the controller's it is.
    number: u64,
    /// Readable when it has ended.
    ended: EventFd,
}

/// Standard input on its way to the guest, and the terminal's settings while it is.
struct Keys {
    input: Option<Input>,
    raw: Option<RawMode>,
    backlog: Vec<u8>,
    /// Whether the loop is woken for more.
    watched: bool,
}

impl Keys {
    fn of_stdin() -> io::Result<Self> {
        Ok(Self {
            raw: RawMode::enter()?,
            ..Self::new(Input::stdin()?)
        })
    }

    fn new(input: Option<Input>) -> Self {
        Self {
            input,
            raw: None,
            backlog: Vec::new(),
            watched: false,
        }
    }

    /// Has `epoll` tell of what is typed as long as there is room for it: told of what it cannot
    /// read, the loop would turn without end.
    fn watch(&mut self, epoll: &Epoll) -> io::Result<()> {
        let Some(input) = &self.input else { return Ok(()) };
        let has_room = self.backlog.len() < BACKLOG_BYTES;
        match (self.watched, has_room) {
            (false, true) => watch(epoll, input.as_raw_fd(), KEYS)?,
            (true, false) => unwatch(epoll, input.as_raw_fd())?,
            (true, true) | (false, false) => {}
        }
        self.watched = has_room;
        Ok(())
    }

    /// Standard input has ended, or is left as it is.
    fn forget(&mut self, epoll: &Epoll) -> io::Result<()> {
        // It stays open, so closing this duplicate of it would not take it out of the set.
        match self.input.take() {
            Some(input) if std::mem::take(&mut self.watched) => unwatch(epoll, input.as_raw_fd()),
            _ => Ok(()),
        }
    }

    fn read(&mut self) -> Arrival {
        let Some(input) = &mut self.input else {
            return Arrival::Ended;
        };
        let room = BACKLOG_BYTES.saturating_sub(self.backlog.len());
        input.read(room, &mut self.backlog)
    }
}

fn unwatch(epoll: &Epoll, fd: RawFd) -> io::Result<()> {
    epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default())
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn is_woken(epoll: &Epoll) -> bool {
        epoll.wait(0, &mut [EpollEvent::default()]).unwrap() == 1
    }

    #[test]
    fn input_that_the_guest_does_not_take_does_not_wake_the_loop_until_there_is_room_again() {
        let (epoll, input) = (Epoll::new().unwrap(), Input::new(File::open("/dev/zero").unwrap()));
        let mut keys = Keys::new(Some(input.unwrap()));
        for _ in 0..2 {
            let mut turns = 0;
            keys.watch(&epoll).unwrap();
            while is_woken(&epoll) {
                assert_eq!(keys.read(), Arrival::Bytes);
                keys.watch(&epoll).unwrap();
                turns += 1;
                assert!(turns <= BACKLOG_BYTES, "it turns without end");
            }
            assert_eq!(keys.backlog.len(), BACKLOG_BYTES);
            keys.backlog.drain(..100);
        }
        keys.watch(&epoll).unwrap();
        assert!(is_woken(&epoll));
        keys.forget(&epoll).unwrap();
        assert!(!is_woken(&epoll) && keys.input.is_none());
        keys.forget(&epoll).unwrap();
    }
}
