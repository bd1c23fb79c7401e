//! The value of `--memory`.

use super::pairs::{PairsError, parse_pairs_after};
use super::size::{BadSize, SizeError, memory_size, parse_size, size};
use super::switch::{BadSwitch, switch};
use crate::config::{Hotplug, MemoryConfig};

/// Every key, in the order in which help and errors list them.
const KEYS: [&str; 9] = [
    "size",
    "hotplug",
    "method",
    "shared",
    "hugepages",
    "hugepage_size",
    "thp",
    "prefault",
    "mergeable",
];

/// Why a text describes no memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryArgError {
    /// Neither a size nor a list of pairs.
    #[error(transparent)]
    Alone(SizeError),
    /// Not a list of known pairs.
    #[error(transparent)]
    Pairs(#[from] PairsError),
    /// The value of a key that is a size does not parse.
    #[error(transparent)]
    Size(#[from] BadSize),
    /// No way to add memory.
    #[error("method is {0}")]
    Method(#[from] BadMethod),
    /// The value of a key that is on or off does not parse.
    #[error(transparent)]
    Switch(#[from] BadSwitch),
}

/// Not the name of a way to add memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}', allowed: acpi, virtio-mem, auto")]
pub struct BadMethod(String);

/// Reads `SIZE`, or `size=SIZE,hotplug=SIZE,…`, of which `size=` may be left out.
pub fn parse_memory(text: &str) -> Result<MemoryConfig, MemoryArgError> {
    let mut memory = MemoryConfig::default();
    if !text.contains(['=', ',']) {
        memory.size = parse_size(text).map_err(MemoryArgError::Alone)?;
        return Ok(memory);
    }
    for (key, value) in parse_pairs_after("size", text, &KEYS)? {
        match key {
            "size" => memory.size = size(key, value)?,
            "hotplug" => memory.hotplug_size = Some(memory_size(key, value)?),
            "method" => memory.set_hotplug(parse_method(&value)?),
            "hugepage_size" => memory.hugepage_size = Some(size(key, value)?),
            "shared" => memory.shared = switch(key, value)?,
            "hugepages" => memory.hugepages = switch(key, value)?,
            "thp" => memory.thp = switch(key, value)?,
            "prefault" => memory.prefault = switch(key, value)?,
            _ => memory.mergeable = switch(key, value)?,
        }
    }
    Ok(memory)
}

/// Reads `acpi`, `virtio-mem` or `auto`.
pub fn parse_method(text: &str) -> Result<Hotplug, BadMethod> {
    match text {
        "auto" => Ok(Hotplug::Either),
        "acpi" => Ok(Hotplug::Dimms),
        "virtio-mem" => Ok(Hotplug::Blocks),
        _ => Err(BadMethod(text.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_alone_is_all_there_is() {
        let expected = MemoryConfig {
            size: 2 << 30,
            ..Default::default()
        };
        assert_eq!(parse_memory("2G").unwrap(), expected);
        assert_eq!(parse_memory("size=2G").unwrap(), expected);
    }

    #[test]
    fn every_key_sets_its_field() {
        let text =
            "size=1G,hotplug=8G,method=acpi,shared=on,hugepages=on,hugepage_size=1G,thp=off,prefault=on,mergeable=on";
        let expected = MemoryConfig {
            size: 1 << 30,
            hotplug_size: Some(8 << 30),
            acpi_only: true,
            shared: true,
            hugepages: true,
            hugepage_size: Some(1 << 30),
            thp: false,
            prefault: true,
            mergeable: true,
            ..Default::default()
        };
        assert_eq!(parse_memory(text).unwrap(), expected);
        assert_eq!(parse_memory(text.strip_prefix("size=").unwrap()).unwrap(), expected);
        assert_eq!(parse_memory("hotplug=1G").unwrap().size, MemoryConfig::default().size);
    }

    #[test]
    fn errors_name_the_key() {
        let message = |text| parse_memory(text).unwrap_err().to_string();
        assert!(message("lots").starts_with("a size is a whole number"));
        assert!(message("").starts_with("a size is a whole number"));
        assert!(message("64M,shared").starts_with("'shared' has no value, write it as key=value"));
        assert_eq!(
            message("1G,hotplug=3"),
            "hotplug is '3': 3 bytes are less than a page: a unit is meant, such as 3M or 3G"
        );
        assert!(message("size=12Q").starts_with("size is '12Q': unknown unit 'Q'"));
        assert_eq!(
            message("method=dimm"),
            "method is 'dimm', allowed: acpi, virtio-mem, auto"
        );
        assert!(message("hotplug=").starts_with("hotplug is '': a size is"));
        assert_eq!(message("shared=maybe"), "shared is 'maybe', allowed: on, off");
        assert_eq!(message("size=1G,size=2G"), "key 'size' is given twice");
        assert!(message("sice=1G").starts_with("unknown key 'sice', allowed: size, hotplug, method, shared"));
    }
}
