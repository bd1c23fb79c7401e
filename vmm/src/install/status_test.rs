use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::super::testing::{DROP_IN, System};
use super::super::{Engine, Options};
use super::*;

const MAIN: &str = "etc/containerd/config.toml";
/// containerd 1's, with a section that the drop-in copies.
const OLD: &str = "version = 2\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"x\"\n";

/// Installs with `prepare` before, does what `meanwhile` does, and holds `line` to be what is wrong then.
fn tells(prepare: fn(&System), meanwhile: fn(&System), line: &str) {
    let system = System::new();
    prepare(&system);
    system.install(&system.options()).unwrap();
    let told = || status(system.root(), Path::new("/opt/husk"), &system.options().program).unwrap();
    assert!(told().is_ok(), "{}", told().to_table());
    meanwhile(&system);
    let told = told();
    let table = told.to_table();
    let wrong: Vec<_> = table.lines().skip(1).filter(|line| !line.starts_with("ok ")).collect();
    assert!(
        !told.is_ok() && wrong.iter().any(|wrong| wrong.starts_with(line)),
        "{line}: {table}"
    );
    assert!(!table.lines().any(|line| line.ends_with(' ')), "{table:?}");
}

fn mode(system: &System, path: &str, mode: u32) {
    fs::set_permissions(system.root().join(path), fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn an_import_that_is_not_there_any_more_is_a_problem() {
    tells(
        |_| {},
        |system| system.write(MAIN, "version = 3\n"),
        "problem    /etc/containerd/config.toml does not import the handlers yet: put imports = ",
    );
}

#[test]
fn an_engine_that_is_not_there_any_more_is_a_problem() {
    let gone = |system: &System| fs::remove_file(system.root().join(MAIN)).unwrap();
    let says = format!("/{MAIN}: is not there, and what version of containerd is to read it is not known");
    let system = System::new();
    system.install(&system.options()).unwrap();
    gone(&system);
    let table = status(system.root(), Path::new("/opt/husk"), &system.options().program).unwrap();
    assert!(
        !table.is_ok() && table.to_table().contains(&says),
        "{}",
        table.to_table()
    );
    let system = System::new();
    let crio = Options {
        engine: Some(Engine::Crio),
        ..system.options()
    };
    system.write("usr/bin/crio", "");
    system.install(&crio).unwrap();
    let told = || status(system.root(), Path::new("/opt/husk"), &crio.program).unwrap();
    assert!(told().is_ok(), "{}", told().to_table());
    fs::remove_file(system.root().join("usr/bin/crio")).unwrap();
    assert!(
        told().to_table().contains("\nproblem    CRI-O is not here: "),
        "{}",
        told().to_table()
    );
}

#[test]
fn permissions_that_are_not_as_they_were_installed_are_told() {
    tells(
        |_| {},
        |system| mode(system, DROP_IN, 0o600),
        "changed    /etc/containerd/conf.d/90-kata-husk.toml has mode 0600 in place of 0644",
    );
    // The manifest does not say what it is called.
    tells(
        |_| {},
        |system| {
            let programs = fs::read_dir(system.root().join("opt/husk/lib/husk")).unwrap();
            for program in programs.flatten() {
                fs::set_permissions(program.path(), fs::Permissions::from_mode(0o400)).unwrap();
            }
        },
        "changed    /opt/husk/lib/husk/husk-",
    );
    // A copy is for as many as the original is, today.
    tells(
        |system| system.write(MAIN, OLD),
        |system| mode(system, MAIN, 0o600),
        "changed    /etc/containerd/conf.d/90-kata-husk.toml has mode 0644 in place of 0600",
    );
}

#[test]
fn another_program_than_the_installed_one_says_so() {
    tells(
        |_| {},
        |system| system.write("downloads/husk", "\0newer\0"),
        "stale      /opt/husk/bin/husk is husk ",
    );
}

#[test]
fn what_containerd_1_reads_since_is_told() {
    tells(
        |system| system.write(MAIN, OLD),
        |system| system.write("etc/containerd/conf.d/20-cri.toml", &OLD.replace("\"x\"", "\"y\"")),
        "stale      /etc/containerd/conf.d/90-kata-husk.toml would be another one today; install again",
    );
    tells(
        |system| system.write(MAIN, OLD),
        |system| system.write("etc/containerd/conf.d/99-cri.toml", OLD),
        "problem    /",
    );
}

#[test]
fn a_handler_that_others_define_since_is_a_problem() {
    tells(
        |_| {},
        |system| {
            let text = "version = 3\n[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.kata-husk]\n";
            system.write("etc/containerd/conf.d/99-x.toml", text);
        },
        "problem    /",
    );
}

#[test]
fn what_is_changed_is_told_once() {
    let system = System::new();
    system.install(&system.options()).unwrap();
    system.write(DROP_IN, "# mine\n");
    let table = status(system.root(), Path::new("/opt/husk"), &system.options().program).unwrap();
    let table = table.to_table();
    assert_eq!(table.matches(DROP_IN).count(), 1, "{table}");
}
