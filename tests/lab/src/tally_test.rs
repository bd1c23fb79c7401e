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

const SEVERAL: &str = "
running 5 tests
test a ... ok
test b ... ok
test c ... ok
test d ... ignored, needs a native host
test e ... ok

successes:

---- a stdout ----
skipped: needs root
skipped: needs mounts
skipped: needs root

---- b stdout ----
left out: nobody wants it
left out: nobody wants it

---- c stdout ----
skipped: needs mounts
left out: nobody wants it

successes:
    a
    b
    c
    e

test result: ok. 4 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s
";

#[test]
fn what_is_left_out_has_not_passed_and_is_no_skip() {
    let (tally, _) = read(SEVERAL);
    assert_eq!(tally.summary(), "1 passed, 0 failed, 3 skipped, 2 left out");
    let left_out: Vec<_> = tally.left_out.iter().map(|skip| skip.name.as_str()).collect();
    assert_eq!(left_out, ["p: b", "p: c"]);
    assert!(!tally.is_empty());
    let mut sum = Tally::default();
    sum.add(tally);
    assert_eq!(sum.left_out.len(), 2);
}

#[test]
fn a_test_that_skips_for_two_reasons_is_one_test_with_both() {
    let (tally, _) = read(SEVERAL);
    let reasons: Vec<_> = tally
        .skips
        .iter()
        .filter(|skip| skip.name == "p: a")
        .map(|skip| skip.reason.as_str())
        .collect();
    assert_eq!(reasons, ["needs root", "needs mounts"]);
}

#[test]
fn a_skip_says_where_the_test_was_to_run() {
    let mut tally = Tally::on(Host::Emulated);
    for line in SEVERAL.lines() {
        tally.line(line);
    }
    assert!(tally.skips.iter().all(|skip| skip.host == Host::Emulated));
    assert!(read(SEVERAL).0.skips.iter().all(|skip| skip.host == Host::Native));
}
