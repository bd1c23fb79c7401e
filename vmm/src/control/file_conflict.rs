//! Disks and persistent memory that want one file: which device of the VM has it already.
//!
//! The lock on the image decides whether it is taken ([`husk_virtio::block`]), for a lock knows of other processes too. This module only
//! says who of this VM holds it.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use husk_virtio::block::BlockError;
use husk_virtio::unix::BindError;
use husk_virtio::vsock::VsockError;

use crate::config::{NewDevice, VmConfig};
use crate::machine::{BuildError, PmemError};

/// Whether `error` is that the file or socket of a device is taken.
pub(crate) fn is_in_use(error: &BuildError) -> bool {
    let BuildError::Device { source, .. } = error else {
        return false;
    };
    matches!(source.downcast_ref(), Some(BlockError::Busy { .. }))
        || matches!(source.downcast_ref(), Some(PmemError::Busy))
        || matches!(source.downcast_ref(), Some(VsockError::Listen(BindError::InUse(_))))
}

/// The device of `config` whose file `device` could not have, if that is why it failed. Looks at files, and waits for their file systems.
pub(super) fn conflicting_device<'a>(error: &BuildError, config: &'a VmConfig, device: &NewDevice) -> Option<&'a str> {
    if !is_in_use(error) {
        return None;
    }
    let wanted = match device {
        NewDevice::Disk(disk) => identity(&disk.path)?,
        NewDevice::Pmem(pmem) => identity(&pmem.file)?,
        _ => return None,
    };
    let disks = config.disks.iter().map(|disk| (&disk.path, &disk.id));
    let pmems = config.pmem.iter().map(|pmem| (&pmem.file, &pmem.id));
    let (_, holder) = disks.chain(pmems).find(|(path, _)| identity(path) == Some(wanted))?;
    holder.as_deref()
}

/// Why a device cannot be added, after `cannot add ID`.
pub(super) fn reason(holder: &str, leaving: bool) -> String {
    let until = if leaving { ", which is on its way out" } else { "" };
    format!(": its image is {holder}'s{until}")
}

/// What two paths to one image have in common: the device, for a block device has many nodes, or the file.
fn identity(path: &Path) -> Option<(bool, u64, u64)> {
    let metadata = fs::metadata(path).ok()?;
    Some(match metadata.file_type().is_block_device() {
        true => (true, metadata.rdev(), 0),
        false => (false, metadata.dev(), metadata.ino()),
    })
}

#[cfg(test)]
#[path = "file_conflict_test.rs"]
mod tests;
