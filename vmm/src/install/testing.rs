//! A system below a temporary directory, with Kata and an engine.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::content::Content;
use super::{Engine, Options, plan};

pub const RUST: &str = "opt/kata/share/defaults/kata-containers/runtime-rs/configuration-clh-runtime-rs.toml";
pub const GO: &str = "opt/kata/share/defaults/kata-containers/configuration-clh.toml";
pub const DROP_IN: &str = "etc/containerd/conf.d/90-kata-husk.toml";

/// Kata's configuration, in short.
pub const BASE: &str = "# Kata's\n[hypervisor.clh]\npath = \"/opt/kata/bin/cloud-hypervisor\"\nkernel = \"/opt/kata/k\"\n\n[runtime]\nname = \"virt_container\"\n";

/// The system.
pub struct System(TempDir);

impl System {
    /// With both shims, and containerd whose configuration imports `conf.d`.
    pub fn new() -> Self {
        let system = Self(tempfile::tempdir().unwrap());
        system.write(RUST, BASE);
        system.write(GO, BASE);
        system.write("opt/kata/bin/containerd-shim-kata-v2", "go");
        system.write("opt/kata/runtime-rs/bin/containerd-shim-kata-v2", "rust");
        system.write(
            "etc/containerd/config.toml",
            "version = 3\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n",
        );
        system.write("downloads/husk", "\0the program\0");
        system
    }

    pub fn root(&self) -> &Path {
        self.0.path()
    }

    pub fn write(&self, path: &str, text: &str) {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A program that prints `text`.
    pub fn program(&self, path: &str, text: &str) {
        self.script(path, &format!("echo '{text}'"));
    }

    /// containerd as the package of a version.
    pub fn containerd(&self, version: &str) {
        self.write("usr/bin/containerd", "");
        let package = format!("Package: containerd\nStatus: install ok installed\nVersion: {version}\n");
        self.write("var/lib/dpkg/status", &package);
    }

    /// A program that does what `commands` say.
    pub fn script(&self, path: &str, commands: &str) {
        self.write(path, &format!("#!/bin/sh\n{commands}\n"));
        fs::set_permissions(self.root().join(path), fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    pub fn has(&self, path: &str) -> bool {
        self.root().join(path).symlink_metadata().is_ok()
    }

    pub fn options(&self) -> Options {
        Options {
            root: self.root().into(),
            kata: "/opt/kata".into(),
            engine: Some(Engine::Containerd),
            class: "kata-husk".into(),
            class_is_given: true,
            prefix: "/opt/husk".into(),
            file_server: true,
            program: self.root().join("downloads/husk"),
            overhead: None,
            features: "feature.node.kubernetes.io/runtime.kata=true\n".into(),
        }
    }

    /// Installs as `options` say; why not, otherwise.
    pub fn install(&self, options: &Options) -> Result<(), String> {
        let plan = plan(options).map_err(|error| error.to_string())?;
        super::apply(&plan).map_err(|error| error.to_string())
    }

    /// Every folder, file and link, with what is in it.
    pub fn tree(&self) -> BTreeMap<PathBuf, Option<Content>> {
        let mut tree = BTreeMap::new();
        let mut folders = vec![self.root().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap().flatten() {
                let path = entry.path();
                let is_folder = entry.file_type().unwrap().is_dir();
                let content = if is_folder { None } else { Content::read(&path).unwrap() };
                tree.insert(path.strip_prefix(self.root()).unwrap().to_owned(), content);
                if is_folder {
                    folders.push(path);
                }
            }
        }
        tree
    }
}
