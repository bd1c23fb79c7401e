//! A configuration that is good, and what is said of changes to it.

use super::{DiskConfig, Limits, VmConfig};

pub(super) const HOST: Limits = Limits {
    max_vcpus: 8,
    phys_bits: 40,
};

/// One that passes on [`HOST`].
pub(super) fn good() -> VmConfig {
    let mut config = VmConfig::default();
    config.payload.kernel = Some("/k".into());
    config.disks = vec![DiskConfig::new("/a"), DiskConfig::new("/b")];
    config
}

/// The message when `change` is made to a good configuration.
pub(super) fn error(change: impl FnOnce(&mut VmConfig)) -> String {
    let mut config = good();
    change(&mut config);
    config.validate(HOST).unwrap_err().to_string()
}

/// A change to a configuration as it is written on the wire.
pub(super) fn wire_error(change: serde_json::Value) -> String {
    let mut wire = serde_json::to_value(good()).unwrap();
    merge(&mut wire, change);
    let config: VmConfig = serde_json::from_value(wire).unwrap();
    config.validate(HOST).unwrap_err().to_string()
}

/// Puts the fields of `from` in the place of those of `into`.
pub(super) fn merge(into: &mut serde_json::Value, from: serde_json::Value) {
    match (into.as_object_mut(), from) {
        (Some(fields), serde_json::Value::Object(new)) => {
            for (key, value) in new {
                merge(fields.entry(key).or_insert(serde_json::Value::Null), value);
            }
        }
        (_, from) => *into = from,
    }
}
