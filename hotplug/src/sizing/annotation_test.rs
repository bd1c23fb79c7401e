use proptest::prelude::*;

use super::super::{PodSize, Shim};
use super::*;

const GIB: u64 = 1 << 30;

const MEMORY_RANGE: &str = "a whole number of MiB from 64 to 32768, or as much in another unit such as GiB";

/// A host of 16 CPUs and 32 GiB.
fn sizing() -> Sizing {
    Sizing::new(Shim::Rust, 16, 32 * GIB)
}

fn key(name: &str) -> String {
    format!("{HYPERVISOR}{name}")
}

fn annotate(name: &str, value: &str) -> Result<(Sizing, Features), String> {
    let mut sizing = sizing();
    let features = sizing.annotate([(key(name).as_str(), value)]);
    features
        .map(|features| (sizing, features))
        .map_err(|error| error.to_string())
}

fn workload(pairs: &[(&str, &str)]) -> Result<Resources, String> {
    sizing()
        .workload(pairs.iter().copied())
        .map_err(|error| error.to_string())
}

#[test]
fn annotations_change_the_configuration() {
    let keys = [
        "default_vcpus",
        "default_max_vcpus",
        "default_memory",
        "memory_overhead",
    ]
    .map(key);
    let values = ["2.5", "6", " 1024 ", "130"];
    let mut sizing = sizing();
    let annotations = keys.iter().map(String::as_str).zip(values);
    let others = [("default_memory", "7"), ("io.katacontainers.config.agent.trace", "x")];
    assert_eq!(sizing.annotate(annotations.chain(others)), Ok(Features::default()));
    assert_eq!(
        sizing.dynamic_start(),
        Ok(PodSize {
            vcpus: 3,
            max_vcpus: 6,
            memory_bytes: GIB
        })
    );
    assert_eq!(sizing.overhead_memory_bytes, 130 * MIB);
}

#[test]
fn annotations_ask_for_features() {
    let on = |name, value| annotate(name, value).unwrap().1;
    for (name, features) in [
        (
            "enable_hugepages",
            Features {
                hugepages: true,
                ..Features::default()
            },
        ),
        (
            "enable_virtio_mem",
            Features {
                virtio_mem: true,
                ..Features::default()
            },
        ),
        (
            "enable_mem_prealloc",
            Features {
                prealloc: true,
                ..Features::default()
            },
        ),
    ] {
        assert_eq!(on(name, "true"), features);
        assert_eq!(on(name, "false"), Features::default());
    }
    assert_eq!(on("memory_slots", "10").memory_slots, Some(10));
    assert_eq!(
        on("kernel_params", " quiet a=\"b c\" ").kernel_params,
        "quiet a=\"b c\""
    );
}

#[test]
fn memory_without_a_unit_is_mib() {
    for (value, mib) in [
        ("2048", 2048),
        ("2 GiB", 2048),
        ("512MiB", 512),
        ("512mi", 512),
        ("1.5Gi", 1536),
        ("1G", 953),
        ("100000 kB", 95),
        ("67108864B", 64),
    ] {
        let (sizing, _) = annotate("default_memory", value).unwrap();
        assert_eq!(sizing.default_memory_bytes, mib * MIB, "{value}");
    }
}

#[test]
fn every_key_of_the_list_is_known_and_no_other_is() {
    for name in HYPERVISOR_KEYS {
        let refusal = annotate(name, "\n").err().unwrap_or_default();
        assert!(!refusal.contains("unknown"), "{refusal}");
    }
    for name in ["", "shared_fs", "default_vcpu", "Default_vcpus", "path"] {
        let refusal = annotate(name, "1").unwrap_err();
        assert!(
            refusal.starts_with(&format!("annotation {HYPERVISOR}{name} is unknown, allowed below"))
                && refusal.ends_with("enable_mem_prealloc, kernel_params"),
            "{refusal}"
        );
    }
}

#[test]
fn what_is_no_value_or_beyond_the_host_is_refused_with_the_range() {
    for (name, value, allowed) in [
        ("default_vcpus", "-1", "a decimal number from 0 to 16"),
        ("default_vcpus", "16.1", "a decimal number from 0 to 16"),
        ("default_vcpus", "1e3", "a decimal number from 0 to 16"),
        ("default_vcpus", ".", "a decimal number from 0 to 16"),
        ("default_vcpus", "", "a decimal number from 0 to 16"),
        ("default_max_vcpus", "17", "a whole number from 0 to 16"),
        ("default_max_vcpus", "-1", "a whole number from 0 to 16"),
        ("default_max_vcpus", "4294967297", "a whole number from 0 to 16"),
        ("default_max_vcpus", "+4", "a whole number from 0 to 16"),
        ("default_memory", "63", MEMORY_RANGE),
        ("default_memory", "32769", MEMORY_RANGE),
        ("default_memory", "17592186044416", MEMORY_RANGE),
        ("default_memory", "33GiB", MEMORY_RANGE),
        ("default_memory", "64MB", MEMORY_RANGE),
        ("default_memory", "2048r", MEMORY_RANGE),
        ("default_memory", "99999999999999999999 TiB", MEMORY_RANGE),
        ("default_memory", "-1GiB", MEMORY_RANGE),
        ("default_memory", "1..5GiB", MEMORY_RANGE),
        ("default_memory", "GiB", MEMORY_RANGE),
        ("default_memory", "1.5", MEMORY_RANGE),
        ("memory_overhead", "-1", "a whole number of MiB from 0 to 32768"),
        ("memory_overhead", "32769", "a whole number of MiB from 0 to 32768"),
        ("memory_slots", "-1", "a whole number"),
        ("enable_hugepages", "1", "true, false"),
        ("enable_virtio_mem", "yes", "true, false"),
        ("enable_mem_prealloc", "", "true, false"),
        ("kernel_params", "a\u{7}b", "printable text of at most 2047 bytes"),
    ] {
        let refusal = annotate(name, value).unwrap_err();
        let shown = value.replace('\u{7}', "\u{fffd}");
        assert_eq!(
            refusal,
            format!("annotation {HYPERVISOR}{name} is {shown:?}, allowed: {allowed}")
        );
    }
    assert!(annotate("default_vcpus", "16").is_ok() && annotate("default_memory", "32768").is_ok());
    assert!(annotate("kernel_params", &"x".repeat(2047)).is_ok());
    assert!(annotate("kernel_params", &"x".repeat(2048)).is_err());
}

#[test]
fn one_wrong_annotation_leaves_the_configuration_as_it_was() {
    let (memory, vcpus) = (key("default_memory"), key("default_vcpus"));
    let mut sizing = sizing();
    let before = sizing.clone();
    assert!(
        sizing
            .annotate([(memory.as_str(), "1024"), (vcpus.as_str(), "x")])
            .is_err()
    );
    assert_eq!(sizing, before);
}

#[test]
fn annotations_describe_the_workload() {
    let pod = workload(&[
        ("io.kubernetes.cri.sandbox-cpu-quota", "150000"),
        ("io.kubernetes.cri.sandbox-cpu-period", "100000"),
        ("io.kubernetes.cri.sandbox-memory", "268435456"),
        ("io.kubernetes.cri.sandbox-name", "a"),
    ]);
    assert_eq!(
        pod,
        Ok(Resources {
            cpu_quota_us: 150_000,
            cpu_period_us: 100_000,
            memory_limit_bytes: Some(256 * MIB),
            ..Resources::default()
        })
    );
    for none in ["0", "-1"] {
        let unlimited = workload(&[(MEMORY, none), (CPU_QUOTA, none)]).unwrap();
        assert_eq!((unlimited.memory_limit_bytes, unlimited.cpu_time()), (None, None));
    }
}

#[test]
fn a_workload_beyond_the_host_is_refused_with_the_range() {
    for (pairs, says) in [
        (
            &[(CPU_PERIOD, "-1")][..],
            "sandbox-cpu-period is \"-1\", allowed: a whole number of microseconds",
        ),
        (
            &[(CPU_SHARES, "-1")],
            "sandbox-cpu-shares is \"-1\", allowed: a whole number",
        ),
        (
            &[(CPU_QUOTA, "1600001")],
            "sandbox-cpu-quota is \"1600001\", allowed: a whole number of microseconds from -1 to 1600000",
        ),
        // Whatever comes first.
        (
            &[(CPU_QUOTA, "801"), (CPU_PERIOD, "50")],
            "sandbox-cpu-quota is \"801\", allowed: a whole number of microseconds from -1 to 800",
        ),
        (
            &[(CPU_QUOTA, "-2")],
            "sandbox-cpu-quota is \"-2\", allowed: a whole number of microseconds from -1 to 1600000",
        ),
        (
            &[(MEMORY, "34359738369")],
            "sandbox-memory is \"34359738369\", allowed: a whole number of bytes from -1 to 34359738368",
        ),
        (
            &[(MEMORY, "-2")],
            "sandbox-memory is \"-2\", allowed: a whole number of bytes from -1 to 34359738368",
        ),
        (
            &[(MEMORY, "1Gi")],
            "sandbox-memory is \"1Gi\", allowed: a whole number of bytes from -1",
        ),
    ] {
        let refusal = workload(pairs).unwrap_err();
        assert!(
            refusal.starts_with(&format!("annotation io.kubernetes.cri.{says}")),
            "{refusal}"
        );
    }
    assert!(workload(&[(CPU_QUOTA, "1600000")]).is_ok());
}

/// Any key, the known ones often, with any value, numbers near the limits often.
fn annotation() -> impl Strategy<Value = (String, String)> {
    let known = prop::sample::select(HYPERVISOR_KEYS.as_slice()).prop_map(key);
    let cri = prop::sample::select(&[CPU_QUOTA, CPU_PERIOD, CPU_SHARES, MEMORY][..]).prop_map(str::to_owned);
    let name = prop_oneof![8 => known, 4 => cri, 1 => ".*", 1 => ".*".prop_map(|name: String| key(&name))];
    let value = prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        (-2..40_000_i64).prop_map(|n| n.to_string()),
        any::<u64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|n| n.to_string()),
        "[ +-]?[0-9]{0,22}(\\.[0-9]{0,12})?[ kMG]?(iB)?",
        "true|false|TRUE|1",
        "(?s).{0,80}",
    ];
    (name, value)
}

proptest! {
    #[test]
    fn whatever_annotations_say_the_pod_fits_the_host_or_one_of_them_is_named(
        annotations in prop::collection::vec(annotation(), 0..6)
    ) {
        let host = sizing();
        let mut sizing = host.clone();
        let pairs = || annotations.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        match sizing.annotate(pairs()) {
            Ok(features) => {
                prop_assert!(sizing.default_vcpus.vcpus() <= host.host_vcpus);
                prop_assert!(sizing.max_vcpus <= host.host_vcpus);
                prop_assert!(sizing.default_memory_bytes <= host.host_memory_bytes);
                prop_assert!(!features.kernel_params.chars().any(char::is_control));
                let start = sizing.dynamic_start().unwrap();
                prop_assert!((1..=start.max_vcpus).contains(&start.vcpus));
            }
            Err(error) => {
                prop_assert_eq!(&sizing, &host);
                let text = error.to_string();
                prop_assert!(text.lines().count() == 1 && text.contains(HYPERVISOR), "{}", text);
            }
        }
        match host.workload(pairs()) {
            Ok(pod) => {
                prop_assert!(pod.memory_limit_bytes.unwrap_or(0) <= host.host_memory_bytes);
                prop_assert!(pod.cpu_time().is_none_or(|time| time.vcpus() <= host.host_vcpus));
            }
            Err(error) => prop_assert!(error.to_string().contains("io.kubernetes.cri.sandbox-")),
        }
    }
}
