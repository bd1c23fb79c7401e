//! The first vCPU's registers at its first instruction, and the tables in RAM that they point to.
//!
//! | | PVH (Xen `docs/misc/pvh.pandoc`) | 64-bit Linux protocol (boot.rst, "64-bit Boot Protocol") |
//! |---|---|---|
//! | mode | 32-bit protected, no paging | long mode, first 4 GiB mapped one to one |
//! | parameters | `ebx` = `hvm_start_info` | `rsi` = zero page |
//! | `cs` | flat 32-bit code | flat 64-bit code, selector 0x10 |
//! | `ds` `es` `ss` | flat data | flat data, selector 0x18 |
//! | `rflags` | interrupts off | interrupts off |
//!
//! Where a vCPU has an id that needs an x2APIC, the first one's local APIC is in x2APIC mode already, as firmware of
//! such machines leaves it: Linux takes no such id from the MADT otherwise, and it reads the MADT before it switches
//! by itself.
//!
//! The other vCPUs need nothing: they wait for INIT and SIPI.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress};

use crate::layout::{GDT, PAGE_TABLES};
use crate::{Entry, GuestMemoryMmap, LoadError, Platform, Protocol};

/// Protection enable (Intel SDM 3A §2.5).
const CR0_PE: u64 = 1 << 0;
/// Extension type; always 1 on x86-64.
const CR0_ET: u64 = 1 << 4;
/// Paging.
const CR0_PG: u64 = 1 << 31;
/// Physical address extension.
const CR4_PAE: u64 = 1 << 5;
/// Long mode enable (Intel SDM 3A §2.2.1).
const EFER_LME: u64 = 1 << 8;
/// Long mode active.
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of `rflags` is always set (Intel SDM 1 §3.4.3).
const RFLAGS_RESERVED: u64 = 1 << 1;

/// `IA32_APIC_BASE.EXTD`: the local APIC is in x2APIC mode (Intel SDM 3A §12.12.1).
const APIC_BASE_EXTD: u64 = 1 << 10;

/// Page table entry: present, writable (Intel SDM 3A §4.5).
const PTE_TABLE: u64 = 0b11;
/// Page directory entry: present, writable, 2 MiB page.
const PDE_LARGE: u64 = 0b1000_0011;
const PAGE: u64 = 4096;
const LARGE_PAGE: u64 = 2 << 20;
const ENTRIES: u64 = 512;
/// GiB that the page tables map.
const MAPPED_GIB: u64 = 4;

/// Segment types (Intel SDM 3A §3.4.5.1, §3.5).
const TYPE_CODE: u8 = 0xb;
const TYPE_DATA: u8 = 0x3;
const TYPE_BUSY_TSS: u8 = 0xb;

/// General registers at [`Entry::address`].
pub fn boot_regs(entry: &Entry) -> kvm_regs {
    let mut regs = kvm_regs {
        rip: entry.address,
        rflags: RFLAGS_RESERVED,
        ..Default::default()
    };
    match entry.protocol {
        Protocol::Pvh => regs.rbx = entry.params,
        Protocol::Linux64 => regs.rsi = entry.params,
    }
    regs
}

/// Sets the special registers that the protocol and the ids of the vCPUs of `platform` prescribe in `sregs`, which
/// holds the vCPU's present ones.
pub fn boot_sregs(entry: &Entry, platform: &Platform, sregs: &mut kvm_sregs) {
    if platform.has_x2apic_ids() {
        sregs.apic_base |= APIC_BASE_EXTD;
    }
    sregs.cs = segment(0x10, TYPE_CODE);
    let data = segment(0x18, TYPE_DATA);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        base: 0,
        limit: 0x67,
        type_: TYPE_BUSY_TSS,
        present: 1,
        ..Default::default()
    };
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
    sregs.efer = 0;
    if entry.protocol == Protocol::Linux64 {
        (sregs.cs.l, sregs.cs.db) = (1, 0);
        sregs.gdt.base = GDT;
        sregs.gdt.limit = 4 * 8 - 1;
        sregs.cr0 |= CR0_PG;
        sregs.cr3 = PAGE_TABLES;
        sregs.cr4 = CR4_PAE;
        sregs.efer = EFER_LME | EFER_LMA;
    }
}

/// A flat 4 GiB segment of privilege 0.
fn segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        selector,
        type_,
        limit: 0xffff_ffff,
        present: 1,
        s: 1,
        db: 1,
        g: 1,
        ..Default::default()
    }
}

/// Writes GDT and page tables if the protocol needs them.
pub(crate) fn write_tables(mem: &GuestMemoryMmap, entry: &Entry) -> Result<(), LoadError> {
    if entry.protocol == Protocol::Pvh {
        return Ok(());
    }
    // Null, null, 64-bit code, data: accessed, so that the CPU need not write them (Intel SDM 3A §3.4.5).
    let gdt = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
    write(mem, "GDT", GDT, gdt.into_iter())?;
    write(mem, "page tables", PAGE_TABLES, page_tables())
}

/// PML4, PDPT and [`MAPPED_GIB`] page directories, one after another.
fn page_tables() -> impl Iterator<Item = u64> {
    let pdpt = PAGE_TABLES + PAGE;
    let directories = pdpt + PAGE;
    let pml4 = (0..ENTRIES).map(move |index| if index == 0 { pdpt | PTE_TABLE } else { 0 });
    let pdpt = (0..ENTRIES).map(move |index| {
        if index < MAPPED_GIB {
            (directories + index * PAGE) | PTE_TABLE
        } else {
            0
        }
    });
    pml4.chain(pdpt)
        .chain((0..MAPPED_GIB * ENTRIES).map(|index| (index * LARGE_PAGE) | PDE_LARGE))
}

fn write(
    mem: &GuestMemoryMmap,
    what: &'static str,
    address: u64,
    words: impl Iterator<Item = u64>,
) -> Result<(), LoadError> {
    let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    mem.write_slice(&bytes, GuestAddress(address))
        .map_err(|source| LoadError::Write { what, address, source })
}

#[cfg(test)]
#[path = "registers_test.rs"]
mod tests;
