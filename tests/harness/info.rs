//! `vm.info` as the Rust shim reads it: with types of its own, in which most fields must not be null.
//!
//! What is listed is what that shim deserialises; everything else it ignores. A plain field is
//! required, one with a default may be absent but not null, an `Option` may be either.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::Deserialize;

/// The answer of `vm.info`.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the names are the wire format's")]
pub struct VmInfo {
    pub config: Config,
    pub state: State,
    #[serde(default)]
    pub memory_actual_size: u64,
}

/// Where a VM stands.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the wire format's")]
pub enum State {
    Created,
    Running,
    Shutdown,
    Paused,
}

/// `VmConfig`.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the names are the wire format's")]
pub struct Config {
    #[serde(default)]
    pub cpus: Cpus,
    #[serde(default)]
    pub memory: Memory,
    pub payload: Option<Payload>,
    pub disks: Option<Vec<Disk>>,
    pub net: Option<Vec<Net>>,
    #[serde(default)]
    pub rng: Rng,
    pub fs: Option<Vec<Fs>>,
    pub serial: Console,
    pub console: Console,
    pub devices: Option<Vec<Device>>,
    pub vsock: Option<Vsock>,
    #[serde(default)]
    pub iommu: bool,
    #[serde(default)]
    pub watchdog: bool,
    pub platform: Option<Platform>,
}

/// `CpusConfig`.
#[derive(Clone, Debug, Default, Deserialize)]
#[expect(missing_docs, reason = "the names are the wire format's")]
pub struct Cpus {
    pub boot_vcpus: u32,
    pub max_vcpus: u32,
    pub topology: Option<Topology>,
    #[serde(default)]
    pub kvm_hyperv: bool,
    pub nested: Option<bool>,
    pub max_phys_bits: u8,
    #[serde(default)]
    pub features: Features,
}

/// `CpuTopology`.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the names are the wire format's")]
pub struct Topology {
    pub threads_per_core: u16,
    pub cores_per_die: u16,
    pub dies_per_package: u16,
    pub packages: u16,
}

/// `CpuFeatures`.
#[derive(Clone, Debug, Default, Deserialize)]
#[expect(missing_docs, reason = "the names are the wire format's")]
pub struct Features {
    #[serde(default)]
    pub amx: bool,
}

/// `MemoryConfig`.
#[derive(Clone, Debug, Default, Deserialize)]
#[expect(missing_docs, reason = "the names are the wire format's")]
pub struct Memory {
    pub size: u64,
    #[serde(default)]
    pub mergeable: bool,
    #[serde(default)]
    pub hotplug_method: HotplugMethod,
    pub hotplug_size: Option<u64>,
    pub hotplugged_size: Option<u64>,
    #[serde(default)]
    pub shared: bool,
    #[serde(default)]
    pub hugepages: bool,
    pub hugepage_size: Option<u64>,
    #[serde(default)]
    pub prefault: bool,
    pub zones: Option<Vec<Zone>>,
}

/// `HotplugMethod`.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[expect(missing_docs, reason = "the names are the wire format's")]
pub enum HotplugMethod {
    #[default]
    Acpi,
    VirtioMem,
}

/// `MemoryZoneConfig`.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the names are the wire format's")]
pub struct Zone {
    pub id: String,
    pub size: u64,
}

/// `PayloadConfig`.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the names are the wire format's")]
pub struct Payload {
    pub firmware: Option<PathBuf>,
    pub kernel: Option<PathBuf>,
    pub cmdline: Option<String>,
    pub initramfs: Option<PathBuf>,
}

/// `DiskConfig`.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the names are the wire format's")]
pub struct Disk {
    pub path: Option<PathBuf>,
    #[serde(default)]
    pub readonly: bool,
    #[serde(default)]
    pub direct: bool,
    #[serde(default)]
    pub iommu: bool,
    pub num_queues: usize,
    pub queue_size: u16,
    #[serde(default)]
    pub vhost_user: bool,
    pub vhost_socket: Option<String>,
    pub rate_limiter_config: Option<RateLimiter>,
    pub id: Option<String>,
    #[serde(default)]
    pub disable_io_uring: bool,
    #[serde(default)]
    pub pci_segment: u16,
    #[serde(default)]
    pub sparse: bool,
    #[serde(default)]
    pub image_type: ImageType,
}

/// `ImageType`.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[expect(missing_docs, reason = "the names are the wire format's")]
pub enum ImageType {
    FixedVhd,
    Qcow2,
    Raw,
    Vhdx,
    #[default]
    Unknown,
}

/// `RateLimiterConfig`: the only one that refuses what it does not know.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names are the wire format's")]
pub struct RateLimiter {
    pub bandwidth: Option<Bucket>,
    pub ops: Option<Bucket>,
}

/// `TokenBucketConfig`.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the names are the wire format's")]
pub struct Bucket {
    pub size: u64,
    pub one_time_burst: Option<u64>,
    pub refill_time: u64,
}

/// `NetConfig`.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the names are the wire format's")]
pub struct Net {
    pub tap: Option<String>,
    pub ip: Ipv4Addr,
    pub mask: Ipv4Addr,
    pub mac: String,
    pub host_mac: Option<String>,
    pub mtu: Option<u16>,
    #[serde(default)]
    pub iommu: bool,
    pub num_queues: usize,
    pub queue_size: u16,
    #[serde(default)]
    pub vhost_user: bool,
    #[serde(default)]
    pub vhost_mode: VhostMode,
    pub id: Option<String>,
    pub fds: Option<Vec<i32>>,
    pub rate_limiter_config: Option<RateLimiter>,
    #[serde(default)]
    pub pci_segment: u16,
}

/// `VhostMode`.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[expect(missing_docs, reason = "the names are the wire format's")]
pub enum VhostMode {
    #[default]
    Client,
    Server,
}

/// `RngConfig`.
#[derive(Clone, Debug, Default, Deserialize)]
#[expect(missing_docs, reason = "the names are the wire format's")]
pub struct Rng {
    pub src: PathBuf,
    #[serde(default)]
    pub iommu: bool,
}

/// `FsConfig`.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the names are the wire format's")]
pub struct Fs {
    pub tag: String,
    pub socket: PathBuf,
    pub num_queues: usize,
    pub queue_size: u16,
    pub id: Option<String>,
    #[serde(default)]
    pub pci_segment: u16,
}

/// `ConsoleConfig`.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the names are the wire format's")]
pub struct Console {
    pub file: Option<PathBuf>,
    pub mode: ConsoleMode,
    #[serde(default)]
    pub iommu: bool,
}

/// `ConsoleOutputMode`, without the one that the shim does not know.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the wire format's")]
pub enum ConsoleMode {
    Off,
    Pty,
    Tty,
    File,
    Null,
}

/// `DeviceConfig`.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the names are the wire format's")]
pub struct Device {
    pub path: PathBuf,
}

/// `VsockConfig`.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the names are the wire format's")]
pub struct Vsock {
    pub cid: u64,
    pub socket: PathBuf,
    #[serde(default)]
    pub iommu: bool,
    pub id: Option<String>,
    #[serde(default)]
    pub pci_segment: u16,
}

/// `PlatformConfig`.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the names are the wire format's")]
pub struct Platform {
    pub num_pci_segments: u16,
}

/// The answer to adding a device.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct PciDevice {
    /// What `vm.remove-device` takes.
    pub id: String,
    /// Where the guest finds it.
    pub bdf: String,
}

impl PciDevice {
    /// Whether a shim can use the place: bus 0, function 0, a slot from 1 to 1f.
    pub fn is_on_bus_0(&self) -> bool {
        let slot = self
            .bdf
            .strip_prefix("0000:00:")
            .and_then(|rest| rest.strip_suffix(".0"));
        slot.filter(|slot| slot.len() == 2)
            .and_then(|slot| u8::from_str_radix(slot, 16).ok())
            .is_some_and(|slot| (1..=0x1f).contains(&slot))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn info() -> Value {
        json!({"state": "Running", "memory_actual_size": 1, "config": {
            "cpus": {"boot_vcpus": 1, "max_vcpus": 8, "max_phys_bits": 46},
            "memory": {"size": 1, "zones": null}, "payload": {"kernel": "/k", "firmware": null},
            "disks": [{"path": "/d", "num_queues": 1, "queue_size": 128, "rate_limiter_config": null}],
            "serial": {"mode": "Off"}, "console": {"mode": "Off", "file": null}, "rng": {"src": "/dev/urandom"}}})
    }

    fn read(info: &Value) -> Result<VmInfo, serde_json::Error> {
        serde_json::from_value(info.clone())
    }

    #[test]
    fn what_the_rust_shim_would_not_read_is_refused() {
        read(&info()).unwrap();
        let config = |path: &str| format!("/config/{path}");
        let wrong = [
            (config("serial/mode"), json!("Socket")),
            (config("cpus/max_phys_bits"), json!(null)),
            (config("rng"), json!(null)),
            (config("memory/size"), json!("1")),
            (config("disks/0/readonly"), json!(null)),
            (config("disks/0/rate_limiter_config"), json!({"x": 1})),
            ("/state".into(), json!("BreakPoint")),
        ];
        for (pointer, value) in wrong {
            let mut info = info();
            let (parent, name) = pointer.rsplit_once('/').unwrap();
            info.pointer_mut(parent).unwrap()[name] = value;
            read(&info).expect_err(&pointer);
        }
    }

    #[test]
    fn only_a_place_on_bus_0_is_one() {
        let at = |bdf: &str| {
            PciDevice {
                id: "x".into(),
                bdf: bdf.into(),
            }
            .is_on_bus_0()
        };
        assert!(at("0000:00:05.0") && at("0000:00:1f.0"));
        for bdf in [
            "0000:00:00.0",
            "0000:00:20.0",
            "0000:01:05.0",
            "0001:00:05.0",
            "0000:00:05.1",
            "0000:00:5.0",
        ] {
            assert!(!at(bdf), "{bdf}");
        }
    }
}
