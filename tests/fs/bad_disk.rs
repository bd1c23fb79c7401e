//! A disk of the host whose blocks go bad and are mended: a null block device of the kernel's
//! (Documentation/block/null_blk.rst).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::modules;

/// Where the kernel's devices are configured.
const CONFIGURED: &str = "/sys/kernel/config";
/// The device's name, also below `/dev`.
const NAME: &str = "nullbhusk";
const SIZE_MIB: u64 = 8;
const SECTORS_A_MIB: u64 = 2048;
const SECTOR: usize = 512;

/// A disk in memory with a file system on it. It goes when this is dropped.
pub struct BadDisk {
    folder: PathBuf,
}

impl BadDisk {
    /// Makes one; none if this host cannot.
    pub fn new() -> Option<Self> {
        if !Path::new(CONFIGURED).join("nullb").exists() && !load() {
            return None;
        }
        let disk = Self {
            folder: Path::new(CONFIGURED).join("nullb").join(NAME),
        };
        fs::create_dir(&disk.folder).unwrap();
        for (attribute, value) in [("size", SIZE_MIB), ("memory_backed", 1), ("power", 1)] {
            disk.set(attribute, &value.to_string());
        }
        let made = Command::new("mke2fs").arg(disk.path()).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        Some(disk)
    }

    /// Its block device.
    pub fn path(&self) -> PathBuf {
        Path::new("/dev").join(NAME)
    }

    /// All of it goes bad, and what the kernel remembers of it goes.
    pub fn spoil(&self) {
        forget();
        self.set("badblocks", &format!("+{}", Self::sectors()));
    }

    /// The block goes bad that begins with `content`, which is there once, and no other; what the
    /// kernel remembers of the disk goes.
    pub fn spoil_where(&self, content: &[u8]) {
        forget();
        let stored = fs::read(self.path()).unwrap();
        let sector = stored.chunks(SECTOR).position(|sector| content.starts_with(sector));
        let sector = sector.unwrap();
        forget();
        self.set("badblocks", &format!("+{sector}-{sector}"));
    }

    /// It holds what it held.
    pub fn mend(&self) {
        self.set("badblocks", &format!("-{}", Self::sectors()));
        forget();
    }

    fn sectors() -> String {
        format!("0-{}", SIZE_MIB * SECTORS_A_MIB - 1)
    }

    fn set(&self, attribute: &str, value: &str) {
        let path = self.folder.join(attribute);
        let written = fs::write(&path, value);
        written.unwrap_or_else(|error| panic!("{value} to {}: {error}", path.display()));
    }
}

impl Drop for BadDisk {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.folder);
    }
}

/// Writes what is dirty, and has the host's kernel forget what is not in use.
pub fn forget() {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}

/// Has the kernel of this host know such devices; whether it does.
fn load() -> bool {
    // Else it makes one at once.
    modules::load("null_blk", &["nr_devices=0"]);
    let there = || Path::new(CONFIGURED).join("nullb").exists();
    there() || modules::run(&["mount", "-t", "configfs", "none", CONFIGURED]) && there()
}
