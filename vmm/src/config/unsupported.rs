//! Cloud Hypervisor's fields that husk gives no meaning to. Each has values that ask for nothing,
//! of which its default is one: they are accepted, because clients send them. Any other value is
//! refused by name, so that nobody runs with less than was asked for.
//!
//! A field with several such values is named in `docs/api.md`: what it says makes no difference here.

use std::fmt;

use serde_json::Value;

use super::device_list::NewDevice;
use super::error::ConfigError;
use super::fields::{self, Shape};
use super::{ExtraFields, TopologyConfig, VmConfig};

/// The most PCI segments that a client can ask for, as in Cloud Hypervisor.
const MAX_SEGMENTS: u16 = 96;

/// A field that husk gives no meaning to.
#[derive(Debug)]
pub(super) struct Foreign {
    pub(super) name: &'static str,
    pub(super) neutral: Neutral,
}

/// The values of a field that ask for nothing. `null` is as absence, and one of every field.
#[derive(Debug)]
pub(super) enum Neutral {
    /// No other: an object that is there, even an empty one, asks for a device.
    Absent,
    /// `false`.
    False,
    /// `false` and `true`.
    Flag,
    /// A text or list without contents.
    Empty,
    /// This number alone; any other is refused.
    Number(u64),
    /// Numbers from 0 to this one.
    Below(u64),
    /// These words.
    Words(&'static [&'static str]),
    /// An object whose `mode` is `Off`.
    Off,
    /// An object whose fields ask for nothing.
    Fields(&'static Shape),
}

const fn foreign(name: &'static str, neutral: Neutral) -> Foreign {
    Foreign { name, neutral }
}

const fn absent(name: &'static str) -> Foreign {
    foreign(name, Neutral::Absent)
}

const fn off(name: &'static str) -> Foreign {
    foreign(name, Neutral::False)
}

const fn empty(name: &'static str) -> Foreign {
    foreign(name, Neutral::Empty)
}

pub(super) const VM: &[Foreign] = &[
    foreign("debug_console", Neutral::Off),
    empty("devices"),
    off("gdb"),
    empty("generic_vhost_user"),
    off("iommu"),
    absent("ivshmem"),
    off("landlock_enable"),
    empty("landlock_rules"),
    empty("numa"),
    empty("pci_segments"),
    absent("pvmemcontrol"),
    empty("rate_limit_groups"),
    absent("rtc"),
    empty("sgx_epc"),
    absent("tpm"),
    empty("user_devices"),
    empty("vdpa"),
    off("watchdog"),
];
pub(super) const CPUS: &[Foreign] = &[
    empty("affinity"),
    foreign("features", Neutral::Fields(&fields::FEATURES)),
    off("kvm_hyperv"),
    foreign("profile", Neutral::Words(&["Host"])),
];
pub(super) const FEATURES: &[Foreign] = &[off("amx")];
pub(super) const MEMORY: &[Foreign] = &[
    foreign("hotplugged_size", Neutral::Number(0)),
    off("reserve"),
    empty("zones"),
];
pub(super) const PAYLOAD: &[Foreign] = &[
    empty("firmware"),
    absent("fw_cfg_config"),
    empty("host_data"),
    empty("igvm"),
    empty("mrconfigid"),
];
pub(super) const PLATFORM: &[Foreign] = &[
    empty("chassis_asset_tag"),
    // The name until v52.
    foreign("iommu_address_width", Neutral::Number(64)),
    foreign("iommu_address_width_bits", Neutral::Number(64)),
    empty("iommu_segments"),
    off("iommufd"),
    absent("iommufd_fd"),
    // There are no SMBIOS tables that a guest could read these in.
    empty("oem_strings"),
    empty("serial_number"),
    empty("system_family"),
    empty("system_manufacturer"),
    empty("system_product_name"),
    empty("system_serial_number"),
    empty("system_sku_number"),
    empty("system_uuid"),
    empty("system_version"),
    empty("uuid"),
    off("sev_snp"),
    off("tdx"),
    // There is no VFIO, so no memory of devices for it.
    foreign("vfio_p2p_dma", Neutral::Flag),
];
/// Of every device on PCI. husk has one segment, which takes the devices of all, and finds the slot itself.
pub(super) const PCI: &[Foreign] = &[
    off("iommu"),
    absent("pci_device_id"),
    foreign("pci_segment", Neutral::Below(MAX_SEGMENTS as u64 - 1)),
];
pub(super) const DISK: &[Foreign] = &[
    off("backing_files"),
    // There is no Linux AIO that could be left unused.
    foreign("disable_aio", Neutral::Flag),
    // Locks are such that whoever has those of either kind excludes husk.
    foreign("lock_granularity", Neutral::Words(&["ByteRange", "Full"])),
    empty("queue_affinity"),
    empty("rate_limit_group"),
    empty("vhost_socket"),
    off("vhost_user"),
];
pub(super) const NET: &[Foreign] = &[
    empty("host_mac"),
    foreign("vhost_mode", Neutral::Words(&["Client"])),
    empty("vhost_socket"),
    off("vhost_user"),
];
/// The machine's own devices have names of their own, and no others.
pub(super) const RNG: &[Foreign] = &[foreign("id", Neutral::Words(&["__rng"]))];
pub(super) const BALLOON: &[Foreign] = &[foreign("id", Neutral::Words(&["__balloon"]))];
pub(super) const CONSOLE: &[Foreign] = &[foreign("id", Neutral::Words(&["__console"]))];
/// A port that is not on PCI, of which shims say so much nevertheless.
pub(super) const SERIAL: &[Foreign] = &[off("iommu")];

/// Refuses the first field that asks for what husk does not have.
pub(super) fn refuse(config: &VmConfig) -> Result<(), ConfigError> {
    check("", &config.extra, &[VM])?;
    check("cpus.", &config.cpus.extra, &[CPUS])?;
    if let Some(topology) = config.cpus.topology {
        grouped_as_husk_does(topology, config.cpus.max_vcpus)?;
    }
    check("memory.", &config.memory.extra, &[MEMORY])?;
    check("payload.", &config.payload.extra, &[PAYLOAD])?;
    if let Some(platform) = &config.platform {
        check("platform.", &platform.extra, &[PLATFORM])?;
        let segments = platform.num_pci_segments;
        if !(1..=MAX_SEGMENTS).contains(&segments) {
            let field = "platform.num_pci_segments".into();
            return Err(unsupported(
                field,
                segments.to_string(),
                format!("allowed: 1 to {MAX_SEGMENTS}"),
            ));
        }
    }
    for (place, device) in config.placed_devices() {
        refuse_device(&format!("{place}."), &device)?;
    }
    let single: [(_, _, &[&[Foreign]]); 4] = [
        (
            "balloon.",
            config.balloon.as_ref().map(|balloon| &balloon.extra),
            &[PCI, BALLOON],
        ),
        ("rng.", config.rng.as_ref().map(|rng| &rng.extra), &[PCI, RNG]),
        ("serial.", Some(&config.serial.extra), &[SERIAL]),
        ("console.", Some(&config.console.extra), &[PCI, CONSOLE]),
    ];
    single
        .into_iter()
        .filter_map(|(place, extra, fields)| Some((place, extra?, fields)))
        .try_for_each(|(place, extra, fields)| check(place, extra, fields))
}

/// Refuses the first field of `device` that does. Its fields are told with `place` before them.
pub(super) fn refuse_device(place: &str, device: &NewDevice) -> Result<(), ConfigError> {
    let (extra, shape) = device.extra();
    check(place, extra, shape.foreign)?;
    if let NewDevice::Disk(disk) = device {
        let field = format!("{place}image_type");
        refuse_value(
            &field,
            disk.extra.get("image_type"),
            &Neutral::Words(&["Raw", "Unknown"]),
        )?;
    }
    Ok(())
}

fn check(place: &str, extra: &ExtraFields, groups: &[&[Foreign]]) -> Result<(), ConfigError> {
    groups.iter().copied().flatten().try_for_each(|field| {
        let name = format!("{place}{}", field.name);
        refuse_value(&name, extra.get(field.name), &field.neutral)
    })
}

fn refuse_value(field: &str, value: Option<&Value>, neutral: &Neutral) -> Result<(), ConfigError> {
    match (value, neutral) {
        (Some(Value::Object(inner)), Neutral::Fields(shape)) => shape
            .foreign()
            .try_for_each(|own| refuse_value(&format!("{field}.{}", own.name), inner.get(own.name), &own.neutral)),
        (Some(value), _) if !neutral.has(value) => {
            Err(unsupported(field.into(), value.to_string(), neutral.to_string()))
        }
        _ => Ok(()),
    }
}

impl Neutral {
    /// Whether `value` asks for nothing.
    fn has(&self, value: &Value) -> bool {
        match (self, value) {
            (_, Value::Null) => true,
            (Self::False, value) => *value == false,
            (Self::Flag, value) => value.is_boolean(),
            (Self::Empty, Value::String(text)) => text.is_empty(),
            (Self::Empty, Value::Array(values)) => values.is_empty(),
            (Self::Number(number), value) => value.as_u64() == Some(*number),
            (Self::Below(most), value) => value.as_u64().is_some_and(|number| number <= *most),
            (Self::Words(words), Value::String(word)) => words.contains(&word.as_str()),
            (Self::Off, Value::Object(fields)) => fields.get("mode").is_some_and(|mode| mode == "Off"),
            _ => false,
        }
    }

    /// Whether there are values that differ and make no difference.
    #[cfg(test)]
    pub(super) const fn has_several(&self) -> bool {
        match self {
            Self::Flag | Self::Below(_) => true,
            Self::Words(words) => words.len() > 1,
            _ => false,
        }
    }
}

/// What can be asked for, for the refusal of something else.
impl fmt::Display for Neutral {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("allowed: true, false"),
            Self::Number(number) => write!(f, "allowed: {number}"),
            Self::Below(most) => write!(f, "allowed: 0 to {most}"),
            Self::Words(words) => write!(f, "allowed: {}", words.join(", ")),
            Self::Absent | Self::False | Self::Empty | Self::Off | Self::Fields(_) => f.write_str("leave it out"),
        }
    }
}

/// husk's vCPUs are cores of one package, each with one thread.
fn grouped_as_husk_does(topology: TopologyConfig, max_vcpus: u32) -> Result<(), ConfigError> {
    let TopologyConfig {
        threads_per_core: threads,
        cores_per_die: cores,
        dies_per_package: dies,
        packages,
    } = topology;
    if (threads, dies, packages) == (1, 1, 1) && u32::from(cores) == max_vcpus {
        return Ok(());
    }
    let found = format!("{threads} threads x {cores} cores x {dies} dies x {packages} packages");
    Err(unsupported(
        "cpus.topology".into(),
        found,
        format!("allowed: 1 x {max_vcpus} x 1 x 1, as max_vcpus"),
    ))
}

fn unsupported(field: String, found: String, allowed: String) -> ConfigError {
    ConfigError::Unsupported { field, found, allowed }
}

#[cfg(test)]
#[path = "unsupported_test.rs"]
mod tests;
