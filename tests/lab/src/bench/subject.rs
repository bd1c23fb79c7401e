//! What is measured: husk, the floor under it, and whatever peers stand in PATH, each given the same guest.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::measure::Start;
use crate::command::{command, find, output};

/// One virtual machine, as every subject is asked to build it: one vCPU, a serial port on standard output.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Guest {
    /// ELF kernel, entered by PVH or the 64-bit protocol, whichever the subject prefers.
    pub kernel: PathBuf,
    /// Initial RAM file system.
    pub initramfs: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// RAM in MiB.
    pub memory_mib: u32,
    /// A raw disk image, and with it a virtio random number generator.
    pub disk: Option<PathBuf>,
    /// The socket of a vsock device.
    pub vsock: Option<PathBuf>,
    /// Name of a tap to make, and with it a network device.
    pub tap: Option<String>,
    /// What may come later.
    pub room: Option<Room>,
    /// A folder of the host, by the tag [`TAG`].
    pub share: Option<Share>,
}

/// Who serves a shared folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Share {
    /// The subject by itself: the folder.
    Own(PathBuf),
    /// Another process: its socket.
    Socket(PathBuf),
}

/// The tag of a shared folder.
pub const TAG: &str = "bench";

/// vCPUs and memory that a guest may get while it runs.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Room {
    /// vCPUs in all.
    pub max_cpus: u32,
    /// MiB of memory beside what it starts with.
    pub memory_mib: u32,
}

/// The guest's address.
const MAC: &str = "02:00:00:00:00:07";

/// A program that runs guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// This project.
    Husk,
    /// The same without seccomp filters.
    HuskUnfiltered,
    /// This project with `husk fs` as its file server.
    HuskFs,
    /// This project with virtiofsd as its file server.
    HuskVirtiofsd,
    /// This project with plain reads and writes for its disks.
    HuskPlain,
    /// This project, its figures read a hundred times a second.
    HuskScraped,
    /// The bare KVM calls; knows the tiny payload only.
    Floor,
    /// Cloud Hypervisor.
    CloudHypervisor,
    /// The same with plain reads and writes for its disks.
    CloudHypervisorPlain,
    /// Firecracker.
    Firecracker,
    /// QEMU's microvm machine.
    QemuMicrovm,
    /// QEMU's q35 machine.
    QemuQ35,
}

impl Kind {
    /// What is built here, and measured whether peers are or not.
    pub const OURS: [Self; 7] = [
        Self::Husk,
        Self::HuskUnfiltered,
        Self::HuskFs,
        Self::HuskVirtiofsd,
        Self::HuskPlain,
        Self::HuskScraped,
        Self::Floor,
    ];

    /// Peers, with the program looked for in PATH.
    const PEERS: [(Self, &'static str); 5] = [
        (Self::CloudHypervisor, "cloud-hypervisor"),
        (Self::CloudHypervisorPlain, "cloud-hypervisor"),
        (Self::Firecracker, "firecracker"),
        (Self::QemuMicrovm, "qemu-system-x86_64"),
        (Self::QemuQ35, "qemu-system-x86_64"),
    ];

    /// The subject's name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Husk => "husk",
            Self::HuskUnfiltered => "husk-unfiltered",
            Self::HuskFs => "husk-with-husk-fs",
            Self::HuskVirtiofsd => "husk-with-virtiofsd",
            Self::HuskPlain => "husk-without-io_uring",
            Self::HuskScraped => "husk-scraped",
            Self::Floor => "floor",
            Self::CloudHypervisor => "cloud-hypervisor",
            Self::CloudHypervisorPlain => "cloud-hypervisor-without-io_uring",
            Self::Firecracker => "firecracker",
            Self::QemuMicrovm => "qemu-microvm",
            Self::QemuQ35 => "qemu-q35",
        }
    }

    /// Whether it is built here. A peer that cannot be measured is not an error.
    pub fn is_ours(self) -> bool {
        Self::OURS.contains(&self)
    }

    /// Whether it is measured with guests of a stock kernel.
    pub fn boots(self) -> bool {
        !self.is_variant() && !matches!(self, Self::HuskUnfiltered | Self::Floor)
    }

    /// Whether it is husk with another process that serves files, which only the profile `fs` asks for.
    pub fn has_file_server(self) -> bool {
        matches!(self, Self::HuskFs | Self::HuskVirtiofsd)
    }

    /// Whether its disks are to do without io_uring, which only the profile `block` asks for.
    pub fn is_without_io_uring(self) -> bool {
        matches!(self, Self::HuskPlain | Self::CloudHypervisorPlain)
    }

    /// Whether it is a program that is measured by itself as well, and in this arrangement for one profile alone.
    pub fn is_variant(self) -> bool {
        self.has_file_server() || self.is_without_io_uring() || self == Self::HuskScraped
    }

    /// Whether it is QEMU, which needs more files than its own.
    pub fn is_qemu(self) -> bool {
        matches!(self, Self::QemuMicrovm | Self::QemuQ35)
    }
}

/// A kind, and how its program is started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Subject {
    /// What it is.
    pub kind: Kind,
    /// The executable.
    pub program: PathBuf,
    /// Words before everything else that it is told.
    pub first: Vec<String>,
}

impl Subject {
    /// A subject that is started by its own name.
    pub fn new(kind: Kind, program: impl Into<PathBuf>) -> Self {
        Self {
            kind,
            program: program.into(),
            first: Vec::new(),
        }
    }

    /// The peers found in PATH.
    pub fn peers() -> Vec<Self> {
        let found = |(kind, name)| Some(Self::new(kind, find(name)?));
        Kind::PEERS.into_iter().filter_map(found).collect()
    }

    /// What it says of its own version.
    pub fn version(&self) -> String {
        let said = match self.kind {
            Kind::Floor => Ok("the system calls of any VMM".into()),
            _ => output(command(&self.program).arg("--version")),
        };
        let said = said.unwrap_or_else(|error| format!("{error:#}"));
        said.lines().next().unwrap_or_default().trim().to_string()
    }

    /// What runs `guest` with the serial port on standard output. Files it needs go into `scratch`.
    ///
    /// # Errors
    ///
    /// A file cannot be written.
    pub fn start(&self, guest: &Guest, scratch: &Path) -> Result<Start> {
        let mut command = Command::new(&self.program);
        command.args(&self.first);
        match self.kind {
            Kind::Husk | Kind::HuskFs | Kind::HuskVirtiofsd | Kind::HuskScraped => husk(&mut command, guest, ""),
            Kind::HuskPlain => husk(&mut command, guest, ",io_uring=off"),
            Kind::HuskUnfiltered => {
                husk(&mut command, guest, "");
                command.args(["--seccomp", "false"]);
            }
            Kind::Floor => {
                command.arg(&guest.kernel).arg(guest.memory_mib.to_string());
            }
            Kind::CloudHypervisor => cloud_hypervisor(&mut command, guest, ""),
            Kind::CloudHypervisorPlain => cloud_hypervisor(&mut command, guest, ",_disable_io_uring=on"),
            Kind::Firecracker => firecracker(&mut command, guest, scratch)?,
            Kind::QemuMicrovm => qemu(
                &mut command,
                guest,
                "microvm,acpi=on,rtc=off,pit=off,pic=off,isa-serial=on",
            ),
            Kind::QemuQ35 => qemu(&mut command, guest, "q35"),
        }
        Ok(Start {
            command,
            complaints: scratch.join("complaints"),
        })
    }
}

/// What there is to say of its disk ends with `engine`.
fn husk(command: &mut Command, guest: &Guest, engine: &str) {
    let (cpus, memory) = match guest.room {
        Some(room) => (
            format!("boot=1,max={}", room.max_cpus),
            format!("size={}M,hotplug={}M", guest.memory_mib, room.memory_mib),
        ),
        None => ("1".into(), format!("{}M", guest.memory_mib)),
    };
    command.args(["run", "--cpus", &cpus, "--serial", "stdio", "--console", "off"]);
    command.args(["--memory", &memory]).arg("--kernel").arg(&guest.kernel);
    command.arg("--cmdline").arg(&guest.cmdline);
    if let Some(initramfs) = &guest.initramfs {
        command.arg("--initramfs").arg(initramfs);
    }
    if let Some(tap) = &guest.tap {
        command.arg("--net").arg(format!("tap={tap},mac={MAC}"));
    }
    match &guest.share {
        // As the Rust shim has virtiofsd serve it.
        Some(Share::Own(folder)) => {
            let words = format!("tag={TAG},cache=auto,xattr=on,dir=");
            command.arg("--fs").arg(joined(&words, folder));
        }
        Some(Share::Socket(socket)) => {
            command.arg("--fs").arg(joined(&format!("tag={TAG},socket="), socket));
        }
        None => {}
    }
    match &guest.disk {
        Some(disk) => {
            let mut disk = joined("path=", disk);
            disk.push(engine);
            command.arg("--disk").arg(disk)
        }
        None => command.arg("--no-rng"),
    };
    if let Some(socket) = &guest.vsock {
        command.arg("--vsock").arg(joined("cid=3,socket=", socket));
    }
}

/// As [`husk`].
fn cloud_hypervisor(command: &mut Command, guest: &Guest, engine: &str) {
    let (cpus, memory) = match guest.room {
        Some(room) => (
            format!("boot=1,max={}", room.max_cpus),
            format!("size={}M,hotplug_size={}M", guest.memory_mib, room.memory_mib),
        ),
        None => ("boot=1".into(), format!("size={}M", guest.memory_mib)),
    };
    command.args(["--cpus", &cpus, "--serial", "tty", "--console", "off"]);
    // A file server has to reach it.
    let shared = if guest.share.is_some() { ",shared=on" } else { "" };
    command.arg("--memory").arg(format!("{memory}{shared}"));
    command.arg("--kernel").arg(&guest.kernel);
    command.arg("--cmdline").arg(&guest.cmdline);
    if let Some(initramfs) = &guest.initramfs {
        command.arg("--initramfs").arg(initramfs);
    }
    if let Some(tap) = &guest.tap {
        let net = format!("tap={tap},mac={MAC},ip=10.0.0.1,mask=255.255.255.0");
        command.arg("--net").arg(net);
    }
    if let Some(Share::Socket(socket)) = &guest.share {
        command.arg("--fs").arg(joined(&format!("tag={TAG},socket="), socket));
    }
    if let Some(disk) = &guest.disk {
        let mut disk = joined("path=", disk);
        disk.push(",image_type=raw");
        disk.push(engine);
        command.arg("--disk").arg(disk);
    }
    if let Some(socket) = &guest.vsock {
        command.arg("--vsock").arg(joined("cid=3,socket=", socket));
    }
}

fn firecracker(command: &mut Command, guest: &Guest, scratch: &Path) -> Result<()> {
    let mut config = json!({
        "boot-source": {"kernel_image_path": guest.kernel, "boot_args": guest.cmdline},
        "machine-config": {"vcpu_count": 1, "mem_size_mib": guest.memory_mib},
        "drives": [],
    });
    if let Some(initramfs) = &guest.initramfs {
        config["boot-source"]["initrd_path"] = json!(initramfs);
    }
    if let Some(disk) = &guest.disk {
        let drive = json!({"drive_id": "disk", "path_on_host": disk, "is_root_device": false, "is_read_only": false});
        config["drives"] = json!([drive]);
        config["entropy"] = json!({});
    }
    if let Some(socket) = &guest.vsock {
        config["vsock"] = json!({"guest_cid": 3, "uds_path": socket});
    }
    // Stock kernels are told of PCI only.
    if guest.initramfs.is_some() && (guest.vsock.is_some() || guest.disk.is_some()) {
        command.arg("--enable-pci");
    }
    let file = scratch.join("firecracker.json");
    fs::write(&file, config.to_string()).with_context(|| format!("cannot write {}", file.display()))?;
    command.args(["--no-api", "--level", "Off", "--config-file"]).arg(file);
    Ok(())
}

fn qemu(command: &mut Command, guest: &Guest, machine: &str) {
    // The payload needs no feature of the processor, and a KVM without VMX or SVM refuses MSRs that
    // the host's model has.
    let cpu = if guest.initramfs.is_some() { "host" } else { "base" };
    command.args("-accel kvm -nodefaults -no-user-config -display none -no-reboot -serial stdio -smp 1".split(' '));
    command.args(["-M", machine, "-cpu", cpu, "-m", &guest.memory_mib.to_string()]);
    command.arg("-kernel").arg(&guest.kernel);
    command.arg("-append").arg(&guest.cmdline);
    if let Some(initramfs) = &guest.initramfs {
        command.arg("-initrd").arg(initramfs);
    }
    if let Some(disk) = &guest.disk {
        let bus = match machine.starts_with("microvm") {
            true => "device",
            false => "pci",
        };
        command
            .arg("-drive")
            .arg(joined("if=none,id=disk,format=raw,file=", disk));
        command.arg("-device").arg(format!("virtio-blk-{bus},drive=disk"));
        command.arg("-device").arg(format!("virtio-rng-{bus}"));
    }
}

fn joined(prefix: &str, path: &Path) -> OsString {
    let mut text = OsString::from(prefix);
    text.push(path);
    text
}
