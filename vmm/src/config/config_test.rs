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
        "fs": [{"tag": "kataShared", "socket": "/run/kata/p/root/virtiofsd.sock", "num_queues": 1, "queue_size": 1024, "id": null,
                "pci_segment": 0}],
        "vsock": {"cid": 3, "socket": "/run/kata/p/ch-vm.sock", "iommu": false, "id": null, "pci_segment": 0},
        "devices": [], "iommu": false, "watchdog": false, "pvpanic": true,
    }));
    assert_eq!((config.cpus.boot_vcpus, config.cpus.max_vcpus), (1, 8));
    assert_eq!((config.cpus.nested, config.cpus.max_phys_bits), (true, 46));
    assert_eq!(config.cpus.topology.unwrap().cores_per_die, 8);
    assert_eq!((config.memory.size, config.memory.shared), (2 << 30, true));
    assert_eq!(config.memory.hotplug_size, Some(31_524_388_864));
    assert_eq!(config.payload.kernel, Some("/k/vmlinux".into()));
    assert_eq!(config.payload.cmdline.as_deref(), Some("reboot=k panic=1"));
    assert_eq!(config.payload.initramfs, None);
    let [disk] = &config.disks[..] else {
        panic!("{config:?}")
    };
    assert_eq!(
        (disk.path.as_path(), disk.readonly, disk.sparse),
        ("/k/image".as_ref(), true, true)
    );
    assert_eq!(config.rng.unwrap().src, RngConfig::new().src);
    assert_eq!(
        (config.serial.mode, config.console.mode),
        (ConsoleMode::Off, ConsoleMode::Off)
    );
    assert_eq!((config.fs.len(), config.pvpanic), (1, true));
    assert_eq!(
        (config.fs[0].tag.as_str(), config.fs[0].queue_size),
        ("kataShared", 1024)
    );
    assert_eq!(config.vsock.unwrap().cid, 3);
}

#[test]
fn what_husk_does_not_know_is_echoed_but_for_nulls() {
    let config = parse(json!({
        "cpus": {"boot_vcpus": 1, "max_vcpus": 1, "features": {"amx": false}, "affinity": null},
        "payload": {"kernel": "/k", "firmware": null, "x": {"y": null, "z": [1, null]}},
        "iommu": false, "numa": null,
    }));
    let echo = serde_json::to_value(&config).unwrap();
    assert_eq!(echo["cpus"]["features"], json!({"amx": false}));
    assert_eq!(echo["payload"], json!({"kernel": "/k", "x": {"z": [1, null]}}));
    assert_eq!(echo["iommu"], json!(false));
    for gone in ["numa", "affinity", "firmware"] {
        assert!(!echo.to_string().contains(gone), "{echo}");
    }
}

#[test]
fn a_network_device_has_an_address_whatever_was_sent() {
    let config =
        parse(json!({"net": [{"fds": [23], "ip": null, "mac": null}, {"mac": "02:42:ac:11:00:02", "mtu": 1400}]}));
    let echo = serde_json::to_value(&config.net).unwrap();
    assert_eq!(echo[0]["ip"], "192.168.249.1");
    assert_eq!(echo[0]["mask"], "255.255.255.0");
    assert_eq!(echo[0]["mac"].as_str().map(str::len), Some(17));
    assert!(echo[0].get("fds").is_none(), "numbers of another process");
    assert_eq!(
        (&echo[1]["mac"], &echo[1]["mtu"]),
        (&json!("02:42:ac:11:00:02"), &json!(1400))
    );
    serde_json::from_value::<NetConfig>(json!({"mac": "02:42"})).expect_err("half an address");
}

#[test]
fn rate_limiters_are_buckets() {
    let disk: DiskConfig = serde_json::from_value(json!({"path": "/d", "rate_limiter_config":
        {"bandwidth": {"size": 1024, "one_time_burst": 0, "refill_time": 1000}, "ops": null}}))
    .unwrap();
    let bandwidth = TokenBucketConfig {
        size: 1024,
        one_time_burst: Some(0),
        refill_time: 1000,
    };
    assert_eq!(
        disk.rate_limiter_config,
        Some(RateLimiterConfig {
            bandwidth: Some(bandwidth),
            ops: None
        })
    );
    let echo = serde_json::to_value(&disk).unwrap();
    assert_eq!(
        echo["rate_limiter_config"],
        json!({"bandwidth": {"size": 1024, "one_time_burst": 0, "refill_time": 1000}})
    );
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
    assert_eq!(
        (config.serial.mode, config.console.mode),
        (ConsoleMode::Null, ConsoleMode::Tty)
    );
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
fn who_moves_data_is_told_where_it_is_not_husk() {
    let net = |backend| {
        serde_json::to_value(NetConfig {
            backend,
            ..NetConfig::new()
        })
    };
    assert_eq!(net(Backend::Husk).unwrap().get("backend"), None);
    assert_eq!(net(Backend::Vhost).unwrap()["backend"], json!("vhost"));
    let vsock = serde_json::to_value(VsockConfig::by_kernel(5)).unwrap();
    assert_eq!(vsock, json!({"cid": 5, "socket": "", "backend": "vhost"}));
    assert_eq!(
        serde_json::from_value::<VsockConfig>(vsock).unwrap(),
        VsockConfig::by_kernel(5)
    );
    let error = serde_json::from_value::<NetConfig>(json!({"backend": "kernel"})).unwrap_err();
    assert!(error.to_string().contains("expected `husk` or `vhost`"), "{error}");
}

#[test]
fn a_mode_that_does_not_exist_is_named() {
    let error = serde_json::from_value::<VmConfig>(json!({"serial": {"mode": "Telnet"}}))
        .unwrap_err()
        .to_string();
    assert!(error.contains("`Telnet`") && error.contains("`Tty`"), "{error}");
}

#[test]
fn numbers_of_the_wrong_size_or_sign_are_refused() {
    for disk in [
        json!({"path": "/d", "num_queues": 65536}),
        json!({"path": "/d", "queue_size": -1}),
        json!({"path": 7}),
    ] {
        serde_json::from_value::<DiskConfig>(disk.clone()).expect_err(&disk.to_string());
    }
}

#[test]
fn a_node_says_how_memory_comes_where_a_client_asks_for_acpi() {
    let ways = [Hotplug::Either, Hotplug::Dimms, Hotplug::Blocks];
    for (node, own) in ways.iter().flat_map(|node| ways.map(|own| (*node, own))) {
        let mut memory = MemoryConfig::default();
        memory.set_hotplug(own);
        assert_eq!(memory.hotplug(), own);
        node.apply(&mut memory);
        let expected = if own == Hotplug::Either { node } else { own };
        assert_eq!(memory.hotplug(), expected, "{node:?} {own:?}");
    }
}
