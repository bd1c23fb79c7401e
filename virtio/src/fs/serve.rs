//! What serves the requests of a file system device, whoever brings them: the device's own threads
//! or a vhost-user daemon's.

use std::io;
use std::time::Duration;

use super::fuse;
use crate::ring::{Reader, Writer};

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered, with so many bytes written; none for a request that gets no reply, such as `FUSE_FORGET`.
    Done(u32),
    /// It waits for a lock that another owner holds. Nothing was written: to be handed in again,
    /// from its beginning, when [`Serve::generation`] has changed, or after a while, since owners
    /// outside the VM tell nobody.
    Wait,
}

/// How long a request that waits is put aside at most until it is handed in again.
pub const RETRY: Duration = Duration::from_millis(50);
/// One in so many entries of a queue may be a request that waits.
const WAITING_SHARE: u16 = 8;

/// How many requests of a queue with so many entries may wait; more are refused with `ENOLCK`.
/// Whoever would let a lock go has to get through as well, and a request takes several entries from
/// a driver without indirect descriptors.
pub fn most_waiting(entries: u16) -> usize {
    usize::from(entries.checked_div(WAITING_SHARE).unwrap_or_default().max(1))
}

/// Serves FUSE requests, any number at a time.
pub trait Serve: Send + Sync {
    /// Prepares the calling thread: its own umask, working directory and labels. Called once on
    /// each thread that serves, before its first request and before it is confined.
    ///
    /// # Errors
    /// When the host refuses what the share was promised. The thread must not serve then.
    fn enter(&self) -> io::Result<()>;

    /// Makes room for the descriptors that there will be, once for all. A process with several
    /// threads gets more room only after all of the host's processors have been heard, which takes
    /// milliseconds: so this is for a thread that nobody waits for, or for the only one that there
    /// is. Without it, requests wait for that now and then.
    fn reserve_fds(&self) {}

    /// Carries out one request. May sleep in file operations of the host; never waits for another request.
    fn handle(&self, request: Reader<'_>, reply: Writer<'_>) -> Outcome;

    /// A request that was to wait will not be handed in again: there was no room for it to wait.
    fn give_up(&self, request: Reader<'_>);

    /// Changes whenever a waiting request might go on: a lock went, or a request was interrupted.
    fn generation(&self) -> u64;

    /// Forgets every node, handle and lock: the driver was reset. No request is being handled.
    fn reset(&self);

    /// Counters as `vm.counters` shows them.
    fn counters(&self) -> Vec<(&'static str, u64)>;
}

/// Answers a request with an error in place of serving it. How many bytes were written: none if
/// there is no room for a reply.
pub fn refuse(mut request: Reader<'_>, mut reply: Writer<'_>, errno: i32) -> u32 {
    fuse::refuse(&mut request, &mut reply, errno)
}
