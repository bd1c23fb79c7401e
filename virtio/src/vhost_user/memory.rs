//! Guest RAM as a back-end is told of it ("Memory region description").
//!
//! | offset | bytes | field                                     |
//! |--------|-------|-------------------------------------------|
//! | 0      | 8     | guest-physical address                    |
//! | 8      | 8     | length                                    |
//! | 16     | 8     | address in this process                   |
//! | 24     | 8     | offset in the file, which is sent with it |

use std::os::fd::{AsRawFd, RawFd};

use husk_devices::memory::{GuestMemoryMmap, GuestRegionMmap};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::error::BackendError;

/// A region of guest RAM that other processes can map.
#[derive(Clone, Debug)]
pub(super) struct Region {
    gpa: u64,
    bytes: u64,
    /// Address in this process: what ring addresses refer to.
    address: u64,
    file: FileOffset,
}

impl Region {
    /// `None` for memory that only this process has: anonymous, or a private view of a file.
    fn new(region: &GuestRegionMmap) -> Option<Self> {
        let file = region
            .file_offset()
            .filter(|_| region.flags() & libc::MAP_SHARED != 0)?;
        Some(Self {
            gpa: region.start_addr().0,
            bytes: region.len(),
            address: region.as_ptr() as u64,
            file: file.clone(),
        })
    }

    /// Guest-physical address.
    pub fn gpa(&self) -> u64 {
        self.gpa
    }

    /// The description, 32 bytes.
    pub fn describe(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        let fields = [self.gpa, self.bytes, self.address, self.file.start()];
        for (to, field) in bytes.chunks_exact_mut(8).zip(fields) {
            to.copy_from_slice(&field.to_ne_bytes());
        }
        bytes
    }

    /// The file that the region is a part of.
    pub fn fd(&self) -> RawFd {
        self.file.file().as_raw_fd()
    }

    /// Where guest-physical `gpa` is in this process.
    fn translate(&self, gpa: u64) -> Option<u64> {
        let offset = gpa.checked_sub(self.gpa).filter(|offset| *offset < self.bytes)?;
        self.address.checked_add(offset)
    }
}

impl PartialEq for Region {
    /// The same memory in the same place. A file that was closed cannot be in both.
    fn eq(&self, other: &Self) -> bool {
        self.describe() == other.describe() && self.fd() == other.fd()
    }
}

/// What of `memory` a back-end can have.
pub(super) fn regions(memory: &GuestMemoryMmap) -> Result<Vec<Region>, BackendError> {
    let shared: Vec<Region> = memory.iter().filter_map(Region::new).collect();
    // Without the beginning of RAM it is no use: that is where a guest boots.
    let first = memory.find_region(GuestAddress(0));
    match first.map(|first| shared.iter().any(|region| region.gpa == first.start_addr().0)) {
        Some(true) => Ok(shared),
        _ => Err(BackendError::PrivateMemory),
    }
}

/// Where `gpa` is in this process, if it is in one of `regions`.
pub(super) fn translate(regions: &[Region], gpa: u64) -> Option<u64> {
    regions.iter().find_map(|region| region.translate(gpa))
}
