//! The guest-physical map and the I/O ports: the only file with addresses.
//!
//! ```text
//!                      +-------------------------------+
//!                      | persistent memory             |  pmem_window(), the last quarter
//!                      +-------------------------------+
//!                      | 64-bit PCI window             |  pci_window64()
//!                      +-------------------------------+
//!                      | memory that may come later    |  hotplug_base(), from a multiple of 2 GiB on
//!                      +-------------------------------+
//!                      | RAM above 4 GiB               |
//!        1_0000_0000   +-------------------------------+  HIGH_RAM
//!          FFFB_C000   | KVM's own four pages          |  KVM_IDENTITY_MAP, KVM_TSS
//!          FEE0_0000   | local APICs, MSI              |  LAPIC
//!          FEC0_0000   | I/O APIC                      |  IOAPIC
//!          FEB0_0000   | hot-plug registers            |  GED, PCI_BANK, CPU_BANK, MEMORY_BANK
//!          E800_0000   | PCI configuration space       |  ECAM
//!          C000_0000   | 32-bit PCI window, 512 MiB    |  PCI32
//!                      +-------------------------------+  LOW_RAM_END
//!                      | RAM: kernel from 1 MiB,       |
//!                      | initramfs as high as it goes, |
//!                      | ACPI tables of many vCPUs     |
//!            10_0000   +-------------------------------+  KERNEL_MIN
//!             F_FFF0   | reset vector, 16 bytes        |  RESET_VECTOR
//!             E_0000   | ACPI tables                   |  ACPI
//!             A_0000   | RAM, but not offered as such  |
//!                      +-------------------------------+  CONVENTIONAL_END
//!               4000   | page tables, 6 pages          |  PAGE_TABLES
//!               3000   | GDT                           |  GDT
//!               2000   | zero page                     |  ZERO_PAGE
//!               1800   | command line                  |  CMDLINE
//!               1000   | PVH start_info, modules, map  |  START_INFO, MODULES, MEMORY_MAP
//!                  0   +-------------------------------+
//! ```
//!
//! What a PVH guest reads before it has page tables of its own shares one page, so that it costs
//! one page fault. The legacy area from 640 KiB to 1 MiB is backed by RAM: Linux searches it for
//! ROMs, DMI and MP tables, and a search of RAM is a few reads, whereas each read of a hole would
//! be an exit.
//!
//! | port | width | what |
//! |------|-------|------|
//! | 0x060, 0x064 | 1 | i8042 data, command ([`I8042_PORT`], [`I8042_PORT_LEN`]) |
//! | 0x080 | 1 | guest marks for the boot trace ([`DEBUG_PORT`]) |
//! | 0x3f8-0x3ff | 1 | 16550 serial port ([`COM1_PORT`], [`COM1_PORT_LEN`]) |
//! | 0x505 | 1 | pvpanic ([`PVPANIC_PORT`]) |
//! | 0x600 | 1 | sleep control ([`SLEEP_CONTROL_PORT`], ACPI 6.5 §4.8.3.7) |
//! | 0x601 | 1 | sleep status ([`SLEEP_STATUS_PORT`], ACPI 6.5 §4.8.3.7) |
//! | 0x602 | 1 | reset ([`RESET_PORT`], ACPI 6.5 §4.8.3.6) |

/// Guest-physical address of PVH's `struct hvm_start_info`.
pub const START_INFO: u64 = 0x1000;
/// PVH module list: the initramfs.
pub const MODULES: u64 = 0x1040;
/// PVH memory map, up to [`MEMORY_MAP_MAX`] entries of 24 bytes.
pub const MEMORY_MAP: u64 = 0x1080;
/// Entries that a memory map may have.
pub const MEMORY_MAP_MAX: usize = 64;
/// Command line, NUL terminated, of at most [`CMDLINE_MAX`] bytes.
pub const CMDLINE: u64 = 0x1800;
/// Linux' `COMMAND_LINE_SIZE` on x86, with the NUL.
pub const CMDLINE_MAX: usize = 2048;
/// `boot_params` of the Linux boot protocol.
pub const ZERO_PAGE: u64 = 0x2000;
/// Four descriptors for the Linux boot protocol.
pub const GDT: u64 = 0x3000;
/// PML4, PDPT and four page directories for the Linux boot protocol.
pub const PAGE_TABLES: u64 = 0x4000;

/// End of the RAM below 1 MiB that the memory map offers.
pub const CONVENTIONAL_END: u64 = 0xa_0000;
/// The RSDP, and behind it the other ACPI tables if they fit. Linux finds it by pointer; others search here (ACPI 6.5
/// §5.2.5.1).
pub const ACPI: u64 = 0xe_0000;
/// Bytes for ACPI tables from [`ACPI`] on.
pub const ACPI_LEN: u64 = RESET_VECTOR - ACPI;
/// Where a processor of the 8086's kind begins, F000:FFF0, and where a guest jumps in real mode to reset by the BIOS;
/// up to [`KERNEL_MIN`].
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// No kernel segment lies below.
pub const KERNEL_MIN: u64 = 0x10_0000;

/// End of RAM below 4 GiB.
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// First guest-physical address of RAM above the 32-bit hole: 4 GiB.
pub const HIGH_RAM: u64 = 0x1_0000_0000;

/// 32-bit PCI memory window.
pub const PCI32: u64 = 0xc000_0000;
/// Bytes in [`PCI32`].
pub const PCI32_LEN: u64 = 0x2000_0000;
/// PCI configuration space (PCIe 5.0 §7.2.2).
pub const ECAM: u64 = 0xe800_0000;
/// Bytes in [`ECAM`]: one bus.
pub const ECAM_LEN: u64 = 0x10_0000;
/// Status of the Generic Event Device.
pub const GED: u64 = 0xfeb0_0000;
/// Registers of the PCI slots.
pub const PCI_BANK: u64 = 0xfeb0_1000;
/// Registers of the vCPU slots.
pub const CPU_BANK: u64 = 0xfeb0_2000;
/// Registers of the memory slots: up to 4 KiB.
pub const MEMORY_BANK: u64 = 0xfeb0_3000;
/// GSI of the Generic Event Device.
pub const GED_GSI: u32 = 5;
/// I/O APIC with 24 pins, GSI 0 to 23.
pub const IOAPIC: u32 = 0xfec0_0000;
/// Local APIC of every vCPU.
pub const LAPIC: u32 = 0xfee0_0000;
/// The last id of a local APIC in xAPIC mode: 255 is the broadcast (Intel SDM 3A §12.6.1).
pub const XAPIC_ID_MAX: u32 = 254;
/// `KVM_SET_IDENTITY_MAP_ADDR`: one page (KVM api.rst 4.101).
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// `KVM_SET_TSS_ADDR`: three pages (KVM api.rst 4.43).
pub const KVM_TSS: u64 = 0xfffb_d000;
/// Bytes from [`KVM_IDENTITY_MAP`] to the end of the TSS pages.
pub const KVM_PAGES_LEN: u64 = 0x4000;

/// i8042 data port; the command port is four further.
pub const I8042_PORT: u16 = 0x60;
/// Ports from i8042 data to command.
pub const I8042_PORT_LEN: u16 = 5;
/// A byte written here is a mark in the boot trace.
pub const DEBUG_PORT: u16 = 0x80;
/// First I/O port of the first serial port (16550), 0x3f8.
pub const COM1_PORT: u16 = 0x3f8;
/// Number of I/O ports of a 16550 from [`COM1_PORT`] on.
pub const COM1_PORT_LEN: u16 = 8;
/// GSI of the first serial port.
pub const COM1_GSI: u32 = 4;
/// pvpanic event register.
pub const PVPANIC_PORT: u16 = 0x505;
/// ACPI sleep control register.
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// ACPI sleep status register.
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// I/O port of the ACPI reset register, one byte wide (see [`crate::PowerRegisters::reset`]).
pub const RESET_PORT: u16 = 0x602;

/// Linux' `MIN_MEMORY_BLOCK_SIZE` on x86-64.
const MEMORY_BLOCK_MIN: u64 = 128 << 20;
/// Linux' `MAX_BLOCK_SIZE`.
const MEMORY_BLOCK_MAX: u64 = 2 << 30;
/// Linux' `MEM_SIZE_FOR_LARGE_BLOCK`.
const LARGE_MEMORY: u64 = 64 << 30;
/// The largest 64-bit PCI window that is worth describing.
const PCI64_MAX: u64 = 1 << 40;
/// The 64-bit PCI window starts on a multiple of this.
const PCI64_ALIGN: u64 = 1 << 30;

/// Where `size` bytes of RAM lie: (base, bytes), lowest first, split round the 32-bit hole.
pub fn ram_ranges(size: u64) -> Vec<(u64, u64)> {
    match size.checked_sub(LOW_RAM_END) {
        None | Some(0) => vec![(0, size)],
        Some(rest) => vec![(0, LOW_RAM_END), (HIGH_RAM, rest)],
    }
}

/// Where RAM of these ranges ends; 0 for none.
pub fn ram_end(ranges: &[(u64, u64)]) -> u64 {
    ranges.last().map_or(0, |(base, bytes)| base.saturating_add(*bytes))
}

/// Where memory begins that comes while the guest runs, above RAM that ends at `ram_end`: aligned
/// for the largest block that Linux adds at once. `None` when nothing is left.
pub fn hotplug_base(ram_end: u64) -> Option<u64> {
    ram_end.max(HIGH_RAM).checked_next_multiple_of(MEMORY_BLOCK_MAX)
}

/// What memory is added in by a Linux guest whose RAM ends at `ram_end`: 128 MiB, and from 64 GiB
/// on, in a VM, the largest power of two up to 2 GiB that divides the end (Linux
/// `arch/x86/mm/init_64.c`, `probe_memory_block_size`). What is no whole number of these at a
/// multiple of it, Linux does not take, and says that it has.
pub fn memory_block(ram_end: u64) -> u64 {
    if ram_end < LARGE_MEMORY {
        return MEMORY_BLOCK_MIN;
    }
    let alignment = 1 << ram_end.trailing_zeros().min(63);
    MEMORY_BLOCK_MAX.min(alignment).max(MEMORY_BLOCK_MIN)
}

/// As [`memory_block`], of a guest that starts with `size` bytes of RAM: their end is further up by the 32-bit hole.
pub fn memory_block_of(size: u64) -> u64 {
    memory_block(ram_end(&ram_ranges(size)))
}

/// The 64-bit PCI window (base, bytes) of a machine whose RAM, with all that may be added later,
/// ends at `ram_end`, and whose physical addresses have `phys_bits` bits. `None` when nothing is
/// left.
pub fn pci_window64(ram_end: u64, phys_bits: u32) -> Option<(u64, u64)> {
    let (limit, _) = pmem_window(phys_bits)?;
    let base = ram_end.max(HIGH_RAM).checked_next_multiple_of(PCI64_ALIGN)?;
    let room = limit.checked_sub(base)?;
    (room >= PCI64_ALIGN).then_some((base, room.min(PCI64_MAX)))
}

/// Where persistent memory goes (base, bytes) when physical addresses have `phys_bits` bits: their
/// last quarter, which neither RAM nor the PCI windows reach. `None` for widths that no x86-64
/// processor has.
pub fn pmem_window(phys_bits: u32) -> Option<(u64, u64)> {
    let space = 1u64.checked_shl(phys_bits).filter(|space| *space > HIGH_RAM)?;
    let quarter = space >> 2;
    Some((space - quarter, quarter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_up_to_three_gib_is_one_range() {
        assert_eq!(ram_ranges(128 << 20), [(0, 128 << 20)]);
        assert_eq!(ram_ranges(LOW_RAM_END), [(0, LOW_RAM_END)]);
    }

    #[test]
    fn ram_beyond_the_hole_goes_on_at_four_gib() {
        assert_eq!(ram_ranges(5 << 30), [(0, 3 << 30), (4 << 30, 2 << 30)]);
        assert_eq!(ram_ranges(LOW_RAM_END + 4096), [(0, LOW_RAM_END), (HIGH_RAM, 4096)]);
    }

    #[test]
    fn memory_that_comes_later_fits_the_blocks_of_the_guest() {
        for (ram, base, block) in [
            (128 << 20, HIGH_RAM, 128 << 20),
            (LOW_RAM_END, HIGH_RAM, 128 << 20),
            ((3 << 30) + 4096, 6 << 30, 128 << 20),
            ((63 << 30) - 4096, 64 << 30, 128 << 20),
            (63 << 30, 64 << 30, 2 << 30),
            (64 << 30, 66 << 30, 1 << 30),
            ((64 << 30) + (512 << 20), 66 << 30, 512 << 20),
            ((64 << 30) + 4096, 66 << 30, 128 << 20),
            (127 << 30, 128 << 30, 2 << 30),
        ] {
            let end = ram_end(&ram_ranges(ram));
            assert_eq!((hotplug_base(end), memory_block(end)), (Some(base), block), "{ram:#x}");
            assert_eq!(memory_block_of(ram), block, "{ram:#x}");
            assert!(base >= end && base.is_multiple_of(block));
        }
        assert_eq!(hotplug_base(u64::MAX), None);
    }

    #[test]
    fn the_pci_window_starts_above_ram_and_ends_before_persistent_memory() {
        assert_eq!(pci_window64(1 << 30, 36), Some((4 << 30, 44 << 30)));
        assert_eq!(pci_window64((5 << 30) + 4096, 36), Some((6 << 30, 42 << 30)));
        assert_eq!(pci_window64(1 << 30, 52), Some((4 << 30, PCI64_MAX)));
    }

    #[test]
    fn persistent_memory_has_the_last_quarter() {
        assert_eq!(pmem_window(36), Some((48 << 30, 16 << 30)));
        assert_eq!(pmem_window(52), Some((3 << 50, 1 << 50)));
        for bits in [0, 32, 64, u32::MAX] {
            assert_eq!(pmem_window(bits), None);
        }
    }

    #[test]
    fn a_full_address_space_has_no_pci_window() {
        assert_eq!(pci_window64(1 << 36, 36), None);
        assert_eq!(pci_window64(u64::MAX, 52), None);
        assert_eq!(pci_window64(0, 64), None);
    }

    #[test]
    fn nothing_in_the_boot_pages_overlaps() {
        let things = [
            (START_INFO, 56),
            (MODULES, 32),
            (MEMORY_MAP, 24 * MEMORY_MAP_MAX as u64),
            (CMDLINE, CMDLINE_MAX as u64),
            (ZERO_PAGE, 4096),
            (GDT, 32),
            (PAGE_TABLES, 6 * 4096),
            (ACPI, ACPI_LEN),
            (RESET_VECTOR, 16),
            (KERNEL_MIN, 0),
            (ECAM, ECAM_LEN),
            (GED, 4),
            (PCI_BANK, 0x840),
            (CPU_BANK, 0x840),
            (MEMORY_BANK, 0x1000),
            (u64::from(IOAPIC), 0x1000),
            (u64::from(LAPIC), 0x1000),
            (KVM_IDENTITY_MAP, KVM_PAGES_LEN),
            (HIGH_RAM, 0),
        ];
        assert!(things.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
    }
}
