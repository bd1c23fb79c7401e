//! The texts are held against the fields that the API documents, by a reader of the little YAML that they are made of.

use serde_json::{Map, Value, json};

use super::super::testing::System;
use super::super::{Options, Overhead};

/// Reads block mappings, sequences of mappings, flow mappings of one level, and plain or
/// double-quoted scalars; panics at anything else.
fn yaml(text: &str) -> Vec<Value> {
    text.split("---\n").map(document).collect()
}

fn document(text: &str) -> Value {
    let lines: Vec<(usize, &str)> = text
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .map(|line| (line.len() - line.trim_start().len(), line.trim_start()))
        .collect();
    let (value, rest) = block(&lines);
    assert!(rest.is_empty(), "beside the document: {rest:?}");
    value
}

/// The value whose first line is `lines[0]`, and the lines behind it.
fn block<'a, 'b>(lines: &'b [(usize, &'a str)]) -> (Value, &'b [(usize, &'a str)]) {
    let (indent, first) = lines[0];
    if first.starts_with("- ") {
        let (mut sequence, mut rest) = (Vec::new(), lines);
        while let Some((at, line)) = rest
            .first()
            .filter(|(at, line)| *at == indent && line.starts_with("- "))
        {
            let end = 1 + rest[1..].iter().take_while(|(below, _)| below > at).count();
            let mut item = rest[..end].to_vec();
            item[0] = (indent + 2, &line[2..]);
            let (value, left) = block(&item);
            assert!(left.is_empty(), "{left:?}");
            sequence.push(value);
            rest = &rest[end..];
        }
        return (Value::Array(sequence), rest);
    }
    let (mut map, mut rest) = (Map::new(), lines);
    while let Some((_, line)) = rest.first().filter(|(at, _)| *at == indent) {
        let (key, value) = line.split_once(':').unwrap_or_else(|| panic!("no key: {line}"));
        rest = &rest[1..];
        let value = match value.trim() {
            "" => {
                assert!(rest[0].0 > indent, "nothing below {key}");
                let (value, left) = block(rest);
                rest = left;
                value
            }
            flow if flow.starts_with('{') => {
                let (key, value) = flow.trim_matches(['{', '}']).split_once(": ").unwrap();
                json!({key: value})
            }
            scalar => Value::String(scalar.trim_matches('"').into()),
        };
        assert!(map.insert(key.into(), value).is_none(), "{key} twice");
    }
    (Value::Object(map), rest)
}

/// Whether `value` has the fields of `schema`, and none that it has not: an object's fields by
/// name, `*` for any, a `?` behind those that may be absent; an array's only element; or a pattern
/// of what a scalar has to be.
fn fits(value: &Value, schema: &Value, path: &str) {
    match (value, schema) {
        (Value::Object(value), Value::Object(schema)) => {
            for (field, inner) in value {
                let known = schema
                    .get(field)
                    .or_else(|| schema.get(&format!("{field}?")))
                    .or_else(|| schema.get("*"));
                fits(
                    inner,
                    known.unwrap_or_else(|| panic!("{path}: no field {field}")),
                    &format!("{path}.{field}"),
                );
            }
            for field in schema.keys().filter(|field| !field.ends_with('?') && *field != "*") {
                assert!(value.contains_key(field), "{path}: {field} is missing");
            }
        }
        (Value::Array(values), Value::Array(schema)) => {
            for value in values {
                fits(value, &schema[0], &format!("{path}[]"));
            }
        }
        (Value::String(text), Value::String(pattern)) => {
            let pattern = regex_lite::Regex::new(&format!("^(?:{pattern})$")).unwrap();
            assert!(pattern.is_match(text), "{path}: {text} is not {pattern}");
        }
        _ => panic!("{path}: {value} is not {schema}"),
    }
}

/// node.k8s.io/v1 RuntimeClass, as the API's reference has it.
fn runtime_class() -> Value {
    let label = "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?";
    let quantity = "[0-9]+(m|Ki|Mi|Gi)?";
    json!({
        "apiVersion": "node\\.k8s\\.io/v1", "kind": "RuntimeClass",
        "metadata": {"name": label, "labels?": {"*": ".*"}, "annotations?": {"*": ".*"}},
        "handler": label,
        "overhead?": {"podFixed?": {"memory?": quantity, "cpu?": quantity}},
        "scheduling?": {
            "nodeSelector?": {"*": "([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9]"},
            "tolerations?": [{"key?": ".*", "operator?": "Exists|Equal", "value?": ".*", "effect?": ".*"}],
        },
    })
}

/// nfd.k8s-sigs.io/v1alpha1 NodeFeatureRule, the fields that its definition has for labels.
fn node_feature_rule() -> Value {
    let operator = "In|NotIn|InRegexp|Exists|DoesNotExist|Gt|Ge|Lt|Le|GtLt|GeLe|IsTrue|IsFalse";
    let features = json!([{
        "feature": "[a-z]+\\.[a-z]+",
        "matchExpressions?": {"*": {"op": operator, "value?": ["..*"]}},
    }]);
    json!({
        "apiVersion": "nfd\\.k8s-sigs\\.io/v1alpha1", "kind": "NodeFeatureRule",
        "metadata": {"name": "[a-z0-9]([-a-z0-9.]*[a-z0-9])?"},
        "spec": {"rules": [{
            "name": ".+", "labels?": {"*": ".*"}, "matchFeatures?": features.clone(), "matchAny?": [{"matchFeatures": features}],
        }]},
    })
}

#[test]
fn what_kubernetes_is_told_has_the_fields_of_its_api() {
    let system = System::new();
    let longest = Options {
        class: "x".repeat(60),
        ..system.options()
    };
    for options in [system.options(), longest] {
        system.install(&options).unwrap();
        let classes = yaml(&system.read("opt/husk/share/husk/kubernetes/runtimeclass.yaml"));
        assert_eq!(classes.len(), 2);
        for (class, end) in classes.iter().zip(["", "-go"]) {
            fits(class, &runtime_class(), "RuntimeClass");
            assert_eq!(class["handler"], format!("{}{end}", options.class));
            assert_eq!(class["overhead"]["podFixed"], json!({"memory": "130Mi", "cpu": "250m"}));
            assert_eq!(
                class["scheduling"]["nodeSelector"]["feature.node.kubernetes.io/runtime.kata"],
                "true"
            );
        }
        let rules = yaml(&system.read("opt/husk/share/husk/kubernetes/nodefeaturerule.yaml"));
        let [rule] = rules.as_slice() else { panic!("{rules:?}") };
        fits(rule, &node_feature_rule(), "NodeFeatureRule");
        let any = rule["spec"]["rules"][0]["matchAny"].as_array().unwrap();
        assert_eq!(any.len(), 2, "Intel's and AMD's");
        assert_eq!(
            any[1]["matchFeatures"][0]["matchExpressions"],
            json!({"SVM": {"op": "Exists"}})
        );
    }
}

#[test]
#[should_panic(expected = "no field handlers")]
fn a_field_that_the_api_has_not_is_found() {
    let text = "apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata:\n  name: a\nhandler: a\nhandlers: a\n";
    fits(&document(text), &runtime_class(), "RuntimeClass");
}

#[test]
fn an_overhead_that_was_measured_is_told_with_its_method() {
    let system = System::new();
    let file = system.root().join("overhead.json");
    std::fs::write(
        &file,
        r#"{"memory_mib": 17, "cpu_millis": 20, "method": "p99 of 8 pods"}"#,
    )
    .unwrap();
    let options = Options {
        overhead: Some(Overhead::read(&file).unwrap()),
        ..system.options()
    };
    system.install(&options).unwrap();
    let text = system.read("opt/husk/share/husk/kubernetes/runtimeclass.yaml");
    assert!(
        text.contains("# p99 of 8 pods\noverhead:\n  podFixed:\n    memory: \"17Mi\"\n    cpu: \"20m\"\n"),
        "{text}"
    );
    for wrong in [
        "",
        "{}",
        r#"{"memory_mib": 0, "cpu_millis": 1, "method": "m"}"#,
        r#"{"memory_mib": 1, "cpu_millis": 1, "method": "m\nkind: Pod"}"#,
        r#"{"memory_mib": -1, "cpu_millis": 1, "method": "m"}"#,
    ] {
        std::fs::write(&file, wrong).unwrap();
        let refused = Overhead::read(&file).unwrap_err().to_string();
        assert!(refused.contains("overhead.json: "), "{refused}");
    }
}

#[test]
fn a_host_that_cannot_run_pods_has_no_feature_file() {
    let system = System::new();
    let features = "etc/kubernetes/node-feature-discovery/features.d/husk-kata-husk";
    system.install(&system.options()).unwrap();
    assert_eq!(system.read(features), system.options().features);
    let none = Options {
        features: String::new(),
        ..system.options()
    };
    assert!(
        super::super::plan(&none)
            .unwrap()
            .describe()
            .contains("this host cannot run pods")
    );
    system.install(&none).unwrap();
    assert!(!system.has("etc/kubernetes"));
}
