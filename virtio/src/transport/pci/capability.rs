//! virtio's vendor-specific capabilities: where each part of the device is, and a window to reach it without the BAR
//! (virtio 1.2 §4.1.4).
//!
//! | offset | width | R/W | field                                                     |
//! |--------|-------|-----|-----------------------------------------------------------|
//! | 0      | 1     | R   | `cap_vndr`: 9                                             |
//! | 1      | 1     | R   | `cap_next`                                                |
//! | 2      | 1     | R   | `cap_len`                                                 |
//! | 3      | 1     | R   | `cfg_type`                                                |
//! | 4      | 1     | R (W in the window) | `bar`                                     |
//! | 5      | 1     | R   | `id`: 0                                                   |
//! | 8      | 4     | R (W in the window) | `offset` into the BAR                     |
//! | 12     | 4     | R (W in the window) | `length`                                  |
//! | 16     | 4     | R   | notify only: `notify_off_multiplier`                      |
//! | 16     | 4     | R/W | window only: `pci_cfg_data`, an access to the BAR         |

use super::layout::{BAR, BAR_BYTES};

/// `virtio_pci_cap` without a tail, and the tail of those that have one.
const CAP_BYTES: u8 = 16;
const TAIL_BYTES: u8 = 4;
/// `VIRTIO_PCI_CAP_PCI_CFG`.
const CFG_TYPE_WINDOW: u8 = 5;

/// What a capability points at: `cfg_type` (virtio 1.2 §4.1.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Common = 1,
    Notify = 2,
    Isr = 3,
    Device = 4,
}

/// The capability that says where `part` is, without the two bytes that PCI puts before it. A notify capability has the
/// distance between doorbells in `multiplier`.
pub(super) fn body(part: Part, offset: u32, length: u32, multiplier: Option<u32>) -> Vec<u8> {
    let tail = multiplier.map(u32::to_le_bytes);
    encode(part as u8, offset, length, tail)
}

fn encode(cfg_type: u8, offset: u32, length: u32, tail: Option<[u8; 4]>) -> Vec<u8> {
    let cap_len = if tail.is_some() {
        CAP_BYTES.saturating_add(TAIL_BYTES)
    } else {
        CAP_BYTES
    };
    let mut body = vec![cap_len, cfg_type, BAR, 0, 0, 0];
    body.extend(offset.to_le_bytes());
    body.extend(length.to_le_bytes());
    body.extend(tail.into_iter().flatten());
    body
}

/// Body of the window, and which of its bits the guest may write: `bar`, `offset`, `length`, `pci_cfg_data`.
pub(super) fn window_body() -> (Vec<u8>, Vec<u8>) {
    let mask = [[0, 0, 0xff, 0, 0, 0].as_slice(), &[0xff; 12]].concat();
    (encode(CFG_TYPE_WINDOW, 0, 0, Some([0; 4])), mask)
}

/// Where the window's registers are in configuration space.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    /// Offset of the capability.
    pub at: u16,
}

impl Window {
    /// Bytes of the capability.
    pub const BYTES: usize = 20;

    /// Offset of `pci_cfg_data` in configuration space.
    pub fn data_at(self) -> u16 {
        self.at.saturating_add(16)
    }

    /// Whether an access of `len` bytes at `offset` touches `pci_cfg_data`.
    pub fn is_touched(self, offset: u16, len: usize) -> bool {
        let (first, last) = (u64::from(self.data_at()), u64::from(self.data_at()).saturating_add(3));
        let start = u64::from(offset);
        let end = start.saturating_add(len as u64);
        start <= last && end > first
    }

    /// What an access through the window means, from the bytes of its capability: an offset into
    /// the BAR and a width. `None` for what the driver must not ask (virtio 1.2 §4.1.4.9.1):
    /// another BAR, a width but 1, 2 or 4, a misaligned or outside place.
    pub fn target(registers: &[u8; Self::BYTES]) -> Option<(u64, usize)> {
        let [_, _, _, _, bar, _, _, _, o0, o1, o2, o3, l0, l1, l2, l3, ..] = *registers;
        let offset = u64::from(u32::from_le_bytes([o0, o1, o2, o3]));
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        let allowed = bar == BAR && matches!(length, 1 | 2 | 4) && offset.is_multiple_of(u64::from(length));
        let inside = offset
            .checked_add(u64::from(length))
            .is_some_and(|end| end <= BAR_BYTES);
        (allowed && inside).then_some((offset, usize::try_from(length).ok()?))
    }
}
