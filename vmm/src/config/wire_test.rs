//! Tests of the whole wire format against `wire.txt`: every default asks for nothing, and no other
//! value is without effect unless the documents say so.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::fields::{self, Shape};
use super::{Limits, VmConfig};

const TABLE: &str = include_str!("wire.txt");
const API: &str = include_str!("../../../docs/api.md");

/// A line of the table.
struct Field {
    object: &'static str,
    name: &'static str,
    default: Option<Value>,
    other: Value,
    outcome: &'static str,
}

fn fields() -> impl Iterator<Item = Field> {
    let lines = TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| {
        let words: Vec<_> = line.split(' ').collect();
        let [object, name, default, other, outcome] = words[..] else {
            panic!("{line}")
        };
        Field {
            object,
            name,
            default: (default != "-").then(|| serde_json::from_str(default).unwrap()),
            other: serde_json::from_str(other).unwrap(),
            outcome,
        }
    })
}

/// Where the objects of a kind are in a `vm.create`, the fields that one of them needs, its shape,
/// and what it is called in refusals.
const OBJECTS: [(&str, &str, &str, &Shape, &str); 18] = [
    ("VmConfig", "", "{}", &fields::VM, ""),
    (
        "CpusConfig",
        "/cpus",
        r#"{"boot_vcpus":1,"max_vcpus":1}"#,
        &fields::CPUS,
        "cpus.",
    ),
    (
        "CpuFeatures",
        "/cpus/features",
        "{}",
        &fields::FEATURES,
        "cpus.features.",
    ),
    (
        "CpuTopology",
        "/cpus/topology",
        r#"{"threads_per_core":1,"cores_per_die":1,"dies_per_package":1,"packages":1}"#,
        &fields::TOPOLOGY,
        "",
    ),
    (
        "MemoryConfig",
        "/memory",
        r#"{"size":536870912}"#,
        &fields::MEMORY,
        "memory.",
    ),
    (
        "PayloadConfig",
        "/payload",
        r#"{"kernel":"/k"}"#,
        &fields::PAYLOAD,
        "payload.",
    ),
    ("PlatformConfig", "/platform", "{}", &fields::PLATFORM, "platform."),
    ("DiskConfig", "/disks/0", r#"{"path":"/d"}"#, &fields::DISK, "disks[0]."),
    ("NetConfig", "/net/0", "{}", &fields::NET, "net[0]."),
    (
        "FsConfig",
        "/fs/0",
        r#"{"tag":"t","socket":"/s"}"#,
        &fields::FS,
        "fs[0].",
    ),
    ("PmemConfig", "/pmem/0", r#"{"file":"/f"}"#, &fields::PMEM, "pmem[0]."),
    (
        "VsockConfig",
        "/vsock",
        r#"{"cid":3,"socket":"/v"}"#,
        &fields::VSOCK,
        "vsock.",
    ),
    ("RngConfig", "/rng", "{}", &fields::RNG, "rng."),
    (
        "BalloonConfig",
        "/balloon",
        r#"{"size":0}"#,
        &fields::BALLOON,
        "balloon.",
    ),
    (
        "ConsoleConfig",
        "/console",
        r#"{"mode":"Off"}"#,
        &fields::CONSOLE,
        "console.",
    ),
    (
        "SerialConfig",
        "/serial",
        r#"{"mode":"Off"}"#,
        &fields::SERIAL,
        "serial.",
    ),
    (
        "RateLimiterConfig",
        "/disks/0/rate_limiter_config",
        "{}",
        &fields::LIMITER,
        "",
    ),
    (
        "TokenBucket",
        "/disks/0/rate_limiter_config/ops",
        r#"{"size":1,"refill_time":1}"#,
        &fields::BUCKET,
        "",
    ),
];

/// A body with every kind of object, which has the fields that it needs.
fn body() -> Value {
    let mut body = json!({"disks": [{}], "net": [{}], "fs": [{}], "pmem": [{}], "cpus": {}});
    for (_, place, needed, ..) in OBJECTS {
        let needed: Value = serde_json::from_str(needed).unwrap();
        let mut object = &mut body;
        for part in place.split('/').skip(1) {
            object = match part.parse::<usize>() {
                Ok(number) => &mut object[number],
                Err(_) => &mut object[part],
            };
        }
        if object.is_null() {
            *object = json!({});
        }
        object
            .as_object_mut()
            .unwrap()
            .extend(needed.as_object().unwrap().clone());
    }
    body["memory"]["shared"] = json!(true);
    body
}

/// `body` with a value in the object of its kind, and what that value needs or cannot be beside.
fn with(mut body: Value, field: &Field, value: &Value) -> Value {
    match (field.object, field.name) {
        ("MemoryConfig", name) => {
            // Memory that is not shared.
            body["fs"] = json!([]);
            body["memory"]["hugepages"] = json!(name == "hugepage_size");
        }
        ("VmConfig", "memory") => body["fs"] = json!([]),
        ("CpusConfig", "max_vcpus") => body["cpus"]["topology"] = Value::Null,
        _ => {}
    }
    set(&mut body, field, value);
    body
}

fn set(body: &mut Value, field: &Field, value: &Value) {
    let (_, place, ..) = OBJECTS.iter().find(|(object, ..)| *object == field.object).unwrap();
    body.pointer_mut(place).unwrap()[field.name] = value.clone();
}

/// Says why a body is refused, if it is; none has a field that nobody knows.
fn refusal(body: &Value) -> Option<String> {
    assert_eq!(fields::VM.unknown(body.to_string().as_bytes()), [], "{body}");
    let config: VmConfig = serde_json::from_value(body.clone()).unwrap();
    config
        .validate(Limits::ARCHITECTURE)
        .err()
        .map(|error| error.to_string())
}

#[test]
fn every_default_of_the_wire_format_is_accepted() {
    let mut all = body();
    assert_eq!(refusal(&all), None);
    for field in fields() {
        let Some(default) = &field.default else { continue };
        assert_eq!(
            refusal(&with(body(), &field, default)),
            None,
            "{} {}",
            field.object,
            field.name
        );
        if field.object != "VmConfig" && field.name != "shared" {
            set(&mut all, &field, default);
        }
    }
    assert_eq!(refusal(&all), None, "together");
}

#[test]
fn no_other_value_is_without_effect_unless_the_documents_say_so() {
    let section = API.split_once("### Fields without effect").unwrap().1;
    let section = section.split_once("\n#").unwrap().0;
    let mut told = BTreeSet::new();
    for field in fields() {
        let line = format!("{} {}", field.object, field.name);
        let wire = with(body(), &field, &field.other);
        let (.., shape, place) = OBJECTS.iter().find(|(object, ..)| *object == field.object).unwrap();
        let foreign = shape.foreign().find(|foreign| foreign.name == field.name);
        match field.outcome {
            "refused" => {
                let refusal = refusal(&wire).unwrap_or_else(|| panic!("{line}: accepted"));
                let place = format!("{place}{}", field.name);
                assert!(
                    refusal.starts_with(&place) && refusal.contains("is not supported"),
                    "{line}: {refusal}"
                );
                assert!(foreign.is_some(), "{line}");
            }
            "without-effect" => {
                assert_eq!(refusal(&wire), None, "{line}");
                assert!(
                    section.contains(&format!("`{}`", field.name)),
                    "{line} is not in docs/api.md"
                );
                told.insert(field.name);
            }
            "own" => {
                assert_eq!(refusal(&wire), None, "{line}");
                assert!(foreign.is_none(), "{line}");
            }
            other => panic!("{line}: {other}"),
        }
        if foreign.is_some_and(|foreign| foreign.neutral.has_several()) {
            assert_eq!(field.outcome, "without-effect", "{line}");
        }
    }
    let documented = section.split("\n| `").skip(1).flat_map(|row| {
        let names = row.split_once(" | ").unwrap().0;
        names.split('`').step_by(2).map(str::to_owned).collect::<Vec<_>>()
    });
    let documented: BTreeSet<_> = documented.filter(|name| !name.is_empty()).collect();
    assert_eq!(documented, told.into_iter().map(str::to_owned).collect());
}

/// A field that husk knows and the table has not would not be looked at by the tests above.
#[test]
fn the_table_has_every_field_of_cloud_hypervisors_that_husk_knows() {
    let table: BTreeSet<_> = fields().map(|field| (field.object, field.name)).collect();
    for (object, _, _, shape, _) in OBJECTS {
        for foreign in shape.foreign() {
            assert!(table.contains(&(object, foreign.name)), "{object} {}", foreign.name);
        }
    }
    for field in fields() {
        let (.., shape, _) = OBJECTS.iter().find(|(object, ..)| *object == field.object).unwrap();
        assert!(
            shape.names().any(|name| name == field.name),
            "{} {}",
            field.object,
            field.name
        );
    }
}

/// The value is of no type that the field has.
#[test]
fn junk_in_a_field_that_husk_gives_no_meaning_to_is_refused() {
    for (object, _, _, shape, place) in OBJECTS {
        for foreign in shape.foreign() {
            for junk in [json!({"a": 1}), json!(["a"]), json!("junk"), json!(77_777)] {
                if foreign.name == "features" && junk.is_object() {
                    continue;
                }
                let field = Field {
                    object,
                    name: foreign.name,
                    default: None,
                    other: Value::Null,
                    outcome: "refused",
                };
                let wire = with(body(), &field, &junk);
                let config: VmConfig = serde_json::from_value(wire).unwrap();
                let refusal = config.validate(Limits::ARCHITECTURE).unwrap_err().to_string();
                assert!(refusal.starts_with(&format!("{place}{}: ", foreign.name)), "{refusal}");
            }
        }
    }
}
