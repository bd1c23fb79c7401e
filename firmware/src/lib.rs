//! What a guest finds in RAM before its first instruction: description in, bytes out.
//!
//! [`load`] does everything. A machine that builds its devices while the kernel is being read calls
//! the two steps itself:
//!
//! 1. [`Payload::load`] on any thread: kernel and initramfs, the only step that takes milliseconds;
//! 2. [`describe`] when that is done and the devices have said their AML: ACPI tables, for which there may be room only
//!    beside kernel and initramfs, boot parameters, the code at the reset vector, and the [`Entry`] for [`registers`].
//!
//! Both expect **fresh RAM**, which reads as zero: what a kernel wants zeroed, and whole pages of
//! zeroes in its image, are not written. And they expect to be the only ones who write there: no
//! vCPU runs and no device has been started.

pub mod acpi;
mod boot_params;
mod cmdline;
mod file;
mod initramfs;
mod kernel;
pub mod layout;
mod memory_map;
pub mod registers;
mod reset;
#[cfg(test)]
mod testing;

use vm_memory::GuestMemoryError;

pub use acpi::AcpiError;
pub use boot_params::ParamsError;
pub use cmdline::{CommandLine, CommandLineError};
pub use file::FileError;
pub use initramfs::{Initramfs, InitramfsError};
pub use kernel::{
    BzImageError, Codec, ElfError, KernelError, KernelFault, KernelImage, LoadedKernel, PayloadError, Protocol, Segment,
};

/// All guest RAM at boot.
pub type GuestMemoryMmap = vm_memory::GuestMemoryMmap<()>;

/// The machine as its firmware describes it.
#[derive(Clone, Copy, Debug)]
pub struct Platform<'a> {
    /// RAM at boot (base, bytes), lowest first, from address 0: what [`layout::ram_ranges`] gives.
    pub ram: &'a [(u64, u64)],
    /// APIC ids of the vCPUs that are there at boot. The index is the ACPI processor UID.
    pub apic_ids: &'a [u32],
    /// APIC ids of vCPUs that may be added later; their UIDs follow those of [`Platform::apic_ids`].
    pub spare_apic_ids: &'a [u32],
    /// PCI configuration space, if there is PCI.
    pub ecam: Option<Ecam>,
    /// The ports by which the guest powers off and resets; they go into the FADT.
    pub power: PowerRegisters,
    /// AML objects for `\_SB`, each complete, for example a `Device (...)`.
    pub aml: &'a [Vec<u8>],
}

impl Platform<'_> {
    /// vCPUs that there are or may be.
    pub(crate) fn processors(&self) -> usize {
        self.apic_ids.len().saturating_add(self.spare_apic_ids.len())
    }

    /// Whether a vCPU that there is, or may be, has an id that only an x2APIC can have.
    pub(crate) fn has_x2apic_ids(&self) -> bool {
        let mut ids = self.apic_ids.iter().chain(self.spare_apic_ids);
        ids.any(|id| *id > layout::XAPIC_ID_MAX)
    }
}

/// Memory-mapped PCI configuration space of segment 0, from bus 0 (PCI Firmware 3.3 §4.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ecam {
    /// Guest-physical address.
    pub base: u64,
    /// Last bus number that it decodes.
    pub end_bus: u8,
}

/// Ports of the byte-wide registers by which the guest ends itself (ACPI 6.5 §4.8.3.6, §4.8.3.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PowerRegisters {
    /// Sleep control: the guest writes `SLP_TYP << 2 | SLP_EN` with the sleep type [`acpi::S5_SLEEP_TYPE`].
    pub sleep_control: u16,
    /// I/O port of the sleep status register (ACPI 6.5 §4.8.3.7), one byte wide.
    pub sleep_status: u16,
    /// I/O port of the reset register (ACPI 6.5 §4.8.3.6), one byte wide.
    pub reset: u16,
    /// The byte that resets the machine when the guest writes it to [`PowerRegisters::reset`] (`RESET_VALUE` of the
    /// FADT).
    pub reset_value: u8,
}

/// What a guest boots: files that have been opened and checked, but not yet read.
#[derive(Debug)]
pub struct Payload {
    /// The kernel image, vmlinux or bzImage: its headers are checked, its contents not yet read.
    pub kernel: KernelImage,
    /// The initial RAM file system.
    pub initramfs: Option<Initramfs>,
    /// The kernel command line.
    pub cmdline: CommandLine,
    /// How the kernel is entered; `None` lets it choose: by PVH if it has a PVH note.
    pub protocol: Option<Protocol>,
}

/// A payload in guest RAM.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The kernel in RAM: its entry point, its end, and the protocol chosen.
    pub kernel: LoadedKernel,
    /// Where the initramfs went (base, bytes).
    pub initramfs: Option<(u64, u64)>,
    /// The command line, not yet written.
    pub cmdline: CommandLine,
}

/// Where and how the first vCPU starts: input of [`registers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// How the kernel is entered, which decides the CPU mode of [`registers::boot_sregs`].
    pub protocol: Protocol,
    /// Address of the first instruction.
    pub address: u64,
    /// Address of the boot parameters: `hvm_start_info` or zero page.
    pub params: u64,
}

/// Why a guest could not be put into RAM. The chain of sources makes one line.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The initramfs.
    #[error(transparent)]
    Initramfs(#[from] InitramfsError),
    /// The ACPI tables.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// The boot parameters.
    #[error(transparent)]
    Params(#[from] ParamsError),
    /// The register state's tables, or the code at the reset vector.
    #[error("cannot write the {what} at {address:#x}")]
    Write {
        /// What was being written.
        what: &'static str,
        /// Guest-physical address.
        address: u64,
        /// Why not.
        source: GuestMemoryError,
    },
}

impl Payload {
    /// Reads kernel and initramfs into `mem`.
    ///
    /// # Errors
    /// [`LoadError::Kernel`] or [`LoadError::Initramfs`]; RAM is then in disorder.
    pub fn load(self, mem: &GuestMemoryMmap) -> Result<Loaded, LoadError> {
        let kernel = self.kernel.load(mem, self.protocol)?;
        let initramfs = self
            .initramfs
            .map(|initramfs| initramfs.load(mem, &kernel))
            .transpose()?;
        Ok(Loaded {
            kernel,
            initramfs,
            cmdline: self.cmdline,
        })
    }
}

/// Writes the ACPI tables, the boot parameters, what the entry state needs, and the code at the
/// reset vector, for a payload that has been loaded.
///
/// # Errors
/// [`LoadError::Acpi`], [`LoadError::Params`] or [`LoadError::Write`].
pub fn describe(mem: &GuestMemoryMmap, platform: &Platform, loaded: &Loaded) -> Result<Entry, LoadError> {
    let tables = acpi::write(mem, platform, loaded)?;
    let params = boot_params::write(mem, platform, loaded, tables)?;
    let entry = Entry {
        protocol: loaded.kernel.protocol,
        address: loaded.kernel.entry,
        params,
    };
    registers::write_tables(mem, &entry)?;
    reset::write(mem, &platform.power)?;
    Ok(entry)
}

/// Puts a whole guest into RAM.
///
/// # Errors
/// See [`LoadError`].
pub fn load(mem: &GuestMemoryMmap, platform: &Platform, payload: Payload) -> Result<Entry, LoadError> {
    let loaded = payload.load(mem)?;
    describe(mem, platform, &loaded)
}

#[cfg(test)]
#[path = "lib_test.rs"]
mod tests;
