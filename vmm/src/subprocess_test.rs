//! A test of this program once more, in a process of its own: what it does cannot be undone, or ends the process.

use std::process::Command;

/// A process that runs `test` alone, and shows what it says.
pub(crate) fn rerun(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]);
    command
}

/// Whether the test of [`rerun`] ran, held and came to where it says `word`; if not, what was said. Where no test has
/// the name, the test runner ends well.
pub(crate) fn expect_passed(command: &mut Command, word: &str) -> Result<(), String> {
    let ended = command.output().unwrap();
    let [said, complained] = [&ended.stdout, &ended.stderr].map(|text| String::from_utf8_lossy(text));
    let ran = said.contains("test result: ok. 1 passed;") && complained.lines().any(|line| line == word);
    if ended.status.success() && ran {
        return Ok(());
    }
    Err(format!("{}: {said}{complained}", ended.status))
}

/// Set for [`victim`]: what it says, or `panic`.
const SAYS: &str = "HUSK_SUBPROCESS_SAYS";

/// Not a test by itself: run by the one below, in a process of its own.
#[test]
fn victim() {
    let Ok(says) = std::env::var(SAYS) else { return };
    assert_ne!(says, "panic");
    eprintln!("{says}");
}

#[test]
fn a_test_that_did_not_come_to_its_end_has_not_held() {
    let says = |name: &str, says: &str| expect_passed(rerun(name).env(SAYS, says), "the end");
    assert_eq!(says("subprocess::victim", "the end"), Ok(()));
    assert!(says("subprocess::victim", "not yet").is_err());
    assert!(says("subprocess::victim", "panic").is_err());
    assert!(
        expect_passed(&mut rerun("subprocess::victim"), "the end").is_err(),
        "nobody told it to"
    );
    assert!(says("subprocess::no_such_test", "the end").is_err());
    assert!(says("again", "the end").is_err(), "several, or none");
}
