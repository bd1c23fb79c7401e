//! What the person who starts a VM wants that is no property of the VM.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::{CoreScheduling, Hotplug, OwnFiles, OwnSockets, Reclaim};
use crate::machine::Tail;
use crate::seccomp::Mode;
use crate::trace::Trace;

/// How one run of a VM is started and observed.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// How the kernel is entered; `None` takes PVH when the kernel offers it.
    pub protocol: Option<BootProtocol>,
    /// Where the boot trace is written when the VM has ended.
    pub boot_trace: Option<PathBuf>,
    /// How often `-v` was given.
    pub verbosity: u8,
    /// Whether system calls are filtered.
    pub seccomp: Mode,
    /// How long `vm.resize` waits for the guest before it is answered; what the guest does later is told by events.
    pub resize_timeout: ResizeTimeout,
    /// What VMs give back without being asked for less, unless their configuration says.
    pub reclaim: Reclaim,
    /// How memory comes to VMs, unless their configuration says.
    pub hotplug: Hotplug,
    /// What is noted of the containers of this process's own VM when its guest begins (`vm.containers`).
    pub containers: Value,
    /// Who may share cores of the host with their vCPUs, unless their configuration says.
    pub core_scheduling: CoreScheduling,
    /// Where this process listens itself.
    pub own_sockets: OwnSockets,
    /// What this process writes itself.
    pub own_files: OwnFiles,
    /// Takes the phases of the run. Off unless somebody will read it.
    pub trace: Trace,
    /// Has what the guest printed last. Off unless somebody may ask for events.
    pub tail: Tail,
}

/// How long a resize is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResizeTimeout(pub Duration);

/// Kata's Go shim gives up after a second.
impl Default for ResizeTimeout {
    fn default() -> Self {
        Self(Duration::from_millis(800))
    }
}

/// How a kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum BootProtocol {
    #[value(help = "32-bit PVH entry, which a kernel offers in an ELF note")]
    /// The 32-bit entry of the PVH ABI (Xen `docs/misc/pvh.pandoc`).
    Pvh,
    #[value(help = "64-bit entry of the Linux boot protocol")]
    /// The 64-bit entry of the Linux/x86 boot protocol (`Documentation/arch/x86/boot.rst`).
    Linux64,
}
