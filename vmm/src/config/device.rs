//! Devices, as the wire format describes them.

use std::path::PathBuf;

use husk_virtio::block::serial_of_name;
use serde::{Deserialize, Deserializer, Serialize};

use super::extra_fields::ExtraFields;
use super::mac::MacAddr;
use super::{null_is_default, null_is_urandom, null_is_yes, yes};

/// A virtio-blk device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskConfig {
    /// A raw image file or a block device of the host.
    #[serde(default, deserialize_with = "null_is_default")]
    pub path: PathBuf,
    /// Whether the guest may only read.
    #[serde(default, deserialize_with = "null_is_default")]
    pub readonly: bool,
    /// Whether I/O bypasses the host's page cache (`O_DIRECT`).
    #[serde(default, deserialize_with = "null_is_default")]
    pub direct: bool,
    /// Virtqueues, each served on its own.
    #[serde(
        default = "DiskConfig::one_queue",
        deserialize_with = "DiskConfig::null_is_one_queue"
    )]
    pub num_queues: u16,
    /// Entries of each virtqueue, a power of two.
    #[serde(
        default = "DiskConfig::usual_queue_size",
        deserialize_with = "DiskConfig::null_is_usual_queue_size"
    )]
    pub queue_size: u16,
    /// The device's name. Unless there is a `serial`, the guest reads its first 20 characters as
    /// the disk's serial number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Whether the guest may give space back (discard).
    #[serde(default = "yes", deserialize_with = "null_is_yes")]
    pub sparse: bool,
    /// Whether io_uring is left unused even where the host has it.
    #[serde(default, deserialize_with = "null_is_default")]
    pub disable_io_uring: bool,
    /// Serial number that the guest reads, in place of `id`: up to 20 printable ASCII characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// How fast the guest may read and write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter_config: Option<RateLimiterConfig>,
    /// Fields that husk does not know, kept as they came so that `vm.info` echoes them.
    #[serde(flatten)]
    pub extra: ExtraFields,
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
            serial: None,
            rate_limiter_config: None,
            extra: ExtraFields::default(),
        }
    }

    /// What the guest reads as the disk's serial number.
    pub fn serial_number(&self) -> String {
        match (&self.serial, &self.id) {
            (Some(serial), _) => serial.clone(),
            (None, Some(id)) => serial_of_name(id),
            (None, None) => String::new(),
        }
    }

    const fn one_queue() -> u16 {
        1
    }

    const fn usual_queue_size() -> u16 {
        128
    }

    fn null_is_one_queue<'de, D: Deserializer<'de>>(from: D) -> Result<u16, D::Error> {
        Ok(Option::deserialize(from)?.unwrap_or(Self::one_queue()))
    }

    fn null_is_usual_queue_size<'de, D: Deserializer<'de>>(from: D) -> Result<u16, D::Error> {
        Ok(Option::deserialize(from)?.unwrap_or(Self::usual_queue_size()))
    }
}

/// The virtio entropy device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngConfig {
    /// Where the host's entropy comes from.
    #[serde(default = "RngConfig::urandom", deserialize_with = "null_is_urandom")]
    pub src: PathBuf,
    /// Fields that husk does not know, kept as they came so that `vm.info` echoes them.
    #[serde(flatten)]
    pub extra: ExtraFields,
}

impl RngConfig {
    /// A device that reads `/dev/urandom`.
    pub fn new() -> Self {
        Self::from(Self::urandom())
    }

    #[expect(clippy::unnecessary_wraps, reason = "the default of an Option field")]
    pub(super) fn present() -> Option<Self> {
        Some(Self::new())
    }

    pub(super) fn urandom() -> PathBuf {
        PathBuf::from("/dev/urandom")
    }
}

impl From<PathBuf> for RngConfig {
    fn from(src: PathBuf) -> Self {
        Self {
            src,
            extra: ExtraFields::default(),
        }
    }
}

impl Default for RngConfig {
    fn default() -> Self {
        Self::new()
    }
}

/// How fast a device may be used: a bucket of bytes, a bucket of operations, or both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimiterConfig {
    /// A bucket whose tokens are bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucketConfig>,
    /// A bucket whose tokens are requests or packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucketConfig>,
}

/// A token bucket: what may be spent at once, and how fast it fills again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenBucketConfig {
    /// Tokens that the bucket holds.
    pub size: u64,
    /// Tokens that there are once more at the start, never refilled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
    /// Milliseconds in which an empty bucket fills.
    pub refill_time: u64,
}

/// Who moves the data of a device. husk's own field: the wire format has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// Threads of this process.
    #[default]
    Husk,
    /// The host's kernel.
    Vhost,
}

impl Backend {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
    fn is_husk(&self) -> bool {
        *self == Self::Husk
    }
}

/// A virtio-net device.
///
/// `ip` and `mask` have no effect: an interface is its owner's to set up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetConfig {
    /// Name of the host's tap interface; descriptors are the other way to say which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// Accepted and echoed, without effect.
    #[serde(default = "NetConfig::usual_ip", deserialize_with = "NetConfig::null_is_ip")]
    pub ip: String,
    /// Accepted and echoed, without effect.
    #[serde(default = "NetConfig::usual_mask", deserialize_with = "NetConfig::null_is_mask")]
    pub mask: String,
    /// The guest's address; a random one unless given.
    #[serde(default = "MacAddr::random", deserialize_with = "MacAddr::null_is_random")]
    pub mac: MacAddr,
    /// The link's largest packet in bytes, for the guest to know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Virtqueues: two for each pair, one pair for each descriptor.
    #[serde(default = "NetConfig::one_pair", deserialize_with = "NetConfig::null_is_one_pair")]
    pub num_queues: u16,
    /// Entries of each virtqueue, a power of two.
    #[serde(
        default = "NetConfig::usual_queue_size",
        deserialize_with = "NetConfig::null_is_usual_queue_size"
    )]
    pub queue_size: u16,
    /// The device's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Descriptor numbers in the sender's process: they mean nothing here, the descriptors
    /// themselves come with the message.
    #[serde(default, skip_serializing)]
    pub fds: Option<Vec<i32>>,
    /// How fast the guest may send and receive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter_config: Option<RateLimiterConfig>,
    /// Whether TCP segmentation is offered.
    #[serde(default = "yes", deserialize_with = "null_is_yes")]
    pub offload_tso: bool,
    /// Whether UDP fragmentation is offered.
    #[serde(default = "yes", deserialize_with = "null_is_yes")]
    pub offload_ufo: bool,
    /// Whether checksums are offered.
    #[serde(default = "yes", deserialize_with = "null_is_yes")]
    pub offload_csum: bool,
    /// Who moves frames.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "Backend::is_husk"
    )]
    pub backend: Backend,
    /// Fields that husk does not know, kept as they came so that `vm.info` echoes them.
    #[serde(flatten)]
    pub extra: ExtraFields,
}

impl NetConfig {
    /// A device with one queue pair, a random address and everything else as the wire format has it by default.
    pub fn new() -> Self {
        Self {
            tap: None,
            ip: Self::usual_ip(),
            mask: Self::usual_mask(),
            mac: MacAddr::random(),
            mtu: None,
            num_queues: Self::one_pair(),
            queue_size: Self::usual_queue_size(),
            id: None,
            fds: None,
            rate_limiter_config: None,
            offload_tso: true,
            offload_ufo: true,
            offload_csum: true,
            backend: Backend::default(),
            extra: ExtraFields::default(),
        }
    }

    fn usual_ip() -> String {
        "192.168.249.1".into()
    }

    fn usual_mask() -> String {
        "255.255.255.0".into()
    }

    fn null_is_ip<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
        Ok(Option::deserialize(from)?.unwrap_or_else(Self::usual_ip))
    }

    fn null_is_mask<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
        Ok(Option::deserialize(from)?.unwrap_or_else(Self::usual_mask))
    }

    const fn one_pair() -> u16 {
        2
    }

    const fn usual_queue_size() -> u16 {
        256
    }

    fn null_is_one_pair<'de, D: Deserializer<'de>>(from: D) -> Result<u16, D::Error> {
        Ok(Option::deserialize(from)?.unwrap_or(Self::one_pair()))
    }

    fn null_is_usual_queue_size<'de, D: Deserializer<'de>>(from: D) -> Result<u16, D::Error> {
        Ok(Option::deserialize(from)?.unwrap_or(Self::usual_queue_size()))
    }
}

impl Default for NetConfig {
    fn default() -> Self {
        Self::new()
    }
}

/// A virtio-vsock device whose host side is Unix sockets, or the vsock of the host's kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockConfig {
    /// The guest's context identifier, 3 or more.
    pub cid: u32,
    /// The socket that the host's programs connect to. Empty with the kernel, to which they go by
    /// the identifier, and told even so: a shim that reads `vm.info` wants it.
    #[serde(default, deserialize_with = "null_is_default")]
    pub socket: PathBuf,
    /// Who moves packets.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "Backend::is_husk"
    )]
    pub backend: Backend,
    /// The device's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Fields that husk does not know, kept as they came so that `vm.info` echoes them.
    #[serde(flatten)]
    pub extra: ExtraFields,
}

impl VsockConfig {
    /// A device with the guest's identifier and the host's socket.
    pub fn new(cid: u32, socket: impl Into<PathBuf>) -> Self {
        Self {
            cid,
            socket: socket.into(),
            backend: Backend::default(),
            id: None,
            extra: ExtraFields::default(),
        }
    }

    /// A device that the host's kernel serves, for a guest with this identifier on the host.
    pub fn by_kernel(cid: u32) -> Self {
        Self {
            backend: Backend::Vhost,
            ..Self::new(cid, "")
        }
    }
}

/// A virtio-pmem device: a file of the host in the guest's address space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PmemConfig {
    /// The file.
    pub file: PathBuf,
    /// Bytes of it, a multiple of 2 MiB; all of them unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Whether the guest's writes stay in the VM and are lost with it.
    #[serde(default, deserialize_with = "null_is_default")]
    pub discard_writes: bool,
    /// The device's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Fields that husk does not know, kept as they came so that `vm.info` echoes them.
    #[serde(flatten)]
    pub extra: ExtraFields,
}

/// The virtio memory balloon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonConfig {
    /// Bytes that the guest gives back at the start, whole pages of 4 KiB.
    pub size: u64,
    /// Whether the guest may take pages back before it ends a process for want of memory.
    #[serde(default, deserialize_with = "null_is_default")]
    pub deflate_on_oom: bool,
    /// Whether the guest gives pages back that are free.
    #[serde(default, deserialize_with = "null_is_default")]
    pub free_page_reporting: bool,
    /// Seconds for which the guest has had more free than it keeps until the balloon takes that; never unless said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reclaim_idle: Option<u64>,
    /// Bytes that it keeps; 64 MiB unless said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reclaim_keep: Option<u64>,
    /// Fields that husk does not know, kept as they came so that `vm.info` echoes them.
    #[serde(flatten)]
    pub extra: ExtraFields,
}

impl BalloonConfig {
    /// The most seconds of `reclaim_idle`: a day.
    pub const RECLAIM_IDLE_MAX: u64 = 86_400;
}
