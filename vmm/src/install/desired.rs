//! Everything that belongs on a host where husk is installed, in the order in which it is put there.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::content::{Content, Fingerprint, digest};
use super::distribution::{Distribution, distribution};
use super::kata::{self, Handler};
use super::manifest::Manifest;
use super::{Engine, InstallError, Options, containerd, crio, kubernetes};
use crate::regular_file;

/// What there shall be.
#[derive(Debug, Default)]
pub(super) struct DesiredFiles {
    /// Files and links: whoever reads one finds what it names, so the engine's handlers are last.
    pub items: Vec<(PathBuf, Content)>,
    /// The engine that it is for.
    pub engine: Option<Engine>,
    /// What is to be remembered of those of which it is known already.
    pub fingerprints: BTreeMap<PathBuf, Fingerprint>,
    /// What people are shown of files that are copies of others' with something added.
    pub excerpts: BTreeMap<PathBuf, String>,
    /// Files of others from which some were derived.
    pub sources: BTreeMap<PathBuf, Fingerprint>,
    /// What keeps pods from starting until somebody does something about it.
    pub problems: Vec<String>,
    /// What else is for people to do or to know.
    pub notes: Vec<String>,
}

impl DesiredFiles {
    /// Remembers that `bytes` at `path` decided something.
    pub fn source(&mut self, path: PathBuf, bytes: &[u8]) {
        self.sources.insert(path, Fingerprint::Sha256(digest(bytes)));
    }
}

/// Where the program can be started.
pub(super) fn program(options: &Options) -> PathBuf {
    options.prefix.join("bin/husk")
}

/// Where it can be started as a file server.
pub(super) fn file_server(options: &Options) -> PathBuf {
    options.prefix.join("libexec/husk/virtiofsd")
}

/// What `options` ask for. `before` is what is installed: husk's own files are no reason to do anything differently.
pub(super) fn desired(options: &Options, before: Option<&Manifest>) -> Result<DesiredFiles, InstallError> {
    let mut desired = DesiredFiles::default();
    let handlers = kata::handlers(options, &mut desired)?;
    programs(options, &mut desired)?;
    for handler in &handlers {
        kata::configure(options, handler, &mut desired)?;
    }
    kubernetes::describe(options, &handlers, &mut desired);
    let engine = engine(options)?;
    desired.engine = Some(engine);
    match engine {
        Engine::Containerd => containerd::configure(options, &handlers, before, &mut desired)?,
        Engine::Crio => crio::configure(options, &handlers, before, &mut desired)?,
    }
    hints(options, &handlers, &mut desired);
    Ok(desired)
}

fn programs(options: &Options, desired: &mut DesiredFiles) -> Result<(), InstallError> {
    let read = std::fs::read(&options.program);
    let bytes = read.map_err(|error| InstallError::io("read", &options.program, error))?;
    let digest = digest(&bytes);
    let name = format!("husk-{}-{}", env!("CARGO_PKG_VERSION"), &digest[..12]);
    let link = |target: String| Content::Link { target: target.into() };
    let file = Content::File { bytes, mode: 0o755 };
    let path = options.prefix.join("lib/husk").join(&name);
    desired.fingerprints.insert(path.clone(), Fingerprint::Sha256(digest));
    desired.items.push((path, file));
    desired
        .items
        .push((program(options), link(format!("../lib/husk/{name}"))));
    if options.file_server {
        desired
            .items
            .push((file_server(options), link(format!("../../lib/husk/{name}"))));
    }
    Ok(())
}

/// The engine that was asked for, or the only one that is here.
fn engine(options: &Options) -> Result<Engine, InstallError> {
    let is_here = |paths: [&str; 3]| paths.iter().any(|path| options.behind(path.as_ref()).exists());
    let containerd = is_here(["/etc/containerd", "/usr/bin/containerd", "/usr/local/bin/containerd"]);
    let crio = is_here(["/etc/crio", "/usr/bin/crio", "/usr/local/bin/crio"]);
    if let (None, Some(&Distribution { name, place, .. })) = (options.engine, distribution(&options.root)) {
        return Err(InstallError::Distribution { name, place });
    }
    match (options.engine, containerd, crio) {
        (Some(engine), ..) => Ok(engine),
        (None, true, false) => Ok(Engine::Containerd),
        (None, false, true) => Ok(Engine::Crio),
        (None, true, true) => Err(InstallError::Engine {
            found: "both containerd and CRI-O are here",
        }),
        (None, false, false) => Err(InstallError::Engine {
            found: "neither containerd nor CRI-O is here",
        }),
    }
}

/// What is not husk's to change, and may be in the way.
fn hints(options: &Options, handlers: &[Handler], desired: &mut DesiredFiles) {
    let read = |path: &str| regular_file::read_text(&options.behind(path.as_ref())).unwrap_or_default();
    let notes = &mut desired.notes;
    let classes = options.shared().join("kubernetes");
    let names: Vec<_> = handlers.iter().map(|handler| handler.name.as_str()).collect();
    notes.push(format!(
        "once in the cluster: kubectl apply -f {} (runtime classes {})",
        classes.join("runtimeclass.yaml").display(),
        names.join(", ")
    ));
    if options.overhead.as_ref().is_some_and(|overhead| overhead.shim_mib == 0) {
        notes.push(
            "the overhead of the runtime classes is without Kata's shim: where that is in a pod's cgroup (sandbox_cgroup_only), the kernel kills \
             pods for want of memory; husk overhead --shim adds it"
                .into(),
        );
    }
    if let Some(Distribution { name, place, .. }) = distribution(&options.root) {
        notes.push(format!(
            "{name} is here, whose own containerd has its handlers from {place}: these are for another engine"
        ));
    }
    if options.features.is_empty() {
        notes.push("this host cannot run pods (husk check): node feature discovery is told nothing of it".into());
    }
    if !read("/sys/fs/selinux/enforce").trim().is_empty() {
        // What container-selinux gives to Kata's own VMMs in /opt/kata/bin.
        for folder in ["lib/husk", "libexec/husk"] {
            let folder = options.prefix.join(folder);
            notes.push(format!(
                "SELinux: semanage fcontext -a -t container_runtime_exec_t '{0}(/.*)?' && restorecon -R {0}",
                folder.display()
            ));
        }
    }
    if read("/proc/sys/vm/overcommit_memory").trim() == "2" {
        notes.push(
            "vm.overcommit_memory is 2: the whole memory of each VM counts from its start; 0 lets guests touch theirs when they need it"
                .into(),
        );
    }
}
