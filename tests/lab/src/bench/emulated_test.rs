//! Profiles measured in emulated hosts that are scripts: what is made of hosts that stand still, die, or end too early.

use std::process::Command;

use super::*;
use crate::bench::work_queue::GivenUp;
use crate::watched::{self, Limits};

const FIGURE_DEFS: [FigureDef<f64>; 1] = [("exit_virtual_ms", "ms", |sample| *sample)];

/// What a host of the test is asked for: the numbers of its lives, and how many guests were given up before.
type Asked = Vec<(Vec<usize>, u32)>;

/// Measures husk and q35 once each and a first time, in hosts that are these shell scripts, one
/// after the other; each has its lives in `LIVES`. What came of it, and what each host was asked.
fn measured(scripts: &[&str]) -> (Result<()>, Results, Asked) {
    let subjects = [Kind::Husk, Kind::QemuQ35].map(|kind| Subject::new(kind, "/bin/true"));
    let extent = Extent {
        runs: 1,
        patience: Duration::from_secs(2),
        timing: Timing::Deterministic,
    };
    let mut measuring = Measuring::new("boot", &subjects, extent, &[], &FIGURE_DEFS);
    let (mut asked, mut scripts) = (Asked::new(), scripts.iter());
    let ended = measuring.carry_out(&mut |lives, given_up, progress, output| {
        let numbers: Vec<_> = lives.iter().map(|life| life.number).collect();
        let words: Vec<_> = numbers.iter().map(usize::to_string).collect();
        asked.push((numbers, given_up));
        let mut qemu = Command::new("sh");
        let script = scripts.next().context("one host more than scripts")?;
        qemu.args(["-c", script]).env("LIVES", words.join(" "));
        let limits = Limits {
            timeout: None,
            progress: Some(Arc::clone(progress)),
        };
        match watched::run(&mut qemu, true, &limits, output) {
            Ok(()) => Ok(0),
            Err(error) => Err(Lost::new(error.to_string(), String::new()).into()),
        }
    });
    (ended, measuring.results(), asked)
}

/// A host that does all its lives.
const WHOLE: &str = r#"for life in $LIVES; do
    echo "husk-lab: {\"begins\":$life}"
    echo "husk-lab: {\"ended\":[$life,{\"Ok\":$life.5}]}"
done"#;

/// One that does two and then stands still in the third, asleep or not.
fn still(how: &str) -> String {
    format!(
        r#"set -- $LIVES; LIVES="$1 $2"; {WHOLE}
        echo "husk-lab: {{\"begins\":$3}}"; echo 'husk-lab: {{"counted_ms":500}}'; {how}"#
    )
}

fn samples(results: &Results) -> Vec<(&str, usize, f64)> {
    let figures = results.figures.iter();
    figures
        .map(|figure| (figure.subject.as_str(), figure.n, figure.median))
        .collect()
}

#[test]
fn a_host_that_stands_still_costs_one_life_and_the_rest_goes_on_in_a_new_one() {
    for how in ["sleep 1000; true", "while :; do :; done"] {
        let (ended, results, asked) = measured(&[&still(how), WHOLE]);
        ended.unwrap();
        assert_eq!(asked, [(vec![0, 1, 2, 3], 0), (vec![2, 3], 1)]);
        assert_eq!(samples(&results), [("husk", 1, 3.5), ("qemu-q35", 1, 2.5)]);
        assert!(results.failures.is_empty());
        let given_up: Vec<_> = results.given_up.iter().map(GivenUp::to_string).collect();
        assert_eq!(given_up.len(), 1);
        let expected = "qemu-q35: given up and done again: its emulated host stands still: it has ";
        assert!(given_up[0].starts_with(expected), "{given_up:?}");
    }
}

#[test]
fn a_host_that_counts_time_is_left_alone() {
    // It is silent but for its clock, and for longer than its patience.
    let slow = format!(
        r#"for ms in 1000 2000 3000; do echo "husk-lab: {{\"counted_ms\":$ms}}"; sleep 1; done
        {WHOLE}"#
    );
    let (ended, results, asked) = measured(&[&slow]);
    ended.unwrap();
    assert_eq!(asked.len(), 1);
    assert!(results.given_up.is_empty());
}

#[test]
fn a_host_that_dies_or_ends_early_is_lost_too() {
    let early = r#"echo 'husk-lab: {"begins":0}'; echo 'husk-lab: {"ended":[0,{"Ok":9.0}]}'"#;
    let (ended, results, asked) = measured(&[early, "exit 1", WHOLE]);
    ended.unwrap();
    assert_eq!(asked[1..], [(vec![1, 2, 3], 0), (vec![1, 2, 3], 0)]);
    assert_eq!(samples(&results), [("husk", 1, 3.5), ("qemu-q35", 1, 2.5)]);
}

#[test]
fn hosts_that_end_before_a_life_are_named_by_their_last_words() {
    let script = r#"echo 'lab: a strange plan'; echo 'husk-lab: {"counted_ms":1}'"#;
    let (ended, results, asked) = measured(&[script; 3]);
    ended.unwrap();
    assert_eq!(asked.len(), 3);
    let why = &results.failures[0].1;
    assert!(
        why.ends_with("ended before its lives did, with 0: lab: a strange plan"),
        "{why}"
    );
}

#[test]
fn hosts_that_never_get_on_end_the_profile_with_the_samples_that_there_are() {
    let three = format!(r#"LIVES="0 1 2"; {WHOLE}"#);
    let (ended, results, _) = measured(&[&three, "exit 1", "exit 1", "exit 1"]);
    ended.unwrap();
    assert_eq!(samples(&results), [("qemu-q35", 1, 2.5)]);
    assert_eq!(results.failures.len(), 2);
    let why = &results.failures[0].1;
    assert!(
        why.starts_with("given up after 3 attempts: its emulated host it failed"),
        "{why}"
    );
}

#[test]
fn a_broken_guest_is_counted_and_a_failed_subject_is_not_asked_again() {
    let script = r#"echo 'husk-lab: {"begins":0}'
        echo 'husk-lab: {"broken":[0,"Kernel panic - not syncing: stack"]}'
        echo 'husk-lab: {"ended":[0,{"Ok":1.0}]}'
        echo 'husk-lab: {"begins":1}'; echo 'husk-lab: {"ended":[1,{"Err":"no KVM"}]}'
        echo 'husk-lab: {"begins":3}'; echo 'husk-lab: {"ended":[3,{"Ok":2.0}]}'"#;
    let (ended, results, asked) = measured(&[script]);
    ended.unwrap();
    assert_eq!(asked.len(), 1);
    assert_eq!(samples(&results), [("husk", 1, 2.0)]);
    assert_eq!(results.failures, [(Kind::QemuQ35, "no KVM".to_string())]);
    assert_eq!(results.given_up[0].why, "Kernel panic - not syncing: stack");
}

#[test]
fn what_cannot_be_packed_is_named_before_anything_boots() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("cloud-hypervisor");
    std::fs::write(&script, "#!/bin/sh\nexec real \"$@\"\n").unwrap();
    let subjects = [
        Subject::new(Kind::CloudHypervisor, &script),
        Subject::new(Kind::Husk, std::env::current_exe().unwrap()),
    ];
    let mut files = Vec::new();
    let (there, failures) = pack(&subjects.iter().collect::<Vec<_>>(), &mut files);
    assert_eq!(there.len(), 1);
    assert_eq!(failures[0].0, Kind::CloudHypervisor);
    assert!(failures[0].1.contains("is a script"), "{failures:?}");
    assert!(!files.iter().any(|(file, _)| *file == script));
}
