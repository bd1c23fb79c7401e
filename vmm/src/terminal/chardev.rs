//! What others attach to a port by: a Unix socket with one client at a time, or a pseudo-terminal.
//!
//! | at the other end | what the guest prints | what is typed |
//! |---|---|---|
//! | nobody has come yet, or the client has gone | waits for the next one, as far as the output has room | |
//! | somebody who does not read | waits as well | goes on |
//! | a client that has closed its sending half | goes on | has ended |
//! | a client that comes while there is one | is the new one's; the other is hung up on | likewise |
//! | nobody, at a pseudo-terminal | waits in the terminal, then in the output: husk keeps both ends, so that whoever goes hangs nothing up | |
//!
//! Nothing here waits. What is typed waits in [`TYPED_BYTES`] until the guest has room, and behind
//! that with whoever types. For the main thread; the output alone is written to by others.

use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use husk_virtio::unix::{self, BindError, SocketFile};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, ptsname, unlockpt};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{
    BufferedOutput, NonBlockingFile, OutputTarget, PortOutput, ProcessOutputs, get_attributes, raw, ready_within,
    set_attributes,
};

/// Where masters of pseudo-terminals come from (pts(4)).
const MULTIPLEXER: &str = "/dev/ptmx";

/// Bytes read ahead of a guest that does not read them.
const TYPED_BYTES: usize = 4096;
/// The most bytes of one read.
const CHUNK: usize = 256;
/// Clients that wait to be taken: one at a time is.
const BACKLOG: libc::c_int = 8;

/// How often it is looked whether a terminal's reader has come to the end.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// What can be ready.
const LISTENER: u64 = 0;
const SOURCE: u64 = 1;

/// The two ends of a port that others attach to, and what has been typed.
#[derive(Debug)]
pub struct Chardev {
    /// Readable when [`Chardev::serve`] has something to do. Goes first: whoever waits for it hears
    /// nothing more, however long the rest takes.
    epoll: Epoll,
    kind: ChardevKind,
    /// Where the client's keys come from: it, or the terminal's master.
    source: Option<Source>,
    output: BufferedOutput,
    typed: Vec<u8>,
}

#[derive(Debug)]
enum ChardevKind {
    Socket {
        listener: UnixListener,
        /// Whether new clients are heard of.
        open: bool,
        _file: SocketFile,
    },
    PseudoTerminal {
        path: PathBuf,
    },
}

#[derive(Debug)]
struct Source {
    file: File,
    watched: Watched,
}

/// What of a source is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watched {
    /// Input: there is room for what is typed (`EPOLLIN`).
    Keys,
    /// Nothing: there is no room for more.
    Nothing,
    /// Nothing but the hang-up: the client has closed its sending half and types no more.
    End,
}

/// A pseudo-terminal as a port writes to it. Whoever reads has the other side of it open, and so has husk.
#[derive(Debug)]
pub struct PseudoTerminal {
    master: NonBlockingFile,
    slave: File,
}

impl Chardev {
    /// A chardev for the client that connects to the socket at `path`, and the output for it, one of `outputs`.
    ///
    /// # Errors
    /// There can be no socket of that path.
    pub fn listen(path: &Path, outputs: &ProcessOutputs) -> Result<(Self, PortOutput), BindError> {
        let (listener, file) = unix::bind(path, BACKLOG)?;
        let kind = ChardevKind::Socket {
            listener,
            open: false,
            _file: file,
        };
        let failed = |source| BindError::Host {
            path: path.to_owned(),
            source,
        };
        let (mut chardev, output) = Self::new(kind, OutputTarget::Client(None), outputs).map_err(failed)?;
        chardev.accept_clients().map_err(failed)?;
        Ok((chardev, output))
    }

    /// A chardev on a new pseudo-terminal, raw and its owner's alone, and the output for it, one of `outputs`.
    ///
    /// # Errors
    /// The host has none, or no descriptor left.
    pub fn open_pty(outputs: &ProcessOutputs) -> io::Result<(Self, PortOutput)> {
        let mut options = File::options();
        options
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        let master = options.open(MULTIPLEXER)?;
        unlockpt(&master)?;
        let path = OsString::from_vec(ptsname(&master, Vec::new())?.into_bytes()).into();
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        // Not by its path, which another file system may have.
        let slave = File::from(ioctl_tiocgptpeer(&master, flags)?);
        // What others write there is typed into the guest.
        slave.set_permissions(Permissions::from_mode(0o600))?;
        // Without an echo: what the guest prints would be typed into it.
        let fd = slave.as_raw_fd();
        set_attributes(fd, &raw(get_attributes(fd)?))?;
        let target = OutputTarget::PseudoTerminal(PseudoTerminal {
            master: NonBlockingFile::wrap(master.try_clone()?),
            slave,
        });
        let (mut chardev, output) = Self::new(ChardevKind::PseudoTerminal { path }, target, outputs)?;
        chardev.hear(master)?;
        Ok((chardev, output))
    }

    fn new(kind: ChardevKind, target: OutputTarget, outputs: &ProcessOutputs) -> io::Result<(Self, PortOutput)> {
        let port = outputs.port(target)?;
        let chardev = Self {
            epoll: Epoll::new()?,
            kind,
            source: None,
            output: port.buffered(),
            typed: Vec::new(),
        };
        Ok((chardev, port))
    }

    /// The pseudo-terminal that a client is to open, if this is one.
    pub fn path(&self) -> Option<&Path> {
        match &self.kind {
            ChardevKind::PseudoTerminal { path } => Some(path),
            ChardevKind::Socket { .. } => None,
        }
    }

    /// Serves a piece of what has come, and has `press` type it into the guest, which says how many
    /// bytes there was room for. Whether this is to be called again soon, although the descriptor
    /// may not be readable then.
    pub fn serve(&mut self, press: impl FnOnce(&[u8]) -> usize) -> bool {
        // A client that could not be taken still waits to be accepted.
        let heard = self.accept_clients().is_ok();
        let mut events = [EpollEvent::default(); 2];
        // Nothing is ready that an error would tell of.
        let ready = self.epoll.wait(0, &mut events).unwrap_or(0);
        for event in events.iter().take(ready) {
            match event.data() {
                LISTENER => self.admit(),
                _ => self.read(event.event_set().intersects(EventSet::HANG_UP | EventSet::ERROR)),
            }
        }
        if !self.typed.is_empty() {
            let taken = press(&self.typed);
            self.typed.drain(..taken.min(self.typed.len()));
        }
        self.watch_keys();
        !heard || self.is_refusing_clients() || !self.typed.is_empty()
    }

    /// Takes the client that waits at the socket, in place of the one that there may be.
    fn admit(&mut self) {
        let ChardevKind::Socket { listener, .. } = &self.kind else {
            return;
        };
        match listener.accept().and_then(|(client, _)| self.take(client)) {
            Ok(()) => log::debug!("the guest's console has a client"),
            Err(error) if is_nobody(&error) => {}
            // One that was accepted sees the end of its connection.
            Err(error) => {
                log::warn!("cannot take a client of the guest's console: {error}");
                self.refuse_clients();
            }
        }
    }

    fn take(&mut self, client: UnixStream) -> io::Result<()> {
        self.hang_up();
        client.set_nonblocking(true)?;
        let file = File::from(OwnedFd::from(client));
        let client = NonBlockingFile::wrap(file.try_clone()?);
        self.hear(file)?;
        self.output.set_target(Some(OutputTarget::Client(Some(client))));
        Ok(())
    }

    /// Reads what the client has typed, as far as there is room; `gone` says that it will read nothing any more.
    fn read(&mut self, gone: bool) {
        let Some(source) = &mut self.source else { return };
        if source.watched == Watched::End {
            return self.hang_up();
        }
        let mut buffer = [0; CHUNK];
        let room = TYPED_BYTES.saturating_sub(self.typed.len()).min(CHUNK);
        let Some(buffer) = buffer.get_mut(..room).filter(|buffer| !buffer.is_empty()) else {
            return;
        };
        match source.file.read(buffer) {
            // At once: what waits for a reader is to be there for the next one.
            Ok(0) if gone => self.hang_up(),
            Ok(0) => self.watch(Watched::End),
            Ok(count) => self.typed.extend(buffer.iter().take(count)),
            Err(error) if is_nobody(&error) => {}
            // A client that broke off; a terminal that somebody has revoked.
            Err(_) => self.hang_up(),
        }
    }

    /// Hears from `file` from now on.
    fn hear(&mut self, file: File) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::IN, SOURCE);
        self.epoll.ctl(ControlOperation::Add, file.as_raw_fd(), event)?;
        let watched = Watched::Keys;
        self.source = Some(Source { file, watched });
        Ok(())
    }

    /// Waits for keys as long as there is room for them. A client of whom nothing is waited for
    /// cannot be in the set: its end would be told again and again.
    fn watch_keys(&mut self) {
        let Some(source) = &self.source else { return };
        let full = self.typed.len() >= TYPED_BYTES;
        match source.watched {
            Watched::Keys if full => self.watch(Watched::Nothing),
            Watched::Nothing if !full => self.watch(Watched::Keys),
            _ => {}
        }
    }

    fn watch(&mut self, wanted: Watched) {
        let Some(source) = &mut self.source else { return };
        let (operation, events) = match (source.watched, wanted) {
            (_, Watched::Nothing) => (ControlOperation::Delete, EventSet::empty()),
            (Watched::Nothing, _) => (ControlOperation::Add, EventSet::IN),
            // Its end is told unasked (epoll_ctl(2), EPOLLHUP).
            (_, Watched::End) => (ControlOperation::Modify, EventSet::empty()),
            (_, Watched::Keys) => (ControlOperation::Modify, EventSet::IN),
        };
        let event = EpollEvent::new(events, SOURCE);
        match self.epoll.ctl(operation, source.file.as_raw_fd(), event) {
            Ok(()) => source.watched = wanted,
            Err(_) => self.hang_up(),
        }
    }

    /// Parts with the client. What waits for a reader waits for the next one.
    fn hang_up(&mut self) {
        let Some(source) = self.source.take() else { return };
        if source.watched != Watched::Nothing {
            // Closing it would not take it out of the set: the output may have a duplicate.
            let fd = source.file.as_raw_fd();
            let _ = self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
        }
        if let ChardevKind::Socket { .. } = self.kind {
            self.output.set_target(Some(OutputTarget::Client(None)));
        }
    }

    /// Hears of new clients, if there can be any.
    fn accept_clients(&mut self) -> io::Result<()> {
        if let ChardevKind::Socket { listener, open, .. } = &mut self.kind
            && !*open
        {
            let event = EpollEvent::new(EventSet::IN, LISTENER);
            self.epoll.ctl(ControlOperation::Add, listener.as_raw_fd(), event)?;
            *open = true;
        }
        Ok(())
    }

    /// Whether clients may wait of whom nothing is heard.
    fn is_refusing_clients(&self) -> bool {
        matches!(self.kind, ChardevKind::Socket { open: false, .. })
    }

    /// Hears of none until [`Chardev::serve`] is called again: the one that cannot be taken stays
    /// in the backlog of the socket.
    fn refuse_clients(&mut self) {
        if let ChardevKind::Socket { listener, open, .. } = &mut self.kind {
            let fd = listener.as_raw_fd();
            *open = self
                .epoll
                .ctl(ControlOperation::Delete, fd, EpollEvent::default())
                .is_err();
        }
    }
}

/// The client keeps reading what waits. What nobody reads is nobody's.
impl Drop for Chardev {
    fn drop(&mut self) {
        if let (ChardevKind::Socket { .. }, None) = (&self.kind, &self.source) {
            self.output.set_target(None);
        }
    }
}

impl AsRawFd for Chardev {
    /// A descriptor to watch for reading, level-triggered: readable when [`Chardev::serve`] has something to do.
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

impl PseudoTerminal {
    pub(super) fn master(&self) -> &NonBlockingFile {
        &self.master
    }

    /// Whether something is there that nobody has read yet.
    pub(super) fn has_unread_bytes(&self) -> bool {
        ready_within(self.slave.as_fd(), libc::POLLIN, 0)
    }

    /// Gives what is there until `deadline` to be read: it goes with the terminal.
    pub(super) fn wait_drained(&self, deadline: Instant) {
        while self.has_unread_bytes() && Instant::now() < deadline {
            thread::sleep(POLL_INTERVAL);
        }
    }
}

/// Whether an error says no more than that there is nothing at the moment.
fn is_nobody(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
    matches!(error.kind(), WouldBlock | Interrupted | ConnectionAborted)
}

#[cfg(test)]
#[path = "chardev_test.rs"]
mod tests;
