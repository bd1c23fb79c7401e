use std::collections::BTreeSet;

use super::*;

/// Whether `folder` is on ext4, whose answers the rules are.
fn is_ext4(folder: &Path) -> bool {
    const EXT4_SUPER_MAGIC: i64 = 0xef53;
    rustix::fs::statfs(folder).unwrap().f_type == EXT4_SUPER_MAGIC
}

#[test]
fn each_rule_has_a_name_of_its_own() {
    let cases = cases();
    let mut names = BTreeSet::new();
    let twice: Vec<_> = cases
        .iter()
        .map(|case| &case.name)
        .filter(|name| !names.insert(*name))
        .collect();
    assert!(twice.is_empty(), "{twice:?}");
    assert!(cases.len() > 600, "{}", cases.len());
}

#[test]
fn a_choice_takes_every_so_many_and_those_of_a_name() {
    let taken = |choice: &Choice| {
        let cases = cases().into_iter().enumerate();
        cases.filter(|(number, case)| choice.has(*number, &case.name)).count()
    };
    let all = cases().len();
    assert_eq!(taken(&Choice::all()), all);
    let mut choice = Choice {
        every: 10,
        also: Vec::new(),
    };
    assert_eq!(taken(&choice), all.div_ceil(10));
    choice.every = usize::MAX;
    choice.also.push("lock: two who".into());
    assert_eq!(taken(&choice), 2, "the first one, and that one");
}

#[test]
fn the_rules_hold_on_the_host() {
    let folder = tempfile::tempdir().unwrap();
    let lines = match run(folder.path(), &Choice::all()) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return println!("skipped: needs root: {error}");
        }
        lines => lines.unwrap(),
    };
    let broken: Vec<_> = lines.iter().filter(|line| !line.holds()).map(Line::to_string).collect();
    if is_ext4(folder.path()) {
        assert!(broken.is_empty(), "{broken:#?}");
    } else {
        println!("skipped: needs ext4: other answers here: {broken:?}");
    }
}
