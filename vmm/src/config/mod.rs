//! What a VM is made of: [`VmConfig`], in the wire format of Cloud Hypervisor's `vm.create`.
//!
//! Fields that husk does not know are kept for the echo of `vm.info` ([`ExtraFields`]), and `null`
//! stands for a field's default, because Kata's shims send both. Sizes are in bytes.
//! [`VmConfig::validate`] says what is wrong with a configuration before anything is done with it,
//! and refuses by name what husk cannot honour.

mod console;
mod cores;
mod device;
mod device_list;
mod error;
mod extra_fields;
pub mod fields;
mod file_uses;
mod fs;
pub mod json;
mod limits;
mod list;
mod mac;
mod options;
mod path;
mod reclaim;
mod share;
mod size;
mod sockets;
#[cfg(test)]
mod testing;
mod translation;
mod unsupported;
mod validate;

use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize};

pub use console::{ConsoleConfig, ConsoleMode, MAX_KEEP, MIN_LIMIT_BYTES};
pub use cores::CoreScheduling;
pub use device::{
    Backend, BalloonConfig, DiskConfig, NetConfig, PmemConfig, RateLimiterConfig, RngConfig, TokenBucketConfig,
    VsockConfig,
};
pub use device_list::NewDevice;
pub use error::ConfigError;
pub use extra_fields::ExtraFields;
pub use file_uses::{OwnFiles, SourceFile, excludes};
pub use fs::{CacheMode, FsConfig};
pub use limits::Limits;
pub use mac::{BadMac, MacAddr};
pub use options::{BootProtocol, ResizeTimeout, RunOptions};
pub use path::PathError;
pub use reclaim::Reclaim;
pub use share::{MAX_FS_QUEUES, ShareError};
pub(crate) use share::{MAX_LABEL_BYTES, is_label};
pub use size::Size;
pub use sockets::OwnSockets;
pub use translation::{IdKind, IdTranslation, MAX_RANGES};
use validate::MAX_DEVICES;
pub use validate::{HUGE_PAGE_BYTES, MAX_DISK_QUEUES, MAX_NET_PAIRS, MIN_MEMORY_BYTES, PAGE_BYTES};

/// A whole VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmConfig {
    /// Virtual processors.
    #[serde(default, deserialize_with = "null_is_default")]
    pub cpus: CpusConfig,
    /// Guest RAM.
    #[serde(default, deserialize_with = "null_is_default")]
    pub memory: MemoryConfig,
    /// What the guest boots.
    #[serde(default, deserialize_with = "null_is_default")]
    pub payload: PayloadConfig,
    /// virtio-blk devices, in the order in which the guest finds them.
    #[serde(default, deserialize_with = "devices", skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskConfig>,
    /// virtio-net devices.
    #[serde(default, deserialize_with = "devices", skip_serializing_if = "Vec::is_empty")]
    pub net: Vec<NetConfig>,
    /// virtio-fs devices.
    #[serde(default, deserialize_with = "devices", skip_serializing_if = "Vec::is_empty")]
    pub fs: Vec<FsConfig>,
    /// virtio-pmem devices.
    #[serde(default, deserialize_with = "devices", skip_serializing_if = "Vec::is_empty")]
    pub pmem: Vec<PmemConfig>,
    /// The virtio-vsock device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockConfig>,
    /// The memory balloon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon: Option<BalloonConfig>,
    /// The virtio entropy device. Present unless it is `null`.
    #[serde(default = "RngConfig::present")]
    pub rng: Option<RngConfig>,
    /// The 16550 serial port, `ttyS0` in a Linux guest.
    #[serde(default = "ConsoleConfig::null", deserialize_with = "ConsoleConfig::or_null")]
    pub serial: ConsoleConfig,
    /// The virtio console, `hvc0` in a Linux guest.
    #[serde(default = "ConsoleConfig::tty", deserialize_with = "ConsoleConfig::or_tty")]
    pub console: ConsoleConfig,
    /// Whether the guest can report a kernel panic to the host.
    #[serde(default, deserialize_with = "null_is_default")]
    pub pvpanic: bool,
    /// The platform's shape.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<PlatformConfig>,
    /// Fields that husk does not know, kept as they came so that `vm.info` echoes them.
    #[serde(flatten)]
    pub extra: ExtraFields,
}

impl Default for VmConfig {
    fn default() -> Self {
        Self {
            cpus: CpusConfig::default(),
            memory: MemoryConfig::default(),
            payload: PayloadConfig::default(),
            disks: Vec::new(),
            net: Vec::new(),
            fs: Vec::new(),
            pmem: Vec::new(),
            vsock: None,
            balloon: None,
            rng: RngConfig::present(),
            serial: ConsoleConfig::null(),
            console: ConsoleConfig::tty(),
            pvpanic: false,
            platform: None,
            extra: ExtraFields::default(),
        }
    }
}

/// Virtual processors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpusConfig {
    /// vCPUs that the guest starts with.
    pub boot_vcpus: u32,
    /// vCPUs that the guest can have, hot-plugged ones included.
    pub max_vcpus: u32,
    /// How they are grouped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology: Option<TopologyConfig>,
    /// Whether the guest may run guests of its own: VMX or SVM.
    #[serde(default = "yes", deserialize_with = "null_is_yes")]
    pub nested: bool,
    /// The most bits of a guest-physical address.
    #[serde(
        default = "CpusConfig::usual_phys_bits",
        deserialize_with = "CpusConfig::null_is_phys_bits"
    )]
    pub max_phys_bits: u8,
    /// Who may share a core of the host with one of them.
    #[serde(default, deserialize_with = "null_is_default")]
    pub core_scheduling: CoreScheduling,
    /// Fields that husk does not know, kept as they came so that `vm.info` echoes them.
    #[serde(flatten)]
    pub extra: ExtraFields,
}

impl CpusConfig {
    /// `count` vCPUs and no room for more.
    pub fn fixed(count: u32) -> Self {
        Self {
            boot_vcpus: count,
            max_vcpus: count,
            topology: None,
            nested: true,
            max_phys_bits: Self::usual_phys_bits(),
            core_scheduling: CoreScheduling::default(),
            extra: ExtraFields::default(),
        }
    }

    const fn usual_phys_bits() -> u8 {
        46
    }

    fn null_is_phys_bits<'de, D: Deserializer<'de>>(from: D) -> Result<u8, D::Error> {
        Ok(Option::deserialize(from)?.unwrap_or(Self::usual_phys_bits()))
    }
}

/// How vCPUs are grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopologyConfig {
    /// Hardware threads of a core.
    pub threads_per_core: u16,
    /// Cores of a die.
    pub cores_per_die: u16,
    /// Dies of a package.
    pub dies_per_package: u16,
    /// Packages.
    pub packages: u16,
}

/// The platform's shape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformConfig {
    /// PCI segments. husk has one, which takes the devices of all.
    #[serde(
        default = "PlatformConfig::one_segment",
        deserialize_with = "PlatformConfig::null_is_one"
    )]
    pub num_pci_segments: u16,
    /// Fields that husk does not know, kept as they came so that `vm.info` echoes them.
    #[serde(flatten)]
    pub extra: ExtraFields,
}

impl PlatformConfig {
    const fn one_segment() -> u16 {
        1
    }

    fn null_is_one<'de, D: Deserializer<'de>>(from: D) -> Result<u16, D::Error> {
        Ok(Option::deserialize(from)?.unwrap_or(Self::one_segment()))
    }
}

impl Default for CpusConfig {
    fn default() -> Self {
        Self::fixed(1)
    }
}

/// Guest RAM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryConfig {
    /// Bytes of RAM, a multiple of the page size.
    pub size: u64,
    /// Whether identical pages may be merged with those of other processes (KSM).
    #[serde(default, deserialize_with = "null_is_default")]
    pub mergeable: bool,
    /// Whether RAM is a file that other processes can map: vhost-user needs it.
    #[serde(default, deserialize_with = "null_is_default")]
    pub shared: bool,
    /// Whether RAM comes from the host's reserved huge pages.
    #[serde(default, deserialize_with = "null_is_default")]
    pub hugepages: bool,
    /// Bytes of such a page: 2 MiB or 1 GiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hugepage_size: Option<u64>,
    /// Whether every page is allocated before the guest starts.
    #[serde(default, deserialize_with = "null_is_default")]
    pub prefault: bool,
    /// Whether the host may back RAM with transparent huge pages.
    #[serde(default = "yes", deserialize_with = "null_is_yes")]
    pub thp: bool,
    /// Bytes that can be added while the guest runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hotplug_size: Option<u64>,
    /// How they are added.
    #[serde(default, deserialize_with = "null_is_default")]
    pub hotplug_method: HotplugMethod,
    /// With [`HotplugMethod::Acpi`]: by ACPI in any case. husk's own.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_off")]
    pub acpi_only: bool,
    /// Fields that husk does not know, kept as they came so that `vm.info` echoes them.
    #[serde(flatten)]
    pub extra: ExtraFields,
}

/// How memory is added to a running guest, as clients ask for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HotplugMethod {
    /// By ACPI, or by virtio-mem where the guest has a driver for it. What shims ask for.
    #[default]
    Acpi,
    /// By virtio-mem alone.
    VirtioMem,
}

/// How memory may be added to a running guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hotplug {
    /// As DIMMs alone.
    Dimms,
    /// As blocks of virtio-mem alone.
    Blocks,
    /// As blocks where the guest has a driver for them, as DIMMs otherwise.
    #[default]
    Either,
}

impl Hotplug {
    /// Has `memory` follow what its node says, unless it says more than shims do.
    pub fn apply(self, memory: &mut MemoryConfig) {
        if memory.hotplug() == Self::Either {
            memory.set_hotplug(self);
        }
    }
}

impl MemoryConfig {
    /// How memory may be added.
    pub fn hotplug(&self) -> Hotplug {
        match (self.hotplug_method, self.acpi_only) {
            (HotplugMethod::VirtioMem, _) => Hotplug::Blocks,
            (HotplugMethod::Acpi, true) => Hotplug::Dimms,
            (HotplugMethod::Acpi, false) => Hotplug::Either,
        }
    }

    /// Sets how memory may be added.
    pub fn set_hotplug(&mut self, hotplug: Hotplug) {
        (self.hotplug_method, self.acpi_only) = match hotplug {
            Hotplug::Blocks => (HotplugMethod::VirtioMem, false),
            Hotplug::Dimms => (HotplugMethod::Acpi, true),
            Hotplug::Either => (HotplugMethod::Acpi, false),
        };
    }

    /// Bytes of the host's page behind it.
    pub fn page_bytes(&self) -> u64 {
        match self.hugepages {
            true => self.hugepage_size.unwrap_or(HUGE_PAGE_BYTES[0]),
            false => PAGE_BYTES,
        }
    }
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            size: 512 << 20,
            mergeable: false,
            shared: false,
            hugepages: false,
            hugepage_size: None,
            prefault: false,
            thp: true,
            hotplug_size: None,
            hotplug_method: HotplugMethod::default(),
            acpi_only: false,
            extra: ExtraFields::default(),
        }
    }
}

/// What the guest boots.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayloadConfig {
    /// An ELF `vmlinux` or a `bzImage`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// The kernel's command line, passed verbatim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// An initial RAM file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<PathBuf>,
    /// Fields that husk does not know, kept as they came so that `vm.info` echoes them.
    #[serde(flatten)]
    pub extra: ExtraFields,
}

const fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
const fn is_off(on: &bool) -> bool {
    !*on
}

fn null_is_default<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// Devices of one kind; `null` is as none. No more are kept than one beyond what any machine has slots for, which is
/// refused as too many: a list takes a hundred times the bytes of its text.
fn devices<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    from.deserialize_option(list::Bounded::<T, { MAX_DEVICES + 1 }>::new())
}

fn null_is_yes<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(true))
}

fn null_is_urandom<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_else(RngConfig::urandom))
}

#[cfg(test)]
#[path = "config_test.rs"]
mod tests;

#[cfg(test)]
mod wire_test;
