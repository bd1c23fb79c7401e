use serde_json::json;

use super::super::testing::{HOST, error, good};
use super::*;
use crate::config::VmConfig;

#[test]
fn an_absurd_address_width_does_not_overflow() {
    assert_eq!(
        Limits {
            max_vcpus: 1,
            phys_bits: 64
        }
        .max_memory_bytes(),
        MAX_RAM_BYTES
    );
    assert_eq!(
        Limits {
            max_vcpus: 1,
            phys_bits: 255
        }
        .max_memory_bytes(),
        MAX_RAM_BYTES
    );
    assert_eq!(
        Limits {
            max_vcpus: 1,
            phys_bits: 0
        }
        .max_memory_bytes(),
        0
    );
}

#[test]
fn addresses_are_as_wide_as_the_host_and_the_vm_both_have_them() {
    let mut config = good();
    assert_eq!(config.phys_bits(HOST), 40, "46 unless said");
    assert_eq!(config.phys_bits(Limits::ARCHITECTURE), 46);
    config.cpus.max_phys_bits = 36;
    assert_eq!(config.phys_bits(HOST), 36);
}

/// What comes lies above 4 GiB, wherever there would be room below.
#[test]
fn nothing_is_promised_beyond_the_addresses_that_a_vm_is_given() {
    let with = |bits, size, hotplug: Option<u64>| {
        let mut config = good();
        config.cpus.max_phys_bits = bits;
        (config.memory.size, config.memory.hotplug_size) = (size, hotplug);
        config
    };
    let refused = |config: &VmConfig| config.validate(HOST).unwrap_err().to_string();
    assert_eq!(
        refused(&with(32, 512 << 20, Some(512 << 20))),
        "memory: 512 MiB at the start and 512 MiB more later asked for, 512 MiB allowed together"
    );
    with(32, 2 << 30, None).validate(HOST).unwrap();
    // From 4 GiB up to persistent memory, which begins at 6.
    with(33, 2 << 30, Some(2 << 30)).validate(HOST).unwrap();
    let mut grown = with(33, 7 << 29, Some(1 << 29));
    assert!(grown.validate(HOST).is_err(), "RAM is in the way, up to 4.5 GiB");
    grown.fit_hotplug(HOST);
    assert_eq!(grown.memory.hotplug_size, Some(0));
    grown.validate(HOST).unwrap();
    // What hosts have is room enough for as much again as there may be.
    for bits in [36, 39, 40, 46, 52] {
        let host = Limits {
            phys_bits: bits,
            ..HOST
        };
        let most = host.max_memory_bytes();
        for size in [2 << 20, 1 << 30, most / 2, most - (1 << 30)] {
            let config = with(bits, size, Some(most - size));
            config
                .validate(host)
                .unwrap_or_else(|error| panic!("{bits} {size:#x}: {error}"));
        }
    }
    let pmem = |bits, size| {
        let mut config = with(bits, 512 << 20, None);
        let file = json!({"file": "/f", "size": size});
        config.pmem = vec![serde_json::from_value(file).unwrap()];
        config
    };
    assert_eq!(
        refused(&pmem(32, json!(null))),
        "pmem: 2 MiB of addresses are needed, 0 B allowed: the last quarter of cpus.max_phys_bits and of what the host has"
    );
    pmem(40, json!(256_u64 << 30)).validate(HOST).unwrap();
    assert!(refused(&pmem(46, json!((256_u64 << 30) + (2 << 20)))).contains("256 GiB allowed"));
}

#[test]
fn memory_that_may_come_fits_the_address_space_too() {
    assert_eq!(
        error(|c| {
            c.memory.size = 1 << 30;
            c.memory.hotplug_size = Some(512 << 30);
        }),
        "memory: 1 GiB at the start and 512 GiB more later asked for, 512 GiB allowed together"
    );
    assert!(error(|c| c.memory.hotplug_size = Some(u64::MAX)).contains("more later asked for"));
    let mut config = good();
    config.memory.size = 1 << 30;
    config.memory.hotplug_size = Some(511 << 30);
    config.validate(HOST).unwrap();
}
