use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use super::*;
use crate::block::Block;
use crate::block::testing::{image, pattern};
use crate::testing::{Loop, make_fifo};

impl Block {
    /// Lets direct I/O on the image ask for offsets and lengths in units of `bytes`, as a disk with such blocks would.
    pub(in crate::block) fn assume_direct_unit(&mut self, bytes: usize) {
        let image = std::sync::Arc::get_mut(&mut self.image).unwrap();
        image.direct.as_mut().unwrap().alignment.offset = bytes;
    }
}

impl Image {
    /// Makes the image look like a block device with logical blocks of `bytes`.
    pub(in crate::block) fn assume_device(&mut self, bytes: u32) {
        self.is_device = true;
        self.sizes.logical = bytes;
    }
}

fn config(path: impl Into<PathBuf>) -> BlockConfig {
    BlockConfig::new(path)
}

fn readonly(path: impl Into<PathBuf>) -> BlockConfig {
    BlockConfig {
        readonly: true,
        ..config(path)
    }
}

fn kind(path: impl Into<PathBuf>) -> &'static str {
    match Image::open(&readonly(path)) {
        Err(BlockError::Kind { found, .. }) => found,
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_files_and_block_devices_are_images() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    make_fifo(&fifo);
    let socket = dir.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();

    assert_eq!(kind(dir.path()), "directory");
    assert_eq!(kind(fifo), "FIFO");
    assert_eq!(kind(socket), "socket");
    assert_eq!(kind("/dev/null"), "character device");
}

#[test]
fn errors_say_what_of_the_image_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let error = Image::open(&config(&missing)).unwrap_err();
    assert_eq!(error.to_string(), "cannot open it");
    assert!(std::error::Error::source(&error).is_some());

    let empty = image(&[]);
    let error = Image::open(&config(empty.path())).unwrap_err();
    assert!(matches!(error, BlockError::Empty), "{error:?}");
}

#[test]
fn symbolic_link_leads_to_the_image() {
    let file = image(&[1; 512]);
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(file.path(), &link).unwrap();
    assert_eq!(Image::open(&config(link)).unwrap().sectors(), 1);
}

#[test]
fn capacity_counts_a_partial_sector() {
    for (bytes, sectors) in [(1usize, 1), (511, 1), (512, 1), (513, 2), (1 << 20, 2048)] {
        let file = image(&vec![1; bytes]);
        assert_eq!(
            Image::open(&config(file.path())).unwrap().sectors(),
            sectors,
            "{bytes} bytes"
        );
    }
}

#[test]
fn writer_excludes_all_others_and_readers_share() {
    let file = image(&[1; 512]);
    let busy = |config: BlockConfig| matches!(Image::open(&config), Err(BlockError::Busy));

    let writer = Image::open(&config(file.path())).unwrap();
    assert!(busy(config(file.path())));
    assert!(busy(readonly(file.path())));
    drop(writer);

    let reader = Image::open(&readonly(file.path())).unwrap();
    let another = Image::open(&readonly(file.path())).unwrap();
    assert!(busy(config(file.path())));
    drop((reader, another));
    assert!(!busy(config(file.path())));
}

#[test]
fn read_only_image_has_no_writable_descriptor() {
    let file = image(&[1; 4096]);
    fs::set_permissions(file.path(), Permissions::from_mode(0o444)).unwrap();
    for direct in [false, true] {
        let image = Image::open(&BlockConfig {
            direct,
            ..readonly(file.path())
        })
        .unwrap();
        let mut descriptors = vec![image.file()];
        descriptors.extend(image.direct.as_ref().map(|direct| &direct.cached));
        for mut descriptor in descriptors {
            let error = io::Write::write(&mut descriptor, &[0; 512]).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        }
        assert!(!image.discard());
    }
}

fn cannot_be_written(path: &Path) {
    let error = Image::open(&config(path)).unwrap_err();
    assert!(matches!(error, BlockError::NotWritable(_)), "{error:?}");
    assert_eq!(
        error.to_string(),
        "it cannot be written, with readonly=on it can be read"
    );
    assert!(Image::open(&readonly(path)).is_ok());
}

#[test]
fn a_device_that_is_read_only_is_no_writable_disk() {
    let file = image(&[1; 4096]);
    if let Some(device) = Loop::attach(file.path(), &["--read-only"]) {
        cannot_be_written(&device.0);
    }
}

#[test]
fn what_the_host_says_of_a_device_decides() {
    assert!(check_writable(false).is_ok());
    let error = check_writable(true).unwrap_err();
    let why = std::error::Error::source(&error).unwrap().to_string();
    assert!(why.contains("Read-only file system"), "{why}");
}

#[test]
fn a_file_that_cannot_be_written_is_no_writable_disk() {
    // A program that runs: not even root may write it.
    cannot_be_written(&std::env::current_exe().unwrap());
}

#[test]
fn direct_io_is_for_whole_units() {
    let file = image(&pattern(64 << 10, 1));
    let direct = BlockConfig {
        direct: true,
        ..config(file.path())
    };
    let mut image = Image::open(&direct).unwrap();
    image.direct.as_mut().unwrap().alignment.offset = 4096;
    for (offset, len, whole) in [
        (0, 4096, true),
        (8192, 12288, true),
        (512, 4096, false),
        (4096, 512, false),
        (u64::MAX, 1, false),
    ] {
        let route = image.route(offset, len);
        assert_eq!(matches!(route, Route::Direct(..)), whole, "{len} bytes at {offset}");
    }
    drop(image);
    let cached = Image::open(&config(file.path())).unwrap();
    assert!(matches!(cached.route(0, 4096), Route::Cached(_)));
}

#[test]
fn host_without_direct_io_is_named() {
    // No file in /proc can be opened for direct I/O.
    let config = BlockConfig {
        direct: true,
        ..readonly("/proc/version")
    };
    let error = Image::open(&config).unwrap_err();
    assert!(matches!(error, BlockError::NoDirectIo), "{error:?}");
}

#[test]
fn block_of_a_file_is_a_sector_however_it_is_opened() {
    let file = image(&[1; 8192]);
    for direct in [false, true] {
        let image = Image::open(&BlockConfig {
            direct,
            ..config(file.path())
        })
        .unwrap();
        assert_eq!(image.sizes().logical, 512);
        assert!(image.sizes().physical >= 512);
        assert_eq!(image.allocation_unit(), 1);
    }
}

#[test]
fn each_queue_of_a_disk_that_is_written_syncs_through_an_open_file_of_its_own() {
    let image = image(&pattern(4096, 1));
    let of = |readonly| BlockConfig {
        queues: 3,
        readonly,
        ..config(image.path())
    };
    let writable = Image::open(&of(false)).unwrap();
    // What is one open file has one position.
    let files = [0, 1, 2].map(|queue| writable.sync_file(queue));
    for (file, position) in files.iter().zip(1..) {
        let mut file = *file;
        file.seek(SeekFrom::Start(position)).unwrap();
    }
    let positions = files.map(|mut file| file.stream_position().unwrap());
    assert_eq!(positions, [1, 2, 3]);
    drop(writable);
    let readonly = Image::open(&of(true)).unwrap();
    assert_eq!(readonly.sync_files.len(), 0);
    assert!(std::ptr::eq(readonly.sync_file(2), readonly.file()));
}
