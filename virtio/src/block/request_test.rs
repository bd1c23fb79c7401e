use proptest::prelude::*;
use vm_memory::GuestAddressSpace;

use super::*;
use crate::block::testing::{DATA, Guest, HEADER};
use crate::testing::{Buf, Driver, memory};

const LIMITS: Limits = Limits {
    sectors: 1000,
    readonly: false,
    discard: true,
};

/// What comes out of a chain of these readable bytes, cut into pieces of `cuts` bytes, and this many writable ones.
fn parsed(bytes: &[u8], cuts: &[usize], writable: u32, limits: Limits) -> Result<Request, Status> {
    let mut driver = Driver::new(&memory(), 0x1000, 64);
    driver.write(HEADER, bytes);
    let mut bufs = Vec::new();
    let mut at = 0;
    for cut in cuts.iter().copied().chain([bytes.len()]) {
        let len = cut.min(bytes.len() - at);
        bufs.push(Buf::Out(HEADER + at as u64, len as u32));
        at += len;
    }
    bufs.push(Buf::In(DATA, writable));
    driver.add(&bufs);
    let chain = driver.ring().pop().unwrap().unwrap();
    assert_eq!(chain.memory().as_ref() as *const _, &*driver.mem.memory() as *const _);
    parse(&chain, limits)
}

fn with_segments(kind: u32, segments: &[(u64, u32, u32)]) -> Vec<u8> {
    let mut bytes = Guest::header(kind, 0);
    for (sector, count, flags) in segments {
        bytes.extend(sector.to_le_bytes());
        bytes.extend(count.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
    }
    bytes
}

#[test]
fn extents_are_in_bytes() {
    let extent = Extent {
        offset: 3584,
        len: 1024,
    };
    assert_eq!(
        parsed(&Guest::header(0, 7), &[], 1025, LIMITS),
        Ok(Request::Read(extent))
    );
    let write = [Guest::header(1, 7), vec![0; 1024]].concat();
    assert_eq!(parsed(&write, &[], 1, LIMITS), Ok(Request::Write(extent)));
}

#[test]
fn segments_keep_their_order_and_flags() {
    let at = |offset, len| Extent { offset, len };
    let discard = with_segments(11, &[(9, 1, 0), (2, 3, 0)]);
    assert_eq!(
        parsed(&discard, &[5, 20], 1, LIMITS),
        Ok(Request::Discard(vec![at(4608, 512), at(1024, 1536)]))
    );
    for unmap in [false, true] {
        let zeroes = with_segments(13, &[(9, 1, unmap.into())]);
        let extent = at(4608, 512);
        let expected = Request::WriteZeroes(vec![ZeroExtent { extent, unmap }]);
        assert_eq!(parsed(&zeroes, &[], 1, LIMITS), Ok(expected));
    }
}

#[test]
fn last_sector_is_the_last() {
    for (sector, len, fits) in [
        (999, 512, true),
        (998, 1024, true),
        (1000, 0, true),
        (999, 1024, false),
        (1001, 0, false),
    ] {
        let result = parsed(&Guest::header(0, sector), &[], len + 1, LIMITS);
        assert_eq!(result.is_ok(), fits, "{len} bytes at {sector}");
    }
}

fn readable_bytes() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![0..20u32, any::<u32>()];
    let sector = prop_oneof![0..1100u64, any::<u64>()];
    let count = prop_oneof![0..1100u32, any::<u32>()];
    let segment = (sector.clone(), count, prop_oneof![Just(0), 0..4u32, any::<u32>()]);
    let body = prop_oneof![
        prop::collection::vec(segment, 0..36).prop_map(|segments| with_segments(0, &segments).split_off(16)),
        prop::collection::vec(any::<u8>(), 0..1100),
        (0..4usize).prop_map(|sectors| vec![0; 512 * sectors]),
    ];
    (kind, sector, body, 0..3usize).prop_map(|(kind, sector, body, short)| {
        let mut bytes = [Guest::header(kind, sector), body].concat();
        bytes.truncate(bytes.len() - short * 7 % 16);
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the driver sends, what comes out lies inside the disk and fits the buffers; and it does not depend on
    /// how the driver cut it into descriptors.
    #[test]
    fn accepted_requests_are_inside_the_disk(
        bytes in readable_bytes(),
        cuts in prop::collection::vec(0..40usize, 0..30),
        writable in prop_oneof![Just(1u32), 1..4000u32, (1..8u32).prop_map(|n| n * 512 + 1)],
        readonly: bool,
        discard: bool,
    ) {
        let limits = Limits { readonly, discard, ..LIMITS };
        let result = parsed(&bytes, &cuts, writable, limits);
        prop_assert_eq!(&result, &parsed(&bytes, &[], writable, limits));

        let inside = |extent: &Extent| {
            let (offset, len) = (extent.offset, extent.len);
            offset.is_multiple_of(512) && len.is_multiple_of(512) && offset + len <= 1000 * 512
        };
        let writes = match result {
            Err(_) => false,
            Ok(Request::Read(extent)) => {
                prop_assert!(inside(&extent));
                prop_assert_eq!(extent.len, u64::from(writable) - 1);
                false
            }
            Ok(Request::Write(extent)) => {
                prop_assert!(inside(&extent));
                prop_assert_eq!(extent.len, bytes.len() as u64 - 16);
                true
            }
            Ok(Request::Discard(extents)) => {
                prop_assert!(discard && extents.iter().all(inside) && extents.len() * 16 == bytes.len() - 16);
                true
            }
            Ok(Request::WriteZeroes(extents)) => {
                prop_assert!(extents.iter().all(|zero| inside(&zero.extent)) && extents.len() == 1);
                true
            }
            Ok(Request::Flush) => false,
            Ok(Request::GetId) => {
                prop_assert!(writable > 20);
                false
            }
        };
        prop_assert!(!(writes && (readonly || writable > 1)));
    }
}
