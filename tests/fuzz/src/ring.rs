//! A ring and nothing behind it: chains are taken and given back at once, later and in any order, or left in the ring.

use husk_devices::MetricsSource;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use husk_virtio::config::ConfigBytes;
use husk_virtio::device::{Activation, ConfigAccess, Handler, HandlerError, Profile, StartError, VirtioDevice, Watch};
use husk_virtio::ring::{Chain, Ring, RingState, Step};

use crate::Seeds;
use crate::guest::run_script;
use crate::op::{Op, readable, script, writable};
use crate::script::Script;

/// Chains that the device holds at most.
const HELD_MAX: usize = 8;
/// Chains of a batch.
const BATCH: usize = 4;

pub fn run(input: &[u8]) {
    run_script(&mut Juggler, &mut Script::new(input), |_, _| {});
}

pub fn seeds() -> Seeds {
    let chain = || vec![readable(0, b"hello"), writable(1, 64)];
    let both = script(&[
        Op::Chain(0, chain()),
        Op::Indirect(0, chain()),
        Op::Kick(0),
        Op::Chain(1, chain()),
        Op::Chain(1, chain()),
        Op::Kick(1),
        Op::UsedEvent(1, 3),
        Op::Indirect(1, chain()),
        Op::Kick(1),
    ])
    .take();
    let broken = script(&[
        Op::Chain(0, chain()),
        Op::AvailableIndex(0, 300),
        Op::Kick(0),
        Op::Restart,
    ])
    .u8(0x10)
    .u64(0)
    .take();
    let looped = script(&[
        Op::Descriptor(1, 0, *b"\0\0\x02\0\0\0\0\0\x10\0\0\0\x01\0\0\0"),
        Op::Offer(1, 0),
        Op::Kick(1),
    ])
    .take();
    let readonly = || vec![readable(2, b"nothing to write")];
    let batches = script(&[
        Op::Chain(2, chain()),
        Op::Indirect(2, chain()),
        Op::Chain(2, readonly()),
        Op::Chain(2, readonly()),
        Op::Kick(2),
        Op::Chain(2, chain()),
        Op::Kick(2),
    ])
    .take();
    vec![
        ("both", both),
        ("broken", broken),
        ("looped", looped),
        ("batches", batches),
    ]
}

/// Queue 0 is drained, queue 1 is popped and pushed, queue 2 is taken from and given back by the batch.
struct Juggler;

impl VirtioDevice for Juggler {
    fn profile(&self) -> Profile {
        Profile {
            id: 42,
            class: 0xff_00_00,
            features: u64::MAX >> 40,
            queue_sizes: vec![32, 32, 16],
        }
    }

    fn metrics_source(&self) -> Arc<dyn MetricsSource> {
        Arc::new(())
    }

    fn config(&self) -> Arc<Mutex<dyn ConfigAccess>> {
        Arc::new(Mutex::new(ConfigBytes::new([1, 2, 3, 4])))
    }

    fn start(&mut self, mut activation: Activation) -> Result<Vec<Box<dyn Handler>>, StartError> {
        let drain = Draining(activation.take_ring(0)?);
        let hold = Holding {
            ring: activation.take_ring(1)?,
            held: Vec::new(),
        };
        let gather = Gathering(activation.take_ring(2)?);
        Ok(vec![Box::new(drain), Box::new(hold), Box::new(gather)])
    }
}

struct Draining(Ring);

impl Handler for Draining {
    fn watch(&mut self, watch: &mut dyn Watch) -> Result<(), HandlerError> {
        watch
            .readable(self.0.kick().as_raw_fd(), 0)
            .map_err(HandlerError::watch)
    }

    fn wake(&mut self, _: u32, _: &mut dyn Watch) -> Result<(), HandlerError> {
        self.0.drain(|reader, writer| {
            if reader.available_bytes() == 1 {
                return Ok(Step::Later);
            }
            let room = writer.available_bytes();
            let copied = std::io::copy(&mut std::io::Read::take(reader, 256), writer).unwrap_or(0);
            assert!(copied <= room as u64);
            Ok(Step::Used(u32::try_from(copied).unwrap()))
        })
    }

    fn stop(self: Box<Self>) -> Vec<RingState> {
        vec![self.0.into_state()]
    }
}

struct Holding {
    ring: Ring,
    held: Vec<Chain>,
}

impl Holding {
    /// Gives back every second chain, the last one first.
    fn give_back(&mut self, all: bool) -> Result<(), HandlerError> {
        let mut number = 0;
        for chain in std::mem::take(&mut self.held).into_iter().rev() {
            number += 1;
            if all || number % 2 == 0 {
                self.ring.push(chain.head(), 0)?;
            } else {
                self.held.push(chain);
            }
        }
        self.ring.signal()?;
        Ok(())
    }
}

impl Handler for Holding {
    fn watch(&mut self, watch: &mut dyn Watch) -> Result<(), HandlerError> {
        watch
            .readable(self.ring.kick().as_raw_fd(), 1)
            .map_err(HandlerError::watch)
    }

    fn wake(&mut self, _: u32, _: &mut dyn Watch) -> Result<(), HandlerError> {
        self.ring.take_kick();
        self.ring.disable_kicks()?;
        while self.held.len() < HELD_MAX {
            let Some(chain) = self.ring.pop()? else { break };
            let again = self.held.iter().any(|held| held.head() == chain.head());
            assert!(!again, "head {} is in flight twice", chain.head());
            let mut bytes = Vec::new();
            let _ = std::io::Read::read_to_end(&mut std::io::Read::take(chain.reader(), 256), &mut bytes);
            let _ = std::io::Write::write(&mut chain.writer(), &bytes);
            self.held.push(chain);
        }
        self.give_back(false)?;
        if self.ring.enable_kicks()? {
            let _ = self.ring.kick().write(1);
        }
        Ok(())
    }

    fn stop(mut self: Box<Self>) -> Vec<RingState> {
        let _ = self.give_back(true);
        vec![self.ring.into_state()]
    }
}

/// Takes chains by the batch. Those without room, at its end, go back into the ring; nothing more
/// is taken until the next kick then.
struct Gathering(Ring);

impl Gathering {
    /// Whether there may be more.
    fn batch(&mut self) -> Result<bool, HandlerError> {
        let mem = self.0.memory();
        let mut batch: Vec<(u16, u32)> = Vec::new();
        while batch.len() < BATCH {
            let mut room = 0_u64;
            let head = self.0.take(&mem, |write, slice| {
                if write {
                    slice.copy_from(&[0xa5_u8; 3]);
                    room += slice.len() as u64;
                }
            })?;
            let Some(head) = head else { break };
            assert!(
                batch.iter().all(|(other, _)| *other != head),
                "head {head} is in flight twice"
            );
            batch.push((head, u32::try_from(room.min(64)).unwrap()));
        }
        let taken = batch.len();
        while batch.last().is_some_and(|(_, room)| *room == 0) {
            let (head, _) = batch.pop().unwrap();
            self.0.put_back(head);
        }
        self.0.push_all(&batch)?;
        Ok(taken == BATCH && batch.len() == BATCH)
    }
}

impl Handler for Gathering {
    fn watch(&mut self, watch: &mut dyn Watch) -> Result<(), HandlerError> {
        watch
            .readable(self.0.kick().as_raw_fd(), 2)
            .map_err(HandlerError::watch)
    }

    fn wake(&mut self, _: u32, _: &mut dyn Watch) -> Result<(), HandlerError> {
        self.0.take_kick();
        self.0.disable_kicks()?;
        for _ in 0..self.0.size() {
            if !self.batch()? {
                break;
            }
        }
        self.0.signal()?;
        self.0.enable_kicks()?;
        Ok(())
    }

    fn stop(self: Box<Self>) -> Vec<RingState> {
        vec![self.0.into_state()]
    }
}
