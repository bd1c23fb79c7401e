//! What the guest's kernel says about the machine, read from `/proc` and `/sys`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use husk_guest::answer::{Interrupt, PciFunction, Processor, Report};

/// A file of the kernel without its last line end.
///
/// # Errors
///
/// It cannot be read, which is named.
pub fn read(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text.trim_end_matches('\n').to_string())
}

/// Entries of a folder, sorted; none if the folder is missing.
fn list(folder: impl AsRef<Path>) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn name(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// Answers `report`.
pub fn report() -> Result<Report> {
    let memory = read("/proc/meminfo")?;
    let uptime = read("/proc/uptime")?;
    Ok(Report {
        kernel: read("/proc/sys/kernel/osrelease")?,
        build: read("/proc/sys/kernel/version")?,
        online: read("/sys/devices/system/cpu/online")?,
        possible: read("/sys/devices/system/cpu/possible")?,
        memory_kib: meminfo(&memory, "MemTotal")?,
        cmdline: read("/proc/cmdline")?,
        clock: read("/sys/devices/system/clocksource/clocksource0/current_clocksource")?,
        hypervisor: read("/proc/cpuinfo")?
            .split_ascii_whitespace()
            .any(|flag| flag == "hypervisor"),
        acpi: acpi_ids(),
        uptime: uptime
            .split(' ')
            .next()
            .unwrap_or_default()
            .parse()
            .context("strange /proc/uptime")?,
    })
}

/// A value of `/proc/meminfo`, in KiB.
///
/// # Errors
///
/// There is none of this name.
pub fn meminfo(text: &str, name: &str) -> Result<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let value = value.with_context(|| format!("no {name} in /proc/meminfo"))?;
    let number = value.trim().trim_end_matches(" kB").parse();
    number.with_context(|| format!("strange {name}"))
}

/// Devices with a hardware ID. The kernel calls the others `device:00` and so on.
fn acpi_ids() -> Vec<String> {
    let names = list("/sys/bus/acpi/devices").into_iter().map(|path| name(&path));
    names.filter(|name| !name.starts_with("device:")).collect()
}

/// Answers `topology`.
pub fn processors() -> Result<Vec<Processor>> {
    let mut all = Vec::new();
    for path in list("/sys/devices/system/cpu") {
        let Some(id) = name(&path).strip_prefix("cpu").and_then(|id| id.parse().ok()) else {
            continue;
        };
        let folder = path.join("topology");
        if folder.exists() {
            all.push(Processor {
                id,
                package: read(folder.join("physical_package_id"))?.parse()?,
                core: read(folder.join("core_id"))?.parse()?,
                siblings: read(folder.join("thread_siblings_list"))?,
            });
        }
    }
    all.sort_by_key(|processor| processor.id);
    Ok(all)
}

/// Answers `pci`.
pub fn pci() -> Result<Vec<PciFunction>> {
    list("/sys/bus/pci/devices")
        .iter()
        .map(|path| pci_function(path))
        .collect()
}

fn pci_function(path: &Path) -> Result<PciFunction> {
    let hex = |file: &str| -> Result<String> { Ok(read(path.join(file))?.trim_start_matches("0x").to_string()) };
    let driver = fs::read_link(path.join("driver"))
        .map(|target| name(&target))
        .unwrap_or_default();
    Ok(PciFunction {
        address: name(path),
        id: format!("{}:{}", hex("vendor")?, hex("device")?),
        class: u32::from_str_radix(&hex("class")?, 16)?,
        driver,
        msi: list(path.join("msi_irqs")).len(),
    })
}

/// Answers `interrupts`: rows that begin with a number, which are the ones of devices.
pub fn interrupts() -> Result<Vec<Interrupt>> {
    let table = read("/proc/interrupts")?;
    let processors = table
        .lines()
        .next()
        .unwrap_or_default()
        .split_ascii_whitespace()
        .count();
    Ok(table
        .lines()
        .skip(1)
        .filter_map(|line| interrupt(line, processors))
        .collect())
}

fn interrupt(line: &str, processors: usize) -> Option<Interrupt> {
    let (number, rest) = line.trim_start().split_once(':')?;
    number.parse::<u32>().ok()?;
    let mut words = rest.split_ascii_whitespace();
    let counts = words
        .by_ref()
        .take(processors)
        .map(|word| word.parse().ok())
        .collect::<Option<_>>()?;
    Some(Interrupt {
        counts,
        name: words.collect::<Vec<_>>().join(" "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupt_rows_of_devices_are_read_and_others_skipped() {
        let row = interrupt(
            " 24:        105        7  PCI-MSIX-0000:00:01.0   1-edge      virtio0-req.0",
            2,
        )
        .unwrap();
        assert_eq!(row.counts, [105, 7]);
        assert_eq!(row.name, "PCI-MSIX-0000:00:01.0 1-edge virtio0-req.0");
        assert!(interrupt("NMI:  0  0  Non-maskable interrupts", 2).is_none());
    }
}
