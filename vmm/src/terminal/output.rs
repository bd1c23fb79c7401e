//! The outputs of a process: its own standard output, and what the user names by a path. One descriptor tells that one of them can
//! go on.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Instant;

use husk_devices::lock;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{Content, FileId, Files, Outlet, OutletError, OwnFiles, Progress, Sink, Way, Writer};
use crate::seccomp::Mode;

/// Permissions of a file that is made, less the user's mask: it is the log of a machine, read by whoever collects logs.
const LOG_MODE: u32 = 0o666;

/// Standard output as a device's `Write`, and the keeper of the sinks beside it. Clones share it.
#[derive(Clone, Debug)]
pub struct StdoutSink {
    stdout: Sink,
    others: Arc<Others>,
}

#[derive(Debug)]
struct Others {
    /// Readable while one of the sinks is.
    wakeup: Epoll,
    /// Files that no port may empty.
    own: OwnFiles,
    /// How threads are confined that write to files.
    seccomp: Mode,
    /// Threads that may still write, those of ports that are gone as well.
    writers: Mutex<Vec<Progress>>,
    /// Those that write to one file each: two ports with the same one share its thread, so that each of their writes
    /// stands where it came.
    files: Mutex<Vec<(FileId, Weak<Writer>)>>,
    /// Those that ports have, and those of ports that are gone for which bytes still wait. No vCPU locks it; the sinks' own locks are
    /// taken under it.
    sinks: Mutex<Vec<Sink>>,
}

/// What is at a path, as a device's `Write`. It is closed with the device, or when what waits then has gone out.
#[derive(Debug)]
pub struct PortSink {
    sink: Sink,
    others: Arc<Others>,
}

impl StdoutSink {
    /// Takes standard output. When it is closed, everything is refused. None of `own` is emptied for a port. Files, which
    /// standard output may be too, are written by threads that are confined as `seccomp` says.
    ///
    /// # Errors
    /// What the host says when it has no descriptor or thread left.
    pub fn new(own: OwnFiles, seccomp: Mode) -> io::Result<Self> {
        match io::stdout().as_fd().try_clone_to_owned() {
            Ok(fd) => {
                let way = Outlet::inherit(File::from(fd)).into_way(seccomp)?;
                Self::beside(Some(way), own, seccomp)
            }
            Err(error) if error.raw_os_error() == Some(libc::EBADF) => Self::beside(None, own, seccomp),
            Err(error) => Err(error),
        }
    }

    /// One beside which nothing is husk's own.
    #[cfg(test)]
    pub(super) fn over(way: Option<Way>) -> io::Result<Self> {
        Self::beside(way, OwnFiles::default(), Mode::Off)
    }

    fn beside(way: Option<Way>, own: OwnFiles, seccomp: Mode) -> io::Result<Self> {
        let (stdout, wakeup) = (Sink::over(way)?, Epoll::new()?);
        watch(&wakeup, &stdout)?;
        let others = Arc::new(Others {
            wakeup,
            own,
            seccomp,
            writers: Mutex::default(),
            files: Mutex::default(),
            sinks: Mutex::default(),
        });
        Ok(Self { stdout, others })
    }

    /// A sink for what is at `path`, a regular file made, or emptied unless husk writes to it itself. It is drained
    /// with standard output.
    ///
    /// # Errors
    /// Nothing can be written there.
    pub fn open(&self, path: &Path) -> Result<PortSink, OutletError> {
        let outlet = Outlet::create(path, LOG_MODE, &self.others.own)?;
        let mut files = lock(&self.others.files);
        files.retain(|(_, writer)| writer.strong_count() > 0);
        let file = outlet.file_id();
        let known = files.iter().find(|(known, _)| file == Some(*known));
        if let Some(writer) = known.and_then(|(_, writer)| writer.upgrade()) {
            return Ok(self.port(Way::Writer(writer))?);
        }
        let way = outlet.into_way(self.others.seccomp)?;
        if let (Some(file), Way::Writer(writer)) = (file, &way) {
            files.push((file, Arc::downgrade(writer)));
        }
        Ok(self.port(way)?)
    }

    /// As [`StdoutSink::open`], for a regular file that is never larger than `limit` bytes, and `keep` more beside it that are used in turn.
    ///
    /// # Errors
    /// One of them is no regular file, or one that husk writes to itself, or cannot be written to.
    pub fn open_limited(&self, path: &Path, limit: u64, keep: u32) -> Result<PortSink, OutletError> {
        let mut files = Files::open(path, limit, keep, LOG_MODE, &self.others.own)?;
        let writer = Writer::start(Content::Bytes, self.others.seccomp, move |bytes| files.write(bytes))?;
        Ok(self.port(Way::Writer(Arc::new(writer)))?)
    }

    /// A sink for what `way` leads to.
    ///
    /// # Errors
    /// What the host says when it has no descriptor left.
    pub fn port(&self, way: Way) -> io::Result<PortSink> {
        if let Some(progress) = way.progress() {
            let mut writers = lock(&self.others.writers);
            writers.retain(|writer| !writer.is_over());
            // Two ports may have one file.
            if !writers.iter().any(|known| known.is(progress)) {
                writers.push(progress.clone());
            }
        }
        let sink = Sink::over(Some(way))?;
        watch(&self.others.wakeup, &sink)?;
        let mut sinks = self.others.locked();
        // Those of a machine that is gone have had their time.
        sinks.retain(|sink| !sink.is_only_one());
        sinks.push(sink.clone());
        let others = self.others.clone();
        Ok(PortSink { sink, others })
    }

    /// The sink of standard output itself.
    pub fn sink(&self) -> Sink {
        self.stdout.clone()
    }

    /// Writes what waits, as far as there is room. To be called when the descriptor is readable.
    pub fn drain(&self) {
        self.stdout.drain();
        let mut sinks = self.others.locked();
        sinks.iter().for_each(Sink::drain);
        sinks.retain(|sink| !sink.is_only_one() || sink.has_backlog());
    }

    /// Gives what waits until `deadline` to be read or written. For the end of the VM.
    pub fn finish(&self, deadline: Instant) {
        self.stdout.finish(deadline);
        self.others.locked().iter().for_each(|sink| sink.finish(deadline));
        lock(&self.others.writers).iter().for_each(|writer| {
            writer.wait(deadline);
        });
    }
}

impl PortSink {
    /// The sink itself, for whoever chooses where it leads, or counts what it loses.
    pub fn sink(&self) -> Sink {
        self.sink.clone()
    }
}

impl Others {
    fn locked(&self) -> MutexGuard<'_, Vec<Sink>> {
        lock(&self.sinks)
    }
}

fn watch(wakeup: &Epoll, sink: &Sink) -> io::Result<()> {
    wakeup.ctl(
        ControlOperation::Add,
        sink.as_raw_fd(),
        EpollEvent::new(EventSet::IN, 0),
    )
}

impl Write for StdoutSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stdout.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stdout.flush()
    }
}

impl Write for PortSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.sink.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

impl Drop for PortSink {
    fn drop(&mut self) {
        self.others
            .locked()
            .retain(|sink| !sink.is(&self.sink) || sink.has_backlog());
    }
}

impl AsRawFd for StdoutSink {
    /// A descriptor to watch for reading, level-triggered: readable when [`StdoutSink::drain`] has something to do.
    fn as_raw_fd(&self) -> RawFd {
        self.others.wakeup.as_raw_fd()
    }
}

#[cfg(test)]
#[path = "output_test.rs"]
mod tests;
