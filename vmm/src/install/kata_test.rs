use toml_edit::DocumentMut;

use super::super::testing::{BASE, GO, RUST, System};
use super::super::{InstallError, Options};

fn installed(system: &System, path: &str) -> DocumentMut {
    system
        .read(&format!("opt/husk/share/husk/kata/{path}"))
        .parse()
        .unwrap()
}

#[test]
fn a_handler_has_katas_file_and_what_differs() {
    let system = System::new();
    system.install(&system.options()).unwrap();
    for handler in ["kata-husk", "kata-husk-go"] {
        assert_eq!(
            system.read(&format!("opt/husk/share/husk/kata/{handler}/configuration.toml")),
            BASE
        );
        let overlay = installed(&system, &format!("{handler}/config.d/10-husk.toml"));
        let clh = overlay["hypervisor"]["clh"].as_table().unwrap();
        let value = |key: &str| clh[key].as_value().unwrap().to_string().trim().to_owned();
        assert_eq!(value("path"), "\"/opt/husk/bin/husk\"");
        assert_eq!(value("valid_hypervisor_paths"), "[\"/opt/husk/bin/husk\"]");
        assert_eq!(value("virtio_fs_daemon"), "\"/opt/husk/libexec/husk/virtiofsd\"");
        assert_eq!(clh.len(), 4);
    }
}

#[test]
fn katas_file_server_stays_unless_asked_for() {
    let system = System::new();
    let options = Options {
        file_server: false,
        ..system.options()
    };
    system.install(&options).unwrap();
    let overlay = installed(&system, "kata-husk/config.d/10-husk.toml");
    assert_eq!(overlay["hypervisor"]["clh"].as_table().unwrap().len(), 2);
    assert!(!system.has("opt/husk/libexec"));
}

#[test]
fn the_only_shim_has_the_classs_name() {
    let system = System::new();
    std::fs::remove_file(system.root().join(RUST)).unwrap();
    system.install(&system.options()).unwrap();
    assert!(system.has("opt/husk/share/husk/kata/kata-husk") && !system.has("opt/husk/share/husk/kata/kata-husk-go"));
    let text = system.read("etc/containerd/conf.d/90-kata-husk.toml");
    assert!(
        text.contains("runtime_path = \"/opt/kata/bin/containerd-shim-kata-v2\""),
        "{text}"
    );
}

#[test]
fn a_host_without_kata_says_what_was_looked_for() {
    let system = System::new();
    std::fs::remove_file(system.root().join(RUST)).unwrap();
    std::fs::remove_file(system.root().join("opt/kata/bin/containerd-shim-kata-v2")).unwrap();
    let refused = system.install(&system.options()).unwrap_err();
    for part in [
        "opt/kata: has neither of Kata's shims",
        "runtime-rs/bin/containerd-shim-kata-v2 with share/",
        "; bin/containerd-shim-kata-v2 with share/",
    ] {
        assert!(refused.contains(part), "{refused}");
    }
}

#[test]
fn the_hypervisors_older_name_is_kept() {
    let system = System::new();
    system.write(RUST, &BASE.replace("hypervisor.clh", "hypervisor.cloud-hypervisor"));
    system.install(&system.options()).unwrap();
    let overlay = installed(&system, "kata-husk/config.d/10-husk.toml");
    assert!(overlay["hypervisor"]["cloud-hypervisor"].is_table());
}

#[test]
fn a_configuration_that_is_none_is_refused_by_its_place() {
    let system = System::new();
    std::fs::remove_file(system.root().join(RUST)).unwrap();
    for (text, problem) in [
        ("[hypervisor.clh\n", "TOML parse error at line 1, column 16: "),
        ("[hypervisor.qemu]\n", "has no [hypervisor.clh]"),
        ("hypervisor = 1\n", "has no [hypervisor.clh]"),
    ] {
        system.write(GO, text);
        let refused = system.install(&system.options()).unwrap_err();
        assert!(
            refused.contains("configuration-clh.toml: ") && refused.contains(problem),
            "{refused}"
        );
        assert_eq!(refused.lines().count(), 1, "{refused}");
    }
    std::fs::write(system.root().join(GO), b"\xff").unwrap();
    assert!(matches!(
        super::super::plan(&system.options()),
        Err(InstallError::Io { .. })
    ));
}

#[test]
fn one_shim_without_a_usable_configuration_keeps_no_handler_from_the_other() {
    for (broken, program, other) in [
        (
            GO,
            "/opt/kata/bin/containerd-shim-kata-v2",
            "/opt/kata/runtime-rs/bin/containerd-shim-kata-v2",
        ),
        (
            RUST,
            "/opt/kata/runtime-rs/bin/containerd-shim-kata-v2",
            "/opt/kata/bin/containerd-shim-kata-v2",
        ),
    ] {
        let system = System::new();
        system.write(broken, "[hypervisor.qemu]\n");
        let told = super::super::plan(&system.options()).unwrap().describe();
        let note = told
            .lines()
            .find(|line| line.starts_with(&format!("note     {program} gets no handler: ")));
        let note = note.unwrap_or_else(|| panic!("{told}"));
        assert!(
            note.contains(broken) && note.contains("has no [hypervisor.clh]"),
            "{note}"
        );
        system.install(&system.options()).unwrap();
        let text = system.read("etc/containerd/conf.d/90-kata-husk.toml");
        assert!(text.contains(&format!("runtime_path = \"{other}\"")), "{text}");
        assert!(!system.has("opt/husk/share/husk/kata/kata-husk-go"));
    }
}

#[test]
fn a_configuration_that_not_everybody_may_read_is_copied_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let system = System::new();
    let mode = |path: &str| {
        let found = std::fs::metadata(system.root().join(path)).unwrap();
        found.permissions().mode() & 0o7777
    };
    let secret = std::fs::Permissions::from_mode(0o640);
    std::fs::set_permissions(system.root().join(GO), secret).unwrap();
    let told = super::super::plan(&system.options()).unwrap().describe();
    assert!(
        told.contains(&format!("+# a copy of /{GO}, which is not shown\n")),
        "{told}"
    );
    system.install(&system.options()).unwrap();
    let copy = |handler| format!("opt/husk/share/husk/kata/{handler}/configuration.toml");
    assert_eq!((mode(&copy("kata-husk")), mode(&copy("kata-husk-go"))), (0o644, 0o600));
}
