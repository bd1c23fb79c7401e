use serde_json::{Value, json};

use super::*;

const MIB: u64 = 1 << 20;

/// 16 CPUs and 32 GiB.
const NODE: Node = Node {
    vcpus: 16,
    memory_bytes: 32 << 30,
};

fn pod(annotations: &[(&str, &str)], resources: &Value) -> Result<Pod, String> {
    let annotations: serde_json::Map<String, Value> = annotations
        .iter()
        .map(|(key, value)| {
            let key = key.replace("KATA.", HYPERVISOR);
            (key.replace("CRI-", "io.kubernetes.cri.sandbox-"), Value::from(*value))
        })
        .collect();
    let text = json!({"annotations": annotations, "linux": {"resources": resources}}).to_string();
    let spec = Spec::parse(text.as_bytes()).unwrap();
    Pod::of(&spec, &Policy::default(), NODE).map_err(|error| error.to_string())
}

/// vCPUs at the start and at most, MiB at the start and those that may come.
fn sizes(pod: &Pod) -> (u32, u32, u64, Option<u64>) {
    let room = pod.memory.hotplug_size.map(|bytes| bytes / MIB);
    (pod.cpus.boot_vcpus, pod.cpus.max_vcpus, pod.memory.size / MIB, room)
}

#[test]
fn a_pod_has_the_size_of_its_workload_and_one_without_has_room() {
    let cpu_and_memory = json!({"cpu": {"quota": 150_000, "period": 100_000}, "memory": {"limit": 268_435_456}});
    let room = |boot_mib: u64| Some((32 << 10) - boot_mib);
    for (annotations, resources, expected) in [
        (&[][..], json!({}), (1, 16, 2048, room(2048))),
        (
            &[("KATA.default_vcpus", "2.5"), ("KATA.default_memory", "512")],
            json!({}),
            (3, 16, 512, room(512)),
        ),
        (
            &[("KATA.default_vcpus", "4"), ("KATA.default_max_vcpus", "8")],
            json!({}),
            (4, 8, 2048, room(2048)),
        ),
        (
            &[("KATA.default_vcpus", "8"), ("KATA.default_max_vcpus", "4")],
            json!({}),
            (4, 4, 2048, room(2048)),
        ),
        (&[("KATA.memory_slots", "0")], json!({}), (1, 16, 2048, None)),
        (&[], cpu_and_memory.clone(), (2, 2, 288, None)),
        (
            &[("CRI-cpu-quota", "100000"), ("CRI-cpu-period", "100000")],
            json!({}),
            (2, 2, 2048, None),
        ),
        (&[("CRI-memory", "267386880")], json!({}), (1, 1, 288, None)),
        (
            &[
                ("CRI-cpu-quota", "80000"),
                ("CRI-cpu-period", "100000"),
                ("CRI-memory", "268435456"),
            ],
            json!({}),
            (1, 1, 288, None),
        ),
        // Memory alone: the default does not count.
        (
            &[("CRI-memory", "268435456"), ("KATA.default_vcpus", "2")],
            json!({}),
            (1, 1, 288, None),
        ),
        (&[("CRI-memory", "500000000")], json!({}), (1, 1, 508, None)),
        // The CPUs of a set, and where it is still to come those of the shares; a quota comes before both.
        (
            &[],
            json!({"cpu": {"cpus": "0-1"}, "memory": {"limit": 268_435_456}}),
            (3, 3, 288, None),
        ),
        (&[], json!({"cpu": {"cpus": "0-1"}}), (3, 3, 2048, None)),
        (
            &[],
            json!({"cpu": {"quota": 50_000, "period": 100_000, "cpus": "0-7"}, "memory": {"limit": 268_435_456}}),
            (1, 1, 288, None),
        ),
        (
            &[
                ("CRI-cpu-quota", "-1"),
                ("CRI-cpu-shares", "2048"),
                ("CRI-memory", "268435456"),
            ],
            json!({}),
            (3, 3, 288, None),
        ),
        (
            &[
                ("CRI-cpu-quota", "0"),
                ("CRI-cpu-shares", "2"),
                ("CRI-memory", "268435456"),
            ],
            json!({}),
            (1, 1, 288, None),
        ),
        // As many as the host has, and some: no pod has more than the host.
        (
            &[("CRI-cpu-quota", "1600000"), ("CRI-cpu-period", "100000")],
            json!({}),
            (16, 16, 2048, None),
        ),
        // A maximum is that of pods that grow.
        (
            &[
                ("CRI-cpu-quota", "400000"),
                ("CRI-cpu-period", "100000"),
                ("KATA.default_max_vcpus", "2"),
            ],
            json!({}),
            (5, 5, 2048, None),
        ),
        // What the CRI leaves open, the container of a pod of one says.
        (
            &[("CRI-cpu-quota", "0"), ("CRI-cpu-period", "100000")],
            cpu_and_memory.clone(),
            (2, 2, 288, None),
        ),
        (
            &[("CRI-cpu-quota", "320000"), ("CRI-cpu-period", "100000")],
            cpu_and_memory.clone(),
            (4, 4, 288, None),
        ),
        (
            &[("KATA.memory_overhead", "130")],
            cpu_and_memory.clone(),
            (2, 2, 386, None),
        ),
        (
            &[("KATA.default_max_vcpus", "0")],
            cpu_and_memory.clone(),
            (2, 16, 288, None),
        ),
        (
            &[("KATA.memory_slots", "10")],
            cpu_and_memory.clone(),
            (2, 2, 288, Some(32_384)),
        ),
    ] {
        let pod = pod(annotations, &resources).unwrap();
        assert_eq!(sizes(&pod), expected, "{annotations:?} {resources}");
    }
}

/// The end of RAM counts, not its size: here 64 GiB, from which on Linux adds 2 GiB at once.
#[test]
fn room_is_whole_blocks_of_the_guest() {
    let node = Node {
        memory_bytes: (100 << 30) + (300 << 20),
        ..NODE
    };
    let memory = format!("{HYPERVISOR}default_memory");
    for (mib, room) in [(62 << 10, (38 << 10) + 256), (63 << 10, 36 << 10)] {
        let text = json!({"annotations": {&memory: mib.to_string()}}).to_string();
        let spec = Spec::parse(text.as_bytes()).unwrap();
        let pod = Pod::of(&spec, &Policy::default(), node).unwrap();
        assert_eq!(sizes(&pod).3, Some(room), "{mib} MiB");
    }
}

#[test]
fn features_become_the_machines() {
    let plain = pod(&[], &json!({})).unwrap();
    assert!(!plain.memory.hugepages && !plain.memory.prefault && plain.kernel_params.is_empty());
    let all = pod(
        &[
            ("KATA.enable_hugepages", "true"),
            ("KATA.enable_mem_prealloc", "true"),
            ("KATA.enable_virtio_mem", "true"),
            ("KATA.kernel_params", "quiet agent.log=debug"),
            ("KATA.default_memory", "513"),
        ],
        &json!({}),
    )
    .unwrap();
    assert!(all.memory.hugepages && all.memory.prefault);
    assert_eq!(all.memory.size, 514 * MIB, "whole huge pages");
    assert_eq!(all.memory.hotplug_method, HotplugMethod::VirtioMem);
    assert_eq!(all.kernel_params, "quiet agent.log=debug");
}

#[test]
fn what_the_host_or_the_node_does_not_give_is_refused() {
    for (annotations, resources, says) in [
        (
            &[("KATA.default_vcpus", "17")][..],
            json!({}),
            "hypervisor.default_vcpus is \"17\", allowed: a decimal number from 0 to 16",
        ),
        (
            &[("CRI-memory", "34359738369")],
            json!({}),
            "sandbox-memory is \"34359738369\", allowed: a whole number of bytes from -1 to 34359738368",
        ),
        (
            &[("KATA.shared_fs", "virtio-fs")],
            json!({}),
            "hypervisor.shared_fs is unknown",
        ),
        (
            &[],
            json!({"cpu": {"quota": 1_600_001, "period": 100_000}}),
            "linux.resources.cpu.quota is 1600001 in a period of 100000, allowed: as many periods as this host has CPUs, 16",
        ),
        (
            &[],
            json!({"memory": {"limit": 32_u64 << 30}}),
            "memory of 34393292800 bytes wanted, at most 34359738368 allowed",
        ),
    ] {
        let refusal = pod(annotations, &resources).unwrap_err();
        assert!(refusal.contains(says), "{refusal}");
    }
    let annotations = format!(r#"{{"annotations": {{"{HYPERVISOR}default_vcpus": "1"}}}}"#);
    let spec = Spec::parse(annotations.as_bytes()).unwrap();
    let policy = Policy::of([Policy::expression("kernel_params").unwrap()]);
    let refusal = Pod::of(&spec, &policy, NODE).unwrap_err();
    assert!(matches!(refusal, PodError::NotEnabled(_)), "{refusal}");
}

#[test]
fn a_pod_whose_workload_is_known_has_the_overhead_without_its_containers() {
    let list = |annotations| pod(annotations, &json!({})).unwrap().list(2);
    assert_eq!(list(&[]), None);
    assert_eq!(list(&[("KATA.default_memory", "512")]), None);
    for (annotations, mib) in [
        (&[("CRI-memory", "268435456")][..], 32),
        (&[("CRI-memory", "268435456"), ("KATA.memory_overhead", "130")], 130),
        (&[("CRI-cpu-quota", "100000"), ("CRI-cpu-period", "100000")], 32),
    ] {
        let list = list(annotations).unwrap();
        let base = PodBaseSize {
            default_vcpus: "0.2".into(),
            max_vcpus: 0,
            default_memory_bytes: mib * MIB,
            least_vcpus: 2,
            is_orphaned: false,
        };
        assert_eq!((list.pod, list.containers.len()), (Some(base), 0), "{annotations:?}");
    }
}

#[test]
fn a_host_of_unknown_size_makes_no_promise() {
    let node = Node {
        memory_bytes: u64::MAX,
        ..NODE
    };
    let pod = Pod::of(&Spec::default(), &Policy::default(), node).unwrap();
    assert_eq!(pod.memory.hotplug_size, None);
}
