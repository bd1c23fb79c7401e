//! What the kernel is told in RAM: command line, memory map, initramfs, RSDP.
//!
//! By PVH it is an `hvm_start_info` with module list and memory map (Xen `docs/misc/pvh.pandoc`),
//! by the Linux boot protocol a zero page (Linux `Documentation/arch/x86/boot.rst` and
//! `zero-page.rst`).

use linux_loader::bootparam::{CAN_USE_HEAP, LOADED_HIGH, boot_e820_entry, boot_params, setup_header};
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams, Error as ConfiguratorError};
use linux_loader::start_info::{XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::acpi::Placed;
use crate::layout;
use crate::memory_map::{self, Range};
use crate::{GuestMemoryMmap, Loaded, Platform, Protocol};

/// `hdr.boot_flag` (boot.rst, offset 0x1fe).
pub(crate) const BOOT_FLAG: u16 = 0xaa55;
/// `hdr.header`, "HdrS" (boot.rst, offset 0x202).
pub(crate) const HEADER_MAGIC: u32 = 0x5372_6448;
/// `hdr.type_of_loader` of a loader without a number of its own (boot.rst, offset 0x210).
const LOADER_UNDEFINED: u8 = 0xff;
/// `hdr.version` that husk fills in for a bare vmlinux: the first with a 64-bit entry (boot.rst).
const PROTOCOL_2_12: u16 = 0x020c;

/// Why the boot parameters could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ParamsError {
    /// More ranges than there is room for.
    #[error("memory map has {found} ranges; at most {} are allowed", layout::MEMORY_MAP_MAX)]
    MemoryMap {
        /// Ranges of the map.
        found: usize,
    },
    /// The command line does not reach RAM.
    #[error("cannot write the command line at {:#x}", layout::CMDLINE)]
    CommandLine(#[source] GuestMemoryError),
    /// The parameters do not reach RAM.
    #[error("cannot write the boot parameters")]
    Write(#[source] ConfiguratorError),
    /// An address is beyond what the field can hold.
    #[error("initramfs at {base:#x} of {len} bytes is beyond the boot protocol's 4 GiB")]
    Initramfs {
        /// Guest-physical address.
        base: u64,
        /// Bytes.
        len: u64,
    },
}

/// Writes command line and boot parameters; tells where the parameters are.
pub(crate) fn write(
    mem: &GuestMemoryMmap,
    platform: &Platform,
    loaded: &Loaded,
    tables: Placed,
) -> Result<u64, ParamsError> {
    mem.write_slice(&loaded.cmdline.terminated(), GuestAddress(layout::CMDLINE))
        .map_err(ParamsError::CommandLine)?;
    let map = memory_map::build(platform, tables.high);
    if map.len() > layout::MEMORY_MAP_MAX {
        return Err(ParamsError::MemoryMap { found: map.len() });
    }
    match loaded.kernel.protocol {
        Protocol::Pvh => write_pvh(mem, &map, loaded, tables.rsdp),
        Protocol::Linux64 => write_zero_page(mem, &map, loaded, tables.rsdp),
    }
}

fn write_pvh(mem: &GuestMemoryMmap, map: &[Range], loaded: &Loaded, rsdp: u64) -> Result<u64, ParamsError> {
    let modules: Vec<_> = loaded
        .initramfs
        .iter()
        .map(|(base, len)| hvm_modlist_entry {
            paddr: *base,
            size: *len,
            ..Default::default()
        })
        .collect();
    let ranges: Vec<_> = map
        .iter()
        .map(|range| hvm_memmap_table_entry {
            addr: range.base,
            size: range.len,
            type_: range.kind as u32,
            reserved: 0,
        })
        .collect();
    let start_info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        nr_modules: count(modules.len()),
        modlist_paddr: if modules.is_empty() { 0 } else { layout::MODULES },
        cmdline_paddr: layout::CMDLINE,
        rsdp_paddr: rsdp,
        memmap_paddr: layout::MEMORY_MAP,
        memmap_entries: count(ranges.len()),
        ..Default::default()
    };
    let mut params = BootParams::new(&start_info, GuestAddress(layout::START_INFO));
    params.set_sections(&ranges, GuestAddress(layout::MEMORY_MAP));
    params.set_modules(&modules, GuestAddress(layout::MODULES));
    PvhBootConfigurator::write_bootparams(&params, mem).map_err(ParamsError::Write)?;
    Ok(layout::START_INFO)
}

fn write_zero_page(mem: &GuestMemoryMmap, map: &[Range], loaded: &Loaded, rsdp: u64) -> Result<u64, ParamsError> {
    let mut page = boot_params {
        hdr: header(loaded)?,
        acpi_rsdp_addr: rsdp,
        ..Default::default()
    };
    // The array is packed, so it is filled as a copy: a reference to an entry would be unaligned.
    let mut table = page.e820_table;
    for (entry, range) in table.iter_mut().zip(map) {
        *entry = boot_e820_entry {
            addr: range.base,
            size: range.len,
            r#type: range.kind as u32,
        };
    }
    page.e820_table = table;
    page.e820_entries = u8::try_from(map.len()).expect("write() has checked the number of ranges");
    let params = BootParams::new(&page, GuestAddress(layout::ZERO_PAGE));
    LinuxBootConfigurator::write_bootparams(&params, mem).map_err(ParamsError::Write)?;
    Ok(layout::ZERO_PAGE)
}

/// The setup header: a bzImage's own, or for a vmlinux the least that Linux asks for, and in both
/// what a loader fills in.
fn header(loaded: &Loaded) -> Result<setup_header, ParamsError> {
    let mut header = loaded.kernel.setup_header.unwrap_or(setup_header {
        boot_flag: BOOT_FLAG,
        header: HEADER_MAGIC,
        version: PROTOCOL_2_12,
        kernel_alignment: 0x20_0000,
        cmdline_size: count(layout::CMDLINE_MAX - 1),
        ..Default::default()
    });
    header.type_of_loader = LOADER_UNDEFINED;
    header.loadflags = (header.loadflags & !CAN_USE_HEAP) | LOADED_HIGH;
    header.cmd_line_ptr = u32::try_from(layout::CMDLINE).expect("the boot pages lie below 1 MiB");
    if let Some((base, len)) = loaded.initramfs {
        let outside = |_| ParamsError::Initramfs { base, len };
        header.ramdisk_image = u32::try_from(base).map_err(outside)?;
        header.ramdisk_size = u32::try_from(len).map_err(outside)?;
    }
    Ok(header)
}

/// A length that has been bounded by [`layout`].
fn count(len: usize) -> u32 {
    u32::try_from(len).expect("bounded by the layout of the boot pages")
}

#[cfg(test)]
#[path = "boot_params_test.rs"]
mod tests;
