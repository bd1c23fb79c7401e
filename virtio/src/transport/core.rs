//! The life of a virtio device, whatever bus it is on: status, features, queue registers, start and reset.
//!
//! The status machine follows virtio 1.2 §2.1 and §3.1.1. A write that the present state does not
//! allow is ignored, and the driver sees so when it reads back:
//!
//! | state                      | features  | queue registers | may follow                            |
//! |----------------------------|-----------|-----------------|---------------------------------------|
//! | 0 (reset)                  | -         | -               | `ACKNOWLEDGE`                         |
//! | `ACKNOWLEDGE`              | -         | -               | `DRIVER`                              |
//! | `DRIVER`                   | writable  | -               | `FEATURES_OK`, if features are valid  |
//! | `FEATURES_OK`              | frozen    | writable until that queue is enabled | `DRIVER_OK`      |
//! | `DRIVER_OK`                | frozen    | frozen          | reset                                 |
//! | `FAILED`, being reset      | frozen    | frozen          | reset                                 |
//!
//! `DRIVER_OK` builds the rings, starts the device and gives every handler a
//! [`Worker`](crate::worker::Worker). Whatever fails there, or later on an I/O thread, sets
//! `DEVICE_NEEDS_RESET` and raises a configuration change interrupt; the VM goes on.
//!
//! A reset asks the workers to stop and returns. Until they have, `device_status` reads as before
//! and everything else is ignored: drivers must wait for 0 anyway (virtio 1.2 §4.1.4.3.2), and no
//! vCPU ever waits for I/O.

use std::sync::Arc;

use husk_devices::Counter;
use husk_devices::memory::GuestMemory;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vmm_sys_util::eventfd::EventFd;

use super::features::Features;
use super::queue::{QueuePart, QueueRegisters};
use super::running::Running;
use super::words;
use super::workers::Workers;
use crate::device::{Activation, Profile, StartError, VirtioDevice};
use crate::ring::{Notify, QueueProbe, Ring, RingState};
use crate::threads::Threads;

const ACKNOWLEDGE: u8 = status_bit(VIRTIO_CONFIG_S_ACKNOWLEDGE);
const DRIVER: u8 = status_bit(VIRTIO_CONFIG_S_DRIVER);
const DRIVER_OK: u8 = status_bit(VIRTIO_CONFIG_S_DRIVER_OK);
const FEATURES_OK: u8 = status_bit(VIRTIO_CONFIG_S_FEATURES_OK);
const NEEDS_RESET: u8 = status_bit(VIRTIO_CONFIG_S_NEEDS_RESET);
const FAILED: u8 = status_bit(VIRTIO_CONFIG_S_FAILED);

/// Which of a device's interrupts is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterruptSource {
    /// A configuration change (virtio 1.2 §2.3).
    Config,
    /// A queue.
    Queue(u16),
}

/// A device with its negotiation state. Not thread-safe: the transport's lock is around it.
pub struct Core {
    name: String,
    device: Box<dyn VirtioDevice>,
    profile: Profile,
    mem: GuestMemory,
    status: u8,
    features: Features,
    queues: Vec<QueueRegisters>,
    running: Running,
    resetting: bool,
    resets: u64,
}

impl Core {
    /// A device in its reset state, called `name` in logs, counters and thread names. `profile` is
    /// the device's, and has been checked.
    pub fn new(device: Box<dyn VirtioDevice>, profile: Profile, name: String, mem: GuestMemory) -> Self {
        let queues = profile.queue_sizes.iter().map(|size| QueueRegisters::new(*size));
        Self {
            name,
            running: Running::new(device.thread_class(), device.on_retire()),
            device,
            queues: queues.collect(),
            mem,
            status: 0,
            features: Features::new(profile.features),
            profile,
            resetting: false,
            resets: 0,
        }
    }

    /// Has the device's threads come from `threads`.
    pub fn set_threads(&mut self, threads: Arc<dyn Threads>) {
        self.running.set_threads(threads);
    }

    /// The name given to [`Core::new`]: in logs, counters and names of threads (`io-NAME`).
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The device behind the transport, for its metrics and handles.
    pub fn device(&self) -> &dyn VirtioDevice {
        self.device.as_ref()
    }

    /// The device's profile, as read when the transport was made.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// How often the device gave up and came to need a reset (`DEVICE_NEEDS_RESET`), over all drivers since it was
    /// made.
    pub fn failures(&self) -> &Arc<Counter> {
        self.running.failures()
    }

    /// What looks at each queue.
    pub fn queue_probes(&self) -> Vec<Arc<QueueProbe>> {
        self.queues.iter().map(|queue| queue.probe().clone()).collect()
    }

    /// Number of virtqueues that the device has, enabled or not.
    pub fn queue_count(&self) -> u16 {
        u16::try_from(self.queues.len()).expect("the profile was checked")
    }

    /// `device_status`. Non-zero after a reset until the I/O threads have stopped.
    pub fn status(&mut self) -> u8 {
        self.finish_reset();
        if self.running.needs_reset() {
            self.status | NEEDS_RESET
        } else {
            self.status
        }
    }

    /// Completed resets: a face with registers of its own resets them when this has changed.
    pub fn resets(&mut self) -> u64 {
        self.finish_reset();
        self.resets
    }

    /// Whether the driver is still setting the device up: before `DRIVER_OK`, and not while a reset goes on.
    pub fn is_configurable(&mut self) -> bool {
        self.status() & DRIVER_OK == 0
    }

    /// Whether queues are live.
    pub fn is_live(&mut self) -> bool {
        self.status() & DRIVER_OK != 0 && !self.resetting
    }

    /// Takes a write of `device_status`. `notify` makes the interrupts of a device that starts.
    pub fn set_status(&mut self, value: u8, notify: impl Fn(InterruptSource) -> Notify) {
        self.finish_reset();
        if value == 0 {
            return self.begin_reset();
        }
        // A driver must not clear bits (virtio 1.2 §2.1.1); NEEDS_RESET is not its to write.
        if self.resetting || self.workers().is_retired() || self.status & !value != 0 {
            return;
        }
        for bit in [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK, FAILED] {
            if value & bit != 0 && self.status & bit == 0 && self.allows(bit) {
                self.status |= bit;
                if bit == DRIVER_OK {
                    self.start(&notify);
                }
            }
        }
    }

    fn allows(&self, bit: u8) -> bool {
        let is = |expected| self.status == expected;
        match bit {
            ACKNOWLEDGE => is(0),
            DRIVER => is(ACKNOWLEDGE),
            FEATURES_OK => is(ACKNOWLEDGE | DRIVER) && self.features.acceptable(),
            DRIVER_OK => is(ACKNOWLEDGE | DRIVER | FEATURES_OK),
            _ => true,
        }
    }

    /// `device_feature`: 32 of the offered bits.
    pub fn device_feature(&self, select: u32) -> u32 {
        words::get(self.features.offered(), select)
    }

    /// `driver_feature`: 32 of the bits that the driver wrote.
    pub fn driver_feature(&self, select: u32) -> u32 {
        words::get(self.features.accepted(), select)
    }

    /// Takes a write of `driver_feature`.
    pub fn set_driver_feature(&mut self, select: u32, value: u32) {
        if self.status() == ACKNOWLEDGE | DRIVER {
            self.features
                .accept(words::with(self.features.accepted(), select, value));
        }
    }

    /// `queue_size`, 0 for a queue that does not exist.
    pub fn queue_size(&self, queue: u16) -> u16 {
        self.queues.get(usize::from(queue)).map_or(0, |queue| queue.size)
    }

    /// Takes a write of `queue_size`.
    pub fn set_queue_size(&mut self, queue: u16, size: u16) {
        if let Some(queue) = self.writable_queue(queue) {
            queue.set_size(size);
        }
    }

    /// `queue_enable` of `queue`; `false` for one that does not exist.
    pub fn queue_enabled(&self, queue: u16) -> bool {
        self.queues.get(usize::from(queue)).is_some_and(|queue| queue.enabled)
    }

    /// Takes a write of 1 to `queue_enable`; there is no way back but a reset (virtio 1.2 §4.1.4.3.2).
    pub fn enable_queue(&mut self, queue: u16) {
        if let Some(queue) = self.writable_queue(queue) {
            queue.enabled = true;
        }
    }

    /// Half of a queue address: `half` 0 is the low dword, 1 the high one.
    pub fn queue_address(&self, queue: u16, part: QueuePart, half: u32) -> u32 {
        let queue = self.queues.get(usize::from(queue));
        queue
            .and_then(|queue| queue.addresses.get(part as usize))
            .map_or(0, |address| words::get(*address, half))
    }

    /// Takes a write of half a queue address.
    pub fn set_queue_address(&mut self, queue: u16, part: QueuePart, half: u32, value: u32) {
        if let Some(address) = self
            .writable_queue(queue)
            .and_then(|queue| queue.addresses.get_mut(part as usize))
        {
            *address = words::with(*address, half, value);
        }
    }

    /// Whether the driver may still configure `queue`: after `FEATURES_OK`, before `DRIVER_OK`, and not yet enabled.
    pub fn queue_is_writable(&mut self, queue: u16) -> bool {
        self.writable_queue(queue).is_some()
    }

    fn writable_queue(&mut self, queue: u16) -> Option<&mut QueueRegisters> {
        if self.status() != ACKNOWLEDGE | DRIVER | FEATURES_OK {
            return None;
        }
        self.queues.get_mut(usize::from(queue)).filter(|queue| !queue.enabled)
    }

    /// The kick of a queue that has been live, which its handler reads; it stays the same from then
    /// on, over resets too.
    pub fn kick(&self, queue: u16) -> Option<&Arc<EventFd>> {
        self.queues.get(usize::from(queue)).and_then(QueueRegisters::kick)
    }

    /// What the kernel is to signal for a queue that has been live: its kick, unless another process serves it.
    pub fn doorbell(&self, queue: u16) -> Option<Arc<EventFd>> {
        let kick = self.kick(queue)?;
        Some(self.device.doorbell(queue).unwrap_or_else(|| kick.clone()))
    }

    fn start(&mut self, notify: &dyn Fn(InterruptSource) -> Notify) {
        let config_changed = notify(InterruptSource::Config);
        let started = self.build_rings(notify).and_then(|rings| {
            self.device.start(Activation {
                mem: self.mem.clone(),
                features: self.features.accepted(),
                rings,
                config_changed: config_changed.clone(),
            })
        });
        for (index, queue) in (0..).zip(&self.queues) {
            let doorbell = self.device.doorbell(index);
            doorbell.into_iter().for_each(|doorbell| queue.probe().lend(doorbell));
        }
        self.running.start(&self.name, started, config_changed);
    }

    /// The enabled queues as rings.
    fn build_rings(&mut self, notify: &dyn Fn(InterruptSource) -> Notify) -> Result<Vec<Option<Ring>>, StartError> {
        let event_idx = self.features.negotiated(VIRTIO_RING_F_EVENT_IDX);
        let mut rings = Vec::with_capacity(self.queues.len());
        for (index, queue) in (0..).zip(&mut self.queues) {
            rings.push(match queue.enabled {
                true => Some(queue.ring(index, event_idx, notify(InterruptSource::Queue(index)), &self.mem)?),
                false => None,
            });
        }
        Ok(rings)
    }

    fn begin_reset(&mut self) {
        self.workers().stop();
        self.resetting = true;
        self.finish_reset();
    }

    /// Completes a reset once the I/O threads have ended. Never waits for one.
    fn finish_reset(&mut self) {
        if self.resetting && self.workers().is_stopped() {
            self.clear();
        }
    }

    /// Joins the I/O threads and goes back to the initial state.
    fn clear(&mut self) -> Vec<RingState> {
        self.resetting = false;
        self.resets = self.resets.wrapping_add(1);
        self.status = 0;
        self.features.accept(0);
        self.queues.iter_mut().for_each(QueueRegisters::reset);
        self.running.join()
    }

    /// The device's I/O threads: to hold, to stop, and to retire the device with them.
    pub fn workers(&self) -> &Arc<Workers> {
        self.running.workers()
    }

    /// Gives the device the right to read and write memory, or takes it away until it is given
    /// again. For buses that have such a right; without this the device has it. Waits for nobody.
    pub fn set_bus_master(&self, allowed: bool) {
        self.running.set_bus_master(allowed);
    }

    /// Stops the device, waits until no I/O thread touches guest memory, and returns where the
    /// rings stood. The device is reset afterwards. Blocks as long as the host's I/O does unless
    /// [`Workers::is_stopped`]: not for vCPU threads.
    pub fn shutdown(&mut self) -> Vec<RingState> {
        self.workers().stop();
        self.clear()
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "all status bits are below 256 (virtio 1.2 §2.1)"
)]
const fn status_bit(bit: u32) -> u8 {
    bit as u8
}

#[cfg(test)]
#[path = "core_test.rs"]
mod tests;
