//! One request under way: which host operation comes next, and what the driver is told in the end.
//!
//! A job knows no engine. It is asked for a [`Step`], the operation is carried out somehow, the result is told, and so
//! on until the step is [`Step::Done`]. What is left of short reads and writes is the next step.

use std::io;

use super::ID_BYTES;
use super::engine::Op;
use super::image::Image;
use super::metrics::BlockMetrics;
use super::request::{Request, STATUS_BYTES, Status};
use super::scratch::Scratch;
use super::transfer::{Direction, Transfer};
use super::zeroing::Zeroing;
use crate::iovecs::Iovecs;
use crate::ring::Chain;

/// What a job needs next.
pub(super) enum Step<'a> {
    /// This operation. Then [`Job::complete`].
    Run(Op<'a>),
    /// A bounce buffer, and all are lent. Ask again when another job is finished.
    Wait,
    /// Nothing: answer the driver.
    Done(Status),
}

/// A request and the chain that it came in.
pub(super) struct Job {
    chain: Chain,
    work: Work,
    buffers: Iovecs,
    /// The request has failed, or needed nothing of the host.
    ended: Option<Status>,
    /// Success means that what was written is on stable storage.
    stable: bool,
    /// The operation under way is [`Op::Sync`].
    syncing: bool,
    /// The host refused that.
    unsynced: bool,
}

enum Work {
    Transfer(Transfer),
    Flush,
    Discard(Zeroing),
    WriteZeroes(Zeroing),
    GetId,
    Refused,
}

/// The answer to a request, for the used ring.
pub(super) struct Answer {
    /// Head of the chain.
    pub head: u16,
    /// Bytes written to the chain from its beginning on, without a gap (virtio 1.2 §2.7.8).
    pub written: u32,
}

impl Job {
    /// Begins to carry out `request`. With `stable`, what it writes must be on stable storage when it completes.
    pub fn new(chain: Chain, request: Request, image: &Image, stable: bool, id: &[u8; ID_BYTES]) -> Self {
        let stable = match request {
            // To a read-only disk nothing was ever written.
            Request::Flush => !image.readonly(),
            Request::Write(_) | Request::WriteZeroes(_) => stable,
            _ => false,
        };
        let (work, ended) = match request {
            Request::Read(extent) => (Work::Transfer(Transfer::new(Direction::Read, extent, false)), None),
            Request::Write(extent) => (Work::Transfer(Transfer::new(Direction::Write, extent, stable)), None),
            Request::Flush => (Work::Flush, (!stable).then_some(Status::Ok)),
            Request::GetId => {
                let written = chain.writer().write_obj(*id);
                let status = written.map_or(Status::IoError, |()| Status::Ok);
                (Work::GetId, Some(status))
            }
            Request::Discard(extents) => (Work::Discard(Zeroing::discard(&extents, image)), None),
            Request::WriteZeroes(extents) => (Work::WriteZeroes(Zeroing::zeroes(&extents, image, stable)), None),
        };
        Self {
            chain,
            work,
            buffers: Iovecs::default(),
            ended,
            stable,
            syncing: false,
            unsynced: false,
        }
    }

    /// A request that is only to be answered.
    pub fn refused(chain: Chain, status: Status) -> Self {
        Self {
            chain,
            work: Work::Refused,
            buffers: Iovecs::default(),
            ended: Some(status),
            stable: false,
            syncing: false,
            unsynced: false,
        }
    }

    /// What to do next.
    pub fn step<'a>(&'a mut self, image: &'a Image, scratch: &mut Scratch) -> Step<'a> {
        // Also where its own sync has succeeded: the error may have been told to another one that ran beside it.
        if self.stable && image.durability().is_lost() {
            self.ended = Some(Status::IoError);
        }
        if let Some(status) = self.ended {
            return Step::Done(status);
        }
        let step = match &mut self.work {
            Work::Transfer(transfer) => transfer.step(&self.chain, image, scratch, &mut self.buffers),
            Work::Flush => Step::Run(Op::Sync { file: image.file() }),
            Work::Discard(zeroing) | Work::WriteZeroes(zeroing) => zeroing.step(image, scratch, &mut self.buffers),
            Work::GetId | Work::Refused => Step::Done(Status::IoError),
        };
        self.syncing = matches!(step, Step::Run(Op::Sync { .. }));
        step
    }

    /// Takes the result of the operation that [`Job::step`] asked for.
    pub fn complete(&mut self, image: &Image, result: io::Result<usize>) {
        // Interrupted before anything happened: the next step is the same one.
        if let Err(error) = &result
            && error.kind() == io::ErrorKind::Interrupted
        {
            return;
        }
        self.unsynced |= self.note_lost(image, &result);
        let progress = match &mut self.work {
            Work::Transfer(transfer) => transfer.complete(&self.chain, image, result),
            Work::Discard(zeroing) | Work::WriteZeroes(zeroing) => zeroing.complete(result),
            Work::Flush => {
                self.ended = Some(Status::Ok);
                result.map(drop).map_err(|_| Status::IoError)
            }
            Work::GetId | Work::Refused => Ok(()),
        };
        if let Err(status) = progress {
            self.ended = Some(status);
        }
    }

    /// Takes note of data that the host has lost, if `result` says so; whether it does. All that is
    /// left of an operation whose request is not answered.
    pub fn note_lost(&self, image: &Image, result: &io::Result<usize>) -> bool {
        let lost = result.as_ref().err().filter(|_| self.syncing);
        let lost = lost.filter(|error| error.kind() != io::ErrorKind::Interrupted);
        lost.inspect(|error| image.durability().lose(error)).is_some()
    }

    /// Writes the status, gives back what was lent, and counts.
    pub fn finish(mut self, status: Status, scratch: &mut Scratch, metrics: &BlockMetrics) -> Answer {
        if let Work::Transfer(transfer) = &mut self.work
            && let Some(bounce) = transfer.take_bounce()
        {
            scratch.take_back(bounce);
        }
        self.count(status, metrics);
        let mut data = self.chain.writer();
        let before = data.available_bytes().saturating_sub(STATUS_BYTES);
        if let Ok(mut last) = data.split_at(before) {
            // Cannot fail: one byte is left, in guest RAM.
            let _ = last.write_obj(status.byte());
        }
        let filled = match &self.work {
            Work::Transfer(transfer) if transfer.is_read() => transfer.done(),
            Work::GetId if status == Status::Ok => ID_BYTES,
            _ => 0,
        };
        // The status counts only where it follows without a gap.
        let written = if filled == before {
            filled.saturating_add(STATUS_BYTES)
        } else {
            filled
        };
        Answer {
            head: self.chain.head(),
            written: u32::try_from(written).unwrap_or(u32::MAX),
        }
    }

    fn count(&self, status: Status, metrics: &BlockMetrics) {
        if self.unsynced {
            metrics.flush_errors.inc();
        }
        match (status, &self.work) {
            (Status::IoError, _) => metrics.errors.inc(),
            (Status::Unsupported, _) => metrics.unsupported.inc(),
            (Status::Ok, Work::Transfer(transfer)) => {
                let bytes = u64::try_from(transfer.done()).unwrap_or(u64::MAX);
                let (requests, total) = match transfer.is_read() {
                    true => (&metrics.reads, &metrics.read_bytes),
                    false => (&metrics.writes, &metrics.written_bytes),
                };
                requests.inc();
                total.add(bytes);
            }
            (Status::Ok, Work::Flush) => metrics.flushes.inc(),
            (Status::Ok, Work::Discard(_)) => metrics.discards.inc(),
            (Status::Ok, Work::WriteZeroes(_)) => metrics.zeroes.inc(),
            (Status::Ok, Work::GetId | Work::Refused) => {}
        }
    }
}

#[cfg(test)]
#[path = "job_test.rs"]
mod tests;
