use std::path::Path;

use super::testing::{BASE, DROP_IN, GO, RUST, System};
use super::*;

#[test]
fn whoever_asks_again_gets_nothing_new() {
    let system = System::new();
    system.install(&system.options()).unwrap();
    let tree = system.tree();
    let again = plan(&system.options()).unwrap();
    assert!(again.is_done(), "{}", again.describe());
    assert!(again.describe().starts_with("everything is installed"));
    apply(&again).unwrap();
    assert!(system.tree() == tree);
    assert!(
        status(system.root(), Path::new("/opt/husk"), &system.options().program)
            .unwrap()
            .is_ok()
    );
}

#[test]
fn a_plan_changes_nothing_and_shows_every_text() {
    let system = System::new();
    let tree = system.tree();
    let told = plan(&system.options()).unwrap().describe();
    assert!(system.tree() == tree, "a plan wrote something");
    for line in [
        "create   /opt/husk/bin/husk -> ../lib/husk/husk-",
        "create   /etc/containerd/conf.d/90-kata-husk.toml\n",
        "--- /dev/null\n+++ /opt/husk/share/husk/kata/kata-husk/config.d/10-husk.toml\n",
        "+path = \"/opt/husk/bin/husk\"\n",
        "+handler: kata-husk-go\n",
        "note     containerd reads its handlers when it starts",
    ] {
        assert!(told.contains(line), "no {line}: {told}");
    }
}

#[test]
fn the_digest_of_a_large_program_is_made_once() {
    let system = System::new();
    content::DIGESTED.take();
    plan(&system.options()).unwrap();
    let program = b"\0the program\0".to_vec();
    let made = content::DIGESTED.take().into_iter().filter(|bytes| *bytes == program);
    assert_eq!(made.count(), 1);
}

#[test]
fn kata_and_the_engine_keep_what_they_have() {
    let system = System::new();
    let before = system.tree();
    system.install(&system.options()).unwrap();
    let after = system.tree();
    assert!(before.iter().all(|(path, content)| after.get(path) == Some(content)));
}

#[test]
fn an_upgrade_leaves_the_program_that_runs_to_those_who_run_it() {
    let system = System::new();
    system.install(&system.options()).unwrap();
    let running = std::fs::File::open(system.root().join("opt/husk/bin/husk")).unwrap();
    system.write("downloads/husk", "\0a newer program\0");
    let plan = plan(&system.options()).unwrap();
    let told = plan.describe();
    apply(&plan).unwrap();
    assert_eq!(system.read("opt/husk/bin/husk"), "\0a newer program\0");
    assert_eq!(system.read("opt/husk/libexec/husk/virtiofsd"), "\0a newer program\0");
    assert_eq!(io::read_to_string(running).unwrap(), "\0the program\0");
    let programs = std::fs::read_dir(system.root().join("opt/husk/lib/husk")).unwrap();
    assert_eq!(programs.count(), 1, "the old one's name is gone");
    assert!(told.contains("replace  /opt/husk/bin/husk -> "), "{told}");
    assert_eq!(told.matches("\nremove   /opt/husk/lib/husk/husk-").count(), 1, "{told}");
}

#[test]
fn other_options_take_away_what_they_no_longer_ask_for() {
    let system = System::new();
    system.install(&system.options()).unwrap();
    let other = Options {
        class: "pods".into(),
        file_server: false,
        features: String::new(),
        ..system.options()
    };
    system.install(&other).unwrap();
    for gone in [
        "opt/husk/libexec",
        "opt/husk/share/husk/kata/kata-husk",
        "etc/kubernetes",
        DROP_IN,
    ] {
        assert!(!system.has(gone), "{gone}");
    }
    assert!(system.has("etc/containerd/conf.d/90-pods.toml"));
    assert!(system.has("opt/husk/share/husk/kata/pods-go/configuration.toml"));
}

#[test]
fn what_somebody_else_wrote_is_in_the_way() {
    let system = System::new();
    system.write(DROP_IN, "version = 3\n");
    let tree = system.tree();
    let refused = system.install(&system.options()).unwrap_err();
    assert!(
        refused.ends_with(
            "90-kata-husk.toml: is not husk's; move it away, or install with another --runtime-class or --prefix"
        ),
        "{refused}"
    );
    assert!(system.tree() == tree);
}

#[test]
fn what_somebody_changed_is_in_the_way_of_an_upgrade() {
    let system = System::new();
    system.install(&system.options()).unwrap();
    let overlay = "opt/husk/share/husk/kata/kata-husk/config.d/10-husk.toml";
    system.write(overlay, "# mine\n");
    let refused = system.install(&system.options()).unwrap_err();
    assert!(
        refused.contains("10-husk.toml: was changed since husk wrote it"),
        "{refused}"
    );
    let told = status(system.root(), Path::new("/opt/husk"), &system.options().program).unwrap();
    assert!(!told.is_ok() && told.to_table().contains(&format!("changed    /{overlay}\n")));
}

#[test]
fn a_drop_in_of_the_administrators_own_survives_an_upgrade() {
    let system = System::new();
    system.install(&system.options()).unwrap();
    let own = "opt/husk/share/husk/kata/kata-husk/config.d/50-mine.toml";
    system.write(own, "[hypervisor.clh]\ndefault_memory = 4096\n");
    system.write("downloads/husk", "\0newer\0");
    system.install(&system.options()).unwrap();
    assert!(system.has(own));
    remove(&removal(system.root(), Path::new("/opt/husk")).unwrap()).unwrap();
    assert!(system.has(own) && !system.has("opt/husk/bin"));
}

#[test]
fn an_upgrade_of_kata_is_seen_and_followed() {
    let system = System::new();
    system.install(&system.options()).unwrap();
    system.write(GO, &format!("{BASE}sandbox_cgroup_only = true\n"));
    let told = status(system.root(), Path::new("/opt/husk"), &system.options().program).unwrap();
    let line = format!("stale      /{GO} changed since; install again to follow it\n");
    assert!(!told.is_ok() && told.to_table().contains(&line), "{}", told.to_table());
    system.install(&system.options()).unwrap();
    assert!(
        status(system.root(), Path::new("/opt/husk"), &system.options().program)
            .unwrap()
            .is_ok()
    );
    assert!(
        system
            .read("opt/husk/share/husk/kata/kata-husk-go/configuration.toml")
            .ends_with("_only = true\n")
    );
    std::fs::remove_file(system.root().join(RUST)).unwrap();
    let told = status(system.root(), Path::new("/opt/husk"), &system.options().program)
        .unwrap()
        .to_table();
    assert!(told.contains(&format!("stale      /{RUST} gone")), "{told}");
}

#[test]
fn a_manifest_that_is_none_is_refused() {
    let system = System::new();
    for (text, problem) in [
        ("{}", "is no manifest of husk's: missing field"),
        ("\u{0}", "is no manifest of husk's: "),
        (
            r#"{"form": 9, "version": "9", "class": "a", "items": {}, "folders": [], "sources": {}}"#,
            "a manifest of form 9",
        ),
    ] {
        system.write("opt/husk/share/husk/manifest.json", text);
        let refused = system.install(&system.options()).unwrap_err();
        assert!(refused.contains(problem), "{refused}");
        assert!(removal(system.root(), Path::new("/opt/husk")).is_err());
    }
}

#[test]
fn names_and_paths_that_configurations_cannot_have_are_refused() {
    for name in ["a", "kata-husk", "0", &"x".repeat(60)] {
        assert_eq!(plain_class(name).unwrap(), name);
    }
    for name in ["", "-a", "a-", "A", "a.b", "a/b", "a\n", "ä", "a b", &"x".repeat(61)] {
        assert!(plain_class(name).unwrap_err().is_usage(), "{name:?}");
    }
    for name in ["runc", "crun"] {
        let refused = plain_class(name).unwrap_err();
        let says = format!("--runtime-class {name}: is what engines start ordinary pods with; allowed: ");
        assert!(
            refused.is_usage() && refused.to_string().starts_with(&says),
            "{refused}"
        );
    }
    assert_eq!(
        plain_path("--kata", Path::new("/opt//kata/")).unwrap(),
        Path::new("/opt/kata")
    );
    for path in ["opt", "", "/opt/../kata", "/opt/./kata", "/opt\n", "/\u{7f}"] {
        let refused = plain_path("--kata", Path::new(path)).unwrap_err();
        assert!(
            refused.is_usage() && refused.to_string().starts_with("--kata "),
            "{path:?}"
        );
    }
}

#[test]
fn a_prefix_with_spaces_and_quotes_is_a_prefix() {
    let system = System::new();
    let options = Options {
        prefix: plain_path("--prefix", Path::new("/srv/my \"husk\"/ö")).unwrap(),
        ..system.options()
    };
    system.install(&options).unwrap();
    let text = system.read("srv/my \"husk\"/ö/share/husk/kata/kata-husk/config.d/10-husk.toml");
    let overlay: toml_edit::DocumentMut = text.parse().unwrap();
    assert_eq!(
        overlay["hypervisor"]["clh"]["path"].as_str(),
        Some("/srv/my \"husk\"/ö/bin/husk")
    );
    remove(&removal(system.root(), &options.prefix).unwrap()).unwrap();
    assert!(!system.has("srv"));
}

#[test]
fn what_is_not_husks_to_change_is_said_where_it_matters() {
    let system = System::new();
    let told = || plan(&system.options()).unwrap().describe();
    assert!(!told().contains("SELinux") && !told().contains("overcommit"));
    system.write("proc/sys/vm/overcommit_memory", "1\n");
    system.write("sys/fs/selinux/enforce", "0");
    assert!(told().contains("semanage fcontext -a -t container_runtime_exec_t '/opt/husk/lib/husk(/.*)?'"));
    assert!(!told().contains("overcommit"));
    system.write("proc/sys/vm/overcommit_memory", "2\n");
    assert!(told().contains("note     vm.overcommit_memory is 2: "));
}

/// An image's absolute links mean the image, whatever the host has there.
#[test]
fn links_of_an_image_lead_nowhere_outside_of_it() {
    let (system, host) = (System::new(), tempfile::tempdir().unwrap());
    let elsewhere = host.path().strip_prefix("/").unwrap();
    let inside = system.root().join(elsewhere);
    std::fs::create_dir_all(&inside).unwrap();
    let link = |name: &str, path: &str| {
        let path = system.root().join(path);
        std::fs::rename(&path, inside.join(name)).unwrap();
        std::os::unix::fs::symlink(host.path().join(name), path).unwrap();
    };
    link("opt", "opt");
    link("config.toml", "etc/containerd/config.toml");
    system.install(&system.options()).unwrap();
    assert!(inside.join("opt/husk/bin/husk").is_symlink());
    assert!(
        system
            .read("etc/containerd/conf.d/90-kata-husk.toml")
            .contains("version = 3")
    );
    assert_eq!(std::fs::read_dir(host.path()).unwrap().count(), 0);
    assert!(
        status(system.root(), Path::new("/opt/husk"), &system.options().program)
            .unwrap()
            .is_ok()
    );
    remove(&removal(system.root(), Path::new("/opt/husk")).unwrap()).unwrap();
    assert!(!inside.join("opt/husk").exists() && inside.join("opt/kata").exists());
}

#[test]
fn a_path_is_resolved_as_in_its_system() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let link = |target: &str, path: &str| std::os::unix::fs::symlink(target, root.join(path)).unwrap();
    std::fs::create_dir(root.join("a")).unwrap();
    link("/a", "absolute");
    link("../../../a", "a/above");
    link("loop", "loop");
    for (path, of_itself, followed) in [
        ("/a/x", "a/x", "a/x"),
        ("/absolute/x", "a/x", "a/x"),
        ("/absolute", "absolute", "a"),
        ("/a/above/x", "a/x", "a/x"),
        ("/a/above", "a/above", "a"),
        ("/nowhere/x", "nowhere/x", "nowhere/x"),
        ("/", "", ""),
    ] {
        let path = Path::new(path);
        assert_eq!(beneath(root, path), root.join(of_itself), "{}", path.display());
        assert_eq!(behind(root, path), root.join(followed), "{}", path.display());
    }
    assert!(!behind(root, Path::new("/loop/x")).exists());
    assert_eq!(beneath(Path::new("/"), Path::new("/etc/x")), Path::new("/etc/x"));
}

/// As `husk install` without options.
fn again(system: &System) -> Request {
    let options = system.options();
    Request::again(&options.root, &options.prefix, &options.program, options.features)
}

#[test]
fn what_was_asked_for_once_is_kept_until_it_is_asked_for_otherwise() {
    let overhead = |memory_mib| Overhead {
        memory_mib,
        cpu_millis: 1,
        shim_mib: 0,
        method: "m".into(),
    };
    let system = System::new();
    system.write("etc/crio/crio.conf", "");
    std::fs::rename(system.root().join("opt/kata"), system.root().join("opt/other")).unwrap();
    let first = Request {
        kata: Some("/opt/other".into()),
        engine: Some(Engine::Crio),
        class: Some("x".into()),
        file_server: Some(true),
        overhead: Some(Some(overhead(77))),
        ..again(&system)
    };
    system.install(&first.settle().unwrap()).unwrap();
    let tree = system.tree();
    let same = plan(&again(&system).settle().unwrap()).unwrap();
    assert!(same.is_done(), "{}", same.describe());
    // An upgrade without options changes the program and nothing else.
    system.write("downloads/husk", "\0newer\0");
    let upgrade = plan(&again(&system).settle().unwrap()).unwrap();
    apply(&upgrade).unwrap();
    let now = system.tree();
    let changed = now.iter().filter(|(path, content)| tree.get(*path) != Some(content));
    let changed: Vec<_> = changed.map(|(path, _)| path.display().to_string()).collect();
    assert!(
        changed.iter().all(|path| path.contains("/lib/husk/")
            || path.ends_with("/bin/husk")
            || path.ends_with("/virtiofsd")
            || path.ends_with("/manifest.json")
            || path == "downloads/husk"),
        "{changed:?}"
    );
    // What is asked for otherwise is told, and kept from then on.
    let other = Request {
        file_server: Some(false),
        overhead: Some(None),
        ..again(&system)
    };
    let other = plan(&other.settle().unwrap()).unwrap();
    let told = other.describe();
    for line in [
        "note     --file-server is false from now on; it was true\n",
        "note     --overhead is Kata's from now on; it was 77 MiB (m)\n",
    ] {
        assert!(told.contains(line), "no {line}: {told}");
    }
    assert!(!told.contains("--kata is") && !told.contains("--engine is"), "{told}");
    apply(&other).unwrap();
    assert!(!system.has("opt/husk/libexec"));
    assert!(plan(&again(&system).settle().unwrap()).unwrap().is_done());
}

#[test]
fn no_handler_goes_unless_its_class_is_named() {
    let system = System::new();
    system.install(&system.options()).unwrap();
    let tree = system.tree();
    std::fs::remove_file(system.root().join(GO)).unwrap();
    let refused = system.install(&again(&system).settle().unwrap()).unwrap_err();
    assert_eq!(
        refused,
        "the handlers kata-husk-go would go, and no pod with that runtime class would start: \
         say --runtime-class kata-husk if that is meant"
    );
    system.write(GO, BASE);
    assert!(system.tree() == tree);
    std::fs::remove_file(system.root().join(GO)).unwrap();
    let named = Request {
        class: Some("kata-husk".into()),
        ..again(&system)
    };
    let named = plan(&named.settle().unwrap()).unwrap();
    let told = named.describe();
    assert!(
        told.contains("note     the handlers kata-husk-go go: no pod with that runtime class will start\n"),
        "{told}"
    );
    apply(&named).unwrap();
    assert!(plan(&again(&system).settle().unwrap()).unwrap().is_done());
}

#[test]
fn a_change_of_class_that_was_killed_is_finished_without_options() {
    let system = System::new();
    system.install(&system.options()).unwrap();
    let other = Options {
        class: "other".into(),
        ..system.options()
    };
    let other = plan(&other).unwrap();
    // Killed when the manifest of both was written.
    let both = other.before.as_ref().unwrap().meanwhile(&other.after);
    both.content()
        .put(&system.root().join("opt/husk/share/husk/manifest.json"))
        .unwrap();
    system.install(&again(&system).settle().unwrap()).unwrap();
    assert!(system.has("etc/containerd/conf.d/90-other.toml") && !system.has(DROP_IN));
}

#[test]
fn a_manifest_of_the_first_form_keeps_its_class() {
    let system = System::new();
    let first = Options {
        class: "x".into(),
        file_server: true,
        ..system.options()
    };
    system.install(&first).unwrap();
    let path = "opt/husk/share/husk/manifest.json";
    let mut old: serde_json::Value = serde_json::from_str(&system.read(path)).unwrap();
    old["form"] = 1.into();
    old.as_object_mut().unwrap().remove("options").unwrap();
    system.write(path, &old.to_string());
    let settled = again(&system).settle().unwrap();
    assert!(plan(&settled).unwrap().describe().contains("did not keep its options"));
    system.install(&settled).unwrap();
    assert!(system.has("etc/containerd/conf.d/90-x.toml") && !system.has(DROP_IN));
    assert!(system.has("opt/husk/libexec/husk/virtiofsd"), "its files say so");
}

#[test]
fn a_changed_drop_in_that_stays_is_told_with_its_handlers() {
    let system = System::new();
    system.install(&system.options()).unwrap();
    system.write(DROP_IN, &format!("# mine\n{}", system.read(DROP_IN)));
    let other = Options {
        class: "other".into(),
        ..system.options()
    };
    let told = plan(&other).unwrap().describe();
    let line = format!("problem  /{DROP_IN} still has the handlers kata-husk, kata-husk-go, whose pods will not start");
    assert!(told.contains(&line), "{told}");
}

#[test]
fn the_engine_of_a_distribution_is_not_taken_for_another() {
    for (folder, name, place) in [
        (
            "var/lib/rancher/k3s",
            "k3s",
            "/var/lib/rancher/k3s/agent/etc/containerd/",
        ),
        (
            "var/lib/rancher/rke2",
            "RKE2",
            "/var/lib/rancher/rke2/agent/etc/containerd/",
        ),
        ("var/snap/microk8s", "MicroK8s", "/var/snap/microk8s/current/args/"),
        ("var/lib/k0s", "k0s", "/etc/k0s/containerd.d"),
    ] {
        for has_containerd in [true, false] {
            let system = System::new();
            if !has_containerd {
                std::fs::remove_dir_all(system.root().join("etc/containerd")).unwrap();
            }
            std::fs::create_dir_all(system.root().join(folder)).unwrap();
            let any = Options {
                engine: None,
                ..system.options()
            };
            let refused = plan(&any).unwrap_err();
            assert!(refused.is_usage());
            let says =
                format!("{name} is here, and its containerd does not read /etc/containerd: handlers go to {place}");
            assert!(refused.to_string().starts_with(&says), "{refused}");
            if has_containerd {
                let told = plan(&system.options()).unwrap().describe();
                assert!(
                    told.contains(&format!("note     {name} is here, whose own containerd ")),
                    "{told}"
                );
            }
        }
    }
}
