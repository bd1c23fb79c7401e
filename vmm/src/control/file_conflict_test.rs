use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::config::{ConsoleConfig, ConsoleMode, DiskConfig};

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
    BuildError::device(format!("disk {}", path.display()), BlockError::Busy)
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
            conflicting_device(&taken(&path), &config, &new).as_deref(),
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

#[test]
fn a_machine_that_is_not_built_for_want_of_an_image_names_both_disks_by_whatever_path() {
    let images = Images::new();
    let (first, second) = (images.make("first"), images.0.path().join("second"));
    fs::hard_link(&first, &second).unwrap();
    let mut config = VmConfig {
        disks: vec![DiskConfig::new(&first), disk(second.clone(), "two")],
        ..VmConfig::default()
    };
    config.validate_added().unwrap();
    let both = "both have the image";
    let told = name_both(taken(&second), &config).to_string();
    assert!(
        told.starts_with(&format!("disk _disk0 and disk two {both} {}: ", second.display())),
        "{told}"
    );
    // Another process has it.
    let theirs = name_both(taken(&first), &config).to_string();
    assert_eq!(theirs, format!("disk {}", first.display()));
    config.disks.iter_mut().for_each(|disk| disk.readonly = true);
    let theirs = name_both(taken(&second), &config).to_string();
    assert_eq!(theirs, format!("disk {}", second.display()));
}

#[test]
fn what_a_vm_is_made_of_is_nothing_that_is_written_by_whatever_path() {
    let images = Images::new();
    let (image, hard, soft) = (
        images.make("image"),
        images.0.path().join("hard"),
        images.0.path().join("soft"),
    );
    fs::hard_link(&image, &hard).unwrap();
    symlink(&image, &soft).unwrap();
    let mut own = ProtectedFiles::default();
    own.add("husk's log", FileId::at(&images.make("log")));
    for output in [&image, &hard, &soft] {
        let mut config = VmConfig {
            disks: vec![DiskConfig::new(&image)],
            serial: ConsoleConfig::file(output),
            ..VmConfig::default()
        };
        let line = |writer| {
            format!(
                "{writer} would write over disk _disk0: both have the file {}",
                image.display()
            )
        };
        let refused = check_outputs(&config, &own).unwrap_err();
        assert_eq!(refused.to_string(), line("serial"));
        let added = NewDevice::Disk(disk(image.clone(), "_disk0"));
        assert!(check_added(&added, &config, &own).is_err());
        config.serial = ConsoleConfig::new(ConsoleMode::Null);
        assert_eq!(check_outputs(&config, &own), Ok(()));
        let mut own = own.clone();
        own.add_unwritten("husk's boot trace", FileId::at(output));
        let refused = check_outputs(&config, &own).unwrap_err();
        assert_eq!(refused.to_string(), line("husk's boot trace"));
    }
}
