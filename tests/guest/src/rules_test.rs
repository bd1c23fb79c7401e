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
fn the_rules_hold_on_the_host() {
    let folder = tempfile::tempdir().unwrap();
    let lines = match run(folder.path()) {
        Err(error) => return println!("skipped: {error}"),
        lines => lines.unwrap(),
    };
    let broken: Vec<_> = lines.iter().filter(|line| !line.holds()).map(Line::to_string).collect();
    if is_ext4(folder.path()) {
        assert!(broken.is_empty(), "{broken:#?}");
    } else {
        println!("skipped: not on ext4; other answers here: {broken:#?}");
    }
}
