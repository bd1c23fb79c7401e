use std::fs::File;

use super::*;

fn refused(text: &str) -> String {
    let error = Spec::parse(text.as_bytes()).unwrap_err();
    format!("{:#}", anyhow::Error::new(error))
}

#[test]
fn resources_and_annotations_are_found_among_everything_else() {
    let text = r#"{"ociVersion": "1.2.0", "process": {"args": ["sh"]}, "annotations": {"b": "2", "a": "1"},
        "linux": {"namespaces": [], "resources": {"devices": [{"allow": false}],
            "cpu": {"shares": 2, "quota": 150000, "period": 100000, "cpus": "0-1,4"},
            "memory": {"limit": 268435456, "swap": -1},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}, {"pageSize": "1GB", "limit": 1073741824}]}}}"#;
    let spec = Spec::parse(text.as_bytes()).unwrap();
    assert_eq!(spec.annotations().collect::<Vec<_>>(), [("a", "1"), ("b", "2")]);
    let expected = Resources {
        cpu_quota_us: 150_000,
        cpu_period_us: 100_000,
        cpus: CpuSet::parse("0-1,4").unwrap(),
        cpu_shares: 0,
        memory_limit_bytes: Some(256 << 20),
        hugepage_bytes: (4 << 20) + (1 << 30),
    };
    assert_eq!(spec.resources().sized().unwrap(), expected);
    let noted = serde_json::to_string(&spec.resources()).unwrap();
    let read: LinuxResources = serde_json::from_str(&noted).unwrap();
    assert_eq!(read.sized().unwrap(), expected, "{noted}");
}

#[test]
fn what_is_absent_or_null_or_negative_limits_nothing() {
    for text in [
        "{}",
        r#"{"annotations": null, "linux": null}"#,
        r#"{"linux": {"resources": null}}"#,
        r#"{"linux": {"resources": {"cpu": null, "memory": null, "hugepageLimits": null}}}"#,
        r#"{"linux": {"resources": {"cpu": {"quota": null, "cpus": null}, "memory": {"limit": null}}}}"#,
        r#"{"linux": {"resources": {"memory": {"limit": -1}, "hugepageLimits": []}}}"#,
    ] {
        let spec = Spec::parse(text.as_bytes()).unwrap();
        assert_eq!(spec.resources().sized().unwrap(), Resources::default(), "{text}");
    }
    let negative = r#"{"linux": {"resources": {"cpu": {"quota": -1, "period": 100000}}}}"#;
    let spec = Spec::parse(negative.as_bytes()).unwrap();
    assert_eq!(spec.resources().sized().unwrap().cpu_time(), None);
}

#[test]
fn what_means_nothing_is_named() {
    for (text, says) in [
        ("", "is no OCI configuration: it is empty"),
        ("7", "is no OCI configuration: invalid"),
        ("[]", "is no OCI configuration: a list"),
        (
            r#"{"linux": {"resources": {"memory": []}}}"#,
            "is no OCI configuration: a list",
        ),
        (
            r#"{"annotations": {"a": 1}}"#,
            "invalid type: integer `1`, expected a string",
        ),
        (
            r#"{"linux": {"resources": {"memory": {"limit": "1G"}}}}"#,
            "linux.resources.memory.limit: invalid type: string \"1G\", expected a whole number at line 1",
        ),
        (
            r#"{"linux": {"resources": {"memory": {"limit": 9223372036854775808}}}}"#,
            "linux.resources.memory.limit: ",
        ),
        (
            r#"{"linux": {"resources": {"cpu": {"period": -1}}}}"#,
            "linux.resources.cpu.period is -1, allowed: a whole number from 0 to 18446744073709551615",
        ),
        (
            r#"{"linux": {"resources": {"cpu": {"cpus": "3-1"}}}}"#,
            "linux.resources.cpu.cpus is \"3-1\", allowed: a list such as 0-3,8",
        ),
        (
            r#"{"linux": {"resources": {"hugepageLimits": [{"pageSize": "2MB", "limit": -1}]}}}"#,
            "linux.resources.hugepageLimits.limit is -1, allowed: a whole number from 0",
        ),
    ] {
        let refusal = refused(text);
        assert!(refusal.contains(says), "{refusal}");
    }
}

#[test]
fn only_a_regular_file_of_bounded_size_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let refused = |path: &Path| match Spec::read(path) {
        Err(SpecError::File(error)) => error,
        other => panic!("{other:?}"),
    };
    assert!(matches!(refused(&path), RegularFileError::Read(_)));
    assert!(matches!(refused(folder.path()), RegularFileError::Kind));
    assert!(matches!(refused(Path::new("/dev/zero")), RegularFileError::Kind));
    std::fs::write(&path, "{}").unwrap();
    assert_eq!(Spec::read(&path).unwrap(), Spec::default());
    let long = File::create(&path).unwrap();
    long.set_len(FILE_BYTES + 1).unwrap();
    assert!(matches!(refused(&path), RegularFileError::Long(FILE_BYTES)));
}
