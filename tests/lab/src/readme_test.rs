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

/// What is at `path`, whose last part may begin with a `*`: files, with those below a folder; none if there is nothing.
fn files(path: &Path) -> Vec<PathBuf> {
    let Some(ending) = path.file_name().and_then(|name| name.to_str()?.strip_prefix('*')) else {
        let below = path.read_dir().into_iter().flatten().filter_map(Result::ok);
        return match path.is_file() {
            true => vec![path.to_owned()],
            false => below.flat_map(|entry| files(&entry.path())).collect(),
        };
    };
    let beside = path.parent().unwrap().read_dir().into_iter().flatten();
    beside
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().ends_with(ending))
        .map(|entry| entry.path())
        .collect()
}

/// The names of functions in `source` that the test runner runs: marked `#[test]`, or named to a
/// macro that gives them that mark.
fn tests(source: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut marked = false;
    for line in source.lines().map(str::trim) {
        if line.starts_with("#[") || line.starts_with("//") {
            // Other attributes and comments may stand between the mark and the function.
            marked |= line.starts_with("#[test]");
            continue;
        }
        let name = line.strip_prefix("fn ").and_then(|rest| rest.split(['(', '<']).next());
        found.extend(name.filter(|_| marked));
        marked = false;
    }
    let engines = source.split("with_both_engines! {").skip(1);
    found.extend(engines.flat_map(|rest| rest.split('}').next().unwrap().split_whitespace()));
    found
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
        if files(file).is_empty() {
            return Some(format!("{name}: no such file"));
        }
    }
    let sources: Vec<_> = files(file)
        .iter()
        .filter_map(|file| std::fs::read_to_string(file).ok())
        .collect();
    let mut found = sources.iter().flat_map(|source| tests(source));
    let is_there = match test {
        Some(test) => found.any(|name| name == test),
        None => found.next().is_some(),
    };
    (!is_there).then(|| format!("{name}: no such test in {}", file.display()))
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
    assert!(untrue("virtio/src/vhost_user/*_test.rs", &mut file).is_none());
    assert!(untrue("vmm/src/fleet/", &mut file).is_none());
    // A file without a test of its own, a folder of such, and a function that is none.
    assert!(untrue("virtio/src/block/testing.rs", &mut file).is_some());
    assert!(untrue("docs/adr", &mut file).is_some());
    assert!(untrue("tests/boot.rs::boots", &mut file).is_some());
}

#[test]
fn only_what_the_runner_runs_is_a_test() {
    let source = "fn helper() {}\n#[test]\n#[ignore]\n// Why.\nfn one() {}\nfn other() {}\nproptest! {\n    #[test]\n    fn two(a in 0..9) {}\n}\n\
                  with_both_engines! {\n    three\n    four\n}\nfn three(uring: bool) {}\n";
    assert_eq!(tests(source), ["one", "two", "three", "four"]);
}
