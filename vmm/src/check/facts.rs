//! What a host says of itself in `/proc`, `/sys` and `/dev`.

use std::io;
use std::path::Path;

use husk_virtio::fs::share::landlock_versions;

use super::{Limits, Node};
use crate::kvm::probe::{KvmFacts, probe};
use crate::machine::fips;
use crate::regular_file;

/// Everything that the rules look at.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The first processor.
    pub cpu: Cpu,
    /// `uname -r`.
    pub kernel_release: String,
    /// The `kvm` module.
    pub kvm: Module,
    /// The `kvm_intel` module.
    pub kvm_intel: Module,
    /// The `kvm_amd` module.
    pub kvm_amd: Module,
    /// `/dev/kvm`.
    pub device: KvmDevice,
    /// DMI `sys_vendor`, empty when unknown.
    pub vendor: String,
    /// DMI `product_name`, empty when unknown.
    pub product: String,
    /// Whether `/dev/vhost-net` exists.
    pub vhost_net: bool,
    /// Whether `/dev/vhost-vsock` exists.
    pub vhost_vsock: bool,
    /// Limits on this process.
    pub limits: Limits,
    /// Huge pages of the host.
    pub huge_pages: HugePages,
    /// What can confine whatever serves files.
    pub serving: Serving,
    /// Whether the kernel is in FIPS mode.
    pub fips: bool,
    /// What an installation needs beside the kernel.
    pub node: Node,
}

/// What `/proc/cpuinfo` says of the first processor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// Its name.
    pub model: String,
    /// Its virtualization extension.
    pub virtualization: Option<Virtualization>,
    /// Whether it has both SSE4.1 and SSE4.2.
    pub sse4: bool,
    /// Whether it is a virtual one.
    pub hypervisor: bool,
}

/// A CPU's virtualization extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Virtualization {
    /// Intel VMX.
    Vmx,
    /// AMD SVM.
    Svm,
}

/// Whether the kernel has a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Module {
    /// Loaded.
    Loaded,
    /// Part of the kernel image.
    BuiltIn,
    /// Neither.
    Absent,
}

/// The device node of KVM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvmDevice {
    /// It opened, and answered.
    Open(KvmFacts),
    /// There is no such node.
    Missing,
    /// It exists, and this user may not open it.
    Denied,
    /// Opening failed otherwise: the host's words.
    Broken(String),
}

/// Huge pages of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HugePages {
    /// `always`, `madvise` or `never`; empty when the kernel has no transparent huge pages.
    pub transparent: String,
    /// Pages of the default size in the reserve.
    pub reserved: u64,
}

/// What a process that serves files is confined by here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Serving {
    /// Version of Landlock's rules; 0 for none.
    pub landlock: u32,
    /// Effective capabilities of this process, as bits (capabilities(7)).
    pub capabilities: u64,
    /// User namespaces that there may be (user.max_user_namespaces).
    pub user_namespaces: u64,
}

impl Serving {
    fn gather(root: &Path) -> Self {
        let status = read(root, "proc/self/status");
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let capabilities = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
        let namespaces = read(root, "proc/sys/user/max_user_namespaces").trim().parse();
        Self {
            landlock: landlock_versions().0,
            capabilities: capabilities.unwrap_or(0),
            user_namespaces: namespaces.unwrap_or(0),
        }
    }
}

impl Facts {
    /// Reads the host whose files lie under `root`. What cannot be read counts as absent.
    pub fn gather(root: &Path) -> Self {
        let module = |name: &str| module(root, name);
        Self {
            cpu: Cpu::parse(&read(root, "proc/cpuinfo")),
            kernel_release: read(root, "proc/sys/kernel/osrelease").trim().to_string(),
            kvm: module("kvm"),
            kvm_intel: module("kvm_intel"),
            kvm_amd: module("kvm_amd"),
            device: kvm_device(&root.join("dev/kvm")),
            vendor: read(root, "sys/class/dmi/id/sys_vendor").trim().to_string(),
            product: read(root, "sys/class/dmi/id/product_name").trim().to_string(),
            vhost_net: root.join("dev/vhost-net").exists(),
            vhost_vsock: root.join("dev/vhost-vsock").exists(),
            limits: Limits::gather(root),
            huge_pages: huge_pages(root),
            serving: Serving::gather(root),
            fips: fips::is_on(root),
            node: Node::gather(root),
        }
    }
}

impl Cpu {
    /// Reads the first processor of a `/proc/cpuinfo`.
    pub fn parse(cpuinfo: &str) -> Self {
        let first = cpuinfo.split("\n\n").next().unwrap_or_default();
        let fields = || {
            first
                .lines()
                .filter_map(|line| line.split_once(':'))
                .map(|(name, value)| (name.trim(), value.trim()))
        };
        let field = |wanted: &str| {
            fields()
                .find(|(name, _)| *name == wanted)
                .map(|(_, value)| value)
                .unwrap_or_default()
        };
        let has = |flag: &str| field("flags").split_ascii_whitespace().any(|found| found == flag);
        let virtualization = match (has("vmx"), has("svm")) {
            (true, _) => Some(Virtualization::Vmx),
            (false, true) => Some(Virtualization::Svm),
            (false, false) => None,
        };
        Self {
            model: field("model name").to_string(),
            virtualization,
            sse4: has("sse4_1") && has("sse4_2"),
            hypervisor: has("hypervisor"),
        }
    }
}

/// The text of a file under `root`, empty when it cannot be read.
pub(super) fn read(root: &Path, path: &str) -> String {
    regular_file::read_text(&root.join(path)).unwrap_or_default()
}

/// `/sys/module` has a loaded module with its `initstate`, and a built-in one without, if it has
/// parameters; the build's list has every built-in one.
fn module(root: &Path, name: &str) -> Module {
    let sysfs = root.join("sys/module").join(name);
    if sysfs.join("initstate").exists() {
        return Module::Loaded;
    }
    let release = read(root, "proc/sys/kernel/osrelease");
    let list = read(root, &format!("lib/modules/{}/modules.builtin", release.trim()));
    let listed = list
        .lines()
        .filter_map(|line| line.rsplit('/').next()?.strip_suffix(".ko"));
    if sysfs.exists() || listed.map(|found| found.replace('-', "_")).any(|found| found == name) {
        Module::BuiltIn
    } else {
        Module::Absent
    }
}

fn kvm_device(path: &Path) -> KvmDevice {
    match probe(path) {
        Ok(facts) => KvmDevice::Open(facts),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound => KvmDevice::Missing,
            io::ErrorKind::PermissionDenied => KvmDevice::Denied,
            _ => KvmDevice::Broken(error.to_string()),
        },
    }
}

fn huge_pages(root: &Path) -> HugePages {
    let modes = read(root, "sys/kernel/mm/transparent_hugepage/enabled");
    let transparent = modes.split(['[', ']']).nth(1).unwrap_or_default().to_string();
    let meminfo = read(root, "proc/meminfo");
    let reserved = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("HugePages_Total:")?.trim().parse().ok())
        .unwrap_or(0);
    HugePages { transparent, reserved }
}

#[cfg(test)]
#[path = "facts_test.rs"]
mod tests;
