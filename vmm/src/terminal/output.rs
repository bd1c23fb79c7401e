//! The outputs of a process: its own standard output, and what the user names by a path. One
//! descriptor tells that one of them can go on.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Instant;

use husk_devices::lock;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{
    BufferedOutput, Content, FileId, Files, NonBlockingFile, OpenOutputError, OutputTarget, ProtectedFiles,
    WriteProgress, WriterThread,
};
use crate::seccomp::Mode;

/// Permissions of a file that is made, less the user's mask: it is the log of a machine, read by whoever collects logs.
const LOG_MODE: u32 = 0o666;

/// Standard output as a device's `Write`, and the owner of the outputs of ports. Clones share it.
#[derive(Clone, Debug)]
pub struct ProcessOutputs {
    stdout: BufferedOutput,
    others: Arc<Others>,
}

#[derive(Debug)]
struct Others {
    /// Readable while one of the outputs is.
    wakeup: Epoll,
    /// Files that no port may empty.
    protected: ProtectedFiles,
    /// How threads are confined that write to files.
    seccomp: Mode,
    /// Threads that may still write, those of ports that are gone as well.
    writers: Mutex<Vec<WriteProgress>>,
    /// Those that write to one file each: two ports with the same one share its thread, so that each of their writes
    /// stands where it came.
    files: Mutex<Vec<(FileId, Weak<WriterThread>)>>,
    /// Those that ports have, and those of ports that are gone for which bytes still wait. No vCPU
    /// locks it; the outputs' own locks are taken under it.
    ports: Mutex<Vec<BufferedOutput>>,
}

/// What is at a path, as a device's `Write`. It is closed with the device, or when what waits then has gone out.
#[derive(Debug)]
pub struct PortOutput {
    output: BufferedOutput,
    others: Arc<Others>,
    files: Vec<Option<FileId>>,
}

impl ProcessOutputs {
    /// Takes standard output. When it is closed, everything is refused. None of `protected` is
    /// emptied for a port. Files, which standard output may be too, are written by threads that are
    /// confined as `seccomp` says.
    ///
    /// # Errors
    /// What the host says when it has no descriptor or thread left.
    pub fn new(protected: ProtectedFiles, seccomp: Mode) -> io::Result<Self> {
        match io::stdout().as_fd().try_clone_to_owned() {
            Ok(fd) => {
                let target = NonBlockingFile::inherit(File::from(fd)).into_target(seccomp)?;
                Self::with_stdout(Some(target), protected, seccomp)
            }
            Err(error) if error.raw_os_error() == Some(libc::EBADF) => Self::with_stdout(None, protected, seccomp),
            Err(error) => Err(error),
        }
    }

    /// One that protects no file, and whose threads are not confined.
    #[cfg(test)]
    pub(super) fn wrap(target: Option<OutputTarget>) -> io::Result<Self> {
        Self::with_stdout(target, ProtectedFiles::default(), Mode::Off)
    }

    fn with_stdout(target: Option<OutputTarget>, protected: ProtectedFiles, seccomp: Mode) -> io::Result<Self> {
        let (stdout, wakeup) = (BufferedOutput::new(target)?, Epoll::new()?);
        watch(&wakeup, &stdout)?;
        let others = Arc::new(Others {
            wakeup,
            protected,
            seccomp,
            writers: Mutex::default(),
            files: Mutex::default(),
            ports: Mutex::default(),
        });
        Ok(Self { stdout, others })
    }

    /// An output to what is at `path`, a regular file made, or emptied unless husk writes to it itself. It is drained
    /// with standard output.
    ///
    /// # Errors
    /// Nothing can be written there.
    pub fn open(&self, path: &Path) -> Result<PortOutput, OpenOutputError> {
        let opened = NonBlockingFile::create(path, LOG_MODE, &self.others.protected)?;
        let mut files = lock(&self.others.files);
        files.retain(|(_, writer)| writer.strong_count() > 0);
        let file = opened.file_id();
        let known = files.iter().find(|(known, _)| file == Some(*known));
        if let Some(writer) = known.and_then(|(_, writer)| writer.upgrade()) {
            return Ok(self.port_to(OutputTarget::WriterThread(writer), vec![file])?);
        }
        let target = opened.into_target(self.others.seccomp)?;
        if let (Some(file), OutputTarget::WriterThread(writer)) = (file, &target) {
            files.push((file, Arc::downgrade(writer)));
        }
        Ok(self.port_to(target, vec![file])?)
    }

    /// As [`ProcessOutputs::open`], for a regular file that is never larger than `limit` bytes, and
    /// `keep` more beside it that are used in turn.
    ///
    /// # Errors
    /// One of them is no regular file, or one that husk writes to itself, or cannot be written to.
    pub fn open_limited(&self, path: &Path, limit: u64, keep: u32) -> Result<PortOutput, OpenOutputError> {
        let mut files = Files::open(path, limit, keep, LOG_MODE, &self.others.protected)?;
        let ids = files.ids();
        let writer = WriterThread::start(Content::Bytes, self.others.seccomp, move |bytes| files.write(bytes))?;
        Ok(self.port_to(OutputTarget::WriterThread(Arc::new(writer)), ids)?)
    }

    /// An output to `target`.
    ///
    /// # Errors
    /// What the host says when it has no descriptor left.
    pub fn port(&self, target: OutputTarget) -> io::Result<PortOutput> {
        self.port_to(target, Vec::new())
    }

    fn port_to(&self, target: OutputTarget, files: Vec<Option<FileId>>) -> io::Result<PortOutput> {
        if let Some(progress) = target.progress() {
            let mut writers = lock(&self.others.writers);
            writers.retain(|writer| !writer.is_over());
            // Two ports may have one file.
            if !writers.iter().any(|known| known.is_same(progress)) {
                writers.push(progress.clone());
            }
        }
        let output = BufferedOutput::new(Some(target))?;
        watch(&self.others.wakeup, &output)?;
        let mut ports = self.others.locked();
        // Those of a machine that is gone have had their time.
        ports.retain(|output| !output.is_only_one());
        ports.push(output.clone());
        let others = self.others.clone();
        Ok(PortOutput { output, others, files })
    }

    /// Files that husk writes itself.
    pub fn protected_files(&self) -> &ProtectedFiles {
        &self.others.protected
    }

    /// That of standard output itself.
    pub fn stdout(&self) -> BufferedOutput {
        self.stdout.clone()
    }

    /// Writes what waits, as far as there is room. To be called when the descriptor is readable.
    pub fn drain(&self) {
        self.stdout.drain();
        let mut ports = self.others.locked();
        ports.iter().for_each(BufferedOutput::drain);
        ports.retain(|output| !output.is_only_one() || output.has_backlog());
    }

    /// Gives what waits until `deadline` to be read or written. For the end of the VM.
    pub fn finish(&self, deadline: Instant) {
        self.stdout.finish(deadline);
        self.others.locked().iter().for_each(|output| output.finish(deadline));
        lock(&self.others.writers).iter().for_each(|writer| {
            writer.wait(deadline);
        });
    }
}

impl PortOutput {
    /// The files that were opened for it, in the order of their numbers; `None` for what is no regular file.
    pub fn files(&self) -> &[Option<FileId>] {
        &self.files
    }

    /// The output itself, for whoever chooses its target, or counts what it loses.
    pub fn buffered(&self) -> BufferedOutput {
        self.output.clone()
    }
}

impl Others {
    fn locked(&self) -> MutexGuard<'_, Vec<BufferedOutput>> {
        lock(&self.ports)
    }
}

fn watch(wakeup: &Epoll, output: &BufferedOutput) -> io::Result<()> {
    wakeup.ctl(
        ControlOperation::Add,
        output.as_raw_fd(),
        EpollEvent::new(EventSet::IN, 0),
    )
}

impl Write for ProcessOutputs {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stdout.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stdout.flush()
    }
}

impl Write for PortOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

impl Drop for PortOutput {
    fn drop(&mut self) {
        self.others
            .locked()
            .retain(|output| !output.is_same(&self.output) || output.has_backlog());
    }
}

impl AsRawFd for ProcessOutputs {
    /// A descriptor to watch for reading, level-triggered: readable when [`ProcessOutputs::drain`] has something to do.
    fn as_raw_fd(&self) -> RawFd {
        self.others.wakeup.as_raw_fd()
    }
}

#[cfg(test)]
#[path = "output_test.rs"]
mod tests;
