//! The steps a guest can be asked to do, and how they are written on a kernel command line.
//!
//! Steps are separated by commas, a step's arguments by colons; no step contains a space or a
//! quote. Sizes and offsets are bytes.
//!
//! | step                       | what the guest does                                                     |
//! |----------------------------|-------------------------------------------------------------------------|
//! | `report`                   | kernel, processors, memory, command line, clock source, ACPI devices    |
//! | `topology`                 | package, core and siblings of each processor                            |
//! | `pci`                      | PCI functions with their drivers and MSI-X vectors                      |
//! | `interrupts`               | the rows of `/proc/interrupts` that belong to a device                  |
//! | `resources`                | processors and memory: which there are, which are online, and when      |
//! | `online:CPUS`              | brings CPUS processors and all memory online, as Kata's agent does      |
//! | `module:NAME`              | loads a driver that the image has and its init does not load            |
//! | `disk:NAME`                | size, limits and queues of a block device                               |
//! | `write:NAME:AT:LEN:SEED`   | writes a pattern and syncs it                                           |
//! | `read:NAME:AT:LEN`         | reads past the page cache and checksums                                 |
//! | `discard:NAME:AT:LEN`      | discards a range                                                        |
//! | `zero:NAME:AT:LEN`         | zeroes a range without sending zeroes                                   |
//! | `parallel:NAME:JOBS`       | reads from JOBS processors at the same time                             |
//! | `random:LEN`               | reads `/dev/hwrng`                                                      |
//! | `echo`                     | answers each input line until the line `end`                            |
//! | `shell`                    | gives each input line to the shell until the line `end`                 |
//! | `script`                   | runs `/script`, a shell script of the initramfs                         |
//! | `window:CHANGES`           | console size now, and after each of CHANGES resizes                     |
//! | `mark:BYTE`                | writes a byte, given in decimal, to the console                         |
//! | `raw-streams`              | serves raw vsock streams, for measuring, until the VMM ends             |
//! | `rebind-vsock`             | takes the vsock driver off its device and puts it back                  |
//! | `agent`                    | serves calls over vsock until one of them ends the guest                |
//! | `idle`                     | sleeps for ever                                                         |
//! | `poweroff`                 | powers off                                                              |
//! | `reset`                    | restarts, by the method of the kernel's `reboot=` option                |
//! | `panic`                    | crashes the kernel                                                      |

use std::fmt;
use std::str::FromStr;

/// A range of bytes on a block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// The device's name below `/dev`.
    pub disk: String,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

/// One thing to do. See the table in the module's documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the module documentation has the table")]
pub enum Step {
    Report,
    Topology,
    Pci,
    Interrupts,
    Resources,
    Online(usize),
    Module(String),
    Disk(String),
    Write(Range, u64),
    Read(Range),
    Discard(Range),
    Zero(Range),
    Parallel(String, usize),
    Random(usize),
    Echo,
    Shell,
    Script,
    Window(usize),
    Mark(u8),
    Agent,
    RebindVsock,
    RawStreams,
    Idle,
    PowerOff,
    Reset,
    Panic,
}

impl Step {
    /// Whether the guest ends with this step.
    pub fn is_last(&self) -> bool {
        matches!(self, Self::PowerOff | Self::Reset | Self::Panic)
    }

    /// A pattern to write to `length` bytes at `offset` of `disk`.
    pub fn write(disk: &str, offset: u64, length: u64, seed: u64) -> Self {
        Self::Write(
            Range {
                disk: disk.into(),
                offset,
                length,
            },
            seed,
        )
    }

    /// `length` bytes to read at `offset` of `disk`.
    pub fn read(disk: &str, offset: u64, length: u64) -> Self {
        Self::Read(Range {
            disk: disk.into(),
            offset,
            length,
        })
    }
}

/// Joins steps into the value of `husk.do=`.
pub fn join(steps: &[Step]) -> String {
    steps.iter().map(Step::to_string).collect::<Vec<_>>().join(",")
}

/// Reads the value of `husk.do=`.
///
/// # Errors
///
/// The first step that is unknown or has the wrong arguments, named.
pub fn split(value: &str) -> Result<Vec<Step>, UnknownStep> {
    value.split(',').map(str::parse).collect()
}

/// A step that nobody can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownStep(pub String);

impl fmt::Display for UnknownStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot do `{}`: unknown step or wrong arguments", self.0)
    }
}

impl std::error::Error for UnknownStep {}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.disk, self.offset, self.length)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Report => f.write_str("report"),
            Self::Topology => f.write_str("topology"),
            Self::Pci => f.write_str("pci"),
            Self::Interrupts => f.write_str("interrupts"),
            Self::Resources => f.write_str("resources"),
            Self::Online(cpus) => write!(f, "online:{cpus}"),
            Self::Module(name) => write!(f, "module:{name}"),
            Self::Disk(name) => write!(f, "disk:{name}"),
            Self::Write(range, seed) => write!(f, "write:{range}:{seed}"),
            Self::Read(range) => write!(f, "read:{range}"),
            Self::Discard(range) => write!(f, "discard:{range}"),
            Self::Zero(range) => write!(f, "zero:{range}"),
            Self::Parallel(name, jobs) => write!(f, "parallel:{name}:{jobs}"),
            Self::Random(length) => write!(f, "random:{length}"),
            Self::Echo => f.write_str("echo"),
            Self::Shell => f.write_str("shell"),
            Self::Script => f.write_str("script"),
            Self::Window(changes) => write!(f, "window:{changes}"),
            Self::Mark(byte) => write!(f, "mark:{byte}"),
            Self::Agent => f.write_str("agent"),
            Self::RebindVsock => f.write_str("rebind-vsock"),
            Self::RawStreams => f.write_str("raw-streams"),
            Self::Idle => f.write_str("idle"),
            Self::PowerOff => f.write_str("poweroff"),
            Self::Reset => f.write_str("reset"),
            Self::Panic => f.write_str("panic"),
        }
    }
}

impl FromStr for Step {
    type Err = UnknownStep;

    fn from_str(text: &str) -> Result<Self, UnknownStep> {
        let words: Vec<&str> = text.split(':').collect();
        parse(&words).ok_or_else(|| UnknownStep(text.into()))
    }
}

fn parse(words: &[&str]) -> Option<Step> {
    Some(match *words {
        ["report"] => Step::Report,
        ["topology"] => Step::Topology,
        ["pci"] => Step::Pci,
        ["interrupts"] => Step::Interrupts,
        ["resources"] => Step::Resources,
        ["online", cpus] => Step::Online(cpus.parse().ok()?),
        ["module", name] => Step::Module(name.into()),
        ["disk", name] => Step::Disk(name.into()),
        ["write", disk, at, length, seed] => Step::Write(range(disk, at, length)?, seed.parse().ok()?),
        ["read", disk, at, length] => Step::Read(range(disk, at, length)?),
        ["discard", disk, at, length] => Step::Discard(range(disk, at, length)?),
        ["zero", disk, at, length] => Step::Zero(range(disk, at, length)?),
        ["parallel", disk, jobs] => Step::Parallel(disk.into(), jobs.parse().ok()?),
        ["random", length] => Step::Random(length.parse().ok()?),
        ["echo"] => Step::Echo,
        ["shell"] => Step::Shell,
        ["script"] => Step::Script,
        ["window", changes] => Step::Window(changes.parse().ok()?),
        ["mark", byte] => Step::Mark(byte.parse().ok()?),
        ["agent"] => Step::Agent,
        ["rebind-vsock"] => Step::RebindVsock,
        ["raw-streams"] => Step::RawStreams,
        ["idle"] => Step::Idle,
        ["poweroff"] => Step::PowerOff,
        ["reset"] => Step::Reset,
        ["panic"] => Step::Panic,
        _ => return None,
    })
}

fn range(disk: &str, offset: &str, length: &str) -> Option<Range> {
    Some(Range {
        disk: disk.into(),
        offset: offset.parse().ok()?,
        length: length.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_reads_back_as_it_was_written() {
        let range = || Range {
            disk: "vdb".into(),
            offset: 4096,
            length: 512,
        };
        let steps = vec![
            Step::Report,
            Step::Topology,
            Step::Pci,
            Step::Interrupts,
            Step::Resources,
            Step::Online(8),
            Step::Module("virtio_mem".into()),
            Step::Disk("vda".into()),
            Step::Write(range(), 7),
            Step::Read(range()),
            Step::Discard(range()),
            Step::Zero(range()),
            Step::Parallel("vda".into(), 4),
            Step::Random(32),
            Step::Echo,
            Step::Shell,
            Step::Script,
            Step::Window(2),
            Step::Mark(2),
            Step::Agent,
            Step::RebindVsock,
            Step::RawStreams,
            Step::Idle,
            Step::PowerOff,
            Step::Reset,
            Step::Panic,
        ];
        let line = join(&steps);
        assert!(!line.contains([' ', '"']), "a step would need quoting: {line}");
        assert_eq!(split(&line), Ok(steps));
    }

    #[test]
    fn wrong_arguments_are_named() {
        assert_eq!(split("report,read:vda:x:1"), Err(UnknownStep("read:vda:x:1".into())));
        assert_eq!(split("disk"), Err(UnknownStep("disk".into())));
    }
}
