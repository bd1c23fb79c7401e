//! What holds those who serve files of the host, in husk and as `husk fs`, should they have a fault.

use husk_virtio::fs::share::{SERVING, landlock_versions};
use rustix::thread::CapabilitySet;

use super::Rule;
use crate::check::{Check, Facts};

pub(super) fn landlock(facts: &Facts) -> Check {
    let rule = Rule::should(
        "share landlock",
        "the kernel keeps threads that serve a folder from opening anything else",
    );
    let least = landlock_versions().1;
    match facts.serving.landlock {
        0 => rule.bad(
            "none",
            "Linux 5.19 or newer, with landlock in the kernel's list of security modules (lsm=)",
        ),
        version if version < least => rule.bad(
            format!("version {version}"),
            format!("version {least}, of Linux 5.19: those before forbid renames from one folder to another"),
        ),
        version => rule.ok(format!("version {version}")),
    }
}

pub(super) fn users(facts: &Facts) -> Check {
    let rule = Rule::should(
        "share users",
        "files belong to the guest's users, and are opened again by file handle, only if husk has the capabilities for that",
    );
    let missing = SERVING.difference(CapabilitySet::from_bits_retain(facts.serving.capabilities));
    if missing.is_empty() {
        rule.ok("files of every user; file handles")
    } else {
        let names = missing.iter_names().map(|(name, _)| name.to_ascii_lowercase());
        rule.bad(
            format!(
                "files of this user, opened again by name: no {}",
                names.collect::<Vec<_>>().join(", ")
            ),
            "start husk as root, or be content with this user's files",
        )
    }
}

pub(super) fn sandbox(facts: &Facts) -> Check {
    let rule = Rule::should(
        "share sandbox",
        "husk fs makes the folder the root of namespaces of its own",
    );
    let root = CapabilitySet::from_bits_retain(facts.serving.capabilities).contains(CapabilitySet::SYS_ADMIN);
    match (root, facts.serving.user_namespaces) {
        (true, _) => rule.ok("mount, network and IPC namespaces"),
        (false, 0) => rule.bad(
            "no namespaces",
            "sysctl user.max_user_namespaces=1000, or start husk fs as root",
        ),
        (false, _) => rule.ok("user, mount, network and IPC namespaces"),
    }
}
