//! Checks of what an installation needs beside the kernel: none of it decides whether VMs run.

use super::Rule;
use crate::check::{Check, Facts};

/// The pod that room is counted in: a small one, and what Kata adds to it for a VMM of the kind.
const POD_MIB: u64 = 512;
const OVERHEAD_MIB: u64 = 130;

pub(super) fn engine(facts: &Facts) -> Check {
    let rule = Rule::should("container engine", "it starts Kata's shims, and they start husk");
    let named = |name: &str, version: &Option<String>| version.as_ref().map(|version| format!("{name} {version}"));
    let found = [
        named("containerd", &facts.node.containerd),
        named("CRI-O", &facts.node.crio),
        facts.node.distribution.map(|name| format!("{name}'s own containerd")),
    ];
    let found: Vec<_> = found.into_iter().flatten().collect();
    if found.is_empty() {
        rule.bad(
            "neither containerd nor CRI-O",
            "install one of them; husk run needs none",
        )
    } else {
        rule.ok(found.join(", "))
    }
}

pub(super) fn kata(facts: &Facts) -> Check {
    let rule = Rule::should("kata", "its shims make a VM of a pod");
    let version = if facts.node.kata.is_empty() {
        "unknown version"
    } else {
        &facts.node.kata
    };
    match facts.node.shims.as_slice() {
        [] => rule.bad(
            "no shim below /opt/kata",
            "install Kata Containers; if it is elsewhere, husk install --kata DIR",
        ),
        shims => rule.ok(format!("{version}, shims: {}", shims.join(", "))),
    }
}

pub(super) fn handlers(facts: &Facts) -> Check {
    let rule = Rule::should("kata handlers", "a runtime class stands for a handler of the engine");
    if facts.node.handlers.is_empty() {
        let remedy = match facts.node.distribution {
            Some(_) => "put them where its containerd reads them, by hand: docs/kata.md, section 3",
            None => "husk install --dry-run shows what it takes",
        };
        rule.bad("none", remedy)
    } else {
        rule.ok(facts.node.handlers.join(", "))
    }
}

pub(super) fn memory(facts: &Facts) -> Check {
    let rule = Rule::should("free memory", "a pod has its guest's memory, and husk's own beside it");
    let available = facts.node.available_bytes >> 20;
    let pods = available / (POD_MIB + OVERHEAD_MIB);
    let found = format!("{available} MiB, enough for {pods} pods of {POD_MIB} MiB");
    if pods == 0 {
        rule.bad(found, "stop something else, or give pods less")
    } else {
        rule.ok(found)
    }
}
