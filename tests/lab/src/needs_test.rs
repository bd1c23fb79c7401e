//! Tests of what excuses a test, and that every test says what it needs in words that are known.

use std::path::PathBuf;

use husk_devices::testing::files;

use super::*;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The reasons that a source's literals give for skipping.
fn reasons(source: &str) -> impl Iterator<Item = &str> {
    // As it is printed, and as the test runner does it for a test that it is told to ignore.
    ["(\"skipped: ", "#[ignore = \""]
        .into_iter()
        .flat_map(|beginning| source.split(beginning).skip(1))
        .map(|rest| rest.split('"').next().unwrap())
}

/// Those that read or show what others say.
const READERS: [&str; 4] = ["needs_test.rs", "report.rs", "tally.rs", "tally_test.rs"];

#[test]
fn every_reason_to_skip_is_known_here() {
    let mut count = 0;
    let mut unknown = Vec::new();
    for path in files(&root(), ".rs") {
        if READERS.iter().any(|name| path.ends_with(format!("lab/src/{name}"))) || path.ends_with("api_fuzz/mod.rs") {
            continue;
        }
        for reason in reasons(&fs::read_to_string(&path).unwrap()) {
            count += 1;
            if named(reason).is_none() {
                unknown.push(format!("{}: {reason}", path.display()));
            }
        }
    }
    assert!(unknown.is_empty(), "{unknown:#?}");
    assert!(count > 40, "the sources were read: {count}");
}

/// The texts of errors in `source` that have the field `source` in them: thiserror takes it for the
/// next link of the chain, and whoever prints that has it twice.
fn sources_in_their_parents(source: &str) -> impl Iterator<Item = &str> {
    let texts = source.split("#[error(").skip(1);
    texts
        .map(|rest| rest.split(")]").next().unwrap())
        .filter(|text| text.contains("{source"))
}

#[test]
fn no_error_has_its_source_in_its_own_text() {
    let this = Path::new(file!()).file_name().unwrap();
    let mut found = Vec::new();
    for path in files(&root(), ".rs")
        .into_iter()
        .filter(|path| path.file_name() != Some(this))
    {
        let text = fs::read_to_string(&path).unwrap();
        found.extend(sources_in_their_parents(&text).map(|text| format!("{}: {text}", path.display())));
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn an_error_with_its_source_in_its_text_is_noticed() {
    let text = "#[error(\"a: {source}\")]\nA { source: B },\n#[error(\n    \"{b} is {source:?}\",\n    b\n)]";
    assert_eq!(sources_in_their_parents(text).count(), 2);
    assert_eq!(
        sources_in_their_parents("#[error(\"a: {why}\")] format!(\"{source}\")").count(),
        0
    );
}

#[test]
fn a_reason_that_is_not_known_is_noticed() {
    let source = "println!(\"skipped: needs root\"); eprintln!(\"skipped: no luck here\");\n#[ignore = \"flaky\"]";
    let unknown: Vec<_> = reasons(source).filter(|reason| named(reason).is_none()).collect();
    assert_eq!(unknown, ["no luck here", "flaky"]);
}

#[test]
fn only_what_this_machine_lacks_excuses() {
    for need in &NEEDS {
        let reason = format!("needs {}", need.name);
        assert_eq!(allows_skip(&reason, Host::Native), !(need.is_here)(), "{reason}");
    }
    let here = |reason| allows_skip(reason, Host::Native);
    for reason in [
        "flaky",
        "",
        "needs",
        "needs ",
        "needs luck",
        "root",
        "needs root,",
        "needs promtool",
    ] {
        assert!(!here(reason), "{reason}");
    }
    assert!(is_root() || here("needs root, qemu-system-x86_64") && here("needs a native host, root: it was said"));
    assert!(!here("needs root, luck"), "one that is not known excuses nothing");
}

#[test]
fn an_emulated_host_lacks_nothing_but_hardware() {
    for need in &NEEDS {
        let reason = format!("needs {}", need.name);
        let excused = allows_skip(&reason, Host::Emulated);
        assert_eq!(excused, need.name == "a native host", "{reason}");
    }
}

#[test]
fn each_need_has_a_name_of_its_own() {
    let mut names: Vec<_> = NEEDS.iter().map(|need| need.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), NEEDS.len());
    assert!(!names.iter().any(|name| name.contains(", ") || name.contains(": ")));
}

#[test]
fn what_is_looked_for_is_found() {
    assert!(can_open("/dev/null") && !can_open("/nowhere"));
    let kernel = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    assert!(!(kernel.trim() == "2" && sys::has_io_uring()));
    if is_root() {
        return;
    }
    // The kernel has it from nobody else.
    assert!(!has_file_handles() && !has_append_only() && !has_device_nodes());
}
