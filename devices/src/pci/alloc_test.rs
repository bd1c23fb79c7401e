use proptest::prelude::*;

use super::*;

#[test]
fn addresses_are_multiples_of_the_size_and_come_back() {
    let mut alloc = BarAllocator::new(Window {
        base: 0xc000_0000,
        size: 0x2000_0000,
    })
    .unwrap();
    assert_eq!(alloc.allocate(0x1000).unwrap(), 0xc000_0000);
    assert_eq!(alloc.allocate(0x8_0000).unwrap(), 0xc008_0000);
    alloc.free(0xc000_0000, 0x1000).unwrap();
    assert_eq!(alloc.allocate(0x1000).unwrap(), 0xc000_0000);
}

#[test]
fn errors_name_the_size_and_the_window() {
    let mut alloc = BarAllocator::new(Window {
        base: 0x10_0000,
        size: 0x1000,
    })
    .unwrap();
    let full = alloc.allocate(0x2000).unwrap_err();
    assert_eq!(
        full.to_string(),
        "no room for a BAR of 0x2000 bytes in the PCI window 0x100000..=0x100fff"
    );
    assert!(matches!(alloc.allocate(0), Err(AllocError::Full { size: 0, .. })));
    assert!(matches!(alloc.allocate(0x30), Err(AllocError::Full { size: 0x30, .. })));
    assert!(matches!(
        alloc.free(0x10_0000, 0x800),
        Err(AllocError::Unknown {
            base: 0x10_0000,
            size: 0x800,
            ..
        })
    ));
    assert!(alloc.free(u64::MAX, u64::MAX).is_err());
}

#[test]
fn windows_that_are_none_are_refused() {
    for (base, size) in [(0, 0x1000), (0x1000, 0), (u64::MAX, 2)] {
        assert!(
            matches!(BarAllocator::new(Window { base, size }), Err(AllocError::Window { .. })),
            "{size:#x} at {base:#x}"
        );
    }
}

proptest! {
    #[test]
    fn what_is_handed_out_is_aligned_inside_and_disjoint(steps in prop::collection::vec((any::<bool>(), 4_u32..16, any::<prop::sample::Index>()), 1..60)) {
        let window = Window { base: 0xc000_0800, size: 0x4_0000 };
        let mut alloc = BarAllocator::new(window).unwrap();
        let mut placed: Vec<(u64, u64)> = Vec::new();
        for (take, power, index) in steps {
            if take || placed.is_empty() {
                let size = 1 << power;
                let Ok(base) = alloc.allocate(size) else { continue };
                prop_assert!(base % size == 0 && base >= window.base && base + size <= window.base + window.size);
                prop_assert!(placed.iter().all(|(other, len)| base + size <= *other || other + len <= base));
                placed.push((base, size));
            } else {
                let (base, size) = placed.swap_remove(index.index(placed.len()));
                prop_assert!(alloc.free(base, size).is_ok());
            }
        }
    }
}
