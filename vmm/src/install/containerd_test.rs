use std::process::Command;

use toml_edit::DocumentMut;

use super::super::testing::{DROP_IN, System};
use super::super::{Engine, plan, status};
use super::*;

const MAIN: &str = "etc/containerd/config.toml";
/// What an administrator has with containerd 1.
const OLD: &str = r#"version = 2
imports = ["/etc/containerd/conf.d/*.toml"]

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.example/pause:3"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = true
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "/etc/containerd/certs.d"
"#;

fn drop_in(system: &System) -> DocumentMut {
    system.read(DROP_IN).parse().unwrap()
}

fn runtimes(document: &DocumentMut, plugin: &str) -> Vec<String> {
    let runtimes = document["plugins"][plugin]["containerd"]["runtimes"]
        .as_table()
        .unwrap();
    runtimes.iter().map(|(name, _)| name.to_owned()).collect()
}

#[test]
fn a_handler_names_its_shim_and_its_configuration() {
    let system = System::new();
    system.install(&system.options()).unwrap();
    let document = drop_in(&system);
    assert_eq!(document["version"].as_integer(), Some(3));
    let plugin = "io.containerd.cri.v1.runtime";
    assert_eq!(runtimes(&document, plugin), ["kata-husk", "kata-husk-go"]);
    let handler = &document["plugins"][plugin]["containerd"]["runtimes"]["kata-husk"];
    assert_eq!(handler["runtime_type"].as_str(), Some("io.containerd.kata-husk.v2"));
    let shim = "/opt/kata/runtime-rs/bin/containerd-shim-kata-v2";
    assert_eq!(handler["runtime_path"].as_str(), Some(shim));
    let configuration = "/opt/husk/share/husk/kata/kata-husk/configuration.toml";
    assert_eq!(handler["options"]["ConfigPath"].as_str(), Some(configuration));
}

#[test]
fn containerd_1_keeps_what_it_had_beside_the_handlers() {
    let system = System::new();
    system.write(MAIN, OLD);
    system.install(&system.options()).unwrap();
    let document = drop_in(&system);
    let plugin = "io.containerd.grpc.v1.cri";
    assert_eq!(document["version"].as_integer(), Some(2));
    assert_eq!(runtimes(&document, plugin), ["runc", "kata-husk", "kata-husk-go"]);
    let section = &document["plugins"][plugin];
    assert_eq!(section["sandbox_image"].as_str(), Some("registry.example/pause:3"));
    assert_eq!(
        section["registry"]["config_path"].as_str(),
        Some("/etc/containerd/certs.d")
    );
    // What was copied has changed: the copy is stale.
    system.write(MAIN, &OLD.replace("pause:3", "pause:4"));
    let told = status(system.root(), Path::new("/opt/husk"), &system.options().program).unwrap();
    assert!(!told.is_ok() && told.to_table().contains(&format!("stale      /{MAIN}")));
    system.install(&system.options()).unwrap();
    assert!(system.read(DROP_IN).contains("pause:4"));
}

#[test]
fn containerd_2_merges_by_itself_whatever_version_its_file_has() {
    let system = System::new();
    system.containerd("2.1.5");
    system.write(MAIN, OLD);
    system.install(&system.options()).unwrap();
    assert_eq!(
        runtimes(&drop_in(&system), "io.containerd.grpc.v1.cri"),
        ["kata-husk", "kata-husk-go"]
    );
}

#[test]
fn the_last_file_with_a_section_is_what_containerd_1_has() {
    let system = System::new();
    system.write(MAIN, OLD);
    system.write(
        "etc/containerd/conf.d/20-other.toml",
        &OLD.replace("pause:3", "pause:other"),
    );
    system.write("etc/containerd/conf.d/30-none.toml", "version = 2\n");
    system.install(&system.options()).unwrap();
    assert!(system.read(DROP_IN).contains("pause:other"));
    // One that is read later would take the handlers away.
    system.write("etc/containerd/conf.d/99-other.toml", OLD);
    let refused = system.install(&system.options()).unwrap_err();
    assert!(
        refused.contains("99-other.toml: has a section of io.containerd.grpc.v1.cri and is read after "),
        "{refused}"
    );
}

/// The order is containerd's: breadth first, a pattern's files by their names, what comes twice at its first place.
#[test]
fn what_containerd_1_reads_after_the_handlers_is_refused_and_nothing_else() {
    let (cri, none) = (OLD.replace("pause:3", "pause:other"), "version = 2\n".to_owned());
    let cri = cri.replace("imports = [\"/etc/containerd/conf.d/*.toml\"]", "");
    let importing = |imports: &str| format!("version = 2\nimports = [{imports}]\n");
    let (d, other) = ("\"/etc/containerd/conf.d/*.toml\"", "\"/etc/other/*.toml\"");
    let cri_at = |path| (path, cri.clone());
    let nested = "etc/containerd/conf.d/10-more.toml";
    let elsewhere = "etc/other/90-kata-husk.toml";
    for (imports, files, place) in [
        // Behind the folder that comes first, and so into the other one, if that takes the drop-in.
        (
            format!("{d}, {other}"),
            vec![cri_at("etc/other/10-cri.toml")],
            Some(elsewhere),
        ),
        (
            format!("{d}, \"/etc/other/1*.toml\""),
            vec![cri_at("etc/other/10-cri.toml")],
            None,
        ),
        (
            format!("{d}, {other}"),
            vec![("etc/other/10-none.toml", none)],
            Some(DROP_IN),
        ),
        (
            format!("\"/etc/containerd/nvidia.toml\", {d}"),
            vec![cri_at("etc/containerd/nvidia.toml")],
            Some(DROP_IN),
        ),
        (
            format!("{other}, {d}"),
            vec![cri_at("etc/other/99-cri.toml")],
            Some(DROP_IN),
        ),
        // What a drop-in imports comes after all that the first file imports,
        (
            d.to_owned(),
            vec![(nested, importing("\"/srv/00-cri.toml\"")), cri_at("srv/00-cri.toml")],
            None,
        ),
        // but for what was there already.
        (
            d.to_owned(),
            vec![
                (nested, importing("\"20-cri.toml\"")),
                cri_at("etc/containerd/conf.d/20-cri.toml"),
            ],
            Some(DROP_IN),
        ),
        // Nothing of these is the drop-in's: the plan says what is to be imported.
        (
            "\"/etc/*/*.toml\"".to_owned(),
            vec![cri_at("etc/containerd/10-cri.toml")],
            Some(DROP_IN),
        ),
    ] {
        let system = System::new();
        system.write(MAIN, &OLD.replace(d, &imports));
        for (path, text) in &files {
            system.write(path, text);
        }
        let told = system.install(&system.options());
        let Some(place) = place else {
            let refused = told.unwrap_err();
            assert!(
                refused.contains("and is read after /etc/containerd/conf.d/90-"),
                "{refused}"
            );
            continue;
        };
        told.unwrap();
        let has_others = files.iter().any(|(_, text)| *text == cri);
        let text = system.read(place);
        assert_eq!(text.contains("pause:other"), has_others, "{imports}: {files:?}: {text}");
        assert_eq!(system.has(DROP_IN), place == DROP_IN, "{imports}");
    }
}

#[test]
fn what_others_put_beside_a_configuration_of_husks_own_is_kept() {
    let system = System::new();
    std::fs::remove_file(system.root().join(MAIN)).unwrap();
    system.containerd("1.7.20");
    system.install(&system.options()).unwrap();
    let plugin = "io.containerd.grpc.v1.cri";
    assert_eq!(runtimes(&drop_in(&system), plugin), ["kata-husk", "kata-husk-go"]);
    let other = "etc/containerd/conf.d/20-runc.toml";
    let runc = format!(
        "version = 2\n[plugins.\"{plugin}\".containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n\
         [plugins.\"{plugin}\".containerd.runtimes.runc.options]\nSystemdCgroup = true\n"
    );
    system.write(other, &runc);
    system.install(&system.options()).unwrap();
    let document = drop_in(&system);
    assert_eq!(runtimes(&document, plugin), ["runc", "kata-husk", "kata-husk-go"]);
    let kept = &document["plugins"][plugin]["containerd"]["runtimes"]["runc"];
    assert_eq!(kept["options"]["SystemdCgroup"].as_bool(), Some(true));
    let told = || status(system.root(), Path::new("/opt/husk"), &system.options().program).unwrap();
    assert!(
        told().is_ok() && plan(&system.options()).unwrap().is_done(),
        "{}",
        told().to_table()
    );
    system.write(other, &runc.replace("true", "false"));
    assert!(told().to_table().contains(&format!("stale      /{other}")));
}

#[test]
fn a_folder_that_is_imported_already_is_used() {
    let system = System::new();
    system.write(
        MAIN,
        "version = 3\nimports = [\"/srv/one.toml\", \"drop-ins/9*.toml\"]\n",
    );
    system.install(&system.options()).unwrap();
    assert!(system.has("etc/containerd/drop-ins/90-kata-husk.toml") && !system.has(DROP_IN));
}

#[test]
fn a_relative_pattern_is_an_import_for_containerd_2_only() {
    let system = System::new();
    let relative = OLD.replace("/etc/containerd/conf.d/*", "conf.d/*");
    system.write(MAIN, &relative);
    let told = || plan(&system.options()).unwrap().describe();
    assert!(told().contains("does not import the handlers yet"));
    system.containerd("2.0.0");
    assert!(!told().contains("does not import"));
}

#[test]
fn an_import_that_is_missing_is_for_the_administrator_to_add() {
    let system = System::new();
    system.write(MAIN, "version = 3\n");
    let told = plan(&system.options()).unwrap().describe();
    assert!(
        told.contains("put imports = [\"/etc/containerd/conf.d/*.toml\"] at its top"),
        "{told}"
    );
}

#[test]
fn without_a_configuration_there_is_one_for_the_version_that_is_here() {
    for (told, version) in [("1.6.20~ds1-1+b1", 2), ("2.2.0-1", 3)] {
        let system = System::new();
        std::fs::remove_file(system.root().join(MAIN)).unwrap();
        let refused = system.install(&system.options()).unwrap_err();
        assert!(
            refused.contains("config.toml: is not there, and what version of containerd is to read it is not known"),
            "{refused}"
        );
        system.containerd(told);
        let before = system.tree();
        system.install(&system.options()).unwrap();
        let main: DocumentMut = system.read(MAIN).parse().unwrap();
        assert_eq!(main["version"].as_integer(), Some(version));
        assert_eq!(drop_in(&system)["version"].as_integer(), Some(version));
        assert!(
            plan(&system.options()).unwrap().is_done(),
            "its own file is no reason for another one"
        );
        let removal = super::super::removal(system.root(), Path::new("/opt/husk")).unwrap();
        super::super::remove(&removal).unwrap();
        assert!(system.tree() == before);
    }
}

#[test]
fn a_configuration_that_somebody_has_added_to_is_theirs() {
    let system = System::new();
    std::fs::remove_file(system.root().join(MAIN)).unwrap();
    system.containerd("1.6.20");
    system.install(&system.options()).unwrap();
    let more = "[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"mine\"\n";
    system.write(MAIN, &format!("{}{more}", system.read(MAIN)));
    let upgrade = plan(&system.options()).unwrap();
    assert!(
        upgrade
            .describe()
            .contains(&format!("/{MAIN} was changed since husk wrote it, and stays"))
    );
    super::super::apply(&upgrade).unwrap();
    assert!(
        system.read(DROP_IN).contains("sandbox_image = \"mine\""),
        "containerd 1 takes it from the drop-in"
    );
    let removal = super::super::removal(system.root(), Path::new("/opt/husk")).unwrap();
    super::super::remove(&removal).unwrap();
    assert!(system.read(MAIN).ends_with(more) && !system.has(DROP_IN));
}

#[test]
fn a_configuration_that_is_too_old_or_broken_is_refused() {
    let system = System::new();
    for (text, problem) in [
        (
            "[plugins.cri]\n",
            "has configuration version 1: containerd config migrate",
        ),
        ("version = 3\nversion = 3\n", "TOML parse error at line 2"),
    ] {
        system.write(MAIN, text);
        let refused = system.install(&system.options()).unwrap_err();
        assert!(refused.contains(problem), "{refused}");
    }
}

#[test]
fn the_engine_is_the_one_that_is_here() {
    let system = System::new();
    let any = Options {
        engine: None,
        ..system.options()
    };
    system.install(&any).unwrap();
    std::fs::create_dir_all(system.root().join("etc/crio")).unwrap();
    assert!(plan(&any).unwrap_err().is_usage(), "there are two");
    let crio = Options {
        engine: Some(Engine::Crio),
        ..any.clone()
    };
    system.install(&crio).unwrap();
    assert!(!system.has(DROP_IN), "containerd's handlers are no longer asked for");
    let text = system.read("etc/crio/crio.conf.d/50-kata-husk.conf");
    let document: DocumentMut = text.parse().unwrap();
    let handler = &document["crio"]["runtime"]["runtimes"]["kata-husk"];
    assert_eq!(handler["runtime_type"].as_str(), Some("vm"));
    let configuration = "/opt/husk/share/husk/kata/kata-husk/configuration.toml";
    assert_eq!(handler["runtime_config_path"].as_str(), Some(configuration));
    std::fs::remove_dir_all(system.root().join("etc/crio")).unwrap();
    std::fs::remove_dir_all(system.root().join("etc/containerd")).unwrap();
    assert!(
        plan(&any)
            .unwrap_err()
            .to_string()
            .starts_with("neither containerd nor CRI-O is here")
    );
}

/// containerd reads what was written. Its import has to name the folder where it is in this test.
#[test]
fn containerd_itself_has_the_handlers_and_what_it_had() {
    let containerd = std::env::var_os("HUSK_TEST_CONTAINERD").unwrap_or("containerd".into());
    let system = System::new();
    system.write(MAIN, OLD);
    system.install(&system.options()).unwrap();
    let folder = system.root().join("etc/containerd/conf.d");
    system.write(MAIN, &OLD.replace("/etc/containerd/conf.d", folder.to_str().unwrap()));
    let dump = Command::new(&containerd)
        .arg("--config")
        .arg(system.root().join(MAIN))
        .args(["config", "dump"])
        .output();
    let dump = match dump {
        Ok(dump) => dump,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: needs containerd: Debian's package containerd has it");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    let document: DocumentMut = String::from_utf8(dump.stdout).unwrap().parse().unwrap();
    let (plugin, section) = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"]
        .into_iter()
        .find_map(|name| Some((name, document["plugins"].get(name)?)))
        .unwrap();
    let mut names = runtimes(&document, plugin);
    names.sort();
    assert_eq!(names, ["kata-husk", "kata-husk-go", "runc"]);
    let runc = &section["containerd"]["runtimes"]["runc"];
    assert_eq!(runc["options"]["SystemdCgroup"].as_bool(), Some(true));
    let handler = &section["containerd"]["runtimes"]["kata-husk-go"];
    let configuration = "/opt/husk/share/husk/kata/kata-husk-go/configuration.toml";
    assert_eq!(handler["options"]["ConfigPath"].as_str(), Some(configuration));
    assert_eq!(handler["privileged_without_host_devices"].as_bool(), Some(true));
}

/// A registry's password, as containerd 1 has it in its configuration.
const SECRET: &str =
    "[plugins.\"io.containerd.grpc.v1.cri\".registry.configs.\"reg.example\".auth]\npassword = \"hunter2\"\n";

fn mode(system: &System, path: &str) -> u32 {
    let found = std::fs::metadata(system.root().join(path)).unwrap();
    std::os::unix::fs::PermissionsExt::mode(&found.permissions()) & 0o7777
}

fn permit(system: &System, path: &str, mode: u32) {
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
    std::fs::set_permissions(system.root().join(path), permissions).unwrap();
}

#[test]
fn what_not_everybody_may_read_is_copied_for_its_owner_alone() {
    let system = System::new();
    let other = "etc/containerd/conf.d/20-other.toml";
    let secret = format!("{OLD}{SECRET}");
    for (path, folder, of_original, of_folder, of_copy) in [
        (MAIN, "etc/containerd", 0o600, 0o755, 0o600),
        (MAIN, "etc/containerd", 0o640, 0o755, 0o600),
        (MAIN, "etc/containerd", 0o644, 0o755, 0o644),
        // Nobody else gets to the original.
        (MAIN, "etc/containerd", 0o644, 0o750, 0o600),
        (MAIN, "etc", 0o644, 0o700, 0o600),
        // The file with the section counts.
        (other, "etc", 0o600, 0o755, 0o600),
    ] {
        system.write(MAIN, OLD);
        system.write(other, "version = 2\n");
        system.write(path, &secret);
        for folder in ["etc", "etc/containerd", "etc/containerd/conf.d"] {
            permit(&system, folder, 0o755);
        }
        permit(&system, path, of_original);
        permit(&system, folder, of_folder);
        let told = plan(&system.options()).unwrap().describe();
        assert!(!told.contains("hunter2"), "{told}");
        system.install(&system.options()).unwrap();
        let place = format!("{path} {of_original:o}, {folder} {of_folder:o}");
        assert_eq!(mode(&system, DROP_IN), of_copy, "{place}");
        assert!(system.read(DROP_IN).contains("hunter2"), "{place}");
    }
}

#[test]
fn a_plan_shows_what_husk_adds_and_nothing_that_it_copies() {
    let system = System::new();
    system.write(MAIN, &format!("{OLD}{SECRET}"));
    let told = plan(&system.options()).unwrap().describe();
    for shown in [
        "+[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.kata-husk]\n",
        "+# and a copy of the section of CRI in /etc/containerd/config.toml, which is not shown\n",
    ] {
        assert!(told.contains(shown), "no {shown}: {told}");
    }
    assert!(!told.contains("hunter2") && !told.contains("pause:3"), "{told}");
    system.install(&system.options()).unwrap();
    // Neither when it is replaced by one that needs no copy, nor when it goes.
    system.write(MAIN, &OLD.replace("version = 2", "version = 3"));
    let told = plan(&system.options()).unwrap().describe();
    assert!(told.contains("replace  /etc/containerd/conf.d/90-kata-husk.toml\n") && !told.contains("hunter2"));
    let other = Options {
        class: "other".into(),
        ..system.options()
    };
    let told = plan(&other).unwrap().describe();
    assert!(told.contains("remove   /etc/containerd/conf.d/90-kata-husk.toml\n") && !told.contains("hunter2"));
}

#[test]
fn a_handler_that_others_have_is_refused_wherever_it_stands() {
    let others = |version: i64, name: &str| {
        let plugin = plugin_of(version);
        format!("version = {version}\n[plugins.\"{plugin}\".containerd.runtimes.{name}]\nruntime_type = \"x.y.v2\"\n")
    };
    let imports = "imports = [\"/etc/containerd/conf.d/*.toml\", \"more/*.toml\"]\n";
    for (path, version) in [
        (MAIN, 2),
        (MAIN, 3),
        ("etc/containerd/conf.d/10-theirs.toml", 2),
        ("etc/containerd/conf.d/10-theirs.toml", 3),
        ("etc/containerd/conf.d/99-theirs.toml", 3),
        // A relative pattern: containerd 2 reads it.
        ("etc/containerd/more/a.toml", 3),
    ] {
        for name in ["kata-husk", "kata-husk-go"] {
            let system = System::new();
            system.write(MAIN, &format!("{imports}version = {version}\n"));
            system.write(
                path,
                &format!(
                    "{}{}",
                    if path == MAIN { imports } else { "" },
                    others(version, "kata-qemu")
                ),
            );
            system.install(&system.options()).unwrap();
            system.write(
                path,
                &format!("{}{}", if path == MAIN { imports } else { "" }, others(version, name)),
            );
            let tree = system.tree();
            let refused = system.install(&system.options()).unwrap_err();
            let says = format!("{path}: has a handler {name} already; install with another --runtime-class");
            assert!(refused.ends_with(&says), "{refused}");
            assert!(system.tree() == tree);
        }
    }
    // A folder that is to be imported.
    let system = System::new();
    system.write(MAIN, "version = 3\n");
    system.write("etc/containerd/conf.d/10-theirs.toml", &others(3, "kata-husk"));
    system.write("etc/containerd/conf.d/11-broken.toml", "[[[");
    let refused = system.install(&system.options()).unwrap_err();
    assert!(
        refused.contains("10-theirs.toml: has a handler kata-husk already"),
        "{refused}"
    );
}

#[test]
fn two_installations_have_no_handler_in_common() {
    for engine in [Engine::Containerd, Engine::Crio] {
        let system = System::new();
        let first = Options {
            class: "x-go".into(),
            prefix: "/opt/one".into(),
            engine: Some(engine),
            ..system.options()
        };
        system.install(&first).unwrap();
        let second = |class: &str| Options {
            class: class.into(),
            prefix: "/opt/two".into(),
            ..first.clone()
        };
        let refused = system.install(&second("x")).unwrap_err();
        assert!(
            refused.contains("0-x-go.") && refused.contains(": has a handler x-go already"),
            "{refused}"
        );
        system.install(&second("y")).unwrap();
        assert!(plan(&first).unwrap().is_done());
    }
}

#[test]
fn a_containerd_without_cri_is_a_problem() {
    let other = "etc/containerd/conf.d/10-theirs.toml";
    for (path, plugin, is_off) in [
        (MAIN, "io.containerd.grpc.v1.cri", true),
        (MAIN, "cri", true),
        (other, "io.containerd.cri.v1.runtime", true),
        (MAIN, "io.containerd.grpc.v1.tasks", false),
    ] {
        let system = System::new();
        let text = system.read(MAIN);
        system.write(path, &format!("disabled_plugins = [\"{plugin}\"]\n{text}"));
        let told = plan(&system.options()).unwrap().describe();
        let says = format!("problem  /{path} has {plugin} among its disabled_plugins: without CRI ");
        assert_eq!(told.contains(&says), is_off, "{told}");
    }
}

#[test]
fn a_configuration_that_another_version_of_husk_made_is_everybodys() {
    let system = System::new();
    std::fs::remove_file(system.root().join(MAIN)).unwrap();
    system.containerd("2.1.0");
    let other = Options {
        class: "kata-other".into(),
        prefix: "/opt/other".into(),
        ..system.options()
    };
    system.install(&system.options()).unwrap();
    let older = system.read(MAIN).replacen(env!("CARGO_PKG_VERSION"), "0.0.1", 1);
    system.write(MAIN, &older);
    system.install(&other).unwrap();
    system.install(&system.options()).unwrap();
    assert_eq!(system.read(MAIN), older);
    for prefix in ["/opt/husk", "/opt/other"] {
        let removal = super::super::removal(system.root(), Path::new(prefix)).unwrap();
        super::super::remove(&removal).unwrap();
    }
    assert!(!system.has(MAIN));
}
