use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::config::DiskConfig;

struct Images(TempDir);

impl Images {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn make(&self, name: &str) -> PathBuf {
        let path = self.0.path().join(name);
        File::create(&path).unwrap().set_len(4096).unwrap();
        path
    }
}

fn disk(path: PathBuf, id: &str) -> DiskConfig {
    DiskConfig {
        id: Some(id.into()),
        ..DiskConfig::new(path)
    }
}

fn taken(path: &Path) -> BuildError {
    let source = BlockError::Busy { path: path.into() };
    BuildError::device(format!("disk {}", path.display()), source)
}

#[test]
fn the_disk_that_has_the_image_is_named_by_whatever_path() {
    let images = Images::new();
    let (first, second) = (images.make("first"), images.make("second"));
    let (hard, soft) = (images.0.path().join("hard"), images.0.path().join("soft"));
    fs::hard_link(&second, &hard).unwrap();
    symlink(&second, &soft).unwrap();
    let config = VmConfig {
        disks: vec![disk(first, "one"), disk(second.clone(), "two")],
        ..VmConfig::default()
    };
    for path in [second, hard, soft] {
        let new = NewDevice::Disk(DiskConfig::new(&path));
        assert_eq!(
            conflicting_device(&taken(&path), &config, &new),
            Some("two"),
            "{}",
            path.display()
        );
    }
}

#[test]
fn nobody_is_named_when_another_process_has_the_image_or_something_else_is_wrong() {
    let images = Images::new();
    let (ours, theirs) = (images.make("ours"), images.make("theirs"));
    let config = VmConfig {
        disks: vec![disk(ours.clone(), "one")],
        ..VmConfig::default()
    };
    let new = NewDevice::Disk(DiskConfig::new(&theirs));
    assert_eq!(conflicting_device(&taken(&theirs), &config, &new), None);
    let gone = NewDevice::Disk(DiskConfig::new("/nowhere/disk"));
    assert_eq!(
        conflicting_device(&taken(Path::new("/nowhere/disk")), &config, &gone),
        None
    );
    let again = NewDevice::Disk(DiskConfig::new(&ours));
    let other = BuildError::device("disk", BlockError::Queues(0));
    assert_eq!(conflicting_device(&other, &config, &again), None);
    assert!(!is_in_use(&other) && !is_in_use(&BuildError::NoKernel));
}

#[test]
fn a_disk_on_its_way_out_is_told_from_one_that_stays() {
    assert_eq!(reason("_disk0", false), ": its image is _disk0's");
    assert_eq!(
        reason("_disk0", true),
        ": its image is _disk0's, which is on its way out"
    );
}
