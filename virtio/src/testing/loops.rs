//! Block devices of the host, where it lets us have loop devices.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use husk_devices::testing::Loop;

/// A block device of 8 MiB whose storage has room for 1 MiB: a write succeeds, its write-back does not.
pub(crate) struct LossyDevice {
    device: Option<Loop>,
    storage: tempfile::TempDir,
}

impl LossyDevice {
    /// `None`, and a word, where there is none to be had.
    pub(crate) fn new() -> Option<Self> {
        let storage = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
            .arg(storage.path());
        if !mount.output().is_ok_and(|mounted| mounted.status.success()) {
            println!("skipped: needs mounts");
            return None;
        }
        let mut lossy = Self { device: None, storage };
        let file = lossy.storage.path().join("image");
        File::create(&file).unwrap().set_len(8 << 20).unwrap();
        lossy.device = Some(Loop::attach(&file, &[])?);
        Some(lossy)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.device.as_ref().unwrap().0
    }
}

impl Drop for LossyDevice {
    fn drop(&mut self) {
        self.device = None;
        // Lazily: the device lets go of its file when the last who has it open does.
        let _ = Command::new("umount").arg("-l").arg(self.storage.path()).status();
    }
}
