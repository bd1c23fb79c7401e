//! What makes a [`VmConfig`] one that can be built.

mod devices;
mod ports;

use husk_firmware::CommandLine;
use husk_virtio::transport::pci::QUEUES_MAX;

use super::device_list::first_duplicate;
use super::error::ConfigError;
use super::limits::Limits;
use super::path;
use super::{BalloonConfig, ConsoleMode, Hotplug, HotplugMethod, MemoryConfig, PayloadConfig, VmConfig, unsupported};
pub(super) use crate::memory::BLOCK_BYTES as PMEM_UNIT_BYTES;

/// The unit of guest RAM.
pub const PAGE_BYTES: u64 = 4096;
/// The least RAM that holds the boot structures below 1 MiB and a payload above them.
pub const MIN_MEMORY_BYTES: u64 = 2 << 20;
/// The most virtqueues of a disk: as many as a device can have. Shims ask for one a vCPU, whatever
/// the guest makes use of.
pub const MAX_DISK_QUEUES: u16 = QUEUES_MAX;
/// The most pairs of virtqueues of a network device, beside the queue for commands.
pub const MAX_NET_PAIRS: u16 = (QUEUES_MAX - 1) / 2;
/// The most bytes of a device's name.
pub(super) const MAX_ID_BYTES: usize = 255;
/// The smallest MTU that IP works with (RFC 791).
pub(super) const MIN_MTU: u16 = 68;

/// What reserved huge pages of x86-64 can be, the usual ones first.
pub const HUGE_PAGE_BYTES: [u64; 2] = [2 << 20, 1 << 30];
/// The fewest bits of a guest-physical address: the windows of the machine's devices lie below 4 GiB.
pub(super) const MIN_PHYS_BITS: u8 = 32;
/// Devices that a machine has room for: PCI slots, less that of the host bridge.
pub(super) const MAX_DEVICES: usize = crate::machine::PCI_SLOTS as usize - 1;
/// The least and the most entries of a disk's virtqueue. A shorter one could not hold a request of
/// usual length; a longer one only adds latency.
pub(super) const QUEUE_SIZES: std::ops::RangeInclusive<u16> = 16..=1024;

impl VmConfig {
    /// Checks everything that can be checked without opening a file.
    ///
    /// # Errors
    /// The first [`ConfigError`], in the order of the fields.
    pub fn validate(&self, limits: Limits) -> Result<(), ConfigError> {
        let (boot, max) = (self.cpus.boot_vcpus, self.cpus.max_vcpus);
        for (field, found) in [("boot_vcpus", boot), ("max_vcpus", max)] {
            if !(1..=limits.max_vcpus).contains(&found) {
                return Err(ConfigError::Cpus {
                    field,
                    found,
                    max: limits.max_vcpus,
                });
            }
        }
        if max < boot {
            return Err(ConfigError::MaxCpus { max, boot });
        }
        if self.cpus.max_phys_bits < MIN_PHYS_BITS {
            return Err(ConfigError::PhysBits(self.cpus.max_phys_bits));
        }
        let limits = self.own_limits(limits);
        unsupported::refuse(self)?;
        self.memory.validate(limits)?;
        self.payload.validate()?;
        self.validate_device_list()?;
        self.validate_pmem_room(limits)?;
        self.rng.as_ref().map_or(Ok(()), |rng| path::file("rng", &rng.src))?;
        if let Some(balloon) = &self.balloon {
            balloon.validate(&self.memory)?;
        }
        self.serial.validate("serial")?;
        self.console.validate("console")?;
        if (self.serial.mode, self.console.mode) == (ConsoleMode::Tty, ConsoleMode::Tty) {
            return Err(ConfigError::TwoTtys);
        }
        self.validate_files()?;
        self.validate_outputs()?;
        self.validate_images()?;
        let found = self.slots();
        if found > MAX_DEVICES {
            return Err(ConfigError::Slots { found });
        }
        Ok(())
    }

    /// `limits`, with addresses as narrow as this VM's.
    fn own_limits(&self, limits: Limits) -> Limits {
        Limits {
            phys_bits: self.phys_bits(limits),
            ..limits
        }
    }

    /// Width of this VM's guest-physical addresses on a host that has `limits`: as wide as they can
    /// be there, and may be here.
    pub fn phys_bits(&self, limits: Limits) -> u8 {
        limits.phys_bits.min(self.cpus.max_phys_bits)
    }

    /// Has as much of what may come later as there are addresses for: beside RAM that has grown
    /// since it was [validated](Self::validate), or where clients ask for all that the host has.
    pub fn fit_hotplug(&mut self, limits: Limits) {
        let room = self.own_limits(limits).room_beside(&self.memory);
        self.memory.hotplug_size = self.memory.hotplug_size.map(|more| more.min(room));
    }

    /// How many PCI slots the machine takes at its start.
    fn slots(&self) -> usize {
        let blocks = self.memory.hotplug_size.is_some_and(|bytes| bytes > 0) && self.memory.hotplug() != Hotplug::Dimms;
        let console = self.console.mode != ConsoleMode::Off;
        let own = [self.rng.is_some(), self.balloon.is_some(), blocks, console];
        let own = own.into_iter().filter(|there| *there).count();
        self.devices().count().saturating_add(own)
    }

    /// Checks what a device that is [in itself](super::NewDevice::refuse_foreign) as it may be can
    /// get wrong in a VM which runs: its own fields, and what it has in common with others. The
    /// rest of the machine is there, and may be larger by now than one that is to be built might
    /// be.
    ///
    /// # Errors
    /// As [`VmConfig::validate`].
    pub fn validate_added(&self) -> Result<(), ConfigError> {
        self.validate_device_list()?;
        self.validate_outputs()
    }

    /// Checks the devices that come and go: each by itself, and all together.
    fn validate_device_list(&self) -> Result<(), ConfigError> {
        self.validate_devices()?;
        if let Some(id) = self.ids().find(|id| id.len() > MAX_ID_BYTES) {
            return Err(ConfigError::LongId(id.len()));
        }
        if let Some(id) = self.duplicate_id() {
            return Err(ConfigError::DuplicateId(id.into()));
        }
        if self.ids().any(str::is_empty) {
            return Err(ConfigError::NoId);
        }
        if let Some(id) = self.ids().find(|id| id.starts_with("__")) {
            return Err(ConfigError::ReservedId(id.into()));
        }
        self.validate_shares()?;
        self.validate_sockets()?;
        match first_duplicate(self.net.iter().filter_map(|net| net.tap.as_deref())) {
            Some(tap) => Err(ConfigError::TwoTaps(tap.into())),
            None => Ok(()),
        }
    }

    /// Checks that no port empties a file that the other one writes to.
    fn validate_files(&self) -> Result<(), ConfigError> {
        if self.serial.limit.or(self.console.limit).is_none() {
            return Ok(());
        }
        let others = self.console.files();
        match self.serial.files().iter().find(|file| others.contains(file)) {
            Some(file) => Err(ConfigError::TwoFiles(file.display().to_string())),
            None => Ok(()),
        }
    }

    /// Checks that there are addresses for all persistent memory, as far as its size is known
    /// without a look at the files.
    fn validate_pmem_room(&self, limits: Limits) -> Result<(), ConfigError> {
        let sizes = self.pmem.iter().map(|pmem| pmem.size.unwrap_or(PMEM_UNIT_BYTES));
        let (found, (_, max)) = (sizes.fold(0, u64::saturating_add), limits.pmem_window());
        if found > max {
            return Err(ConfigError::PmemRoom { found, max });
        }
        Ok(())
    }
}

impl MemoryConfig {
    fn validate(&self, limits: Limits) -> Result<(), ConfigError> {
        let (found, max) = (self.size, limits.max_memory_bytes());
        if !(MIN_MEMORY_BYTES..=max).contains(&found) {
            return Err(ConfigError::Memory { found, max });
        }
        if let Some(bytes) = self.hugepage_size {
            if !self.hugepages {
                return Err(ConfigError::NoHugePages);
            }
            if !HUGE_PAGE_BYTES.contains(&bytes) {
                return Err(ConfigError::HugePage(bytes));
            }
        }
        if self.acpi_only && self.hotplug_method == HotplugMethod::VirtioMem {
            return Err(ConfigError::TwoMethods);
        }
        let page = self.page_bytes();
        if !found.is_multiple_of(page) {
            return Err(ConfigError::MemoryUnit { found, page });
        }
        let (more, room) = (self.hotplug_size.unwrap_or_default(), limits.room_beside(self));
        if more > room {
            let (size, max) = (found, found.saturating_add(room));
            return Err(ConfigError::Hotplug { size, more, max });
        }
        Ok(())
    }
}

impl BalloonConfig {
    fn validate(&self, memory: &MemoryConfig) -> Result<(), ConfigError> {
        let (found, max) = (self.size, memory.size);
        if found >= max || !found.is_multiple_of(PAGE_BYTES) {
            return Err(ConfigError::Balloon { found, max });
        }
        match self.reclaim_idle {
            Some(found) if !(1..=Self::RECLAIM_IDLE_MAX).contains(&found) => Err(ConfigError::ReclaimIdle { found }),
            Some(_) if memory.hugepages => Err(ConfigError::ReclaimHugePages),
            _ if memory.hugepages && self.size > 0 => Err(ConfigError::BalloonHugePages),
            _ => Ok(()),
        }
    }
}

impl PayloadConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        path::file("kernel", self.kernel.as_ref().ok_or(ConfigError::NoKernel)?)?;
        if let Some(initramfs) = &self.initramfs {
            path::file("initramfs", initramfs)?;
        }
        CommandLine::new(self.cmdline.clone().unwrap_or_default())?;
        Ok(())
    }
}

#[cfg(test)]
#[path = "validate_test.rs"]
mod tests;
