//! Messages about a VM in the log, for whoever reads it with `-v`: what it is made of, how long its start took, how it
//! ended. A line each.

use std::time::Duration;

use crate::config::{Size, VmConfig};
use crate::machine::Ending;
use crate::trace::Trace;

/// What a VM is made of: vCPUs, RAM, what it boots, and its devices.
pub(super) fn vm_summary(config: &VmConfig) -> String {
    let (cpus, memory) = (&config.cpus, &config.memory);
    let mut text = format!("{} vCPUs", cpus.boot_vcpus);
    if cpus.max_vcpus > cpus.boot_vcpus {
        text += &format!(" of {}", cpus.max_vcpus);
    }
    text += &format!(", {} of RAM", Size(memory.size));
    if let Some(more) = memory.hotplug_size.filter(|more| *more > 0) {
        text += &format!(" and {} later", Size(more));
    }
    let files = [
        ("kernel", &config.payload.kernel),
        ("initramfs", &config.payload.initramfs),
    ];
    for (what, path) in files {
        if let Some(path) = path {
            text += &format!(", {what} {}", path.display());
        }
    }
    let devices: Vec<String> = config
        .devices()
        .map(|device| device.id().unwrap_or(device.kind()).to_owned())
        .collect();
    if !devices.is_empty() {
        text += &format!(", with {}", devices.join(" "));
    }
    text
}

/// That the guest runs, after so long.
pub(super) fn started_message(took: Duration, trace: &Trace) -> String {
    let took = format!("the guest runs after {:.1} ms", took.as_secs_f64() * 1e3);
    match trace.phases() {
        phases if phases.is_empty() => took,
        phases => format!("{took}: {phases}"),
    }
}

/// How the guest ended, as events have it.
pub(super) fn ending_event(ending: &Ending) -> &'static str {
    match ending {
        Ending::PowerOff => "power-off",
        Ending::Reset | Ending::TripleFault => "reset",
        Ending::Panic => "panic",
        Ending::Failed(_) => "failed",
    }
}

/// How the guest ended.
pub(super) fn ended_message(ending: &Ending) -> String {
    match ending {
        Ending::PowerOff => "the guest has powered itself off".into(),
        Ending::Reset => "the guest has reset itself".into(),
        Ending::TripleFault => "the guest has reset itself by a triple fault".into(),
        Ending::Panic => "the guest's kernel has panicked".into(),
        Ending::Failed(why) => format!("the guest cannot go on: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{CpusConfig, DiskConfig};

    #[test]
    fn a_vm_is_described_in_a_line() {
        let mut config = VmConfig::default();
        config.payload.kernel = Some("/boot/vmlinux".into());
        assert_eq!(vm_summary(&config), "1 vCPUs, 512 MiB of RAM, kernel /boot/vmlinux");
        config.cpus = CpusConfig {
            max_vcpus: 8,
            ..CpusConfig::fixed(2)
        };
        config.memory.hotplug_size = Some(1 << 30);
        config.disks = vec![DiskConfig::new("/a"), DiskConfig::new("/b")];
        config.name_devices();
        assert_eq!(
            vm_summary(&config),
            "2 vCPUs of 8, 512 MiB of RAM and 1 GiB later, kernel /boot/vmlinux, with _disk0 _disk1"
        );
    }

    #[test]
    fn a_start_has_its_phases_if_somebody_looked() {
        let took = Duration::from_micros(12_340);
        assert_eq!(started_message(took, &Trace::off()), "the guest runs after 12.3 ms");
        assert_eq!(
            started_message(took, &Trace::of_start()),
            "the guest runs after 12.3 ms"
        );
    }
}
