//! Tests of [`Tally`] on what the test runner really prints.

use super::*;

fn read(text: &str) -> (Tally, Vec<&str>) {
    let mut tally = Tally::default();
    tally.name_program("p");
    let shown = text.lines().filter(|line| tally.line(line)).collect();
    tally.close();
    (tally, shown)
}

const MIXED: &str = "
running 4 tests
test a ... ok
test b ... FAILED
test c ... ignored, needs a native host
test d ... ok

successes:

---- a stdout ----
skipped: needs /dev/kvm
noise of a passed test


successes:
    a
    d

failures:

---- b stdout ----
assertion failed
skipped: not a skip, the test failed

failures:
    b

test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s
";

#[test]
fn passed_failed_and_both_kinds_of_skipped_are_counted() {
    let (tally, shown) = read(MIXED);
    assert_eq!(tally.summary(), "1 passed, 1 failed, 2 skipped");
    assert_eq!(tally.failures, ["p: b"]);
    let reasons: Vec<_> = tally
        .skips
        .iter()
        .map(|skip| (skip.name.as_str(), skip.reason.as_str()))
        .collect();
    assert_eq!(reasons, [("p: c", "needs a native host"), ("p: a", "needs /dev/kvm")]);
    assert!(shown.contains(&"assertion failed"));
    assert_eq!(tally.verdicts, 4);
    let said = "assertion failed\nskipped: not a skip, the test failed\n\n";
    assert_eq!(tally.said, [("p: b".to_string(), said.to_string())]);
    assert!(!shown.contains(&"noise of a passed test"));
}

#[test]
fn a_failure_is_known_before_its_program_has_ended() {
    let mut tally = Tally::default();
    tally.name_program("p");
    for line in ["running 3 tests", "test a ... ok", "test b ... FAILED"] {
        tally.line(line);
    }
    assert_eq!(tally.failed().collect::<Vec<_>>(), ["p: b"]);
    assert_eq!((tally.verdicts, tally.failures.len()), (2, 0));
}

#[test]
fn programs_add_up() {
    let one =
        "running 1 test\ntest x ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n";
    let (tally, _) = read(&format!("{one}{one}noise between\n{one}"));
    assert_eq!(tally.summary(), "3 passed, 0 failed, 0 skipped");
}

#[test]
fn a_program_that_dies_is_a_failure() {
    let (tally, _) = read("running 2 tests\ntest x ... ok\n");
    assert_eq!(tally.failures, ["p (died before its summary)"]);
    let (tally, _) = read("running 2 tests\nrunning 1 test\ntest result: ok. 1 passed; 0 failed\n");
    assert_eq!(tally.summary(), "1 passed, 1 failed, 0 skipped");
}

#[test]
fn a_failure_whose_line_was_torn_still_counts() {
    let text = "running 1 test\ntest x ... noise\nFAILED\ntest result: FAILED. 0 passed; 1 failed; 0 ignored;\n";
    assert_eq!(read(text).0.summary(), "0 passed, 1 failed, 0 skipped");
}
