//! Files of a VM that something else has already, by whatever name: another device, or what is written by husk.
//!
//! The lock on an image decides whether a device can have it ([`husk_virtio::block`]), for a lock knows of other
//! processes too; this module says who of this VM holds it. What husk writes is locked by nobody: this module refuses
//! it before it is opened.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use husk_virtio::block::BlockError;
use husk_virtio::unix::BindError;
use husk_virtio::vsock::VsockError;

use crate::config::{ConfigError, NewDevice, SourceFile, VmConfig, excludes};
use crate::machine::{BuildError, PmemError};
use crate::terminal::{FileId, ProtectedFiles};

/// Whether `error` is that the file or socket of a device is taken.
pub(crate) fn is_in_use(error: &BuildError) -> bool {
    let BuildError::Device { source, .. } = error else {
        return false;
    };
    matches!(source.downcast_ref(), Some(BlockError::Busy))
        || matches!(source.downcast_ref(), Some(PmemError::Busy))
        || matches!(source.downcast_ref(), Some(VsockError::Listen(BindError::InUse(_))))
}

/// The device of `config` whose file `device` could not have, if that is why it failed. Looks at
/// files, and waits for their file systems.
pub(super) fn conflicting_device(error: &BuildError, config: &VmConfig, device: &NewDevice) -> Option<String> {
    if !is_in_use(error) {
        return None;
    }
    let wanted = identity(&device.source_file()?.path)?;
    let has_it = |other: &NewDevice| {
        let file = other.source_file();
        file.and_then(|file| identity(&file.path)) == Some(wanted)
    };
    config.devices().find(has_it)?.id().map(str::to_owned)
}

/// Checks that nothing that is written is a file that the VM of `config` is made of: neither by its
/// ports, nor, to `own`, by husk itself; and that no port writes where husk writes events. Looks at
/// files, and waits for their file systems.
///
/// # Errors
/// [`ConfigError::Overwritten`], [`ConfigError::BesideEvents`].
pub(crate) fn check_outputs(config: &VmConfig, own: &ProtectedFiles) -> Result<(), ConfigError> {
    for (port, path) in config.output_files() {
        if let Some(events) = FileId::at(&path).and_then(|file| own.exclusive_as(file)) {
            return Err(ConfigError::beside_events(port, events, &path));
        }
    }
    check_sources(&config.source_files(), config, own)
}

/// As [`check_outputs`], of what is to join the VM of `config` alone.
pub(super) fn check_added(device: &NewDevice, config: &VmConfig, own: &ProtectedFiles) -> Result<(), ConfigError> {
    check_sources(device.source_file().as_slice(), config, own)
}

fn check_sources(sources: &[SourceFile], config: &VmConfig, own: &ProtectedFiles) -> Result<(), ConfigError> {
    let outputs = config.output_files().into_iter();
    let outputs: Vec<_> = outputs
        .filter_map(|(port, path)| Some((port, FileId::at(&path)?)))
        .collect();
    for source in sources {
        let Some(file) = FileId::at(&source.path) else { continue };
        let port = outputs.iter().find(|(_, output)| *output == file);
        if let Some(output) = port.map(|(port, _)| *port).or_else(|| own.protected_as(Some(file))) {
            return Err(ConfigError::overwritten(output, source));
        }
    }
    Ok(())
}

/// `error`, by which the machine of `config` could not be built; where two of its devices want one image, both are
/// named. Looks at files, and waits for their file systems.
pub(super) fn name_both(error: BuildError, config: &VmConfig) -> BuildError {
    let BuildError::Device { device, .. } = &error else {
        return error;
    };
    if !is_in_use(&error) {
        return error;
    }
    let images = config.images();
    // As the one that could not be opened is called.
    let is_refused = |image: &SourceFile| {
        let mut words = image.what.split(' ');
        words
            .next()
            .is_some_and(|kind| *device == format!("{kind} {}", image.path.display()))
    };
    let refused = images.iter().enumerate().filter(|(_, image)| is_refused(image));
    let both = refused.into_iter().find_map(|(number, image)| {
        let wanted = identity(&image.path)?;
        let mut before = images.iter().take(number);
        let other = before.find(|other| excludes(other, image) && identity(&other.path) == Some(wanted))?;
        Some(ConfigError::two_images(other, image))
    });
    both.map_or(error, BuildError::Config)
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
