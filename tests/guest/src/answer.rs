//! What a guest answers: one value per step, one line of JSON per value.

use serde::{Deserialize, Serialize};

use crate::PREFIX;
use crate::resources::Resources;

/// The answer to one [`Step`](crate::Step).
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Answer {
    /// To `report`.
    Report(Report),
    /// To `topology`.
    Topology {
        /// In processor order.
        processors: Vec<Processor>,
    },
    /// To `pci`.
    Pci {
        /// In bus order.
        functions: Vec<PciFunction>,
    },
    /// To `interrupts`.
    Interrupts {
        /// In the kernel's order.
        rows: Vec<Interrupt>,
    },
    /// To `disk`.
    Disk(Disk),
    /// To `write`, `read`, `discard`, `zero` and `parallel`.
    Data {
        /// Bytes moved.
        bytes: u64,
        /// [`pattern::checksum`](crate::pattern::checksum) of what was written or read; 0 if no data crossed.
        checksum: u64,
    },
    /// To `random`.
    Random {
        /// The kernel's name of the current source.
        source: String,
        /// Bytes read.
        bytes: usize,
        /// How many different byte values there were.
        distinct: usize,
    },
    /// To `echo` and `shell`, before the first line is read.
    Listening,
    /// To one line of `echo`.
    Echo {
        /// The line without its end.
        line: String,
    },
    /// To `script`, and to one line of `shell`.
    Ran {
        /// The exit code, or -1 if a signal ended it.
        code: i32,
        /// What it wrote, errors included.
        output: String,
    },
    /// To `resources` and `online`.
    Resources(Resources),
    /// To `module`.
    Loaded {
        /// Its name.
        module: String,
    },
    /// To `window`: once at the start, then once per change.
    Window {
        /// Lines.
        rows: u16,
        /// Columns.
        columns: u16,
    },
    /// To `idle`, `poweroff`, `reset` and `panic`, right before.
    Bye {
        /// The step.
        to: String,
    },
    /// To any step that the guest's kernel refused.
    Failed {
        /// The step as it was asked.
        asked: String,
        /// The chain of errors.
        error: String,
        /// The error number, if the kernel gave one.
        errno: Option<i32>,
    },
}

/// The guest as its kernel sees it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Report {
    /// `uname -r`.
    pub kernel: String,
    /// `uname -v`.
    pub build: String,
    /// Processors online, as a list such as `0-3`.
    pub online: String,
    /// Processors that may come online later, as a list.
    pub possible: String,
    /// `MemTotal` in KiB.
    pub memory_kib: u64,
    /// `/proc/cmdline` without the newline that the kernel appends.
    pub cmdline: String,
    /// The clock source in use.
    pub clock: String,
    /// Hypervisor vendor in `/proc/cpuinfo`'s flags: whether the guest knows that it is one.
    pub hypervisor: bool,
    /// Names of the ACPI devices that have a hardware ID, sorted.
    pub acpi: Vec<String>,
    /// Seconds since the kernel started.
    pub uptime: f64,
}

/// Where a processor sits.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Processor {
    /// Linux's number.
    pub id: u32,
    /// Physical package.
    pub package: i32,
    /// Core within the package.
    pub core: i32,
    /// Hardware threads of the same core, as a list.
    pub siblings: String,
}

/// A PCI function.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct PciFunction {
    /// `0000:00:01.0`.
    pub address: String,
    /// Vendor and device, `1af4:1042`.
    pub id: String,
    /// Class code, 24 bits.
    pub class: u32,
    /// The driver bound, or empty.
    pub driver: String,
    /// Interrupts allocated as MSI or MSI-X.
    pub msi: usize,
}

/// A device's row of `/proc/interrupts`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Interrupt {
    /// Interrupts taken on each processor.
    pub counts: Vec<u64>,
    /// Controller, pin and device names.
    pub name: String,
}

/// A block device.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Disk {
    /// Name below `/dev`.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Whether the kernel refuses writes.
    pub read_only: bool,
    /// Smallest unit of I/O in bytes.
    pub sector: u64,
    /// Hardware queues.
    pub queues: usize,
    /// Largest discard in bytes; 0 if the device has none.
    pub discard: u64,
    /// Largest write-zeroes in bytes; 0 if the device has none.
    pub write_zeroes: u64,
    /// `write back` or `write through`.
    pub cache: String,
    /// The serial number that the device gives.
    pub serial: String,
}

impl Answer {
    /// The line to print, without its end.
    pub fn line(&self) -> String {
        let json = serde_json::to_string(self).expect("answers have string keys and no failing serialisers");
        format!("{PREFIX}{json}")
    }

    /// Reads a line of a console; `None` if it is not an answer.
    pub fn parse(line: &str) -> Option<Result<Self, serde_json::Error>> {
        let start = line.find(PREFIX)?;
        let json = line.get(start..)?.strip_prefix(PREFIX)?;
        Some(serde_json::from_str(json.trim_end()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_survives_its_line() {
        let report = Report {
            cmdline: r#"a="b c" 'd'"#.into(),
            memory_kib: 7,
            ..Report::default()
        };
        let answer = Answer::Report(report);
        assert_eq!(Answer::parse(&answer.line()).unwrap().unwrap(), answer);
    }

    #[test]
    fn text_before_the_prefix_is_skipped_and_other_lines_are_not_answers() {
        let line = format!("[    1.0] noise{}\r", Answer::Listening.line());
        assert_eq!(Answer::parse(&line).unwrap().unwrap(), Answer::Listening);
        assert!(Answer::parse("[    1.0] noise").is_none());
        assert!(Answer::parse("@husk {").unwrap().is_err());
    }
}
