use serde_json::{Value, json};

use super::*;

fn parse(value: Value) -> VmConfig {
    serde_json::from_value(value).unwrap()
}

#[test]
fn a_body_with_everything_a_shim_sends_is_understood() {
    let config = parse(json!({
        "cpus": {"boot_vcpus": 1, "max_vcpus": 8, "kvm_hyperv": false, "nested": true, "max_phys_bits": 46,
                 "topology": {"threads_per_core": 1, "cores_per_die": 8, "dies_per_package": 1, "packages": 1}},
        "memory": {"size": 2147483648_u64, "mergeable": false, "hotplug_method": "Acpi", "hotplug_size": 31524388864_u64,
                   "shared": true, "hugepages": false, "prefault": false},
        "payload": {"firmware": null, "kernel": "/k/vmlinux", "cmdline": "reboot=k panic=1", "initramfs": null},
        "disks": [{"path": "/k/image", "readonly": true, "direct": false, "iommu": false, "num_queues": 1, "queue_size": 128,
                   "vhost_user": false, "vhost_socket": null, "rate_limiter_config": null, "id": null,
                   "disable_io_uring": false, "pci_segment": 0, "sparse": true, "image_type": "Unknown"}],
        "rng": {"src": "/dev/urandom", "iommu": false},
        "serial": {"file": null, "mode": "Off", "iommu": false}, "console": {"file": null, "mode": "Off", "iommu": false},
        "fs": [], "devices": [], "iommu": false, "watchdog": false, "pvpanic": true,
    }));
    let expected = VmConfig {
        cpus: CpusConfig {
            boot_vcpus: 1,
            max_vcpus: 8,
        },
        memory: MemoryConfig {
            size: 2 << 30,
            shared: true,
            ..Default::default()
        },
        payload: PayloadConfig {
            kernel: Some("/k/vmlinux".into()),
            cmdline: Some("reboot=k panic=1".into()),
            initramfs: None,
        },
        disks: vec![DiskConfig {
            readonly: true,
            ..DiskConfig::new("/k/image")
        }],
        rng: Some(RngConfig::new()),
        serial: ConsoleConfig::new(ConsoleMode::Off),
        console: ConsoleConfig::new(ConsoleMode::Off),
        pvpanic: true,
    };
    assert_eq!(config, expected);
}

#[test]
fn an_empty_body_is_the_wire_formats_default() {
    assert_eq!(parse(json!({})), VmConfig::default());
    let config = VmConfig::default();
    assert_eq!(
        (config.serial.mode, config.console.mode),
        (ConsoleMode::Null, ConsoleMode::Tty)
    );
    assert_eq!(config.memory.size, 512 << 20);
}

#[test]
fn null_is_a_fields_default_and_no_device() {
    let config = parse(json!({
        "cpus": null, "payload": null, "disks": null, "rng": null, "serial": null, "console": null, "pvpanic": null,
        "memory": {"size": 4096, "shared": null, "thp": null, "hugepages": null},
    }));
    assert_eq!(config.rng, None);
    assert_eq!(config.serial, ConsoleConfig::new(ConsoleMode::Off));
    assert_eq!(
        config.memory,
        MemoryConfig {
            size: 4096,
            ..Default::default()
        }
    );
    assert_eq!(config.disks, []);
}

#[test]
fn what_is_written_reads_back_the_same() {
    let config = VmConfig {
        disks: vec![DiskConfig {
            id: Some("a".into()),
            sparse: false,
            ..DiskConfig::new("/d")
        }],
        rng: None,
        serial: ConsoleConfig::file("/log"),
        ..VmConfig::default()
    };
    assert_eq!(parse(serde_json::to_value(&config).unwrap()), config);
}

#[test]
fn a_mode_that_does_not_exist_is_named() {
    let error = serde_json::from_value::<VmConfig>(json!({"serial": {"mode": "Socket"}}))
        .unwrap_err()
        .to_string();
    assert!(error.contains("`Socket`") && error.contains("`Tty`"), "{error}");
}

#[test]
fn numbers_of_the_wrong_size_or_sign_are_refused() {
    for disk in [
        json!({"path": "/d", "num_queues": 65536}),
        json!({"path": "/d", "queue_size": -1}),
        json!({}),
    ] {
        serde_json::from_value::<DiskConfig>(disk.clone()).expect_err(&disk.to_string());
    }
}
