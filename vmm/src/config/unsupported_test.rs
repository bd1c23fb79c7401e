use serde_json::json;

use super::super::testing::{HOST, good, merge, wire_error};
use super::*;

#[test]
fn what_husk_cannot_honour_is_refused_by_name() {
    for (change, field) in [
        (
            json!({"devices": [{"path": "/sys/bus/pci/devices/0000:41:00.0"}]}),
            "devices",
        ),
        (json!({"watchdog": true}), "watchdog"),
        (json!({"tpm": {"socket": "/s"}}), "tpm"),
        (
            json!({"debug_console": {"mode": "Tty", "iobase": 233}}),
            "debug_console",
        ),
        (json!({"cpus": {"kvm_hyperv": true}}), "cpus.kvm_hyperv"),
        (
            json!({"cpus": {"affinity": [{"vcpu": 0, "host_cpus": [1]}]}}),
            "cpus.affinity",
        ),
        (
            json!({"memory": {"zones": [{"id": "mem0", "size": 4096}]}}),
            "memory.zones",
        ),
        (json!({"payload": {"firmware": "/f"}}), "payload.firmware"),
        (json!({"platform": {"tdx": true}}), "platform.tdx"),
        (json!({"platform": {"iommu_segments": [0]}}), "platform.iommu_segments"),
        (
            json!({"disks": [{"path": "/a"}, {"path": "/b", "vhost_user": true}]}),
            "disks[1].vhost_user",
        ),
        (
            json!({"disks": [{"path": "/a", "image_type": "Qcow2"}]}),
            "disks[0].image_type",
        ),
        (
            json!({"disks": [{"vhost_user": true, "vhost_socket": "/s"}]}),
            "disks[0].vhost_socket",
        ),
        (
            json!({"disks": [{"path": null, "vhost_user": true}]}),
            "disks[0].vhost_user",
        ),
        (json!({"net": [{"vhost_user": true}]}), "net[0].vhost_user"),
        (
            json!({"fs": [{"tag": "t", "socket": "/s", "iommu": true}]}),
            "fs[0].iommu",
        ),
        (json!({"pmem": [{"file": "/p", "iommu": true}]}), "pmem[0].iommu"),
        (
            json!({"vsock": {"cid": 3, "socket": "/s", "iommu": true}}),
            "vsock.iommu",
        ),
        (json!({"rng": {"iommu": true}}), "rng.iommu"),
        (json!({"serial": {"iommu": true}}), "serial.iommu"),
    ] {
        let error = wire_error(change);
        assert!(
            error.starts_with(&format!("{field}: ")) && error.contains("is not supported"),
            "{error}"
        );
    }
    let threads = json!({"cpus": {"topology": {"threads_per_core": 2, "cores_per_die": 4, "dies_per_package": 1, "packages": 1}}});
    assert!(
        wire_error(threads).starts_with("cpus.topology: 2 threads x 4 cores x 1 dies x 1 packages is not supported")
    );
}

#[test]
fn neutral_forms_of_what_husk_lacks_are_accepted() {
    let mut wire = serde_json::to_value(good()).unwrap();
    merge(
        &mut wire,
        json!({"devices": [], "iommu": false, "watchdog": false, "landlock_enable": false, "tpm": null, "numa": null,
               "debug_console": {"mode": "Off"},
               "cpus": {"boot_vcpus": 1, "max_vcpus": 8, "kvm_hyperv": false, "features": {"amx": false},
                        "topology": {"threads_per_core": 1, "cores_per_die": 8, "dies_per_package": 1, "packages": 1}},
               "memory": {"hotplug_method": "Acpi", "zones": null},
               "payload": {"firmware": null, "mrconfigid": null, "host_data": null},
               "platform": {"num_pci_segments": 2, "tdx": false, "sev_snp": false}}),
    );
    serde_json::from_value::<VmConfig>(wire)
        .unwrap()
        .validate(HOST)
        .unwrap();
}
