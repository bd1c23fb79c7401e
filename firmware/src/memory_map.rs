//! The memory map that either boot protocol hands to the guest.

use crate::layout;
use crate::{Ecam, Platform};

/// What a range is, with the number that e820 and PVH share (ACPI 6.5 §15.1, Xen `hvm_memmap_table_entry`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    /// RAM that the guest may use.
    Ram = 1,
    /// Anything else that it must leave alone.
    Reserved = 2,
    /// RAM with ACPI tables in it (`AddressRangeACPI`).
    Acpi = 3,
}

/// One range of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) base: u64,
    pub(crate) len: u64,
    pub(crate) kind: Kind,
}

/// The map of `platform`, lowest first, with ACPI tables in the pages `tables` (base, bytes) of its RAM, if any are
/// above 1 MiB.
///
/// ACPI tables below that and reset vector are reserved as a whole: they lie in the legacy area, whose 128 KiB are not
/// worth giving back. The PCI configuration space is reserved too, because Linux uses it only then
/// (`pci_mmcfg_check_reserved`).
pub(crate) fn build(platform: &Platform, tables: Option<(u64, u64)>) -> Vec<Range> {
    let mut map = Vec::with_capacity(10);
    let (tables, tables_end) = tables.map_or((u64::MAX, u64::MAX), |(base, len)| (base, base.saturating_add(len)));
    for (base, len) in platform.ram {
        let end = base.saturating_add(*len);
        if *base < layout::KERNEL_MIN {
            push(&mut map, *base, end.min(layout::CONVENTIONAL_END), Kind::Ram);
            push(&mut map, layout::ACPI, layout::KERNEL_MIN, Kind::Reserved);
        }
        let base = (*base).max(layout::KERNEL_MIN);
        push(&mut map, base, end.min(tables), Kind::Ram);
        push(&mut map, base.max(tables), end.min(tables_end), Kind::Acpi);
        push(&mut map, base.max(tables_end), end, Kind::Ram);
    }
    if let Some(Ecam { base, end_bus }) = platform.ecam {
        let len = (u64::from(end_bus).saturating_add(1)).saturating_mul(layout::ECAM_LEN);
        push(&mut map, base, base.saturating_add(len), Kind::Reserved);
    }
    let kvm_end = layout::KVM_IDENTITY_MAP.saturating_add(layout::KVM_PAGES_LEN);
    push(&mut map, layout::KVM_IDENTITY_MAP, kvm_end, Kind::Reserved);
    map.sort_by_key(|range| range.base);
    map
}

fn push(map: &mut Vec<Range>, base: u64, end: u64, kind: Kind) {
    if let Some(len @ 1..) = end.checked_sub(base) {
        map.push(Range { base, len, kind });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::platform;

    fn ranges_with(size: u64, tables: Option<(u64, u64)>) -> Vec<(u64, u64, Kind)> {
        let ram = layout::ram_ranges(size);
        build(&platform(&ram), tables)
            .iter()
            .map(|range| (range.base, range.base + range.len, range.kind))
            .collect()
    }

    fn ranges(size: u64) -> Vec<(u64, u64, Kind)> {
        ranges_with(size, None)
    }

    #[test]
    fn low_ram_has_the_legacy_area_cut_out() {
        let map = ranges(128 << 20);
        assert_eq!(
            map,
            [
                (0, 0xa_0000, Kind::Ram),
                (0xe_0000, 0x10_0000, Kind::Reserved),
                (0x10_0000, 128 << 20, Kind::Ram),
                (layout::ECAM, layout::ECAM + layout::ECAM_LEN, Kind::Reserved),
                (0xfffb_c000, 0xfffc_0000, Kind::Reserved),
            ]
        );
    }

    #[test]
    fn ram_above_four_gib_comes_last() {
        assert_eq!(ranges(5 << 30).last(), Some(&(4 << 30, 6 << 30, Kind::Ram)));
    }

    #[test]
    fn ranges_are_sorted_and_disjoint() {
        assert!(ranges(64 << 30).windows(2).all(|pair| pair[0].1 <= pair[1].0));
    }

    #[test]
    fn pages_of_tables_are_cut_out_of_ram() {
        const TABLES: u64 = 0x8_1000;
        let end = 128 << 20;
        let ram = |map: Vec<(u64, u64, Kind)>| map.into_iter().skip(2).take(3).collect::<Vec<_>>();
        assert_eq!(
            ram(ranges_with(end, Some((end - TABLES, TABLES))))[..2],
            [(0x10_0000, end - TABLES, Kind::Ram), (end - TABLES, end, Kind::Acpi),],
            "at its end"
        );
        assert_eq!(
            ram(ranges_with(end, Some((64 << 20, TABLES)))),
            [
                (0x10_0000, 64 << 20, Kind::Ram),
                (64 << 20, (64 << 20) + TABLES, Kind::Acpi),
                ((64 << 20) + TABLES, end, Kind::Ram),
            ],
            "below an initramfs"
        );
        let (plain, cut) = (
            ranges(5 << 30),
            ranges_with(5 << 30, Some((layout::LOW_RAM_END - TABLES, TABLES))),
        );
        assert_eq!(cut.len(), plain.len() + 1);
        assert_eq!(cut.last(), plain.last(), "RAM above 4 GiB has none");
    }

    #[test]
    fn tables_on_both_sides_of_a_seam_are_cut_out_of_both_pieces() {
        let platform = platform(&[(0, 2 << 20), (2 << 20, 2 << 20)]);
        let map = build(&platform, Some(((2 << 20) - 0x1000, 0x2000)));
        let pieces: Vec<_> = map.iter().map(|range| (range.base, range.len, range.kind)).collect();
        assert_eq!(
            pieces[2..6],
            [
                (0x10_0000, 0xf_f000, Kind::Ram),
                (0x1f_f000, 0x1000, Kind::Acpi),
                (0x20_0000, 0x1000, Kind::Acpi),
                (0x20_1000, 0x1f_f000, Kind::Ram),
            ]
        );
    }
}
