//! The common configuration structure (virtio 1.2 §4.1.4.3).
//!
//! | offset | width | R/W | register                | here                                              |
//! |--------|-------|-----|-------------------------|---------------------------------------------------|
//! | 0x00   | 4     | R/W | `device_feature_select` | any value; bits beyond the first 64 are 0         |
//! | 0x04   | 4     | R   | `device_feature`        |                                                   |
//! | 0x08   | 4     | R/W | `driver_feature_select` |                                                   |
//! | 0x0c   | 4     | R/W | `driver_feature`        | before `FEATURES_OK`                              |
//! | 0x10   | 2     | R/W | `config_msix_vector`    | before `DRIVER_OK`                                |
//! | 0x12   | 2     | R   | `num_queues`            |                                                   |
//! | 0x14   | 1     | R/W | `device_status`         |                                                   |
//! | 0x15   | 1     | R   | `config_generation`     |                                                   |
//! | 0x16   | 2     | R/W | `queue_select`          | any value; queues that do not exist read as 0     |
//! | 0x18   | 2     | R/W | `queue_size`            | between `FEATURES_OK` and enabling the queue      |
//! | 0x1a   | 2     | R/W | `queue_msix_vector`     | likewise                                          |
//! | 0x1c   | 2     | R/W | `queue_enable`          | likewise, 1 only                                  |
//! | 0x1e   | 2     | R   | `queue_notify_off`      | the queue's index                                 |
//! | 0x20   | 8     | R/W | `queue_desc`            | like `queue_size`; halves, or both at once        |
//! | 0x28   | 8     | R/W | `queue_driver`          | likewise                                          |
//! | 0x30   | 8     | R/W | `queue_device`          | likewise                                          |
//! | 0x38   | 2     | R   | `queue_notify_data`     | 0: not offered                                    |
//! | 0x3a   | 2     | R   | `queue_reset`           | 0: not offered                                    |
//!
//! Reads may have any width. Writes must have the register's own (§4.1.3.1); others are ignored.

use crate::ring::Notify;
use crate::transport::QueuePart;
use crate::transport::core::{Core, InterruptSource};

/// Size of the structure.
pub(super) const COMMON_BYTES: u32 = 0x3c;
/// No interrupt wanted, or the wanted one cannot be had (virtio 1.2 §4.1.5.1.2).
pub(super) const VIRTIO_MSI_NO_VECTOR: u16 = 0xffff;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    DeviceFeatureSelect,
    DeviceFeature,
    DriverFeatureSelect,
    DriverFeature,
    ConfigVector,
    NumQueues,
    Status,
    Generation,
    QueueSelect,
    QueueSize,
    QueueVector,
    QueueEnable,
    QueueNotifyOff,
    QueueAddress(QueuePart, u32),
    Absent,
}

/// Offset, width and register, in order and without gaps.
const REGISTERS: [(u64, u64, Register); 21] = [
    (0x00, 4, Register::DeviceFeatureSelect),
    (0x04, 4, Register::DeviceFeature),
    (0x08, 4, Register::DriverFeatureSelect),
    (0x0c, 4, Register::DriverFeature),
    (0x10, 2, Register::ConfigVector),
    (0x12, 2, Register::NumQueues),
    (0x14, 1, Register::Status),
    (0x15, 1, Register::Generation),
    (0x16, 2, Register::QueueSelect),
    (0x18, 2, Register::QueueSize),
    (0x1a, 2, Register::QueueVector),
    (0x1c, 2, Register::QueueEnable),
    (0x1e, 2, Register::QueueNotifyOff),
    (0x20, 4, Register::QueueAddress(QueuePart::Descriptors, 0)),
    (0x24, 4, Register::QueueAddress(QueuePart::Descriptors, 1)),
    (0x28, 4, Register::QueueAddress(QueuePart::Available, 0)),
    (0x2c, 4, Register::QueueAddress(QueuePart::Available, 1)),
    (0x30, 4, Register::QueueAddress(QueuePart::Used, 0)),
    (0x34, 4, Register::QueueAddress(QueuePart::Used, 1)),
    (0x38, 2, Register::Absent),
    (0x3a, 2, Register::Absent),
];

/// The registers that belong to the PCI face; all others are the [`Core`]'s.
pub(super) struct Common {
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
    config_vector: u16,
    queue_vectors: Vec<u16>,
    /// Resets of the core that these registers have followed.
    resets: u64,
}

impl Common {
    /// The reset state for `queues` queues.
    pub fn new(queues: u16) -> Self {
        Self {
            device_feature_select: 0,
            driver_feature_select: 0,
            queue_select: 0,
            config_vector: VIRTIO_MSI_NO_VECTOR,
            queue_vectors: vec![VIRTIO_MSI_NO_VECTOR; usize::from(queues)],
            resets: 0,
        }
    }

    /// Fills `data` from `offset`; bytes past the structure read as 0.
    pub fn read(&mut self, core: &mut Core, generation: u8, offset: u64, data: &mut [u8]) {
        self.follow_reset(core);
        for (at, byte) in (offset..).zip(data) {
            *byte = match REGISTERS.iter().rev().find(|(start, ..)| *start <= at) {
                Some((start, width, register)) if at.wrapping_sub(*start) < *width => {
                    let value = self.get(core, generation, *register).to_le_bytes();
                    let lane = usize::try_from(at.wrapping_sub(*start)).expect("below the width");
                    value.get(lane).copied().unwrap_or(0)
                }
                _ => 0,
            };
        }
    }

    fn get(&self, core: &mut Core, generation: u8, register: Register) -> u32 {
        let queue = self.queue_select;
        match register {
            Register::DeviceFeatureSelect => self.device_feature_select,
            Register::DeviceFeature => core.device_feature(self.device_feature_select),
            Register::DriverFeatureSelect => self.driver_feature_select,
            Register::DriverFeature => core.driver_feature(self.driver_feature_select),
            Register::ConfigVector => self.config_vector.into(),
            Register::NumQueues => core.queue_count().into(),
            Register::Status => core.status().into(),
            Register::Generation => generation.into(),
            Register::QueueSelect => queue.into(),
            Register::QueueSize => core.queue_size(queue).into(),
            Register::QueueVector => self.vector(InterruptSource::Queue(queue)).into(),
            Register::QueueEnable => core.queue_enabled(queue).into(),
            Register::QueueNotifyOff if queue < core.queue_count() => queue.into(),
            Register::QueueNotifyOff | Register::Absent => 0,
            Register::QueueAddress(part, half) => core.queue_address(queue, part, half),
        }
    }

    /// Takes a write of one register, or of both halves of a queue address. `notify` makes the
    /// interrupt of a source from the vector that was set for it.
    pub fn write(
        &mut self,
        core: &mut Core,
        offset: u64,
        data: &[u8],
        notify: impl Fn(InterruptSource, u16) -> Notify,
    ) {
        self.follow_reset(core);
        if let (Some((low, high)), true) = (
            data.split_at_checked(4),
            data.len() == 8 && (0x20..0x38).contains(&offset),
        ) {
            self.write_one(core, offset, low, &notify);
            self.write_one(core, offset.saturating_add(4), high, &notify);
        } else {
            self.write_one(core, offset, data, &notify);
        }
    }

    fn write_one(
        &mut self,
        core: &mut Core,
        offset: u64,
        data: &[u8],
        notify: &impl Fn(InterruptSource, u16) -> Notify,
    ) {
        let exact = |(start, width, _): &&(u64, u64, Register)| *start == offset && *width == data.len() as u64;
        let Some((.., register)) = REGISTERS.iter().find(exact) else {
            return;
        };
        let mut bytes = [0; 4];
        bytes.iter_mut().zip(data).for_each(|(byte, new)| *byte = *new);
        let [low, high, ..] = bytes;
        let (byte, short, long) = (low, u16::from_le_bytes([low, high]), u32::from_le_bytes(bytes));
        let queue = self.queue_select;
        match *register {
            Register::DeviceFeatureSelect => self.device_feature_select = long,
            Register::DriverFeatureSelect => self.driver_feature_select = long,
            Register::DriverFeature => core.set_driver_feature(self.driver_feature_select, long),
            Register::QueueSelect => self.queue_select = short,
            Register::QueueSize => core.set_queue_size(queue, short),
            Register::QueueEnable if short == 1 => core.enable_queue(queue),
            Register::QueueAddress(part, half) => core.set_queue_address(queue, part, half, long),
            Register::ConfigVector => self.set_config_vector(core, short),
            Register::QueueVector => self.set_queue_vector(core, queue, short),
            Register::Status => core.set_status(byte, |source| notify(source, self.vector(source))),
            _ => {}
        }
    }

    /// The vector of a source, `VIRTIO_MSI_NO_VECTOR` for a queue that does not exist.
    fn vector(&self, source: InterruptSource) -> u16 {
        match source {
            InterruptSource::Config => self.config_vector,
            InterruptSource::Queue(queue) => self
                .queue_vectors
                .get(usize::from(queue))
                .copied()
                .unwrap_or(VIRTIO_MSI_NO_VECTOR),
        }
    }

    fn set_config_vector(&mut self, core: &mut Core, vector: u16) {
        if core.is_configurable() {
            self.config_vector = self.existing(vector);
        }
    }

    fn set_queue_vector(&mut self, core: &mut Core, queue: u16, vector: u16) {
        let vector = self.existing(vector);
        if let (true, Some(slot)) = (
            core.queue_is_writable(queue),
            self.queue_vectors.get_mut(usize::from(queue)),
        ) {
            *slot = vector;
        }
    }

    /// A vector out of range cannot be had, and the driver reads so back (virtio 1.2 §4.1.5.1.2.1).
    fn existing(&self, vector: u16) -> u16 {
        // There is one vector more than queues.
        if usize::from(vector) <= self.queue_vectors.len() {
            vector
        } else {
            VIRTIO_MSI_NO_VECTOR
        }
    }

    /// A reset of the device resets these registers too, whenever it is complete.
    fn follow_reset(&mut self, core: &mut Core) {
        let resets = core.resets();
        if resets != self.resets {
            *self = Self {
                resets,
                ..Self::new(core.queue_count())
            };
        }
    }
}
