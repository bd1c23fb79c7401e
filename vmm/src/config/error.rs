//! What can be wrong with a [`VmConfig`](super::VmConfig), each in one line.

use husk_virtio::block::ID_BYTES;
use husk_virtio::vsock::CIDS;

use super::BalloonConfig;
use super::path::PathError;
use super::share::ShareError;
use super::size::Size;
use super::validate::{
    MAX_DEVICES, MAX_DISK_QUEUES, MAX_ID_BYTES, MAX_NET_PAIRS, MIN_MEMORY_BYTES, MIN_MTU, MIN_PHYS_BITS,
    PMEM_UNIT_BYTES, QUEUE_SIZES,
};

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
    /// A guest could write what readers take for events of husk's.
    #[error("{port} and {events} both have the file {path}: what a guest prints there could be taken for an event")]
    BesideEvents {
        /// `serial` or `console`.
        port: &'static str,
        /// What events are written by.
        events: &'static str,
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
