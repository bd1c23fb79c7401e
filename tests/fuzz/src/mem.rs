//! The memory device: a guest that plugs and unplugs what it likes, a host that wishes for more and
//! less and sometimes cannot.
//!
//! However that goes, no block is plugged twice or unplugged without being plugged, none beyond
//! what was wished for then, and what host and guest are told of it is what the machine did.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use husk_virtio::device::VirtioDevice;
use husk_virtio::mem::{Backing, Mem, MemConfig};

use crate::Seeds;
use crate::guest::run_script;
use crate::op::{Buffer, Op, readable, script, writable};
use crate::script::{Recorder, Script};

const BLOCK: u64 = 2 << 20;
const BASE: u64 = 1 << 32;
const BLOCKS: u64 = 100;

/// Offsets of `plugged_size` and `requested_size` (virtio 1.2 §5.15.4).
const PLUGGED_SIZE: u64 = 0x28;
const REQUESTED_SIZE: u64 = 0x30;

pub fn run(input: &[u8]) {
    let machine = Arc::new(Mutex::new(Machine::default()));
    let told = Arc::new(AtomicU32::new(0));
    let news = told.clone();
    let config = MemConfig {
        base: BASE,
        region_bytes: BLOCKS * BLOCK,
        block_bytes: BLOCK,
    };
    let on_change = move || {
        news.fetch_add(1, Ordering::Relaxed);
    };
    let mut mem = Mem::new(config, Blocks(machine.clone()), on_change).unwrap();
    run_script(&mut mem, &mut Script::new(input), |mem, script| {
        let _ = host(mem, &machine, script);
        check(mem, &machine);
    });
    check(&mem, &machine);
    assert!(!mem.handle().size().driver, "a driver that is gone is remembered");
    let machine = machine.lock().unwrap();
    assert!(
        machine.changes == 0 || told.load(Ordering::Relaxed) > 0,
        "nobody is woken"
    );
    assert!(mem.metrics().busy.get() >= machine.failures);
}

/// What the guest has by what the machine has done.
#[derive(Default)]
struct Machine {
    plugged: BTreeSet<u64>,
    wished: u64,
    cannot_plug: bool,
    cannot_unplug: bool,
    changes: u64,
    failures: u64,
}

struct Blocks(Arc<Mutex<Machine>>);

impl Blocks {
    fn change(&self, offset: u64, bytes: u64, plug: bool) -> io::Result<()> {
        let mut machine = self.0.lock().unwrap();
        let whole = offset.is_multiple_of(BLOCK) && bytes.is_multiple_of(BLOCK);
        assert!(whole && bytes > 0, "{bytes} bytes at {offset:#x}");
        let blocks = offset / BLOCK..(offset + bytes) / BLOCK;
        assert!(blocks.end <= BLOCKS, "beyond the region: {blocks:?}");
        let broken = if plug {
            machine.cannot_plug
        } else {
            machine.cannot_unplug
        };
        if broken {
            machine.failures += 1;
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        for block in blocks {
            let changed = if plug {
                machine.plugged.insert(block)
            } else {
                machine.plugged.remove(&block)
            };
            assert!(changed, "block {block} was like that already");
        }
        let has = machine.plugged.len() as u64;
        assert!(!plug || has <= machine.wished, "{has} of {} blocks", machine.wished);
        machine.changes += 1;
        Ok(())
    }
}

impl Backing for Blocks {
    fn plug(&mut self, offset: u64, bytes: u64) -> io::Result<()> {
        self.change(offset, bytes, true)
    }

    fn unplug(&mut self, offset: u64, bytes: u64) -> io::Result<()> {
        self.change(offset, bytes, false)
    }
}

/// | first byte | then |
/// |---|---|
/// | 0, 4, … | a number of blocks that the guest should have |
/// | 1, 5, … | bytes that it should have, whatever they are |
/// | 2, 6, … | flags: plugging or unplugging fails from now on, or no longer |
/// | 3, 7, … | the driver may try again |
fn host(mem: &Mem, machine: &Mutex<Machine>, script: &mut Script<'_>) -> Option<()> {
    let handle = mem.handle();
    let wish = |bytes: u64| {
        let mut machine = machine.lock().unwrap();
        let can_be = bytes.is_multiple_of(BLOCK) && bytes / BLOCK <= BLOCKS;
        assert_eq!(handle.request(bytes).is_ok(), can_be, "{bytes} bytes");
        if can_be {
            machine.wished = bytes / BLOCK;
        }
    };
    match script.u8()? & 3 {
        0 => wish(u64::from(script.u8()?) * BLOCK),
        1 => wish(script.u64()?),
        2 => {
            let flags = script.u8()?;
            let mut machine = machine.lock().unwrap();
            machine.cannot_plug = flags & 1 != 0;
            machine.cannot_unplug = flags & 2 != 0;
        }
        _ => handle.retry(),
    }
    Some(())
}

/// The device's account is the machine's, and the driver reads the same.
fn check(mem: &Mem, machine: &Mutex<Machine>) {
    let size = mem.handle().size();
    let machine = machine.lock().unwrap();
    let plugged = machine.plugged.len() as u64 * BLOCK;
    assert_eq!(
        (size.plugged_bytes, size.requested_bytes),
        (plugged, machine.wished * BLOCK)
    );
    let config = mem.config();
    let config = config.lock().unwrap();
    let read = |offset| {
        let mut bytes = [0; 8];
        config.read(offset, &mut bytes);
        u64::from_le_bytes(bytes)
    };
    assert_eq!(
        (read(PLUGGED_SIZE), read(REQUESTED_SIZE)),
        (size.plugged_bytes, size.requested_bytes)
    );
}

/// `struct virtio_mem_req` (virtio 1.2 §5.15.6).
fn request(kind: u8, addr: u64, blocks: u8) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[0] = kind;
    bytes[8..16].copy_from_slice(&addr.to_le_bytes());
    bytes[16] = blocks;
    bytes
}

const PLUG: u8 = 0;
const UNPLUG: u8 = 1;
const UNPLUG_ALL: u8 = 2;
const STATE: u8 = 3;

/// A host's wish, and requests each of which is carried out by itself.
fn asks(to: &mut Recorder, wish: u8, requests: &[(u8, u64, u8)]) {
    Op::Host.write(to);
    to.u8(0).u8(wish);
    for (kind, block, blocks) in requests {
        let bytes = request(*kind, BASE + block * BLOCK, *blocks);
        Op::Chain(0, chain(&bytes)).write(to);
        Op::Kick(0).write(to);
    }
}

fn chain(request: &[u8]) -> Vec<Buffer<'_>> {
    vec![readable(0, request), writable(1, 10)]
}

pub fn seeds() -> Seeds {
    let mut life = script(&[]);
    asks(
        &mut life,
        8,
        &[(PLUG, 0, 5), (STATE, 0, 8), (PLUG, 60, 3), (PLUG, 70, 1)],
    );
    asks(&mut life, 3, &[(UNPLUG, 1, 4), (STATE, 0, 2), (UNPLUG, 60, 1)]);
    asks(&mut life, 0, &[(UNPLUG_ALL, 0, 0)]);
    let mut refused = script(&[]);
    asks(
        &mut refused,
        10,
        &[(PLUG, 0, 4), (PLUG, 3, 2), (PLUG, 99, 2), (UNPLUG, 4, 1)],
    );
    Op::Host.write(&mut refused);
    refused.u8(2).u8(3);
    asks(&mut refused, 6, &[(PLUG, 4, 2), (UNPLUG, 0, 2), (UNPLUG_ALL, 0, 0)]);
    for op in [Op::Host, Op::Restart] {
        op.write(&mut refused);
        refused.u8(3);
    }
    // What follows is the driver that comes next.
    refused.u64(u64::MAX);
    Op::Host.write(&mut refused);
    refused.u8(1).u64(BLOCK + 1);
    let plug = request(PLUG, BASE, 1);
    let odd = script(&[
        Op::Chain(0, vec![readable(0, &plug[..20]), writable(1, 10)]),
        Op::Indirect(0, vec![readable(0, &plug), writable(1, 9)]),
        Op::Chain(0, vec![writable(1, 10)]),
        Op::Kick(0),
        Op::ReadConfig(0x28, 8),
        Op::WriteConfig(0x30, &[0xff; 8]),
    ]);
    vec![
        ("life", life.take()),
        ("refused", refused.take()),
        ("odd", odd.clone().take()),
    ]
}
