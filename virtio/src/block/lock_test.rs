use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::*;
use crate::block::image::Image;
use crate::block::testing::image;
use crate::block::{Block, BlockConfig, BlockError};

/// An image as a disk holds it, or that it is in use.
fn husk(path: &Path, readonly: bool) -> Option<Block> {
    let config = BlockConfig {
        readonly,
        ..BlockConfig::new(path)
    };
    match Block::open(config) {
        Ok(block) => Some(block),
        Err(BlockError::Busy) => None,
        Err(error) => panic!("{error}"),
    }
}

/// A machine of QEMU's that has an image as its disk, and has not started.
struct Qemu(Child);

impl Qemu {
    const PROGRAM: &str = "qemu-system-x86_64";

    fn is_there() -> bool {
        let there = Command::new(Self::PROGRAM).arg("--version").output().is_ok();
        if !there {
            println!("skipped: needs qemu-system-x86_64");
        }
        there
    }

    /// `None` if the image is in use.
    fn start(path: &Path, readonly: bool) -> Option<Self> {
        let readonly = if readonly { "on" } else { "off" };
        let file = format!(
            "driver=file,node-name=file,filename={},read-only={readonly}",
            path.display()
        );
        let raw = format!("driver=raw,node-name=raw,file=file,read-only={readonly}");
        let mut child = Command::new(Self::PROGRAM)
            .args([
                "-S",
                "-nodefaults",
                "-display",
                "none",
                "-machine",
                "q35",
                "-m",
                "16",
                "-qmp",
                "stdio",
            ])
            .args([
                "-blockdev",
                &file,
                "-blockdev",
                &raw,
                "-device",
                "virtio-blk-pci,drive=raw",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Answered once the devices are there. Who has ended does not hear it.
        let _ = child
            .stdin
            .as_mut()
            .unwrap()
            .write_all(br#"{"execute": "qmp_capabilities"}"#);
        let said = BufReader::new(child.stdout.take().unwrap());
        if said.lines().any(|line| line.unwrap().contains("return")) {
            return Some(Self(child));
        }
        let mut errors = String::new();
        child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        assert!(!child.wait().unwrap().success() && errors.contains("lock"), "{errors}");
        None
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn readers_of_husk_and_of_qemu_share_and_writers_of_either_exclude_all() {
    if !Qemu::is_there() {
        return;
    }
    let file = image(&[1; 4096]);
    for (ours, theirs) in [(true, true), (true, false), (false, true), (false, false)] {
        let both = ours && theirs;
        let first = husk(file.path(), ours);
        let second = Qemu::start(file.path(), theirs);
        assert!(first.is_some());
        assert_eq!(
            second.is_some(),
            both,
            "husk readonly={ours} first, QEMU readonly={theirs} second"
        );
        drop((first, second));
        let first = Qemu::start(file.path(), theirs);
        let second = husk(file.path(), ours);
        assert!(first.is_some());
        assert_eq!(
            second.is_some(),
            both,
            "QEMU readonly={theirs} first, husk readonly={ours} second"
        );
    }
}

/// A VMM that locks the whole file.
fn whole_file(path: &Path, writes: bool) -> Option<File> {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let kind = if writes { libc::F_WRLCK } else { libc::F_RDLCK };
    let held = outcome(fcntl(&file, libc::F_OFD_SETLK, &mut range(kind, 0, 0))).unwrap();
    (held == Locked::Held).then_some(file)
}

#[test]
fn readers_share_with_those_that_lock_whole_files_and_writers_exclude_them() {
    let file = image(&[1; 4096]);
    for (ours, theirs) in [(true, true), (true, false), (false, true), (false, false)] {
        let both = ours && theirs;
        let first = husk(file.path(), ours);
        let second = whole_file(file.path(), !theirs);
        assert!(first.is_some());
        assert_eq!(
            second.is_some(),
            both,
            "husk readonly={ours} first, readonly={theirs} second"
        );
        drop((first, second));
        let first = whole_file(file.path(), !theirs);
        let second = husk(file.path(), ours);
        assert!(first.is_some());
        assert_eq!(
            second.is_some(),
            both,
            "readonly={theirs} first, husk readonly={ours} second"
        );
    }
}

#[test]
fn of_writers_that_come_at_once_one_goes_on() {
    let file = image(&[1; 4096]);
    for _ in 0..50 {
        let barrier = std::sync::Barrier::new(4);
        let attempts: Vec<Option<Block>> = std::thread::scope(|scope| {
            let attempt = || {
                barrier.wait();
                husk(file.path(), false)
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(attempt)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(attempts.iter().flatten().count(), 1);
    }
}

#[test]
fn a_disk_that_goes_gives_its_locks_up_whoever_has_copies_of_its_descriptor() {
    let file = image(&[1; 4096]);
    for readonly in [false, true] {
        let image = Image::open(&BlockConfig {
            readonly,
            ..BlockConfig::new(file.path())
        })
        .unwrap();
        // As a process has it that is being started, and an io_uring that is being taken down.
        let copy = image.file().try_clone().unwrap();
        assert!(husk(file.path(), false).is_none());
        drop(image);
        assert!(husk(file.path(), false).is_some(), "readonly={readonly}");
        drop(copy);
    }
}
