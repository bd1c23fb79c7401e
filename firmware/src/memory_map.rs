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
}

/// One range of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) base: u64,
    pub(crate) len: u64,
    pub(crate) kind: Kind,
}

/// The map of `platform`, lowest first.
///
/// ACPI tables and reset vector are reserved as a whole: they lie in the legacy area, whose 128 KiB are not worth
/// giving back. The PCI configuration space is reserved too, because Linux uses it only then
/// (`pci_mmcfg_check_reserved`).
pub(crate) fn build(platform: &Platform) -> Vec<Range> {
    let mut map = Vec::with_capacity(8);
    for (base, len) in platform.ram {
        let end = base.saturating_add(*len);
        if *base < layout::KERNEL_MIN {
            push(&mut map, *base, end.min(layout::CONVENTIONAL_END), Kind::Ram);
            push(&mut map, layout::ACPI, layout::KERNEL_MIN, Kind::Reserved);
        }
        push(&mut map, (*base).max(layout::KERNEL_MIN), end, Kind::Ram);
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

    fn ranges(size: u64) -> Vec<(u64, u64, Kind)> {
        let ram = layout::ram_ranges(size);
        build(&platform(&ram))
            .iter()
            .map(|range| (range.base, range.base + range.len, range.kind))
            .collect()
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
}
