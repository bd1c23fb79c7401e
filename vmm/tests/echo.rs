//! What `vm.info` echoes, read by the strict types of Kata's Rust shim: one field that they do not
//! take, and a pod cannot be resized or restored.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use husk::api::{VmInfo, VmState};
use husk::config::{Limits, NewDevice, VmConfig};
use serde_json::{Value, json};

/// The shim's types.
#[expect(dead_code, reason = "most fields are read by being parsed")]
#[allow(
    unfulfilled_lint_expectations,
    reason = "names that nothing outside can see need no documents"
)]
#[path = "../../tests/harness/info.rs"]
mod info;

/// A configuration as it is kept after `vm.create`.
fn created(body: Value) -> VmConfig {
    let mut config: VmConfig = serde_json::from_value(body).unwrap();
    config.validate(Limits::ARCHITECTURE).unwrap();
    config.name_devices();
    config
}

/// The echo, as it is sent and as the shim reads it.
fn echo(config: VmConfig, state: VmState) -> (Value, info::VmInfo) {
    let memory_actual_size = config.memory.size;
    let sent = serde_json::to_value(VmInfo {
        config,
        state,
        memory_actual_size,
    })
    .unwrap();
    assert!(
        !has_null(&sent),
        "clients that are made of the API's description take none: {sent:#}"
    );
    let read = serde_json::from_value(sent.clone()).unwrap_or_else(|error| panic!("{error}: {sent:#}"));
    (sent, read)
}

fn has_null(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields.values().any(has_null),
        Value::Array(values) => values.iter().any(has_null),
        value => value.is_null(),
    }
}

fn rust_shim() -> Value {
    json!({"cpus": {"boot_vcpus": 1, "max_vcpus": 8, "kvm_hyperv": false, "nested": true, "max_phys_bits": 46,
                    "topology": {"threads_per_core": 1, "cores_per_die": 8, "dies_per_package": 1, "packages": 1},
                    "features": {"amx": false}},
           "memory": {"size": 2_147_483_648_u64, "mergeable": false, "hotplug_method": "Acpi", "hotplug_size": 31_524_388_864_u64,
                      "shared": true, "hugepages": false, "prefault": false},
           "payload": {"firmware": null, "kernel": "/opt/kata/vmlinux.container", "cmdline": "reboot=k panic=1",
                       "initramfs": null, "mrconfigid": null, "host_data": null},
           "disks": [{"path": "/opt/kata/kata-containers.img", "readonly": true, "direct": false, "iommu": false, "num_queues": 1,
                      "queue_size": 128, "vhost_user": false, "vhost_socket": null, "rate_limiter_config": null, "id": null,
                      "disable_io_uring": false, "pci_segment": 0, "sparse": true, "image_type": "Unknown"}],
           "rng": {"src": "/dev/urandom", "iommu": false},
           "fs": [{"tag": "kataShared", "socket": "/run/kata/p/root/virtiofsd.sock", "num_queues": 1, "queue_size": 1024,
                   "id": null, "pci_segment": 0}],
           "serial": {"file": null, "mode": "Tty", "iommu": false}, "console": {"file": null, "mode": "Off", "iommu": false},
           "devices": [], "vsock": {"cid": 3, "socket": "/run/kata/p/ch-vm.sock", "iommu": false, "id": null, "pci_segment": 0},
           "iommu": false, "watchdog": false})
}

fn go_shim() -> Value {
    json!({"cpus": {"boot_vcpus": 1, "max_vcpus": 8, "kvm_hyperv": false, "nested": true,
                    "topology": {"threads_per_core": 1, "cores_per_die": 8, "dies_per_package": 1, "packages": 1}},
           "memory": {"size": 2_147_483_648_u64, "hotplug_size": 33_285_996_544_u64, "mergeable": false, "hotplug_method": "Acpi",
                      "shared": true, "hugepages": false, "prefault": false, "thp": true},
           "payload": {"kernel": "/opt/kata/vmlinux.container", "cmdline": "root=/dev/vda1"},
           "disks": [{"path": "/opt/kata/kata-containers.img", "readonly": true, "direct": false, "iommu": false, "num_queues": 1,
                      "queue_size": 128, "vhost_user": false, "backing_files": false, "sparse": true, "image_type": "Raw"}],
           "rng": {"src": "/dev/urandom", "iommu": false},
           "fs": [{"tag": "kataShared", "socket": "/run/vc/vm/p/virtiofsd.sock", "num_queues": 1, "queue_size": 1024, "pci_segment": 1}],
           "serial": {"mode": "Off", "iommu": false}, "console": {"mode": "Off", "iommu": false},
           "vsock": {"cid": 3, "socket": "/run/vc/vm/p/clh.sock", "iommu": false},
           "iommu": false, "watchdog": false, "pvpanic": false,
           "platform": {"num_pci_segments": 2, "tdx": false, "sev_snp": false}, "landlock_enable": false})
}

/// What Cloud Hypervisor v53 says of a VM of its own, sent to husk, as whoever moves to it does.
fn cloud_hypervisor() -> Value {
    json!({"cpus": {"boot_vcpus": 1, "max_vcpus": 8, "kvm_hyperv": false, "max_phys_bits": 46, "features": {"amx": false}, "nested": true,
                    "core_scheduling": "Vm", "profile": "Host"},
           "memory": {"size": 2_147_483_648_u64, "mergeable": false, "hotplug_method": "Acpi", "hotplug_size": 31_524_388_864_u64,
                      "shared": true, "hugepages": false, "prefault": false, "reserve": false, "thp": true},
           "payload": {"kernel": "/opt/kata/vmlinux.container", "cmdline": "quiet"},
           "disks": [{"id": "_disk0", "pci_segment": 0, "path": "/d", "readonly": false, "direct": false, "num_queues": 1, "queue_size": 128,
                      "vhost_user": false, "disable_io_uring": false, "disable_aio": false, "backing_files": false, "sparse": true,
                      "image_type": "Raw", "lock_granularity": "ByteRange"}],
           "net": [{"id": "_net1", "pci_segment": 0, "tap": "t", "mac": "02:00:00:00:00:01", "num_queues": 2, "queue_size": 256,
                    "vhost_user": false, "vhost_mode": "Client", "offload_tso": true, "offload_ufo": true, "offload_csum": true}],
           "rng": {"id": "__rng", "pci_segment": 0, "src": "/dev/urandom"},
           "balloon": {"id": "__balloon", "pci_segment": 0, "size": 0, "deflate_on_oom": false, "free_page_reporting": true},
           "serial": {"mode": "Null"}, "console": {"mode": "Off", "pci_segment": 0},
           "vsock": {"id": "_vsock2", "pci_segment": 0, "cid": 3, "socket": "/v"},
           "pvpanic": false, "iommu": false, "watchdog": false, "landlock_enable": false,
           "platform": {"num_pci_segments": 1, "iommu_address_width_bits": 64, "iommufd": false, "vfio_p2p_dma": true}})
}

#[test]
fn the_pods_of_both_shims_are_echoed_so_that_the_strict_one_reads_them() {
    for body in [rust_shim(), go_shim(), cloud_hypervisor()] {
        for state in [VmState::Created, VmState::Running, VmState::Paused, VmState::Shutdown] {
            let (sent, read) = echo(created(body.clone()), state);
            assert_eq!(sent["state"], format!("{:?}", read.state));
            assert_eq!((read.config.cpus.boot_vcpus, read.config.cpus.max_vcpus), (1, 8));
            assert_eq!((read.config.memory.size, read.memory_actual_size), (2 << 30, 2 << 30));
            assert_eq!(read.config.memory.hotplug_size, body["memory"]["hotplug_size"].as_u64());
            let topology = read.config.cpus.topology;
            assert!(topology.is_none_or(|topology| topology.cores_per_die == 8));
            assert_eq!(
                read.config.payload.unwrap().kernel,
                Some("/opt/kata/vmlinux.container".into())
            );
        }
    }
}

#[test]
fn devices_that_were_added_are_read_too() {
    let mut config = created(rust_shim());
    let limits = json!({"bandwidth": {"size": 1000, "refill_time": 100}, "ops": null});
    let disk = json!({"path": "/dev/dm-3", "readonly": false, "id": null, "vhost_socket": null, "num_queues": 1, "queue_size": 128,
                      "rate_limiter_config": limits, "image_type": "Raw"});
    let net = json!({"ip": "192.168.249.1", "mask": "255.255.255.0", "mac": "02:42:ac:11:00:02", "iommu": false, "num_queues": 2,
                     "queue_size": 256, "vhost_user": false, "vhost_mode": "Client", "fds": [23]});
    let bare_net = json!({"tap": "t0", "ip": null, "mac": null});
    let pmem = json!({"file": "/f"});
    let devices = [
        NewDevice::Disk(serde_json::from_value(disk).unwrap()),
        NewDevice::Net(serde_json::from_value(net).unwrap()),
        NewDevice::Net(serde_json::from_value(bare_net).unwrap()),
        NewDevice::Pmem(serde_json::from_value(pmem).unwrap()),
    ];
    for mut device in devices {
        config.name(&mut device);
        config.insert(device);
    }
    let (sent, read) = echo(config, VmState::Running);
    let disks = read.config.disks.unwrap();
    assert_eq!(disks[1].id.as_deref(), Some("_disk1"));
    assert!(disks[1].rate_limiter_config.as_ref().unwrap().bandwidth.is_some());
    let nets = read.config.net.unwrap();
    assert_eq!(nets[0].mac, "02:42:ac:11:00:02");
    assert_eq!((nets[0].fds.as_ref(), nets[1].ip), (None, [192, 168, 249, 1].into()));
    assert_eq!(sent["config"]["pmem"][0]["id"], "_pmem0");
}

#[test]
fn a_configuration_of_the_fewest_fields_has_all_that_are_required() {
    let (_, read) = echo(created(json!({"payload": {"kernel": "/k"}})), VmState::Created);
    assert_eq!((read.config.cpus.boot_vcpus, read.config.cpus.max_phys_bits), (1, 46));
    assert_eq!(read.config.rng.src, std::path::Path::new("/dev/urandom"));
}
