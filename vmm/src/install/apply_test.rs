use super::super::content::drafts;
use super::super::testing::System;
use super::super::{apply, plan};
use super::*;

/// Whatever step fails, the system is as it was but for what made it fail.
fn fails_at_every_step(upgrade: bool) {
    let steps = {
        let system = prepared(upgrade);
        plan(&system.options()).unwrap().changes.len()
    };
    assert!(steps >= if upgrade { 4 } else { 11 }, "{steps}");
    for step in 0..=steps {
        let system = prepared(upgrade);
        let plan = plan(&system.options()).unwrap();
        // A folder that has come since where a file is to go: it cannot be replaced, nor be removed as a file.
        let path = match plan.changes.get(step) {
            Some(change) => change.path.clone(),
            None => Manifest::path(&plan.prefix),
        };
        let place = beneath(&plan.root, &path);
        let _ = fs::remove_file(&place);
        fs::create_dir_all(place.join("occupied")).unwrap();
        let tree = system.tree();
        let error = apply(&plan).unwrap_err().to_string();
        assert!(error.contains(&place.display().to_string()), "step {step}: {error}");
        assert!(
            error.ends_with("; nothing was changed") || path == Manifest::path(&plan.prefix),
            "{error}"
        );
        let after = system.tree();
        let changed: Vec<_> = tree
            .iter()
            .filter(|(path, content)| after.get(*path) != Some(content))
            .collect();
        let left: Vec<_> = after.keys().filter(|path| !tree.contains_key(*path)).collect();
        assert!(
            changed.is_empty() && left.is_empty(),
            "step {step}: changed {changed:?}, left {left:?}"
        );
    }
}

fn prepared(upgrade: bool) -> System {
    let system = System::new();
    if upgrade {
        system.install(&system.options()).unwrap();
        system.write("downloads/husk", "\0newer\0");
    }
    system
}

#[test]
fn an_installation_that_fails_leaves_nothing() {
    fails_at_every_step(false);
}

#[test]
fn an_upgrade_that_fails_leaves_what_there_was() {
    fails_at_every_step(true);
}

#[test]
fn what_was_killed_at_any_step_can_be_finished_or_removed() {
    let steps = plan(&System::new().options()).unwrap().changes.len();
    for (step, finish) in (0..=steps).flat_map(|step| [(step, true), (step, false)]) {
        let system = System::new();
        let before = system.tree();
        let plan = plan(&system.options()).unwrap();
        let first = Change {
            path: Manifest::path(&plan.prefix),
            before: None,
            after: Some(plan.after.content()),
            excerpt: None,
        };
        let steps: Vec<_> = [&first].into_iter().chain(&plan.changes).collect();
        let mut made = Vec::new();
        for step in &steps[..step] {
            take(&plan.root, step, &mut made).unwrap();
        }
        // As a process does that is killed when it has written half of a file.
        let [draft, _] = drafts(&beneath(&plan.root, &steps[step].path));
        take(&plan.root, steps[step], &mut made).unwrap();
        fs::remove_file(beneath(&plan.root, &steps[step].path)).unwrap();
        fs::write(&draft, "half").unwrap();
        let told = super::super::status(system.root(), Path::new("/opt/husk"), &system.options().program);
        assert!(
            step == 0
                || told
                    .as_ref()
                    .is_ok_and(|told| !told.is_ok() && told.to_table().contains("missing ")),
            "{told:?}"
        );
        if finish {
            system.install(&system.options()).unwrap();
            assert!(!draft.exists(), "step {step}");
            let told = super::super::status(system.root(), Path::new("/opt/husk"), &system.options().program);
            assert!(told.unwrap().is_ok());
        }
        let removal = super::super::removal(system.root(), Path::new("/opt/husk")).unwrap();
        super::super::remove(&removal).unwrap();
        assert!(system.tree() == before, "step {step}, finished: {finish}");
    }
}

#[test]
fn a_folder_of_drop_ins_never_has_a_half_written_file() {
    // What is being written is written in the folder above: with that closed to it, nothing appears below either.
    let system = System::new();
    system.install(&system.options()).unwrap();
    let names = |folder: &str| -> Vec<_> {
        let entries = fs::read_dir(system.root().join(folder)).unwrap().flatten();
        entries.map(|entry| entry.file_name()).collect()
    };
    assert_eq!(names("etc/containerd/conf.d"), ["90-kata-husk.toml"]);
    assert_eq!(names("opt/husk/share/husk/kata/kata-husk/config.d"), ["10-husk.toml"]);
    assert_eq!(names("etc/containerd").len(), 2, "nothing is left in the folder above");
}

#[test]
fn what_is_taken_back_has_its_owner_again() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root: only root gives files away");
        return;
    }
    let system = prepared(true);
    let plan = plan(&system.options()).unwrap();
    // The link is replaced, and a later step fails.
    let link = system.root().join("opt/husk/bin/husk");
    lchown(&link, Some(4711), Some(4712)).unwrap();
    let manifest = system.root().join("opt/husk/share/husk/manifest.json");
    let last = plan.changes.iter().rfind(|change| change.after.is_none()).unwrap();
    let place = beneath(&plan.root, &last.path);
    fs::remove_file(&place).unwrap();
    fs::create_dir(&place).unwrap();
    lchown(&manifest, Some(4711), None).unwrap();
    apply(&plan).unwrap_err();
    assert_eq!(owner(&link), Some((4711, 4712)));
    assert_eq!(owner(&manifest).unwrap().0, 4711);
}
