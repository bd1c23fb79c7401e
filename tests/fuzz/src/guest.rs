//! A hostile driver in front of a device of any kind: it lays out queues, fills them well or badly,
//! and does in between whatever else a guest can do to its own memory. The device's handlers run
//! here, on the caller's thread, whenever the script says so.
//!
//! Guest RAM is 512 KiB, a hole of 256 KiB, and 256 KiB more:
//!
//! | address  | content                                                        |
//! |----------|----------------------------------------------------------------|
//! | 0x0_1000 | queue 0: descriptors, +0x400 available ring, +0x800 used ring   |
//! | +0x1000  | the next queue, 15 at most                                      |
//! | 0x1_0000 | indirect tables, 256 bytes each                                |
//! | 0x2_0000 | buffers; the regions meet at 0x4_0000                          |
//! | 0x8_0000 | the hole                                                       |
//! | 0xc_0000 | more RAM, up to 0x10_0000                                      |

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use husk_devices::memory::{GuestMemory, GuestMemoryMmap};
use husk_virtio::device::{Activation, Handler, VirtioDevice, Watch};
use husk_virtio::ring::{Notify, Ring, RingState};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestAddressSpace};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::op::Op;
use crate::queue::{QUEUE_BYTES, Queue, SIZE_MAX};
use crate::script::Script;

const QUEUES: u64 = 0x1000;
/// Times that a handler may ask to be woken again at once. A guest can make it go on for ever, the
/// script should go on, too.
const WAKES: usize = 8;

/// Where guest RAM is: base and length of each region.
pub const RAM: [(u64, u64); 3] = [(0, 0x4_0000), (0x4_0000, 0x4_0000), (0xc_0000, 0x4_0000)];

fn len(bytes: u64) -> usize {
    usize::try_from(bytes).expect("x86_64: usize has 64 bits")
}

/// Guest RAM, fresh and zero.
pub fn memory() -> GuestMemory {
    let ranges = RAM.map(|(base, bytes)| (GuestAddress(base), len(bytes)));
    GuestMemory::new(GuestMemoryMmap::from_ranges(&ranges).expect("a MiB can be mapped"))
}

/// The same in a file, which other processes can map.
pub fn shared_memory() -> GuestMemory {
    let file = Arc::new(tempfile::tempfile().expect("there is room for a MiB"));
    file.set_len(0x10_0000).expect("there is room for a MiB");
    let ranges = RAM.map(|(base, bytes)| {
        let at = FileOffset::from_arc(file.clone(), base);
        (GuestAddress(base), len(bytes), Some(at))
    });
    GuestMemory::new(GuestMemoryMmap::from_ranges_with_files(ranges).expect("a MiB can be mapped"))
}

/// Plays `script` to `device`. `host` does the device-specific part of [`Op::Host`] and reads its own arguments.
///
/// # Panics
/// When the device does what it must not.
pub fn run_script<D: VirtioDevice>(device: &mut D, script: &mut Script<'_>, host: impl FnMut(&mut D, &mut Script<'_>)) {
    Guest::new(memory()).run_script(device, script, host);
}

/// The same in a `memory` that is laid out like [`memory`], to a device that lends its rings: where
/// they stand is what somebody else says.
pub fn run_script_lent<D: VirtioDevice>(
    memory: GuestMemory,
    device: &mut D,
    script: &mut Script<'_>,
    host: impl FnMut(&mut D, &mut Script<'_>),
) {
    let mut guest = Guest::new(memory);
    guest.lends = true;
    guest.run_script(device, script, host);
}

/// A handler as its I/O thread would hold it.
struct Running {
    handler: Box<dyn Handler>,
    watched: Watched,
    failed: bool,
}

struct Guest {
    mem: GuestMemory,
    queues: Vec<Queue>,
    running: Vec<Running>,
    interrupts: Arc<AtomicU32>,
    /// Somebody else says where the rings stand.
    lends: bool,
}

impl Guest {
    fn new(mem: GuestMemory) -> Self {
        Self {
            mem,
            queues: Vec::new(),
            running: Vec::new(),
            interrupts: Arc::default(),
            lends: false,
        }
    }

    fn run_script<D: VirtioDevice>(
        mut self,
        device: &mut D,
        script: &mut Script<'_>,
        mut host: impl FnMut(&mut D, &mut Script<'_>),
    ) {
        if self.start(device, script).is_some() {
            while let Some(op) = Op::read(script) {
                match op {
                    Op::Host => host(device, script),
                    Op::Restart => {
                        self.stop();
                        if self.start(device, script).is_none() {
                            break;
                        }
                    }
                    Op::ReadConfig(offset, width) => {
                        let mut data = [0xee; 8];
                        let config = device.config();
                        let config = config.lock().expect("nothing panics with the lock held");
                        config.read(offset.into(), &mut data[..width]);
                    }
                    Op::WriteConfig(offset, data) => {
                        let config = device.config();
                        let mut config = config.lock().expect("nothing panics with the lock held");
                        config.write(offset.into(), data);
                    }
                    op => self.carry_out(&op),
                }
            }
        }
        self.wake_all();
        self.stop();
    }

    /// Lays the queues out as the script says and starts the device. `None` if the script is at its end.
    ///
    /// | byte of the script | meaning |
    /// |---|---|
    /// | 0, bit 0 | event index |
    /// | 0, bit 1 | raw queue addresses follow: three for each queue |
    /// | 0, bit 2 | the last queue is left disabled |
    /// | 0, bits 4-6 | queue size: the largest, shifted right by this |
    /// | 1-8 | features that the driver takes, of those that are offered |
    fn start(&mut self, device: &mut dyn VirtioDevice, script: &mut Script<'_>) -> Option<()> {
        let (flags, features) = (script.u8()?, script.u64()?);
        let profile = device.profile();
        self.queues.clear();
        for (base, max_size) in (QUEUES..).step_by(QUEUE_BYTES).zip(profile.queue_sizes) {
            let size = (max_size.min(SIZE_MAX) >> (flags >> 4 & 7)).max(1);
            let mut queue = Queue::new(&self.mem, base, max_size, size);
            queue.state.event_idx_enabled = flags & 1 != 0;
            if flags & 2 != 0 {
                queue.state.desc_table = script.u64()? & !0xf;
                queue.state.avail_ring = script.u64()? & !1;
                queue.state.used_ring = script.u64()? & !3;
            }
            self.queues.push(queue);
        }
        self.activate(device, profile.features & features, flags & 4 != 0);
        Some(())
    }

    fn activate(&mut self, device: &mut dyn VirtioDevice, features: u64, without_last: bool) {
        let enabled = self.queues.len().saturating_sub(without_last.into());
        let rings = (0..).zip(&self.queues).map(|(index, queue)| {
            if usize::from(index) >= enabled {
                return Ok(None);
            }
            let state = RingState {
                index,
                queue: queue.state,
            };
            let notify = self.notify();
            Ring::new(state, queue.kick.clone(), notify, self.mem.clone()).map(Some)
        });
        let Ok(rings) = rings.collect::<Result<Vec<_>, _>>() else {
            return;
        };
        let started = device.start(Activation {
            mem: self.mem.clone(),
            features,
            rings,
            config_changed: self.notify(),
        });
        for mut handler in started.into_iter().flatten() {
            let mut watched = Watched::new();
            let hurt = handler.watch(&mut watched).is_err();
            let failed = hurt && !handler.survive(&mut watched);
            self.running.push(Running {
                handler,
                watched,
                failed,
            });
        }
    }

    fn notify(&self) -> Notify {
        let interrupts = self.interrupts.clone();
        Notify::new(move || {
            interrupts.fetch_add(1, Ordering::Relaxed);
        })
    }

    /// Stops all handlers, as a reset does.
    fn stop(&mut self) {
        for running in self.running.drain(..) {
            let Running { handler, failed, .. } = running;
            for RingState { index, queue } in handler.stop() {
                assert!(
                    failed || self.lends || queue.next_avail == queue.next_used,
                    "queue {index} took {} chains and gave {} back",
                    queue.next_avail,
                    queue.next_used
                );
            }
        }
    }

    fn carry_out(&mut self, op: &Op<'_>) {
        match op {
            Op::Chain(queue, buffers) => self.on(*queue, |queue| queue.add(buffers, false)),
            Op::Indirect(queue, buffers) => self.on(*queue, |queue| queue.add(buffers, true)),
            Op::Descriptor(queue, index, raw) => self.on(*queue, |queue| queue.write_descriptor(*index, raw)),
            Op::Offer(queue, head) => self.on(*queue, |queue| queue.offer(*head)),
            Op::AvailableIndex(queue, value) => self.on(*queue, |queue| queue.poke(2, *value)),
            Op::AvailableFlags(queue, value) => self.on(*queue, |queue| queue.poke(0, *value)),
            Op::UsedEvent(queue, value) => self.on(*queue, |queue| queue.set_used_event(*value)),
            Op::Write(place, bytes) => {
                // As much as there is RAM for.
                let _ = self.mem.memory().write(bytes, GuestAddress(u64::from(*place)));
            }
            Op::Kick(queue) => {
                self.on(*queue, |queue| queue.kick.write(1).unwrap());
                self.wake_all();
            }
            Op::Wake => self.wake_all(),
            Op::Host | Op::Restart | Op::ReadConfig(..) | Op::WriteConfig(..) => {}
        }
    }

    /// Does something with a queue, counted modulo their number. A device that did not start may have none.
    fn on(&mut self, index: u8, act: impl FnOnce(&mut Queue)) {
        let index = usize::from(index).checked_rem(self.queues.len());
        if let Some(queue) = index.and_then(|index| self.queues.get_mut(index)) {
            act(queue);
        }
    }

    /// Lets every handler do what it has been woken for.
    fn wake_all(&mut self) {
        for running in &mut self.running {
            for _ in 0..WAKES {
                if running.failed || !running.wake() {
                    break;
                }
            }
        }
    }
}

impl Running {
    /// Whether there was a reason to wake.
    fn wake(&mut self) -> bool {
        let mut events = [EpollEvent::default(); 16];
        let count = self.watched.0.wait(0, &mut events).unwrap_or(0);
        for event in &events[..count] {
            let token = u32::try_from(event.data()).expect("tokens are registered as such");
            if self.handler.wake(token, &mut self.watched).is_err() {
                self.failed = !self.handler.survive(&mut self.watched);
                break;
            }
        }
        count > 0
    }
}

struct Watched(Epoll);

impl Watched {
    fn new() -> Self {
        Self(Epoll::new().expect("a descriptor is free: nothing leaks them"))
    }
}

impl Watch for Watched {
    fn readable(&mut self, fd: RawFd, token: u32) -> std::io::Result<()> {
        let event = EpollEvent::new(EventSet::IN, token.into());
        self.0.ctl(ControlOperation::Add, fd, event)
    }

    fn edges(&mut self, fd: RawFd, token: u32) -> std::io::Result<()> {
        let events = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
        self.0
            .ctl(ControlOperation::Add, fd, EpollEvent::new(events, token.into()))
    }

    fn forget(&mut self, fd: RawFd) -> std::io::Result<()> {
        self.0.ctl(ControlOperation::Delete, fd, EpollEvent::default())
    }
}
