//! What the facts of a host mean for pods. Pure: facts in, checks out.

mod comfort;
mod node;
mod shares;

use super::{Check, Facts, KvmDevice, Module, Status, Virtualization};
use crate::kvm::KVM_API_VERSION;

/// The oldest kernel that husk is meant for, a long-term release: older ones lack system calls that
/// it uses without a substitute.
pub const MIN_KERNEL: (u32, u32) = (5, 10);

/// Every check, in the order of the report.
pub fn apply(facts: &Facts) -> Vec<Check> {
    vec![
        cpu_virtualization(facts),
        cpu_sse4(facts),
        kernel_version(facts),
        kvm_module(facts),
        kvm_vendor_module(facts),
        kvm_device(facts),
        kvm_api(facts),
        kvm_hardware(facts),
        comfort::bare_metal(facts),
        comfort::vhost("vhost net", "/dev/vhost-net", "vhost_net", facts.vhost_net),
        comfort::vhost("vhost vsock", "/dev/vhost-vsock", "vhost_vsock", facts.vhost_vsock),
        comfort::memlock(facts),
        comfort::cgroup_memory(facts),
        comfort::cgroup_pids(facts),
        comfort::huge_pages(facts),
        comfort::fips(facts),
        shares::landlock(facts),
        shares::users(facts),
        shares::sandbox(facts),
        node::engine(facts),
        node::kata(facts),
        node::handlers(facts),
        node::memory(facts),
    ]
}

/// What a node of this kind can be selected by, as names and values: nothing that changes while it runs.
pub fn features(facts: &Facts) -> Vec<(&'static str, String)> {
    let yes = |it: bool| it.to_string();
    let pages = &facts.huge_pages.transparent;
    let modes = ["always", "madvise"];
    vec![
        ("runtime.kata", yes(true)),
        ("husk.version", env!("CARGO_PKG_VERSION").into()),
        ("husk.memory-gib", (facts.node.total_bytes >> 30).to_string()),
        ("husk.bare-metal", yes(!facts.cpu.hypervisor)),
        ("husk.vhost-net", yes(facts.vhost_net)),
        ("husk.vhost-vsock", yes(facts.vhost_vsock)),
        (
            "husk.huge-pages",
            yes(modes.contains(&pages.as_str()) || facts.huge_pages.reserved > 0),
        ),
        ("husk.landlock", facts.serving.landlock.to_string()),
    ]
}

/// What a rule knows before it has looked.
struct Rule {
    name: &'static str,
    mandatory: bool,
    reason: &'static str,
}

impl Rule {
    const fn must(name: &'static str, reason: &'static str) -> Self {
        Self {
            name,
            mandatory: true,
            reason,
        }
    }

    const fn should(name: &'static str, reason: &'static str) -> Self {
        Self {
            name,
            mandatory: false,
            reason,
        }
    }

    fn ok(self, found: impl Into<String>) -> Check {
        self.check(Status::Ok, found.into(), None)
    }

    /// Not as it should be: a failure when mandatory, else a warning.
    fn bad(self, found: impl Into<String>, remedy: impl Into<String>) -> Check {
        let status = if self.mandatory { Status::Fail } else { Status::Warn };
        self.check(status, found.into(), Some(remedy.into()))
    }

    fn check(self, status: Status, found: String, remedy: Option<String>) -> Check {
        Check {
            name: self.name,
            status,
            mandatory: self.mandatory,
            found,
            reason: self.reason,
            remedy,
        }
    }
}

fn cpu_virtualization(facts: &Facts) -> Check {
    let rule = Rule::must(
        "cpu virtualization",
        "guests run directly on the CPU, which needs Intel VMX or AMD SVM",
    );
    match facts.cpu.virtualization {
        Some(Virtualization::Vmx) => rule.ok(format!("vmx ({})", facts.cpu.model)),
        Some(Virtualization::Svm) => rule.ok(format!("svm ({})", facts.cpu.model)),
        None => rule.bad(
            format!("neither vmx nor svm ({})", facts.cpu.model),
            hardware_remedy(facts),
        ),
    }
}

fn hardware_remedy(facts: &Facts) -> &'static str {
    match (facts.cpu.hypervisor, is_aws(facts)) {
        (true, true) => "use an instance type whose name has .metal in it",
        (true, false) => "turn on nested virtualization for this virtual machine, or use a bare-metal host",
        (false, _) => "turn on VT-x (Intel) or SVM (AMD) in the firmware setup",
    }
}

fn cpu_sse4(facts: &Facts) -> Check {
    let rule = Rule::must("cpu sse4", "the programs in pods are built for CPUs with SSE4.2");
    if facts.cpu.sse4 {
        rule.ok("sse4_1 and sse4_2")
    } else {
        rule.bad(
            "sse4_1 or sse4_2 is missing",
            "use a newer CPU, or have the hypervisor pass the host's CPU through",
        )
    }
}

fn kernel_version(facts: &Facts) -> Check {
    let rule = Rule::must("kernel version", "husk uses system calls that older kernels lack");
    let (major, minor) = MIN_KERNEL;
    let release = &facts.kernel_release;
    match parse_version(release) {
        Some(version) if version >= MIN_KERNEL => rule.ok(release),
        Some(_) => rule.bad(release, format!("run Linux {major}.{minor} or later")),
        None => rule.bad(
            format!("unknown ('{release}')"),
            format!("mount /proc, and run Linux {major}.{minor} or later"),
        ),
    }
}

fn parse_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn kvm_module(facts: &Facts) -> Check {
    let rule = Rule::must("kvm module", "KVM is the part of Linux that runs guests");
    match (facts.kvm, &facts.device) {
        (Module::Loaded, _) => rule.ok("loaded"),
        (Module::BuiltIn, _) => rule.ok("built in"),
        (Module::Absent, KvmDevice::Open(_)) => rule.ok("not in /sys/module, but /dev/kvm answers"),
        (Module::Absent, _) => rule.bad(
            "not loaded",
            format!("modprobe {}", vendor_module(facts).unwrap_or("kvm")),
        ),
    }
}

fn vendor_module(facts: &Facts) -> Option<&'static str> {
    facts.cpu.virtualization.map(|virtualization| match virtualization {
        Virtualization::Vmx => "kvm_intel",
        Virtualization::Svm => "kvm_amd",
    })
}

fn kvm_vendor_module(facts: &Facts) -> Check {
    let rule = Rule::must("kvm vendor module", "it drives VMX or SVM for KVM");
    for (name, module) in [("kvm_intel", facts.kvm_intel), ("kvm_amd", facts.kvm_amd)] {
        match module {
            Module::Loaded => return rule.ok(format!("{name} loaded")),
            Module::BuiltIn if vendor_module(facts) == Some(name) => return rule.ok(format!("{name} built in")),
            Module::BuiltIn | Module::Absent => {}
        }
    }
    match vendor_module(facts) {
        Some(name) => rule.bad(
            format!("{name} is not loaded"),
            format!("modprobe {name}; dmesg says why if it refuses"),
        ),
        None => rule.bad("neither kvm_intel nor kvm_amd is in use", hardware_remedy(facts)),
    }
}

fn kvm_device(facts: &Facts) -> Check {
    let rule = Rule::must("/dev/kvm", "husk talks to KVM through it");
    match &facts.device {
        KvmDevice::Open(_) => rule.ok("opens"),
        KvmDevice::Missing => rule.bad(
            "does not exist",
            format!(
                "modprobe {}; in a container, pass the device in (--device /dev/kvm)",
                vendor_module(facts).unwrap_or("kvm")
            ),
        ),
        KvmDevice::Denied => rule.bad(
            "permission denied",
            "join the group that owns it and log in again: sudo usermod -aG kvm \"$USER\"",
        ),
        KvmDevice::Broken(error) => rule.bad(
            format!("cannot be opened: {error}"),
            "look for kvm in the output of dmesg",
        ),
    }
}

fn kvm_api(facts: &Facts) -> Check {
    let rule = Rule::must(
        "kvm api",
        "husk needs in-kernel interrupts, doorbells and a way to interrupt a vCPU",
    );
    let KvmDevice::Open(kvm) = &facts.device else {
        return rule.bad("unknown, /dev/kvm does not open", "see /dev/kvm above");
    };
    if kvm.api_version != KVM_API_VERSION {
        let found = format!("version {}, not {KVM_API_VERSION}", kvm.api_version);
        return rule.bad(
            found,
            "make /dev/kvm the node of Linux's own KVM: character device 10, 232",
        );
    }
    if !kvm.missing.is_empty() {
        return rule.bad(
            format!("without {}", kvm.missing.join(", ")),
            "run a newer or less restricted kernel",
        );
    }
    match &kvm.create_vm_error {
        None => rule.ok(format!(
            "version {KVM_API_VERSION}, every capability, up to {} vCPUs",
            kvm.max_vcpus
        )),
        Some(error) => rule.bad(
            format!("creates no VM: {error}"),
            "stop other hypervisors that use the CPU's extension (VirtualBox, Xen)",
        ),
    }
}

fn kvm_hardware(facts: &Facts) -> Check {
    let rule = Rule::must(
        "kvm hardware",
        "without VMX or SVM, KVM emulates a guest's kernel one instruction at a time: stock kernels fail or crawl",
    );
    match (&facts.device, facts.cpu.virtualization) {
        (KvmDevice::Open(_), Some(Virtualization::Vmx)) => rule.ok("VMX"),
        (KvmDevice::Open(_), Some(Virtualization::Svm)) => rule.ok("SVM"),
        (KvmDevice::Open(_), None) => rule.bad(
            "software-virtualised: /dev/kvm answers, but the CPU shows neither VMX nor SVM",
            format!("{}; only tiny test payloads run here", hardware_remedy(facts)),
        ),
        _ => rule.bad("unknown, /dev/kvm does not open", "see /dev/kvm above"),
    }
}

fn is_aws(facts: &Facts) -> bool {
    facts.vendor == "Amazon EC2"
}

#[cfg(test)]
#[path = "rules_test.rs"]
mod tests;
