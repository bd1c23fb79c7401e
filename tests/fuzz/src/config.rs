//! A VM's configuration as JSON: whatever parses is echoed, and the echo means the same.

use husk::config::{Limits, VmConfig};
use serde_json::Value;

use crate::Seeds;

pub fn run(input: &[u8]) {
    let Ok(config) = serde_json::from_slice::<VmConfig>(input) else {
        return;
    };
    let verdict = config.validate(Limits::ARCHITECTURE);
    if let Err(error) = &verdict {
        assert!(!error.to_string().is_empty());
    }
    let echo = serde_json::to_value(&config).unwrap();
    assert!(!holds_null(&echo), "strict readers of the echo refuse null: {echo}");
    let again: VmConfig = serde_json::from_value(echo.clone()).unwrap();
    assert_eq!(serde_json::to_value(&again).unwrap(), echo);
    // Numbers of descriptors mean nothing to anyone else, so they are not echoed.
    if config.net.iter().all(|net| net.fds.is_none()) {
        assert_eq!(again.validate(Limits::ARCHITECTURE), verdict);
    }
}

/// Whether a field is null, but for those that may be: a console's `file`, and `rng` where just this was sent.
fn holds_null(value: &Value) -> bool {
    match value {
        Value::Array(values) => values.iter().any(holds_null),
        Value::Object(fields) => fields
            .iter()
            .any(|(name, value)| holds_null(value) || (value.is_null() && name != "file" && name != "rng")),
        _ => false,
    }
}

pub fn seeds() -> Seeds {
    let pod = r#"{"cpus":{"boot_vcpus":1,"max_vcpus":8,"nested":true,"max_phys_bits":46,"kvm_hyperv":false,
"topology":{"threads_per_core":1,"cores_per_die":8,"dies_per_package":1,"packages":1}},
"memory":{"size":2147483648,"mergeable":false,"hotplug_method":"Acpi","hotplug_size":31524388864,"shared":true,"thp":null},
"payload":{"firmware":null,"kernel":"/k","cmdline":"panic=1","initramfs":null},
"disks":[{"path":"/i","readonly":true,"num_queues":1,"queue_size":128,"image_type":"Unknown","id":"d0","sparse":true,
"rate_limiter_config":{"bandwidth":{"size":1,"one_time_burst":2,"refill_time":3},"ops":null}}],
"net":[{"fds":[3],"mac":"02:42:ac:11:00:02","mtu":1400,"num_queues":2,"ip":null},{"tap":"t0"}],
"fs":[{"tag":"t","socket":"/s","num_queues":1,"queue_size":1024,"pci_segment":0}],
"pmem":[{"file":"/p","size":2097152,"discard_writes":true}],"vsock":{"cid":3,"socket":"/v","iommu":false},
"rng":{"src":"/dev/urandom"},"serial":{"mode":"File","file":"/f"},"console":{"mode":"Off","file":null},
"pvpanic":true,"platform":{"num_pci_segments":1},"iommu":false,"devices":[],"x":{"y":[1,null,{"z":null}]}}"#;
    let least = r#"{"payload":{"kernel":"/k"}}"#;
    let odd = r#"{"cpus":{"boot_vcpus":2,"max_vcpus":1},"memory":{"size":4097,"hugepages":true},"rng":null,"serial":null,
"console":{"mode":"Tty"},"disks":[{"path":"","id":"a"},{"path":"","id":"a"}],"disks":null}"#;
    [("pod", pod), ("least", least), ("odd", odd)]
        .map(|(name, text)| (name, text.into()))
        .into()
}
