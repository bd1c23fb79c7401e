//! What the documents say of the source is true: lists of files, threads, events and exit codes, and every link.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use husk_devices::testing::{files, shipped_sources};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn from_root(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

/// The part of a document from a heading to the next one of its kind.
fn section(document: &str, heading: &str) -> String {
    let document = text(document);
    let begin = document.find(heading).unwrap_or_else(|| panic!("no {heading}"));
    let rest = &document[begin + heading.len()..];
    rest[..rest.find("\n## ").unwrap_or(rest.len())].to_owned()
}

/// First cells of a table's rows, without the marks of code.
fn first_cells(table: &str) -> Vec<String> {
    let rows = table.lines().filter_map(|line| line.strip_prefix("| "));
    rows.map(|row| row.split(" |").next().unwrap().replace('`', ""))
        .skip(1)
        .collect()
}

/// What stands between marks of code.
fn code(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn the_list_of_files_with_unsafe_code_is_complete() {
    let opts_in = |source: &str| {
        let mut before = source.split("unsafe_code").map(str::trim_end);
        before.any(|before| before.ends_with("expect(") || before.ends_with("allow("))
    };
    let unsafe_files: Vec<String> = files(&root(), ".rs")
        .iter()
        .filter(|path| from_root(path) != "vmm/tests/docs.rs")
        .filter(|path| opts_in(&fs::read_to_string(path).unwrap()))
        .map(|path| from_root(path))
        .collect();
    let mut unsafe_files = unsafe_files;
    unsafe_files.sort();
    let listed = first_cells(&section("docs/architecture.md", "## 7. Unsafe code"));
    assert_eq!(listed, unsafe_files);
}

#[test]
fn every_event_is_documented_and_happens() {
    let mut source = String::new();
    for (_, text) in shipped_sources(&root().join("vmm/src")) {
        source += &text;
    }
    let in_api = section("docs/api.md", "## Events");
    let rows = in_api.lines().filter(|line| line.starts_with("| `"));
    let mut documented = BTreeSet::new();
    for row in rows {
        let mut cells = row.trim_matches('|').splitn(2, '|');
        let event_source = cells.next().unwrap().trim().replace('`', "");
        for event in cells.next().unwrap().split([',', ';']) {
            let name = event.trim().strip_prefix('`').and_then(|event| event.split('`').next());
            documented.extend(name.map(|name| (event_source.clone(), name.to_owned())));
        }
    }
    for (from, event) in &documented {
        assert!(
            source.contains(&format!("\"{event}\"")),
            "{from} {event} is documented and never happens"
        );
    }
    let emitted = source.split(".emit").skip(1).filter_map(|call| {
        let arguments = call.split(['(', ')']).nth(1)?;
        arguments.split('"').nth(3).map(str::to_owned)
    });
    let documented = code(&in_api);
    let missing: BTreeSet<String> = emitted.filter(|event| !documented.contains(event)).collect();
    assert!(missing.is_empty(), "docs/api.md lacks {missing:?}");
}

#[test]
fn the_table_of_figures_is_that_of_the_program() {
    let row = |family: husk::metrics::Family| {
        let labels: Vec<String> = family.labels.iter().map(|label| format!("`{label}`")).collect();
        format!(
            "| `{}` | {} | {} | {} |\n",
            family.name,
            family.kind.name(),
            labels.join(", "),
            family.help
        )
    };
    let expected: String = husk::metrics::families().map(row).collect();
    let section = text("docs/operate.md");
    let table = section.split_once("### All figures").unwrap().1;
    let table = table.split_once("\n|---|---|---|---|\n").unwrap().1;
    let table = table.split("\n\n").next().unwrap().trim_end();
    assert_eq!(table, expected.trim_end(), "docs/operate.md should have:\n{expected}");
}

#[test]
fn every_thread_is_documented() {
    let documented = first_cells(&section("docs/architecture.md", "## 5. Threads"));
    for folder in ["vmm/src", "virtio/src"] {
        for (path, source) in shipped_sources(&root().join(folder)) {
            let named = source
                .split(".name(\"")
                .skip(1)
                .filter_map(|rest| rest.split_once("\".into())"));
            for (name, _) in named.filter(|(name, _)| !name.contains('"')) {
                assert!(
                    documented.iter().any(|known| known == name),
                    "{}: thread {name}",
                    from_root(&path)
                );
            }
            for name in source.split("\"io-").skip(1).filter_map(|rest| rest.split('"').next()) {
                if !name.is_empty() && !name.contains('{') {
                    let name = format!("io-{name}");
                    assert!(documented.contains(&name), "{}: thread {name}", from_root(&path));
                }
            }
        }
    }
}

#[test]
fn every_link_between_documents_leads_somewhere() {
    for document in files(&root(), ".md") {
        let content = fs::read_to_string(&document).unwrap();
        for target in content.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            if path.contains("://") {
                continue;
            }
            let place = if path.is_empty() {
                document.clone()
            } else {
                document.parent().unwrap().join(path)
            };
            assert!(place.exists(), "{}: {target}", from_root(&document));
            if !anchor.is_empty() && place.extension().is_some_and(|end| end == "md") {
                let linked = fs::read_to_string(&place).unwrap();
                let headings = linked.lines().filter(|line| line.starts_with('#')).map(|line| {
                    let kept = line.trim_start_matches('#').trim().to_lowercase();
                    let kept = kept
                        .chars()
                        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
                    kept.collect::<String>().replace(' ', "-")
                });
                assert!(
                    headings.into_iter().any(|heading| heading == anchor),
                    "{}: {target}",
                    from_root(&document)
                );
            }
        }
    }
}

#[test]
fn every_decision_is_listed() {
    let listed = text("docs/README.md");
    for decision in files(&root().join("docs/adr"), ".md") {
        let name = decision.file_name().unwrap().to_str().unwrap();
        assert!(listed.contains(name), "docs/README.md lacks {name}");
    }
}

#[test]
fn exit_codes_are_the_same_everywhere() {
    let number = |text: &str| text.trim().parse::<u8>().ok();
    let readme = section("README.md", "| exit code |");
    let readme: BTreeSet<u8> = readme
        .lines()
        .filter_map(|row| number(row.strip_prefix("| ")?.split('|').next()?))
        .collect();
    let manual = text("docs/husk.1");
    let manual = &manual[manual.find(".SH EXIT STATUS").unwrap()..];
    let manual: BTreeSet<u8> = manual
        .lines()
        .filter_map(|line| number(line.split_whitespace().next()?))
        .collect();
    assert_eq!(readme, manual);
    let rows = text("README.md").replace('`', "");
    for exit in husk::explain::exits() {
        let row = format!("\n| {} | {} |\n", exit.key, exit.means);
        assert!(rows.contains(&row), "README.md lacks {row}");
    }
    assert!(readme.contains(&u8::try_from(husk::seccomp::EXIT_CODE).unwrap()));
}
