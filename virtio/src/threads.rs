//! Where the threads of devices come from, and what confines them.
//!
//! A device is started by a register write, on a vCPU thread. What that thread may do it hands down to threads that it
//! creates, and a vCPU should be able to do little. So the transport asks a [`Threads`], which may create them
//! elsewhere; [`UnconfinedThreads`] does not.

use std::io;
use std::task::Waker;
use std::thread::Builder;

/// Stack of a device's thread. Requests live on the heap; what is not touched is not resident.
const STACK_BYTES: usize = 128 << 10;
/// A thread name in Linux has room for 15 bytes.
const NAME_BYTES: usize = 15;

/// What a device's threads are for: how they are confined follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadClass {
    /// Bytes between the guest and a file that is open: console, entropy.
    Stream,
    /// A disk.
    Block,
    /// A network interface.
    Net,
    /// Persistent memory.
    Pmem,
    /// vsock.
    Vsock,
    /// Rings that the kernel serves.
    Vhost,
    /// Files that another process serves.
    RemoteFiles,
    /// Files that these threads serve themselves.
    Files,
    /// Memory in blocks.
    Mem,
    /// A balloon.
    Balloon,
}

/// The function that a thread runs, called once; dropped uncalled if there is no thread for it.
pub type ThreadBody = Box<dyn FnOnce() + Send>;

/// Starts and confines the threads of devices. Called on vCPU threads and on the new threads themselves.
pub trait Threads: Send + Sync {
    /// Has a thread called `name` call `body`, as [`builder`] makes it. Called on vCPU threads:
    /// does not wait for it. A `body` that is dropped without having been called could not be given
    /// a thread.
    ///
    /// # Errors
    /// When it is clear at once that there will be no thread.
    fn start(&self, name: &str, body: ThreadBody) -> io::Result<()>;

    /// Takes from the calling thread whatever `thread_class` does not need once a handler watches its descriptors.
    /// Called once on each thread, before the first request is looked at.
    ///
    /// # Errors
    /// When the host refuses. The thread must not go on then.
    fn confine(&self, thread_class: ThreadClass) -> io::Result<()>;

    /// Woken when a thread is done with what it was asked for, to stop or to hold. Whoever asked
    /// looks again then: nobody waits.
    fn waker(&self) -> Waker {
        Waker::noop().clone()
    }
}

/// Threads without confinement, created where they are asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct UnconfinedThreads;

impl Threads for UnconfinedThreads {
    fn start(&self, name: &str, body: ThreadBody) -> io::Result<()> {
        builder(name).spawn(body).map(drop)
    }

    fn confine(&self, _thread_class: ThreadClass) -> io::Result<()> {
        Ok(())
    }
}

/// A thread as a device's should be: its name cut to what Linux has room for, its stack small.
pub fn builder(name: &str) -> Builder {
    let name = name.chars().filter(|c| c.is_ascii() && *c != '\0').take(NAME_BYTES);
    Builder::new().name(name.collect()).stack_size(STACK_BYTES)
}
