//! The README's status table names tests that exist.

use std::path::{Path, PathBuf};

const HEADING: &str = "## What works, and the test that proves it";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The table's column of tests, row by row.
fn rows(readme: &str) -> Vec<&str> {
    let section = readme.split_once(HEADING).unwrap().1;
    let section = section.split("\n## ").next().unwrap();
    let cells = section
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    cells
        .filter_map(|row| row.rsplit_once(" | "))
        .map(|(_, tests)| tests)
        .skip(1)
        .collect()
}

/// What a cell has between backticks.
fn names(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// Whether there is a file or folder at `path`, whose last part may begin with a `*`.
fn exists(path: &Path) -> bool {
    let Some(ending) = path.file_name().and_then(|name| name.to_str()?.strip_prefix('*')) else {
        return path.exists();
    };
    let Ok(entries) = path.parent().unwrap().read_dir() else {
        return false;
    };
    entries
        .filter_map(Result::ok)
        .any(|entry| entry.file_name().to_string_lossy().ends_with(ending))
}

/// What one name of a cell claims that is not so. `file` is the file that the cell has named last.
fn untrue(name: &str, file: &mut PathBuf) -> Option<String> {
    if name.starts_with("cargo ") {
        return None;
    }
    let (path, test) = match name.split_once("::") {
        Some((path, test)) => (Some(path), Some(test)),
        None if name.contains(['/', '.']) => (Some(name), None),
        None => (None, Some(name)),
    };
    if let Some(path) = path {
        let beside = file.with_file_name(path);
        *file = if path.contains('/') { root().join(path) } else { beside };
        if !exists(file) {
            return Some(format!("{name}: no such file"));
        }
    }
    let text = std::fs::read_to_string(&*file).unwrap_or_default();
    let test = test?;
    (!text.contains(&format!("fn {test}("))).then(|| format!("{name}: not in {}", file.display()))
}

#[test]
fn every_test_that_the_readme_names_exists() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let rows = rows(&readme);
    assert!(rows.len() > 30, "the table is read: {}", rows.len());
    let mut missing = Vec::new();
    for cell in rows {
        let mut file = root();
        assert!(names(cell).next().is_some(), "no test in '{cell}'");
        missing.extend(names(cell).filter_map(|name| untrue(name, &mut file)));
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn what_does_not_exist_is_noticed() {
    let mut file = root();
    assert!(untrue("tests/boot.rs::no_such_test", &mut file).is_some());
    assert!(
        untrue("debian_6_12_bzimage_boots", &mut file).is_none(),
        "in the file before"
    );
    assert!(untrue("no_such_file.rs", &mut file).is_some());
    assert!(untrue("virtio/src/vhost_user/*_tests.rs", &mut file).is_some());
}
