//! The part of a pod's life in which it grows and shrinks again, each answer with its latency.

use std::time::Duration;

use anyhow::{Result, bail};
use husk_tests::agent::Agent;
use husk_tests::pod::Pod;
use husk_tests::resize::{Resized, Resizing, Size};

/// What a pod of `vcpus` vCPUs and `memory` bytes is resized to, one after another, and how that is called.
fn steps(vcpus: u32, memory: u64) -> [(Size, String); 4] {
    let (more, most) = (memory + MORE_BYTES, MORE_BYTES >> 20);
    [
        (Size::Vcpus(MORE_VCPUS), format!("to {MORE_VCPUS} vCPUs")),
        (Size::Memory(more), format!("by {most} MiB")),
        (Size::Memory(memory), format!("back by {most} MiB")),
        (Size::Vcpus(vcpus), format!("back to {vcpus} vCPUs")),
    ]
}

/// vCPUs that the pod has at its largest, and how much more memory.
const MORE_VCPUS: u32 = 4;
const MORE_BYTES: u64 = 512 << 20;

/// Resizes a pod that has booted with `vcpus`, says how each step went, and goes on after one that did not.
///
/// # Errors
///
/// Which steps went wrong, when all have been tried.
pub fn live(say: &dyn Fn(&str), pod: &mut Pod, agent: &mut Agent, vcpus: u32) -> Result<()> {
    agent.load_module("virtio_mem")?;
    let resizing = Resizing::begin(pod, agent)?;
    let mut failed = Vec::new();
    for (size, what) in steps(vcpus, resizing.boot_bytes()) {
        match resizing.resize(pod, agent, size) {
            Ok(resized) => say(&told(&what, &resized)),
            Err(error) => {
                say(&format!("vm.resize {what}: {error:#}"));
                failed.push(what);
            }
        }
    }
    if !failed.is_empty() {
        bail!("the pod was not resized {}", failed.join(", "));
    }
    Ok(())
}

fn told(what: &str, resized: &Resized) -> String {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    format!(
        "vm.resize {what}: answered after {:.1} ms; after {:.1} ms the guest has CPUs {} and {} MiB",
        ms(resized.answered),
        ms(resized.agreed),
        resized.guest.online,
        resized.guest.memory_kib / 1024
    )
}

#[cfg(test)]
mod tests {
    use husk_guest::resources::Resources;

    use super::*;

    #[test]
    fn a_pod_ends_at_the_size_that_it_began_with() {
        let steps = steps(2, 512 << 20);
        let last = |is_vcpus: bool| {
            let of_kind = steps.iter().rev().map(|(size, _)| *size);
            of_kind
                .filter(|size| matches!(size, Size::Vcpus(_)) == is_vcpus)
                .collect::<Vec<_>>()
        };
        assert_eq!(last(true), [Size::Vcpus(2), Size::Vcpus(4)]);
        assert_eq!(last(false), [Size::Memory(512 << 20), Size::Memory(1024 << 20)]);
    }

    #[test]
    fn a_step_is_told_with_both_latencies() {
        let resized = Resized {
            answered: Duration::from_micros(1500),
            agreed: Duration::from_millis(60),
            guest: Resources {
                online: "0-3".into(),
                memory_kib: 1024,
                ..Resources::default()
            },
        };
        assert_eq!(
            told("to 4 vCPUs", &resized),
            "vm.resize to 4 vCPUs: answered after 1.5 ms; after 60.0 ms the guest has CPUs 0-3 and 1 MiB"
        );
    }
}
