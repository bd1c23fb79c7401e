//! What the wire format can ask for and husk cannot give: refused by name, so that nobody runs with less than was asked for.
//!
//! The neutral form of each field (`false`, 0, nothing, mode `Off`) is accepted, because the shims send it.

use serde_json::Value;

use super::validate::ConfigError;
use super::{Rest, TopologyConfig, VmConfig};

/// Fields of each object, by the object's place in the configuration.
pub(super) const VM: &[&str] = &[
    "debug_console",
    "devices",
    "generic_vhost_user",
    "iommu",
    "ivshmem",
    "landlock_enable",
    "landlock_rules",
    "numa",
    "pci_segments",
    "pvmemcontrol",
    "rate_limit_groups",
    "sgx_epc",
    "tpm",
    "user_devices",
    "vdpa",
    "watchdog",
];
pub(super) const CPUS: &[&str] = &["affinity", "core_scheduling", "kvm_hyperv"];
pub(super) const MEMORY: &[&str] = &["hotplugged_size", "zones"];
pub(super) const PAYLOAD: &[&str] = &["firmware", "host_data", "igvm", "mrconfigid"];
pub(super) const PLATFORM: &[&str] = &["iommu_segments", "sev_snp", "tdx", "vfio_p2p_dma"];
pub(super) const DISK: &[&str] = &[
    "backing_files",
    "iommu",
    "queue_affinity",
    "rate_limit_group",
    "vhost_socket",
    "vhost_user",
];
pub(super) const NET: &[&str] = &["host_mac", "iommu", "vhost_socket", "vhost_user"];
/// Devices without more.
pub(super) const DEVICE: &[&str] = &["iommu"];

/// Refuses the first field that asks for what husk does not have.
pub(super) fn refuse(config: &VmConfig) -> Result<(), ConfigError> {
    check("", &config.rest, VM)?;
    check("cpus.", &config.cpus.rest, CPUS)?;
    if let Some(topology) = config.cpus.topology {
        grouped_as_husk_does(topology, config.cpus.max_vcpus)?;
    }
    check("memory.", &config.memory.rest, MEMORY)?;
    check("payload.", &config.payload.rest, PAYLOAD)?;
    if let Some(platform) = &config.platform {
        check("platform.", &platform.rest, PLATFORM)?;
    }
    for (place, rest, shape) in config.device_rests() {
        check(&format!("{place}."), rest, shape.refused)?;
    }
    for (number, disk) in config.disks.iter().enumerate() {
        let field = format!("disks[{number}].image_type");
        one_of(&field, disk.rest.get("image_type"), &["Raw", "Unknown"])?;
    }
    let single = [
        ("balloon.", config.balloon.as_ref().map(|balloon| &balloon.rest)),
        ("rng.", config.rng.as_ref().map(|rng| &rng.rest)),
        ("serial.", Some(&config.serial.rest)),
        ("console.", Some(&config.console.rest)),
    ];
    single
        .into_iter()
        .filter_map(|(place, rest)| Some((place, rest?)))
        .try_for_each(|(place, rest)| check(place, rest, DEVICE))
}

fn check(place: &str, rest: &Rest, fields: &[&str]) -> Result<(), ConfigError> {
    let asked = fields
        .iter()
        .find_map(|field| Some((field, rest.get(field).filter(|value| !is_neutral(value))?)));
    asked.map_or(Ok(()), |(field, value)| {
        Err(unsupported(
            format!("{place}{field}"),
            value.to_string(),
            "leave it out",
        ))
    })
}

/// Whether a value asks for nothing.
fn is_neutral(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(number) => number.as_u64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.is_empty() || fields.get("mode").is_some_and(|mode| mode == "Off"),
    }
}

fn one_of(field: &str, value: Option<&Value>, allowed: &[&str]) -> Result<(), ConfigError> {
    match value {
        Some(value) if !value.as_str().is_some_and(|text| allowed.contains(&text)) => Err(unsupported(
            field.into(),
            value.to_string(),
            &format!("allowed: {}", allowed.join(", ")),
        )),
        _ => Ok(()),
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
        &format!("allowed: 1 x {max_vcpus} x 1 x 1, as max_vcpus"),
    ))
}

fn unsupported(field: String, found: String, allowed: &str) -> ConfigError {
    ConfigError::Unsupported {
        field,
        found,
        allowed: allowed.into(),
    }
}
