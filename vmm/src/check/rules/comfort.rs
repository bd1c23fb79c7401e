//! Checks that decide nothing: without them pods run, not as well as they could.

use super::{Rule, is_aws};
use crate::check::{Check, Facts};

/// Less memory than this leaves no room for a guest beside husk.
const SMALL_MEMORY_BYTES: u64 = 256 << 20;
/// A VM has a thread for each vCPU and queue.
const FEW_PIDS: u64 = 64;
/// What Linux 5.16 and later allow everybody.
const SMALL_MEMLOCK_BYTES: u64 = 8 << 20;

pub(super) fn bare_metal(facts: &Facts) -> Check {
    let rule = Rule::should(
        "bare metal",
        "every exit of a nested guest passes through two hypervisors",
    );
    let machine = [facts.vendor.as_str(), facts.product.as_str()].join(" ");
    let machine = if machine.trim().is_empty() {
        "unknown machine"
    } else {
        machine.trim()
    };
    // AWS names its bare-metal sizes c6i.metal or m7i.metal-24xl.
    let aws_metal = is_aws(facts) && facts.product.split(['.', '-']).any(|part| part == "metal");
    match (facts.cpu.hypervisor, aws_metal) {
        (false, true) => rule.ok(format!("yes, AWS bare metal ({})", facts.product)),
        (false, false) => rule.ok(format!("yes ({machine})")),
        (true, _) if is_aws(facts) => rule.bad(
            format!("no, a virtual machine ({machine})"),
            "use an instance type whose name has .metal in it",
        ),
        (true, _) => rule.bad(
            format!("no, a virtual machine ({machine})"),
            "use a bare-metal host where speed matters",
        ),
    }
}

pub(super) fn vhost(name: &'static str, device: &str, module: &str, exists: bool) -> Check {
    let rule = Rule::should(
        name,
        "an in-kernel back end that some pod configurations ask for; husk does not need it",
    );
    if exists {
        rule.ok(device)
    } else {
        rule.bad(format!("no {device}"), format!("modprobe {module}"))
    }
}

pub(super) fn memlock(facts: &Facts) -> Check {
    let rule = Rule::should(
        "memlock",
        "memory that devices reach directly is locked: rings, and all of a guest's with VFIO",
    );
    match facts.limits.memlock_bytes {
        None => rule.ok("unlimited"),
        Some(bytes) if bytes >= SMALL_MEMLOCK_BYTES => rule.ok(mebibytes(bytes)),
        Some(bytes) => rule.bad(
            mebibytes(bytes),
            "ulimit -l unlimited, or LimitMEMLOCK=infinity in the service's unit",
        ),
    }
}

pub(super) fn cgroup_memory(facts: &Facts) -> Check {
    let rule = Rule::should(
        "cgroup memory",
        "a guest's memory counts against the cgroup that husk runs in",
    );
    match facts.limits.memory_bytes {
        None => rule.ok("unlimited"),
        Some(bytes) if bytes >= SMALL_MEMORY_BYTES => rule.ok(mebibytes(bytes)),
        Some(bytes) => rule.bad(
            mebibytes(bytes),
            format!("raise memory.max to {} or more", mebibytes(SMALL_MEMORY_BYTES)),
        ),
    }
}

pub(super) fn cgroup_pids(facts: &Facts) -> Check {
    let rule = Rule::should("cgroup pids", "every vCPU and device queue is a thread");
    match facts.limits.pids {
        None => rule.ok("unlimited"),
        Some(pids) if pids >= FEW_PIDS => rule.ok(pids.to_string()),
        Some(pids) => rule.bad(pids.to_string(), format!("raise pids.max to {FEW_PIDS} or more")),
    }
}

pub(super) fn huge_pages(facts: &Facts) -> Check {
    let rule = Rule::should("huge pages", "guests start and run faster on huge pages");
    let pages = &facts.huge_pages;
    let mode = if pages.transparent.is_empty() {
        "absent"
    } else {
        &pages.transparent
    };
    let found = format!("transparent: {mode}, reserved: {}", pages.reserved);
    match (mode, pages.reserved) {
        ("absent" | "never", 0) => rule.bad(found, "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"),
        _ => rule.ok(found),
    }
}

pub(super) fn fips(facts: &Facts) -> Check {
    let rule = Rule::should(
        "fips",
        "guests are in the FIPS mode of their host; husk has no cryptography of its own",
    );
    rule.ok(match facts.fips {
        true => "on: guests are started with fips=1, unless their command line has fips=",
        false => "off",
    })
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}
