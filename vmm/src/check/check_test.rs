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

fn features() -> Vec<(&'static str, String)> {
    vec![("runtime.kata", "true".into()), ("husk.landlock", "7".into())]
}

fn bad() -> Report {
    let checks = vec![
        check("a", Status::Ok, true),
        check("b", Status::Warn, false),
        check("c", Status::Fail, true),
    ];
    Report::new(checks, features())
}

#[test]
fn only_a_mandatory_failure_decides() {
    assert!(!bad().is_eligible());
    let is_eligible = |checks| Report::new(checks, vec![]).is_eligible();
    assert!(is_eligible(vec![
        check("a", Status::Ok, true),
        check("b", Status::Warn, false)
    ]));
    assert!(is_eligible(vec![check("b", Status::Fail, false)]));
}

#[test]
fn node_feature_discovery_gets_its_lines_or_nothing() {
    assert_eq!(bad().to_nfd(), "");
    let good = Report::new(vec![check("a", Status::Ok, true)], features());
    let lines = "feature.node.kubernetes.io/runtime.kata=true\nfeature.node.kubernetes.io/husk.landlock=7\n";
    assert_eq!(good.to_nfd(), lines);
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
    assert!(
        Report::new(vec![], vec![])
            .to_table()
            .ends_with("This host can run pods.\n")
    );
}
