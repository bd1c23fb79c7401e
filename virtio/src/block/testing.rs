//! A guest's side of a disk, for unit tests: requests in, answers out, with the handler driven by hand.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use husk_devices::memory::GuestMemory;
use husk_devices::metrics::MetricsSource;
use tempfile::NamedTempFile;
use vm_memory::{MmapRegion, VolatileMemory};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::uring::Uring;
use super::{Block, BlockConfig, BlockMetrics};
use crate::device::{Activation, Handler, HandlerError, Hold, VirtioDevice, Watch};
use crate::iovecs::Iovecs;
use crate::ring::{Notify, Ring, RingState};
use crate::testing::{Buf, Driver, memory};

/// Where the guest keeps things.
const RING: u64 = 0x1000;
pub(crate) const HEADER: u64 = 0x1_0000;
pub(crate) const STATUS: u64 = 0x1_8000;
pub(crate) const DATA: u64 = 0x2_0000;

/// A status byte that no device writes: the request was not answered.
pub(crate) const UNANSWERED: u8 = 0xee;

/// `status` as the driver sees it.
pub(crate) const OK: u8 = 0;
pub(crate) const IO_ERROR: u8 = 1;
pub(crate) const UNSUPPORTED: u8 = 2;
pub(crate) const KIB: usize = 1024;

/// "At the file's own position", for a pipe has no other.
pub(crate) const HERE: u64 = u64::MAX;

/// All of `memory`, for an operation of the host.
pub(crate) fn buffers(memory: &MmapRegion<()>) -> Iovecs {
    let mut buffers = Iovecs::default();
    buffers.fill([memory.as_volatile_slice()].into_iter());
    buffers
}

/// The end that is read, on which an operation waits, and the other one.
pub(crate) fn pipe() -> (File, File) {
    let (reader, writer) = io::pipe().unwrap();
    (OwnedFd::from(reader).into(), OwnedFd::from(writer).into())
}

/// A disk on `path` that is called `disk-1`.
pub(crate) fn config(path: &Path, io_uring: bool) -> BlockConfig {
    BlockConfig {
        io_uring,
        serial: "disk-1".into(),
        ..BlockConfig::new(path)
    }
}

/// The answer to a request that moved no data.
pub(crate) fn plain_reply(status: u8) -> Reply {
    Reply {
        status,
        used: 1,
        data: vec![],
    }
}

/// One segment of a discard or write-zeroes request.
pub(crate) fn segment(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(count.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

/// What a disk has counted under `name`.
pub(crate) fn counter(guest: &Guest, name: &str) -> u64 {
    let metrics = guest.metrics.metrics();
    metrics.into_iter().find(|(known, _)| *known == name).unwrap().1
}

/// Bytes that differ from sector to sector and from one seed to the next.
pub(crate) fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at / 512 * 7 + at % 251) as u8 ^ seed).collect()
}

/// A file of these bytes that goes away with the test.
pub(crate) fn image(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// Whether this host lets us have io_uring. Says so if not: what needs it is not tested then.
pub(crate) fn has_uring() -> bool {
    match Uring::new(1) {
        Ok(_) => true,
        Err(error) => {
            eprintln!("skipped: needs io_uring: {error}");
            false
        }
    }
}

/// Runs a test with either engine.
macro_rules! with_both_engines {
    ($($name:ident)*) => {
        mod plain {
            $(#[test] fn $name() { super::$name(false) })*
        }
        mod uring {
            $(#[test] fn $name() { if $crate::block::testing::has_uring() { super::$name(true) } })*
        }
    };
}
pub(crate) use with_both_engines;

/// What the guest finds when a request comes back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub status: u8,
    /// Length in the used ring.
    pub used: u32,
    pub data: Vec<u8>,
}

/// The descriptors that a handler watches.
#[derive(Default)]
pub(crate) struct Watched(Vec<(RawFd, u32)>);

impl Watch for Watched {
    fn readable(&mut self, fd: RawFd, token: u32) -> io::Result<()> {
        self.0.push((fd, token));
        Ok(())
    }

    fn forget(&mut self, fd: RawFd) -> io::Result<()> {
        self.0.retain(|(watched, _)| *watched != fd);
        Ok(())
    }
}

/// One queue of a running disk, and its driver.
pub(crate) struct Guest {
    pub driver: Driver,
    pub metrics: Arc<BlockMetrics>,
    handler: Option<Box<dyn Handler>>,
    watched: Watched,
}

impl Guest {
    /// Starts a disk with one queue of `size`, all its features negotiated.
    pub fn new(config: BlockConfig, size: u16) -> Self {
        let mut block = Block::open(config).unwrap();
        let features = block.profile().features;
        Self::start(&mut block, size, features)
    }

    pub fn start(block: &mut Block, size: u16, features: u64) -> Self {
        let mem = memory();
        let driver = Driver::new(&mem, RING, size);
        let mut handlers = block.start(activation(&mem, features, &[&driver])).unwrap();
        Self::run_by_hand(driver, handlers.remove(0), block.metrics())
    }

    pub fn run_by_hand(driver: Driver, mut handler: Box<dyn Handler>, metrics: Arc<BlockMetrics>) -> Self {
        let mut watched = Watched::default();
        handler.watch(&mut watched).unwrap();
        Self {
            driver,
            metrics,
            handler: Some(handler),
            watched,
        }
    }

    /// The request's first 16 bytes.
    pub fn header(kind: u32, sector: u64) -> Vec<u8> {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        header
    }

    /// Sends one request in the usual layout, waits for it, and looks at what came back.
    pub fn ask(&mut self, kind: u32, sector: u64, out: &[u8], wanted: u32) -> Reply {
        self.driver.write(HEADER, &Self::header(kind, sector));
        self.driver.write(STATUS, &[UNANSWERED]);
        self.driver.write(DATA, out);
        let mut bufs = vec![Buf::Out(HEADER, 16)];
        if !out.is_empty() {
            bufs.push(Buf::Out(DATA, out.len().try_into().unwrap()));
        }
        let wanted_at = DATA + out.len() as u64;
        if wanted > 0 {
            bufs.push(Buf::In(wanted_at, wanted));
        }
        bufs.push(Buf::In(STATUS, 1));
        let head = self.driver.add(&bufs);
        self.kick();
        let used = self.settle(1);
        assert_eq!(used[0].0, u32::from(head));
        Reply {
            status: self.driver.read(STATUS, 1)[0],
            used: used[0].1,
            data: self.driver.read(wanted_at, wanted as usize),
        }
    }

    pub fn kick(&self) {
        self.driver.kick.write(1).unwrap();
    }

    /// Waits for something to happen and lets the handler react, once.
    pub fn wake(&mut self) -> Result<(), HandlerError> {
        let tokens = self.rung(10_000);
        assert!(!tokens.is_empty(), "nothing happened within 10 s");
        let handler = self.handler.as_mut().unwrap();
        tokens
            .into_iter()
            .try_for_each(|token| handler.wake(token, &mut self.watched))
    }

    /// Lets the handler react as if what has this token had happened.
    pub fn wake_for(&mut self, token: u32) {
        let handler = self.handler.as_mut().unwrap();
        handler.wake(token, &mut self.watched).unwrap();
    }

    /// Whether the handler would be woken now.
    pub fn has_rung(&self) -> bool {
        !self.rung(0).is_empty()
    }

    /// Tokens of what the handler watches and what has happened, which this waits for at most so long.
    fn rung(&self, timeout_ms: i32) -> Vec<u32> {
        let epoll = Epoll::new().unwrap();
        for (fd, token) in &self.watched.0 {
            let event = EpollEvent::new(EventSet::IN, (*token).into());
            epoll.ctl(ControlOperation::Add, *fd, event).unwrap();
        }
        let mut events = [EpollEvent::default(); 4];
        // io_uring finishes work on this thread as if by a signal.
        let count = loop {
            match epoll.wait(timeout_ms, &mut events) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => break result.unwrap(),
            }
        };
        events[..count].iter().map(|event| event.data() as u32).collect()
    }

    /// Lets the handler work until `count` chains came back, and returns them in that order.
    pub fn settle(&mut self, count: usize) -> Vec<(u32, u32)> {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut used = Vec::new();
        loop {
            used.extend(std::iter::from_fn(|| self.driver.take_used()));
            if used.len() >= count {
                return used;
            }
            assert!(Instant::now() < deadline, "{} of {count} came back", used.len());
            self.wake().unwrap();
        }
    }

    /// Starts the disk again with its queue where it was.
    pub fn resume(self, block: &mut Block, state: RingState, features: u64) -> Self {
        let mut activation = activation(&self.driver.mem, features, &[]);
        let ring = Ring::new(state, self.driver.kick.clone(), Notify::none(), self.driver.mem.clone());
        activation.rings.push(Some(ring.unwrap()));
        let mut handlers = block.start(activation).unwrap();
        Self::run_by_hand(self.driver, handlers.remove(0), block.metrics())
    }

    /// Asks for the queue to be held, once.
    pub fn ask_to_hold(&mut self) -> Hold {
        self.handler.as_mut().unwrap().hold(&mut self.watched).unwrap()
    }

    /// Holds the queue, as its thread does it.
    pub fn hold(&mut self) {
        while self.ask_to_hold() == Hold::Pending {
            self.wake().unwrap();
        }
    }

    pub fn release(&mut self) {
        self.handler.as_mut().unwrap().release(&mut self.watched).unwrap();
    }

    pub fn set_bus_master_flag(&mut self, bus_master: &Arc<AtomicBool>) {
        self.handler.as_mut().unwrap().set_bus_master_flag(bus_master.clone());
    }

    pub fn stop(&mut self) -> Vec<RingState> {
        self.handler.take().unwrap().stop()
    }
}

/// What the transport gives at `DRIVER_OK`.
pub(crate) fn activation(mem: &GuestMemory, features: u64, drivers: &[&Driver]) -> Activation {
    Activation {
        mem: mem.clone(),
        features,
        rings: drivers.iter().map(|driver| Some(driver.ring())).collect(),
        config_changed: Notify::none(),
    }
}
