//! Tests of the names of fields, against the description of the API.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;

fn unknown(shape: &Shape, body: &Value) -> Vec<(String, Option<&'static str>)> {
    let found = shape.unknown(body.to_string().as_bytes()).into_iter();
    found.map(|unknown| (unknown.field, unknown.nearest)).collect()
}

#[test]
fn a_misspelt_field_is_told_with_the_name_that_was_meant() {
    let body = json!({"path": "/a", "read_only": true});
    assert_eq!(unknown(&DISK, &body), [("read_only".into(), Some("readonly"))]);
    let body = json!({
        "payload": {"kernel": "/k", "comandline": ""},
        "disks": [{"path": "/a"}, {"path": "/b", "dirct": true, "rate_limiter_config": {"ops": {"size": 1, "refil_time": 1}}}],
        "zzz": 1,
    });
    assert_eq!(
        unknown(&VM, &body),
        [
            ("disks[1].dirct".into(), Some("direct")),
            (
                "disks[1].rate_limiter_config.ops.refil_time".into(),
                Some("refill_time")
            ),
            ("payload.comandline".into(), Some("cmdline")),
            ("zzz".into(), None),
        ]
    );
    assert_eq!(
        unknown(&VM, &json!({"cpus": {"features": {"amx": false, "avx": true}}})),
        [("cpus.features.avx".into(), Some("amx"))]
    );
    assert_eq!(
        unknown(&RESIZE, &json!({"desired_cpus": 2})),
        [("desired_cpus".into(), Some("desired_vcpus"))]
    );
}

#[test]
fn what_is_null_or_what_clients_note_is_nobodys_mistake() {
    assert_eq!(unknown(&DISK, &json!({"path": "/a", "read_only": null})), []);
    assert_eq!(
        unknown(&CONTAINERS, &json!({"revision": 1, "containers": {"whatever": 1}})),
        []
    );
    assert_eq!(unknown(&VM, &json!("no object")), []);
}

#[test]
fn junk_is_told_in_few_and_short_names() {
    let many: serde_json::Map<String, Value> = (0..1000)
        .map(|n| (format!("{n}{}", "x".repeat(500)), json!(1)))
        .collect();
    let found = VM.unknown(Value::Object(many).to_string().as_bytes());
    assert_eq!(found.len(), MOST);
    assert!(found.iter().all(|unknown| unknown.field.len() <= NAME_CHARS));
}

/// The properties of a schema of `docs/openapi.yaml`, one a line.
fn described(schema: &str) -> BTreeSet<String> {
    let text = include_str!("../../../docs/openapi.yaml");
    let schema = text.split_once(&format!("\n    {schema}:\n")).unwrap().1;
    let properties = schema.split_once("\n      properties:\n").unwrap().1;
    let lines = properties.lines().take_while(|line| line.starts_with("        "));
    lines
        .map(|line| line.trim().split(':').next().unwrap().to_owned())
        .collect()
}

#[test]
fn the_fields_that_husk_reads_are_those_that_are_described() {
    for (name, shape) in [
        ("VmConfig", &VM),
        ("CpusConfig", &CPUS),
        ("CpuTopology", &TOPOLOGY),
        ("MemoryConfig", &MEMORY),
        ("PayloadConfig", &PAYLOAD),
        ("DiskConfig", &DISK),
        ("NetConfig", &NET),
        ("FsConfig", &FS),
        ("VsockConfig", &VSOCK),
        ("PmemConfig", &PMEM),
        ("RngConfig", &RNG),
        ("BalloonConfig", &BALLOON),
        ("ConsoleConfig", &CONSOLE),
        ("PlatformConfig", &PLATFORM),
        ("RateLimiterConfig", &LIMITER),
        ("TokenBucket", &BUCKET),
        ("VmResize", &RESIZE),
        ("VmRemoveDevice", &REMOVE),
        ("VmContainers", &CONTAINERS),
    ] {
        let own: BTreeSet<String> = shape.own.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(described(name), own, "{name}");
    }
}

#[test]
fn every_field_of_a_whole_configuration_has_a_name() {
    let mut config = super::super::VmConfig::default();
    config.cpus.topology = Some(super::super::TopologyConfig {
        threads_per_core: 1,
        cores_per_die: 1,
        dies_per_package: 1,
        packages: 1,
    });
    config.memory.hotplug_size = Some(1);
    config.memory.acpi_only = true;
    config.disks = vec![super::super::DiskConfig::new("/d")];
    config.net = vec![super::super::NetConfig::new()];
    let ids = super::super::IdTranslation {
        kind: super::super::IdKind::Guest,
        guest: 0,
        host: 1,
        count: 1,
    };
    let folder = super::super::FsConfig {
        readonly: true,
        cache: super::super::CacheMode::Never,
        writeback: true,
        direct_io: true,
        mmap: true,
        xattr: true,
        posix_acl: true,
        submounts: false,
        locks: true,
        security_label: true,
        label: Some("u:r:t".into()),
        translate_uid: vec![ids],
        translate_gid: vec![ids],
        ..super::super::FsConfig::of_dir("t", "/d")
    };
    config.fs = vec![super::super::FsConfig::new("t", "/f"), folder];
    config.vsock = Some(super::super::VsockConfig::new(3, "/v"));
    config.balloon = Some(super::super::BalloonConfig {
        reclaim_idle: Some(1),
        reclaim_keep: Some(1),
        ..Default::default()
    });
    assert_eq!(VM.unknown(&serde_json::to_vec(&config).unwrap()), []);
}
