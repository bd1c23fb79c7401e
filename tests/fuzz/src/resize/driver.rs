//! A driver of virtio-mem with one request under way at a time.

use std::io;
use std::os::fd::RawFd;

use husk_virtio::device::{Activation, Handler, VirtioDevice, Watch};
use husk_virtio::mem::Mem;
use husk_virtio::ring::{Notify, Ring, RingState};

use crate::guest::memory;
use crate::op::{readable, writable};
use crate::queue::Queue;

/// A driver of virtio-mem with one request under way at a time.
pub struct Driver {
    queue: Queue,
    handler: Box<dyn Handler>,
}

impl Driver {
    pub fn start(mem: &mut Mem) -> Self {
        let ram = memory();
        let queue = Queue::new(&ram, 0x1000, 16, 16);
        let state = RingState {
            index: 0,
            queue: queue.state,
        };
        let ring = Ring::new(state, queue.kick.clone(), Notify::new(|| ()), ram.clone()).unwrap();
        let activation = Activation {
            mem: ram,
            features: u64::MAX,
            rings: vec![Some(ring)],
            config_changed: Notify::new(|| ()),
        };
        let handler = mem.start(activation).unwrap().remove(0);
        Self { queue, handler }
    }

    pub fn ask(&mut self, request: u8, gpa: u64, blocks: u16) {
        let mut bytes = [0; 24];
        bytes[0] = request & 3;
        bytes[8..16].copy_from_slice(&gpa.to_le_bytes());
        bytes[16..18].copy_from_slice(&blocks.to_le_bytes());
        self.queue.add(&[readable(0, &bytes), writable(1, 10)], false);
        self.handler.wake(0, &mut Unwatched).unwrap();
        // What is large is done in steps, after each of which the handler has itself woken.
        while self.queue.kick.read().is_ok() {
            self.handler.wake(0, &mut Unwatched).unwrap();
        }
    }

    pub fn stop(self) {
        self.handler.stop();
    }
}

struct Unwatched;

impl Watch for Unwatched {
    fn readable(&mut self, _: RawFd, _: u32) -> io::Result<()> {
        Ok(())
    }

    fn forget(&mut self, _: RawFd) -> io::Result<()> {
        Ok(())
    }
}
