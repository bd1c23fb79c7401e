use super::super::testing::{DROP_IN, System};
use super::super::{Engine, Options, plan, status};
use super::*;

const PREFIX: &str = "/opt/husk";

#[test]
fn everything_goes_and_nothing_else() {
    let system = System::new();
    let before = system.tree();
    system.install(&system.options()).unwrap();
    let removal = removal(system.root(), Path::new(PREFIX)).unwrap();
    assert!(removal.keep.is_empty());
    let first = removal.remove.iter().position(|path| path.starts_with(PREFIX)).unwrap();
    let engine = removal
        .remove
        .iter()
        .position(|path| path.ends_with("90-kata-husk.toml"))
        .unwrap();
    assert!(engine < first, "the engine would be told of what is gone");
    remove(&removal).unwrap();
    assert!(system.tree() == before);
}

#[test]
fn what_was_changed_since_stays() {
    let system = System::new();
    system.install(&system.options()).unwrap();
    system.write(DROP_IN, "# mine now\n");
    fs::remove_file(system.root().join("opt/husk/bin/husk")).unwrap();
    std::os::unix::fs::symlink("elsewhere", system.root().join("opt/husk/bin/husk")).unwrap();
    let rule = "opt/husk/share/husk/kubernetes/nodefeaturerule.yaml";
    fs::remove_file(system.root().join(rule)).unwrap();
    fs::create_dir(system.root().join(rule)).unwrap();
    let removal = removal(system.root(), Path::new(PREFIX)).unwrap();
    assert_eq!(removal.keep.len(), 3, "{:?}", removal.keep);
    assert!(
        removal
            .describe()
            .contains("keep     /etc/containerd/conf.d/90-kata-husk.toml (changed")
    );
    remove(&removal).unwrap();
    assert_eq!(system.read(DROP_IN), "# mine now\n");
    assert!(system.has("opt/husk/bin/husk") && system.has(rule));
    assert!(!system.has("opt/husk/lib") && !system.has("opt/husk/share/husk/manifest.json"));
}

#[test]
fn a_handler_that_stays_and_names_what_goes_is_told() {
    for (engine, path) in [
        (Engine::Containerd, DROP_IN),
        (Engine::Crio, "etc/crio/crio.conf.d/50-kata-husk.conf"),
    ] {
        let system = System::new();
        let options = Options {
            engine: Some(engine),
            ..system.options()
        };
        system.install(&options).unwrap();
        let told = || removal(system.root(), Path::new(PREFIX)).unwrap().describe();
        assert!(!told().contains("problem"), "it goes: {}", told());
        system.write(path, &format!("# mine\n{}", system.read(path)));
        let says = format!(
            "problem  /{path} still has the handlers kata-husk, kata-husk-go, whose pods will not start: take them out"
        );
        assert!(told().contains(&says), "{}", told());
        let told = removal(system.root(), Path::new(PREFIX)).unwrap();
        remove(&told).unwrap();
        assert!(system.has(path));
    }
}

#[test]
fn what_is_not_installed_is_not_removed() {
    let system = System::new();
    let refused = removal(system.root(), Path::new(PREFIX)).unwrap_err().to_string();
    assert!(
        refused.ends_with("/opt/husk: husk is not installed below this prefix"),
        "{refused}"
    );
}

#[test]
fn what_could_not_be_removed_can_be_tried_again() {
    let system = System::new();
    system.install(&system.options()).unwrap();
    let removal = removal(system.root(), Path::new(PREFIX)).unwrap();
    // Became a folder since: no file to remove.
    let drop_in = system.root().join(DROP_IN);
    fs::remove_file(&drop_in).unwrap();
    fs::create_dir(&drop_in).unwrap();
    assert!(remove(&removal).is_err());
    let again = super::removal(system.root(), Path::new(PREFIX)).unwrap();
    remove(&again).unwrap();
    assert!(!system.has("opt/husk"));
}

#[test]
fn what_another_installation_needs_stays_until_that_goes() {
    let system = System::new();
    let main = "etc/containerd/config.toml";
    let features = "etc/kubernetes/node-feature-discovery/features.d/husk-kata-husk";
    fs::remove_file(system.root().join(main)).unwrap();
    system.containerd("2.1.0");
    let other = Options {
        class: "kata-other".into(),
        prefix: "/opt/other".into(),
        ..system.options()
    };
    let uninstall = |prefix: &str| {
        let removal = removal(system.root(), Path::new(prefix)).unwrap();
        remove(&removal).unwrap();
        removal.describe()
    };
    system.install(&system.options()).unwrap();
    system.install(&other).unwrap();
    let told = uninstall(PREFIX);
    assert!(
        told.contains(&format!("keep     /{main} (another installation needs it)\n")),
        "{told}"
    );
    assert!(system.has(main) && !system.has(features));
    assert!(
        status(system.root(), &other.prefix, &system.options().program)
            .unwrap()
            .is_ok()
            && plan(&other).unwrap().is_done()
    );
    assert!(!system.has(DROP_IN) && !system.has("opt/husk"));
    system.install(&system.options()).unwrap();
    uninstall("/opt/other");
    assert!(system.has(main) && system.has(features));
    uninstall(PREFIX);
    assert!(!system.has(main) && !system.has("etc/kubernetes") && !system.has("etc/containerd/conf.d"));
}

#[test]
fn installations_of_two_versions_have_features_of_their_own() {
    let system = System::new();
    system.install(&system.options()).unwrap();
    let other = Options {
        class: "kata-other".into(),
        prefix: "/opt/other".into(),
        features: system.options().features + "feature.node.kubernetes.io/husk.version=9.9.9\n",
        ..system.options()
    };
    system.install(&other).unwrap();
    let path = |class: &str| format!("etc/kubernetes/node-feature-discovery/features.d/husk-{class}");
    assert_eq!(system.read(&path("kata-husk")), system.options().features);
    assert_eq!(system.read(&path("kata-other")), other.features);
    assert!(plan(&system.options()).unwrap().is_done() && plan(&other).unwrap().is_done());
    for prefix in [&other.prefix, Path::new(PREFIX)] {
        remove(&removal(system.root(), prefix).unwrap()).unwrap();
    }
    assert!(!system.has("etc/kubernetes"));
}
