//! What makes a [`VmConfig`] one that can be built.

use husk_firmware::{CommandLine, layout};
use husk_virtio::block::{ID_BYTES, is_serial};
use husk_virtio::net::check_tap_name;
use husk_virtio::transport::pci::QUEUES_MAX;
use husk_virtio::vsock::CIDS;

use super::device_list::first_duplicate;
use super::path::{self, PathError};
use super::share::ShareError;
use super::size::Size;
use super::{
    Backend, BalloonConfig, ConsoleConfig, ConsoleMode, DiskConfig, Hotplug, HotplugMethod, MAX_KEEP, MIN_LIMIT_BYTES,
    MemoryConfig, NetConfig, PayloadConfig, PmemConfig, VmConfig, VsockConfig, unsupported,
};
use crate::log::Tag;
use crate::memory::{BLOCK_BYTES as PMEM_UNIT_BYTES, Reserved};

/// The unit of guest RAM.
pub const PAGE_BYTES: u64 = 4096;
/// The least RAM that holds the boot structures below 1 MiB and a payload above them.
pub const MIN_MEMORY_BYTES: u64 = 2 << 20;
/// The most virtqueues of a disk: as many as a device can have. Shims ask for one a vCPU, whatever the guest makes use of.
pub const MAX_DISK_QUEUES: u16 = QUEUES_MAX;
/// The most pairs of virtqueues of a network device, beside the queue for commands.
pub const MAX_NET_PAIRS: u16 = (QUEUES_MAX - 1) / 2;
/// The most bytes of a device's name.
const MAX_ID_BYTES: usize = 255;
/// The smallest MTU that IP works with (RFC 791).
const MIN_MTU: u16 = 68;

/// The most RAM of a guest: a memory slot of KVM has at most 2^31 - 1 pages (`KVM_MEM_MAX_NR_PAGES`, KVM api.rst 4.35), and what comes later
/// is rounded up to blocks of 2 GiB.
const MAX_RAM_BYTES: u64 = (8 << 40) - (2 << 30);

/// What reserved huge pages of x86-64 can be, the usual ones first.
pub const HUGE_PAGE_BYTES: [u64; 2] = [2 << 20, 1 << 30];
/// The fewest bits of a guest-physical address: the windows of the machine's devices lie below 4 GiB.
const MIN_PHYS_BITS: u8 = 32;
/// Devices that a machine has room for: PCI slots, less that of the host bridge.
pub(super) const MAX_DEVICES: usize = crate::machine::PCI_SLOTS as usize - 1;
/// The least and the most entries of a disk's virtqueue. A shorter one could not hold a request of usual length; a longer one
/// only adds latency.
pub(super) const QUEUE_SIZES: std::ops::RangeInclusive<u16> = 16..=1024;

/// What the host, or the architecture, can give a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most vCPUs of one VM: as many as KVM allows (`KVM_CAP_MAX_VCPUS`), at most those of [`Limits::ARCHITECTURE`].
    pub max_vcpus: u32,
    /// Width of a guest-physical address (CPUID 8000_0008h EAX\[7:0\]).
    pub phys_bits: u8,
}

impl Limits {
    /// What no x86-64 host exceeds: KVM's own bound on vCPUs (`KVM_MAX_VCPUS` of Linux 6.x), for which there are slots and
    /// ACPI tables, and the architecture's on addresses.
    pub const ARCHITECTURE: Self = Self {
        max_vcpus: 4096,
        phys_bits: 52,
    };

    /// The most bytes of RAM: half the guest-physical address space, as the other half is for devices' 64-bit windows, and no more than KVM
    /// has slots for.
    pub fn max_memory_bytes(self) -> u64 {
        let space = 1_u64.checked_shl(self.phys_bits.into());
        space.map_or(MAX_RAM_BYTES, |space| MAX_RAM_BYTES.min(space >> 1))
    }

    /// The most bytes that may come later beside the RAM of `memory`: what that leaves of [`Limits::max_memory_bytes`], as far as there are
    /// addresses for it above RAM and below those of persistent memory.
    fn room_beside(self, memory: &MemoryConfig) -> u64 {
        let (limit, _) = self.pmem_window();
        let left = self.max_memory_bytes().saturating_sub(memory.size);
        left.min(Reserved::room(memory, limit))
    }

    /// Where persistent memory goes (base, bytes); nowhere if addresses are too narrow for any.
    fn pmem_window(self) -> (u64, u64) {
        layout::pmem_window(self.phys_bits.into()).unwrap_or_default()
    }
}

/// Why a configuration cannot be built. Each is one line: the thing, what was found, what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Too few or too many vCPUs.
    #[error("cpus.{field}: {found} vCPUs asked for, 1 to {max} allowed")]
    Cpus {
        /// `boot_vcpus` or `max_vcpus`.
        field: &'static str,
        /// What was asked for.
        found: u32,
        /// The host's limit.
        max: u32,
    },
    /// Fewer vCPUs at most than at boot.
    #[error("cpus: at most {max} vCPUs, fewer than the {boot} at boot")]
    MaxCpus {
        /// `max_vcpus`.
        max: u32,
        /// `boot_vcpus`.
        boot: u32,
    },
    /// Addresses too narrow for the machine.
    #[error("cpus: max_phys_bits is {0}, {MIN_PHYS_BITS} or more allowed")]
    PhysBits(u8),
    /// RAM outside the bounds.
    #[error("memory: {found} bytes ({}) asked for, {} to {} allowed", Size(*found), Size(MIN_MEMORY_BYTES), Size(*max))]
    Memory {
        /// What was asked for.
        found: u64,
        /// The most that this host's address space holds.
        max: u64,
    },
    /// More than the address space holds, once all has come.
    #[error(
        "memory: {} at the start and {} more later asked for, {} allowed together",
        Size(*size),
        Size(*more),
        Size(*max)
    )]
    Hotplug {
        /// What the guest starts with.
        size: u64,
        /// What may come.
        more: u64,
        /// The most that this host's address space holds.
        max: u64,
    },
    /// Two ways of adding memory, which exclude each other.
    #[error("memory: acpi_only is on, hotplug_method is VirtioMem: one of the two is allowed")]
    TwoMethods,
    /// More devices than slots.
    #[error("{found} devices or more, the machine's own included, {MAX_DEVICES} PCI slots are there")]
    Slots {
        /// How many there would be, as far as they were counted: of a kind, one more than there are slots.
        found: usize,
    },
    /// A balloon that does not fit the guest.
    #[error("balloon: size is {found}, whole pages of 4096 bytes below the guest's {max} allowed")]
    Balloon {
        /// What was asked for.
        found: u64,
        /// RAM that the guest starts with.
        max: u64,
    },
    /// A policy for what an idle guest has that is none.
    #[error(
        "balloon: reclaim_idle is {found}, 1 to {max} seconds allowed",
        max = BalloonConfig::RECLAIM_IDLE_MAX
    )]
    ReclaimIdle {
        /// What was asked for.
        found: u64,
    },
    /// A balloon gives nothing back of huge pages.
    #[error("balloon: reclaim_idle is given, memory.hugepages is on: huge pages are not given back")]
    ReclaimHugePages,
    /// Pages that the balloon would take from the guest and give to nobody.
    #[error("balloon.size: RAM of huge pages is not given back to the host; allowed: 0")]
    BalloonHugePages,
    /// Pages that x86-64 does not have.
    #[error("memory: hugepage_size is {}, allowed: 2 MiB, 1 GiB", Size(*.0))]
    HugePage(u64),
    /// A size of pages that are not asked for.
    #[error("memory: hugepage_size is given, hugepages is off: pages of that size need it on")]
    NoHugePages,
    /// RAM that is no whole number of pages.
    #[error("memory: {found} bytes is not a multiple of the {page}-byte page")]
    MemoryUnit {
        /// What was asked for.
        found: u64,
        /// The page size that applies.
        page: u64,
    },
    /// Nothing to boot.
    #[error("payload: no kernel given")]
    NoKernel,
    /// A device has an empty `id`.
    #[error("a device's id is empty: give it a name, or leave it out")]
    NoId,
    /// A name that is told again with every answer, event and figure of its device, and too long for that.
    #[error("a device's id has {0} bytes, allowed: 1 to {MAX_ID_BYTES}")]
    LongId(usize),
    /// Two devices of one name.
    #[error("id '{0}' is used by two devices, ids must differ")]
    DuplicateId(String),
    /// A name that one of the machine's own devices may have: those are not the client's to remove.
    #[error("id '{0}' begins with '__', which the machine's own devices do")]
    ReservedId(String),
    /// Too few or too many virtqueues.
    #[error("disk {disk}: {found} queues asked for, 1 to {MAX_DISK_QUEUES} allowed")]
    Queues {
        /// The disk's path.
        disk: String,
        /// What was asked for.
        found: u16,
    },
    /// A serial number that the guest could not be told (virtio 1.2 §5.2.6).
    #[error("disk {disk}: serial '{found}' has {} bytes, up to {ID_BYTES} of printable ASCII are allowed", found.len())]
    Serial {
        /// The disk's path.
        disk: String,
        /// What was asked for.
        found: String,
    },
    /// A virtqueue size that virtio or husk does not allow.
    #[error("disk {disk}: queue size {found} is not a power of two from {} to {}", QUEUE_SIZES.start(), QUEUE_SIZES.end())]
    QueueSize {
        /// The disk's path.
        disk: String,
        /// What was asked for.
        found: u16,
    },
    /// Virtqueues of a network device that make no pairs, or too few or too many of them.
    #[error("net {net}: {found} queues asked for, 2 to {} allowed, two for each pair", 2 * MAX_NET_PAIRS)]
    NetQueues {
        /// The tap or the MAC address.
        net: String,
        /// What was asked for.
        found: u16,
    },
    /// A virtqueue size that virtio or husk does not allow.
    #[error("net {net}: queue size {found} is not a power of two from {} to {}", QUEUE_SIZES.start(), QUEUE_SIZES.end())]
    NetQueueSize {
        /// The tap or the MAC address.
        net: String,
        /// What was asked for.
        found: u16,
    },
    /// A name that no interface has, in the words of the device.
    #[error("net: {0}")]
    Tap(String),
    /// Packets too small for IP.
    #[error("net {net}: mtu is {found}, allowed: {MIN_MTU} to 65535")]
    Mtu {
        /// The tap or the MAC address.
        net: String,
        /// What was asked for.
        found: u16,
    },
    /// A context that no guest can have.
    #[error("vsock: cid {found} is reserved, allowed: {} to {}", CIDS.start(), CIDS.end())]
    Cid {
        /// What was asked for.
        found: u32,
    },
    /// A vsock device that nobody could reach.
    #[error("vsock: no socket given")]
    NoSocket,
    /// A socket that nobody would serve.
    #[error("vsock: socket is given, and with backend=vhost the host reaches the guest by its cid: leave it out")]
    SocketOfKernel,
    /// Limits that nobody would keep.
    #[error("net {0}: rate limits are for backend=husk; vhost has none")]
    LimitsOfKernel(String),
    /// A folder of the host.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// Persistent memory of nothing.
    #[error("pmem: no file given")]
    NoPmemFile,
    /// Persistent memory that no guest could map by huge pages.
    #[error("pmem {file}: {found} bytes are not a multiple of {PMEM_UNIT_BYTES}, and at least that")]
    PmemSize {
        /// The file.
        file: String,
        /// What was asked for.
        found: u64,
    },
    /// Persistent memory that there are no addresses for.
    #[error("pmem: {} of addresses are needed, {} allowed: the last quarter of cpus.max_phys_bits and of what the host has", Size(*found), Size(*max))]
    PmemRoom {
        /// What was asked for, or is needed at least.
        found: u64,
        /// What there is.
        max: u64,
    },
    /// A path that leads nowhere.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A kernel command line that the guest could not be given.
    #[error(transparent)]
    CommandLine(#[from] husk_firmware::CommandLineError),
    /// A console in mode `File` and no file.
    #[error("{0}: mode File needs a file")]
    NoFile(&'static str),
    /// A console in mode `Socket` and no socket.
    #[error("{0}: mode Socket needs a socket")]
    NoConsoleSocket(&'static str),
    /// Two want one socket, on which one of them is to listen.
    #[error("{one} and {other} both have the socket {path}, only one of them can")]
    TwoSockets {
        /// The one.
        one: String,
        /// The other.
        other: String,
        /// What they want.
        path: String,
    },
    /// Two ports want one file, which one of them empties when it is full.
    #[error("serial and console both have the file {0}: with a limit only one of them can")]
    TwoFiles(String),
    /// What is written there would destroy a file that the VM is made of.
    #[error("{output} would write over {of}: both have the file {path}")]
    Overwritten {
        /// Who would write: a port, an option, or what husk writes itself.
        output: String,
        /// What the file is to the VM.
        of: String,
        /// The file.
        path: String,
    },
    /// Two devices want one image, and one of them writes it.
    #[error("{one} and {other} both have the image {path}: allowed: one device, or any number that only read it")]
    TwoImages {
        /// The one.
        one: String,
        /// The other.
        other: String,
        /// What they want.
        path: String,
    },
    /// Two network devices want one tap.
    #[error("net: tap {0} is used by two devices, taps must differ")]
    TwoTaps(String),
    /// A field of a console that means nothing with what else it has.
    #[error("{port}.{field} is given, and has a meaning with {with} alone: leave it out")]
    Idle {
        /// `serial` or `console`.
        port: &'static str,
        /// Which field.
        field: &'static str,
        /// What it goes with.
        with: &'static str,
    },
    /// The wire format has it, husk has not.
    #[error("{field}: {found} is not supported, {allowed}")]
    Unsupported {
        /// Where in the configuration.
        field: String,
        /// What was asked for.
        found: String,
        /// What can be asked for.
        allowed: String,
    },
    /// Both consoles want the one standard input.
    #[error("serial and console both use stdio, only one of them can")]
    TwoTtys,
}

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

    /// Width of this VM's guest-physical addresses on a host that has `limits`: as wide as they can be there, and may be here.
    pub fn phys_bits(&self, limits: Limits) -> u8 {
        limits.phys_bits.min(self.cpus.max_phys_bits)
    }

    /// Has as much of what may come later as there are addresses for: beside RAM that has grown since it was [validated](Self::validate), or
    /// where clients ask for all that the host has.
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

    /// Checks what a device that is [in itself](super::NewDevice::refuse_foreign) as it may be can get wrong in a VM which runs: its own fields, and
    /// what it has in common with others. The rest of the machine is there, and may be larger by now than one that is to be built might be.
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

    /// Checks that there are addresses for all persistent memory, as far as its size is known without a look at the files.
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

impl DiskConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let disk = || self.path.display().to_string();
        path::file("disk", &self.path)?;
        if let Some(found) = self.serial.as_ref().filter(|serial| !is_serial(serial)) {
            return Err(ConfigError::Serial {
                disk: disk(),
                found: found.escape_debug().to_string(),
            });
        }
        if !(1..=MAX_DISK_QUEUES).contains(&self.num_queues) {
            return Err(ConfigError::Queues {
                disk: disk(),
                found: self.num_queues,
            });
        }
        if !self.queue_size.is_power_of_two() || !QUEUE_SIZES.contains(&self.queue_size) {
            return Err(ConfigError::QueueSize {
                disk: disk(),
                found: self.queue_size,
            });
        }
        Ok(())
    }
}

impl NetConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let net = || self.tap.clone().unwrap_or_else(|| self.mac.to_string());
        let found = self.num_queues;
        if !found.is_multiple_of(2) || !(1..=MAX_NET_PAIRS).contains(&(found / 2)) {
            return Err(ConfigError::NetQueues { net: net(), found });
        }
        let found = self.queue_size;
        if !found.is_power_of_two() || !QUEUE_SIZES.contains(&found) {
            return Err(ConfigError::NetQueueSize { net: net(), found });
        }
        if let Some(tap) = &self.tap {
            check_tap_name(tap).map_err(|error| ConfigError::Tap(error.to_string()))?;
        }
        if let Some(found) = self.mtu.filter(|mtu| *mtu < MIN_MTU) {
            return Err(ConfigError::Mtu { net: net(), found });
        }
        match (self.backend, self.rate_limiter_config) {
            (Backend::Vhost, Some(_)) => Err(ConfigError::LimitsOfKernel(net())),
            _ => Ok(()),
        }
    }
}

impl VsockConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if !CIDS.contains(&self.cid) {
            return Err(ConfigError::Cid { found: self.cid });
        }
        match (self.backend, self.socket.as_os_str().is_empty()) {
            (Backend::Husk, true) => Err(ConfigError::NoSocket),
            (Backend::Husk, false) => Ok(path::socket("vsock", &self.socket)?),
            (Backend::Vhost, true) => Ok(()),
            (Backend::Vhost, false) => Err(ConfigError::SocketOfKernel),
        }
    }
}

impl PmemConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if self.file.as_os_str().is_empty() {
            return Err(ConfigError::NoPmemFile);
        }
        path::file("pmem", &self.file)?;
        match self
            .size
            .filter(|size| *size == 0 || !size.is_multiple_of(PMEM_UNIT_BYTES))
        {
            Some(found) => Err(ConfigError::PmemSize {
                file: self.file.display().to_string(),
                found,
            }),
            None => Ok(()),
        }
    }
}

impl ConsoleConfig {
    fn validate(&self, name: &'static str) -> Result<(), ConfigError> {
        let refuse = |field: &str, found: String, allowed: String| {
            Err(ConfigError::Unsupported {
                field: format!("{name}.{field}"),
                found,
                allowed,
            })
        };
        if let Some(limit) = self.limit.filter(|limit| *limit < MIN_LIMIT_BYTES) {
            return refuse(
                "limit",
                limit.to_string(),
                format!("allowed: {MIN_LIMIT_BYTES} bytes or more"),
            );
        }
        if let Some(keep) = self.keep.filter(|keep| *keep > MAX_KEEP) {
            return refuse("keep", keep.to_string(), format!("allowed: 0 to {MAX_KEEP} files"));
        }
        if let Some(found) = &self.identifier
            && let Err(allowed) = found.parse::<Tag>()
        {
            return refuse("identifier", format!("'{}'", found.escape_debug()), allowed.into());
        }
        if let Some(journal) = &self.journal {
            path::socket(&format!("{name}.journal"), journal)?;
        }
        let (file, journald) = (self.mode == ConsoleMode::File, self.mode == ConsoleMode::Journald);
        let idle = [
            (self.limit.is_some() && !file, "limit", "mode File"),
            (self.keep.is_some() && !file, "keep", "mode File"),
            (self.keep.is_some() && self.limit.is_none(), "keep", "limit"),
            (self.identifier.is_some() && !journald, "identifier", "mode Journald"),
            (self.journal.is_some() && !journald, "journal", "mode Journald"),
        ];
        if let Some((_, field, with)) = idle.into_iter().find(|(is_idle, ..)| *is_idle) {
            return Err(ConfigError::Idle {
                port: name,
                field,
                with,
            });
        }
        match (self.mode, &self.file) {
            (ConsoleMode::File, None) => Err(ConfigError::NoFile(name)),
            (ConsoleMode::File, Some(file)) => Ok(path::file(name, file)?),
            (ConsoleMode::Socket, _) => match &self.socket {
                Some(socket) => Ok(path::socket(&format!("{name}.socket"), socket)?),
                None => Err(ConfigError::NoConsoleSocket(name)),
            },
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
#[path = "validate_test.rs"]
mod tests;
