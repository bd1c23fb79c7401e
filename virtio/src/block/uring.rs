//! Host operations through io_uring(7), side by side.
//!
//! The kernel works on guest memory behind our back. What keeps that sound: an operation's buffers live in its job, the
//! job stays in the table until the completion has been seen, and dropping the ring waits for all that the kernel has
//! been given.
#![expect(unsafe_code, reason = "submission entries hold raw pointers")]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::thread;
use std::time::Duration;

use io_uring::register::Restriction;
use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, Probe, opcode, squeue};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::engine::{Completion, Op};
use crate::iovecs::Iovecs;

/// How long to wait for completions where the kernel refuses to wait for us.
const POLL: Duration = Duration::from_millis(1);

/// All that a ring is asked for, and all that it can do.
const OPERATIONS: [u8; 4] = [
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
];

/// One io_uring, with an eventfd that tells of completions.
pub(super) struct Uring {
    ring: IoUring,
    event: EventFd,
    /// Pushed and not yet reaped.
    running: usize,
}

impl Uring {
    /// A ring for at most `depth` operations at a time. Its completion queue is twice as long and so never overflows.
    ///
    /// # Errors
    /// When the host has no io_uring, forbids it, lacks one of the operations, or cannot restrict a
    /// ring to them (before Linux 5.10).
    pub fn new(depth: usize) -> io::Result<Self> {
        let entries = u32::try_from(depth.max(1)).map_err(io::Error::other)?;
        let ring = IoUring::builder().dontfork().setup_r_disabled().build(entries)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        if !OPERATIONS.into_iter().all(|code| probe.is_supported(code)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        // A ring carries out its operations past every seccomp filter, so it must know no others:
        // no opening, no sockets.
        ring.submitter()
            .register_restrictions(&mut OPERATIONS.map(Restriction::sqe_op))?;
        ring.submitter().register_enable_rings()?;
        Ok(Self {
            ring,
            event,
            running: 0,
        })
    }

    /// Readable when completions are waiting.
    pub fn event(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    /// Puts `op` up for the next [`Uring::submit`].
    ///
    /// # Errors
    /// When the submission queue stays full. Nothing was put up then.
    ///
    /// # Safety
    /// See [`super::engine::Engine::run`].
    pub unsafe fn push(&mut self, slot: usize, op: Op<'_>) -> io::Result<()> {
        let user_data = u64::try_from(slot).map_err(io::Error::other)?;
        let entry = entry(op)?.user_data(user_data);
        if self.ring.submission().is_full() {
            self.submit()?;
        }
        // SAFETY: what the entry points to stays valid until its completion, as the caller promises.
        unsafe { self.ring.submission().push(&entry) }.map_err(|_| io::Error::from(io::ErrorKind::ResourceBusy))?;
        self.running = self.running.saturating_add(1);
        Ok(())
    }

    /// Gives everything that was pushed to the kernel. `false`: it would not take it all now.
    ///
    /// # Errors
    /// When it never will.
    pub fn submit(&mut self) -> io::Result<bool> {
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Ok(0) => return Ok(false),
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EAGAIN | libc::EBUSY) => return Ok(false),
                    _ => return Err(error),
                },
            }
        }
        Ok(true)
    }

    /// Whether something was pushed and has not been reaped.
    pub fn is_busy(&self) -> bool {
        self.running > 0
    }

    /// Resets the event. What completes from now on rings again, so whatever has rung is to be reaped after this.
    pub fn take_event(&self) {
        // Fails only when nothing has rung.
        let _ = self.event.read();
    }

    /// Whether something has completed that was not reaped. Costs no system call.
    pub fn has_completed(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// Appends what has completed.
    pub fn reap(&mut self, ended: &mut Vec<Completion>) {
        for entry in self.ring.completion() {
            self.running = self.running.saturating_sub(1);
            // Only slots are ever pushed; what is none finds no job.
            let slot = usize::try_from(entry.user_data()).unwrap_or(usize::MAX);
            let result = usize::try_from(entry.result())
                .map_err(|_| io::Error::from_raw_os_error(entry.result().saturating_neg()));
            ended.push(Completion { slot, result });
        }
    }

    /// Submits, and waits until something has completed.
    ///
    /// # Errors
    /// When nothing is running, or the kernel refuses for good.
    pub fn wait(&mut self) -> io::Result<()> {
        if self.running == 0 {
            return Err(io::ErrorKind::NotConnected.into());
        }
        loop {
            match self.ring.submit_and_wait(1) {
                Ok(_) => return Ok(()),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EAGAIN | libc::EBUSY) if self.ring.completion().is_empty() => thread::sleep(POLL),
                    Some(libc::EAGAIN | libc::EBUSY) => return Ok(()),
                    _ => return Err(error),
                },
            }
        }
    }
}

impl Drop for Uring {
    /// Waits for everything that the kernel was given. What it never took it will never touch.
    fn drop(&mut self) {
        while self.running > self.ring.submission().len() {
            if self.ring.submit_and_wait(1).is_err() {
                thread::sleep(POLL);
            }
            self.running = self.running.saturating_sub(self.ring.completion().count());
        }
    }
}

/// The submission entry of an operation.
fn entry(op: Op<'_>) -> io::Result<squeue::Entry> {
    Ok(match op {
        Op::Read { file, buffers, offset } => {
            let (array, count) = parts(buffers)?;
            opcode::Readv::new(Fd(file.as_raw_fd()), array, count)
                .offset(offset)
                .build()
        }
        Op::Write { file, buffers, offset } => {
            let (array, count) = parts(buffers)?;
            opcode::Writev::new(Fd(file.as_raw_fd()), array, count)
                .offset(offset)
                .build()
        }
        Op::Sync { file } => opcode::Fsync::new(Fd(file.as_raw_fd()))
            .flags(FsyncFlags::DATASYNC)
            .build(),
        Op::Allocate {
            file,
            mode,
            offset,
            len,
        } => opcode::Fallocate::new(Fd(file.as_raw_fd()), len)
            .offset(offset)
            .mode(mode)
            .build(),
    })
}

fn parts(buffers: &Iovecs) -> io::Result<(*const libc::iovec, u32)> {
    let array = buffers.as_slice();
    let count = u32::try_from(array.len()).map_err(io::Error::other)?;
    Ok((array.as_ptr(), count))
}

#[cfg(test)]
#[path = "uring_test.rs"]
mod tests;
