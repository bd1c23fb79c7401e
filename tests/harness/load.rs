//! Work that goes on in a guest and between it and the host while something else is done to the VM,
//! and tells what went wrong.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow, ensure};
use husk_guest::call::Rounds;
use husk_guest::{Call, Reply, call, pattern};

use crate::agent::Agent;
use crate::pod::Pod;

/// Bytes that a stream has under way at a time.
const PIECE: usize = 32 << 10;

/// A load that runs.
#[derive(Debug)]
pub struct Load {
    work: Agent,
    stop: Arc<AtomicBool>,
    streams: Vec<JoinHandle<Result<u64>>>,
}

/// What a load came to that had no error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadResult {
    /// Rounds of the guest's own work.
    pub rounds: Rounds,
    /// Bytes that went to the guest and came back.
    pub streamed_bytes: u64,
}

impl Load {
    /// Begins `work` in the guest, and `streams` streams over vsock that the guest echoes.
    ///
    /// # Errors
    ///
    /// The agent does not take one more connection.
    pub fn start(pod: &Pod, work: call::Load, streams: u64) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut worker = pod.one_more()?;
        worker.send(&Call::Load { load: work })?;
        let mut threads = Vec::new();
        for seed in 0..streams {
            let stream = pod.one_more()?.stream(&Call::Echo)?;
            let stop = Arc::clone(&stop);
            threads.push(thread::spawn(move || echo(&stream, seed, &stop)));
        }
        Ok(Self {
            work: worker,
            stop,
            streams: threads,
        })
    }

    /// Ends it; what was done.
    ///
    /// # Errors
    ///
    /// Anything of it went wrong, or it has not even begun.
    pub fn stop(mut self) -> Result<LoadResult> {
        self.stop.store(true, Ordering::Relaxed);
        self.work.close_write()?;
        let reply = self.work.reply().context("the guest's work has no end")?;
        let Reply::Worked { rounds, errors } = reply else {
            return Err(anyhow!("not what was done: {reply:?}"));
        };
        ensure!(errors.is_empty(), "in the guest: {}", errors.join("; "));
        let mut streamed_bytes = 0;
        for stream in self.streams {
            let streamed = stream.join().map_err(|_| anyhow!("a stream's thread panicked"))?;
            streamed_bytes += streamed.context("a stream over vsock")?;
        }
        Ok(LoadResult { rounds, streamed_bytes })
    }
}

/// Sends pieces and takes each back, as it was, until it is told to stop; how many bytes.
fn echo(mut stream: &UnixStream, seed: u64, stop: &AtomicBool) -> Result<u64> {
    let mut pieces = pattern::Stream::new(seed);
    let (mut back, mut count) = (vec![0; PIECE], 0);
    while !stop.load(Ordering::Relaxed) {
        let piece = pieces.take(PIECE);
        stream
            .write_all(&piece)
            .with_context(|| format!("cannot send after {count} bytes"))?;
        stream
            .read_exact(&mut back)
            .with_context(|| format!("nothing comes back after {count} bytes"))?;
        ensure!(
            back == piece,
            "other bytes come back than were sent, in the {PIECE} after {count}"
        );
        count += u64::try_from(PIECE)?;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_loses_a_byte_is_told_from_one_that_does_not() {
        for spoilt in [false, true] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let stop = Arc::new(AtomicBool::new(false));
            let other = Arc::clone(&stop);
            let echoing = thread::spawn(move || {
                let mut piece = vec![0; PIECE];
                theirs.read_exact(&mut piece).unwrap();
                *piece.last_mut().unwrap() ^= u8::from(spoilt);
                other.store(true, Ordering::Relaxed);
                theirs.write_all(&piece).unwrap();
            });
            let ended = echo(&ours, 3, &stop);
            echoing.join().unwrap();
            match ended {
                Ok(count) => assert!(!spoilt && count == u64::try_from(PIECE).unwrap()),
                Err(error) => assert!(spoilt, "{error:#}"),
            }
        }
    }
}
