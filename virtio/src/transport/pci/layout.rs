//! Where everything is: identity, capabilities and the map of the BAR (virtio 1.2 §4.1.2, §4.1.4).
//!
//! One 64-bit memory BAR, number 0, holds everything, each part in a page of its own:
//!
//! | offset | size          | part                                         | section  |
//! |--------|---------------|----------------------------------------------|----------|
//! | 0x0000 | 0x3c          | common configuration                         | §4.1.4.3 |
//! | 0x1000 | 1             | ISR status, cleared by a read                | §4.1.4.5 |
//! | 0x2000 | 0x1000        | device configuration                         | §4.1.4.6 |
//! | 0x3000 | 4 per queue   | doorbells, each queue its own                | §4.1.4.4 |
//! | 0x4000 | 16 per vector | MSI-X table                                  | §4.1.2.2 |
//! | 0x5000 | 1 bit per vector | MSI-X pending bits                        |          |
//!
//! Vector 0 is by custom the configuration's, the others the queues': there is one more than
//! queues. Bytes between the parts read as 0 and ignore writes.

use husk_devices::pci::{Bar, BarPlace, CAP_VENDOR, ConfigError, ConfigSpace, Identity, Msix};

use super::VirtioPciError;
use super::capability::{self, Part, Window};
use super::common::COMMON_BYTES;
use super::doorbells::STRIDE;
use crate::device::Profile;

/// The vendor of all virtio devices (virtio 1.2 §4.1.2).
pub(super) const VENDOR_ID: u16 = 0x1af4;
/// Device ID of a modern device: this plus its virtio ID (virtio 1.2 §4.1.2.1).
pub(super) const DEVICE_ID_BASE: u16 = 0x1040;
/// Modern devices have revision 1 or higher (virtio 1.2 §4.1.2.1).
pub(super) const REVISION: u8 = 1;
/// The BAR that holds everything.
pub(super) const BAR: u8 = 0;
pub(super) const BAR_BYTES: u64 = 0x8000;
pub(super) const PART_BYTES: u32 = 0x1000;
pub(super) const COMMON: u32 = 0x0000;
pub(super) const ISR: u32 = 0x1000;
pub(super) const DEVICE: u32 = 0x2000;
pub(super) const NOTIFY: u32 = 0x3000;
pub(super) const MSIX_TABLE: u32 = 0x4000;
pub(super) const MSIX_PBA: u32 = 0x5000;
/// The most queues of a device: a page of the MSI-X table has 256 entries, one of which is the configuration's.
pub const QUEUES_MAX: u16 = 255;

/// Who the function says it is.
///
/// # Errors
/// When the virtio ID is too large for a PCI device ID.
pub(super) fn identity(profile: &Profile, device: &str) -> Result<Identity, VirtioPciError> {
    let id = u16::try_from(profile.id)
        .ok()
        .and_then(|id| id.checked_add(DEVICE_ID_BASE));
    let id = id.ok_or_else(|| VirtioPciError::DeviceId {
        device: device.to_owned(),
        id: profile.id,
        allowed: u16::MAX.saturating_sub(DEVICE_ID_BASE),
    })?;
    Ok(Identity {
        vendor: VENDOR_ID,
        device: id,
        revision: REVISION,
        class: profile.class,
        subsystem_vendor: VENDOR_ID,
        subsystem: id,
    })
}

/// Adds the BAR and all capabilities; returns where the window is.
pub(super) fn add_capabilities(space: &mut ConfigSpace, msix: &mut Msix, queues: u16) -> Result<Window, ConfigError> {
    space.add_bar(BAR, Bar::memory64(BAR_BYTES))?;
    let doorbells = u32::from(queues).saturating_mul(STRIDE);
    for (part, offset, length, multiplier) in [
        (Part::Common, COMMON, COMMON_BYTES, None),
        (Part::Isr, ISR, 1, None),
        (Part::Device, DEVICE, PART_BYTES, None),
        (Part::Notify, NOTIFY, doorbells, Some(STRIDE)),
    ] {
        space.add_capability(CAP_VENDOR, &capability::body(part, offset, length, multiplier), &[])?;
    }
    let (body, writable) = capability::window_body();
    let at = space.add_capability(CAP_VENDOR, &body, &writable)?;
    let [table, pba] = [MSIX_TABLE, MSIX_PBA].map(|offset| BarPlace { bar: BAR, offset });
    msix.add_capability(space, table, pba)?;
    Ok(Window { at })
}

/// The part of the BAR that `offset` is in, and the offset into that part.
pub(super) fn place(bar: u8, offset: u64) -> Option<(u32, u64)> {
    let offset = u32::try_from(offset)
        .ok()
        .filter(|offset| bar == BAR && u64::from(*offset) < BAR_BYTES)?;
    let inside = offset.checked_rem(PART_BYTES)?;
    Some((offset.saturating_sub(inside), inside.into()))
}
