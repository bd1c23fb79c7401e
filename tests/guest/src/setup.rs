//! What every init does first: kernel file systems and modules.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::sys;

/// How long a device may take to appear. Ten times what the slowest emulated guest needed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Mounts `/proc`, `/sys` and `/dev`.
///
/// # Errors
///
/// A file system that this kernel does not have.
pub fn kernel_files() -> Result<()> {
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        mount(kind, target, kind)?;
    }
    Ok(())
}

/// Mounts `source` on `target`, creating the folder.
///
/// # Errors
///
/// What was mounted where, with the kernel's reason below it.
pub fn mount(source: &str, target: &str, kind: &str) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("cannot create {target}"))?;
    match sys::mount(source, target, kind, false) {
        // The kernel mounts /dev itself with CONFIG_DEVTMPFS_MOUNT.
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(()),
        other => other.with_context(|| format!("cannot mount {kind} on {target}")),
    }
}

/// Loads everything in `folder`, in the order of the file names. The initramfs has numbered them so
/// that what a module needs comes before it.
///
/// # Errors
///
/// The first module that the kernel refused.
pub fn load_modules(folder: impl AsRef<Path>) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(());
    };
    let mut paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<PathBuf>>>()?;
    paths.sort();
    for path in paths {
        let file = File::open(&path)?;
        match sys::load_module(&file) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            other => other.with_context(|| format!("cannot load {}", path.display()))?,
        }
    }
    Ok(())
}

/// Waits until `path` exists.
///
/// # Errors
///
/// It did not appear in time.
pub fn wait_for(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let start = Instant::now();
    while !path.exists() {
        if start.elapsed() > PATIENCE {
            bail!("{} did not appear within {} s", path.display(), PATIENCE.as_secs());
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
