//! What a VM is made of: [`VmConfig`], in the wire format of Cloud Hypervisor's `vm.create`.
//!
//! Fields that husk does not know are ignored, and `null` stands for a field's default, because Kata's shims send both. Sizes are
//! in bytes. [`VmConfig::validate`] says what is wrong with a configuration before anything is done with it.

mod options;
mod validate;

use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize};

pub use options::{BootProtocol, RunOptions};
pub use validate::{ConfigError, Limits, MAX_DISK_QUEUES, MIN_MEMORY_BYTES, PAGE_BYTES};

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
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskConfig>,
    /// The virtio entropy device. Present unless it is `null`.
    #[serde(default = "RngConfig::present")]
    pub rng: Option<RngConfig>,
    /// The 16550 serial port, `ttyS0` in a Linux guest.
    #[serde(default = "ConsoleConfig::null", deserialize_with = "null_is_off")]
    pub serial: ConsoleConfig,
    /// The virtio console, `hvc0` in a Linux guest.
    #[serde(default = "ConsoleConfig::tty", deserialize_with = "null_is_off")]
    pub console: ConsoleConfig,
    /// Whether the guest can report a kernel panic to the host.
    #[serde(default, deserialize_with = "null_is_default")]
    pub pvpanic: bool,
}

impl Default for VmConfig {
    fn default() -> Self {
        Self {
            cpus: CpusConfig::default(),
            memory: MemoryConfig::default(),
            payload: PayloadConfig::default(),
            disks: Vec::new(),
            rng: RngConfig::present(),
            serial: ConsoleConfig::null(),
            console: ConsoleConfig::tty(),
            pvpanic: false,
        }
    }
}

/// Virtual processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpusConfig {
    /// vCPUs that the guest starts with.
    pub boot_vcpus: u32,
    /// vCPUs that the guest can have, hot-plugged ones included.
    pub max_vcpus: u32,
}

impl CpusConfig {
    /// `count` vCPUs and no room for more.
    pub const fn fixed(count: u32) -> Self {
        Self {
            boot_vcpus: count,
            max_vcpus: count,
        }
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
    /// Whether every page is allocated before the guest starts.
    #[serde(default, deserialize_with = "null_is_default")]
    pub prefault: bool,
    /// Whether the host may back RAM with transparent huge pages.
    #[serde(default = "yes", deserialize_with = "null_is_yes")]
    pub thp: bool,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            size: 512 << 20,
            mergeable: false,
            shared: false,
            hugepages: false,
            prefault: false,
            thp: true,
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
}

/// A virtio-blk device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskConfig {
    /// A raw image file or a block device of the host.
    pub path: PathBuf,
    /// Whether the guest may only read.
    #[serde(default, deserialize_with = "null_is_default")]
    pub readonly: bool,
    /// Whether I/O bypasses the host's page cache (`O_DIRECT`).
    #[serde(default, deserialize_with = "null_is_default")]
    pub direct: bool,
    /// Virtqueues, each served on its own.
    #[serde(default = "DiskConfig::one_queue")]
    pub num_queues: u16,
    /// Entries of each virtqueue, a power of two.
    #[serde(default = "DiskConfig::usual_queue_size")]
    pub queue_size: u16,
    /// Name that the guest reads as the disk's serial number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Whether the guest may give space back (discard).
    #[serde(default = "yes", deserialize_with = "null_is_yes")]
    pub sparse: bool,
    /// Whether io_uring is left unused even where the host has it.
    #[serde(default, deserialize_with = "null_is_default")]
    pub disable_io_uring: bool,
}

impl DiskConfig {
    /// A writable disk with one queue and everything else as the wire format has it by default.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            readonly: false,
            direct: false,
            num_queues: Self::one_queue(),
            queue_size: Self::usual_queue_size(),
            id: None,
            sparse: true,
            disable_io_uring: false,
        }
    }

    const fn one_queue() -> u16 {
        1
    }

    const fn usual_queue_size() -> u16 {
        128
    }
}

/// The virtio entropy device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngConfig {
    /// Where the host's entropy comes from.
    #[serde(default = "RngConfig::urandom", deserialize_with = "null_is_urandom")]
    pub src: PathBuf,
}

impl RngConfig {
    /// A device that reads `/dev/urandom`.
    pub fn new() -> Self {
        Self { src: Self::urandom() }
    }

    #[expect(clippy::unnecessary_wraps, reason = "the default of an Option field")]
    fn present() -> Option<Self> {
        Some(Self::new())
    }

    fn urandom() -> PathBuf {
        PathBuf::from("/dev/urandom")
    }
}

impl Default for RngConfig {
    fn default() -> Self {
        Self::new()
    }
}

/// Where a serial port or console leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleConfig {
    /// What is at the other end.
    pub mode: ConsoleMode,
    /// The file of [`ConsoleMode::File`].
    #[serde(default)]
    pub file: Option<PathBuf>,
}

impl ConsoleConfig {
    /// A port with `mode` at the other end and no file.
    pub const fn new(mode: ConsoleMode) -> Self {
        Self { mode, file: None }
    }

    /// A port whose output goes to `file`.
    pub fn file(file: impl Into<PathBuf>) -> Self {
        Self {
            mode: ConsoleMode::File,
            file: Some(file.into()),
        }
    }

    const fn null() -> Self {
        Self::new(ConsoleMode::Null)
    }

    const fn tty() -> Self {
        Self::new(ConsoleMode::Tty)
    }
}

/// What is at the other end of a serial port or console.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConsoleMode {
    /// The guest has no such device.
    Off,
    /// Nothing: output is dropped, and no input comes.
    Null,
    /// husk's own standard input and output.
    Tty,
    /// A file that receives the output.
    File,
    /// A pseudo-terminal that husk makes.
    Pty,
}

const fn yes() -> bool {
    true
}

fn null_is_default<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

fn null_is_yes<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(true))
}

fn null_is_off<'de, D: Deserializer<'de>>(from: D) -> Result<ConsoleConfig, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(ConsoleConfig::new(ConsoleMode::Off)))
}

fn null_is_urandom<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_else(RngConfig::urandom))
}

#[cfg(test)]
#[path = "config_test.rs"]
mod tests;
