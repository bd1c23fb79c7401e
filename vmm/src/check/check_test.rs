use serde_json::Value;

use super::*;

fn check(name: &'static str, status: Status, mandatory: bool) -> Check {
    let remedy = (status != Status::Ok).then(|| format!("mend {name}"));
    Check {
        name,
        status,
        mandatory,
        found: format!("found {name}"),
        reason: "it matters",
        remedy,
    }
}

fn bad() -> Report {
    Report::new(vec![
        check("a", Status::Ok, true),
        check("b", Status::Warn, false),
        check("c", Status::Fail, true),
    ])
}

#[test]
fn only_a_mandatory_failure_decides() {
    assert!(!bad().is_eligible());
    assert!(Report::new(vec![check("a", Status::Ok, true), check("b", Status::Warn, false)]).is_eligible());
    assert!(Report::new(vec![check("b", Status::Fail, false)]).is_eligible());
}

#[test]
fn node_feature_discovery_gets_its_line_or_nothing() {
    assert_eq!(bad().to_nfd(), "");
    let good = Report::new(vec![check("a", Status::Ok, true)]);
    assert_eq!(good.to_nfd(), "feature.node.kubernetes.io/runtime.kata=true\n");
}

#[test]
fn json_has_every_field_of_every_check() {
    let value: Value = serde_json::from_str(&bad().to_json()).unwrap();
    assert_eq!(value["eligible"], false);
    let failed = &value["checks"][2];
    assert_eq!(
        (&failed["name"], &failed["status"], &failed["mandatory"]),
        (&"c".into(), &"fail".into(), &true.into())
    );
    assert_eq!(
        (&failed["found"], &failed["reason"]),
        (&"found c".into(), &"it matters".into())
    );
    assert_eq!(failed["remedy"], "mend c");
    assert_eq!(value["checks"][0].get("remedy"), None);
}

#[test]
fn the_table_explains_what_is_wrong_and_ends_with_the_verdict() {
    let table = bad().to_table();
    let lines: Vec<_> = table.lines().map(str::trim).collect();
    assert_eq!(
        lines,
        [
            "ok    a                   found a",
            "warn  b                   found b",
            "why: it matters",
            "do:  mend b",
            "FAIL  c                   found c",
            "why: it matters",
            "do:  mend c",
            "",
            "This host cannot run pods: c.",
        ]
    );
    assert!(Report::new(vec![]).to_table().ends_with("This host can run pods.\n"));
}
