//! What the host does to files while the guest has them.

use super::*;
use crate::testing::Loop;

#[test]
fn a_file_that_is_cut_short_on_the_host_is_read_short() {
    let share = Share::new();
    fs::write(share.host("a"), vec![1; 8192]).unwrap();
    let node = share.node("a");
    let handle = share.open(node, O_RDWR).unwrap();
    fs::File::options()
        .write(true)
        .open(share.host("a"))
        .unwrap()
        .set_len(10)
        .unwrap();
    assert_eq!(share.read(node, handle, 0, 8192).unwrap().len(), 10);
    assert_eq!(share.read(node, handle, 4096, 4096).unwrap().len(), 0);
    assert_eq!(share.attr(node).size, 10);
}

#[test]
fn a_long_list_of_buffers_is_moved_in_parts() {
    let share = Share::new();
    let (file, opened) = share.create(Node::ROOT, "a", O_RDWR, 0o644).unwrap();
    let mut bytes: Vec<u8> = (0..7000u32).map(|n| n.to_le_bytes()[0]).collect();
    let expected = bytes.clone();
    let mut iovecs = Iovecs::default();
    let mut live = iovecs.begin();
    for piece in bytes.chunks_mut(3) {
        live.push(VolatileSlice::from(piece));
    }
    assert!(live.len() > 2 * crate::iovecs::MAX_IOVECS);
    assert_eq!(
        share
            .tree
            .write(file.node, opened.handle, 0, live.buffers(), Writing::default()),
        Ok(7000)
    );
    drop(iovecs);
    let mut read = vec![0; 7003];
    let mut iovecs = Iovecs::default();
    let mut live = iovecs.begin();
    for piece in read.chunks_mut(3) {
        live.push(VolatileSlice::from(piece));
    }
    assert_eq!(share.tree.read(file.node, opened.handle, 0, live.buffers()), Ok(7000));
    drop(iovecs);
    assert_eq!(read[..7000], expected);
    assert_eq!(
        share
            .tree
            .read(file.node, opened.handle, 0, Iovecs::default().begin().buffers()),
        Ok(0)
    );
}

#[test]
fn a_full_disk_is_passed_on() {
    if !may_mount() {
        return;
    }
    let share = Share::new();
    fs::create_dir(share.host("small")).unwrap();
    mount("size=64k,nr_inodes=4", share.host("small"));
    let small = share.node("small");
    let (file, opened) = share.create(small, "a", O_RDWR, 0o644).unwrap();
    let mut written = 0;
    let error = loop {
        match share.write(file.node, opened.handle, written, &[7; 4096]) {
            Ok(bytes) => written += bytes as u64,
            Err(error) => break error,
        }
    };
    assert_eq!((error, written), (Errno::NOSPC, 64 << 10));
    assert_eq!(
        share.tree.fallocate(file.node, opened.handle, 0, 0, 1 << 20),
        Err(Errno::NOSPC)
    );
    let error = (0..9).find_map(|n| share.mkdir(small, &format!("dir{n}"), 0o755).err());
    assert_eq!(error, Some(Errno::NOSPC));
    assert_eq!(share.read(file.node, opened.handle, 0, 4096).unwrap(), [7; 4096]);
    share.tree.reset();
    assert!(
        Command::new("umount")
            .arg(share.host("small"))
            .status()
            .unwrap()
            .success(),
        "nothing holds it any more"
    );
}

/// A file system on a loop device, mounted in the share under `disk`, whose image ends where the data begins that `file` has at `from`: no
/// longer does the device. None, and a line that says so, where that cannot be had.
fn disk_that_ends_within(share: &Share, file: &[u8], from: usize) -> Option<Loop> {
    let image = share.outside("image");
    fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
    let done = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
    if !done(Command::new("mke2fs").args(["-q", "-b", "4096", "-F"]).arg(&image)) {
        eprintln!("skipped: needs mke2fs");
        return None;
    }
    // What is behind the image's end is an error only to direct I/O.
    let device = Loop::attach(&image, &["--direct-io=on"])?;
    fs::create_dir(share.host("disk")).unwrap();
    let mut mount = Command::new("mount");
    mount.args(["-t", "ext4"]).arg(&device.0).arg(share.host("disk"));
    assert!(done(&mut mount), "{mount:?}");
    fs::write(share.host("disk/file"), file).unwrap();
    rustix::fs::sync();
    let (stored, part) = (fs::read(&image).unwrap(), &file[from..from + 4096]);
    let at = stored.chunks(4096).position(|block| block == part).unwrap() as u64;
    let image = fs::File::options().write(true).open(&image).unwrap();
    image.set_len(at * 4096).unwrap();
    fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
    Some(device)
}

#[test]
fn what_cannot_be_read_is_an_error_also_behind_what_can_and_no_end_of_the_file() {
    const BYTES: usize = 1 << 20;
    const HALF: usize = BYTES / 2;
    if !may_mount() {
        return;
    }
    let share = Share::new();
    let content: Vec<u8> = (0..1u32 << 18).flat_map(u32::to_le_bytes).collect();
    let Some(_disk) = disk_that_ends_within(&share, &content, HALF) else {
        return;
    };
    let disk = share.node("disk");
    let file = share.lookup(disk, "file").unwrap().node;
    let handle = share.open(file, O_RDONLY).unwrap();
    let read = |offset, bytes| share.read(file, handle, offset, bytes);
    assert_eq!(read(HALF as u64 - 65_536, 131_072), Err(Errno::IO));
    assert_eq!(read(0, BYTES), Err(Errno::IO));
    assert_eq!(read(0, 65_536).unwrap(), content[..65_536]);
    assert_eq!(read(BYTES as u64 - 4096, 8192), Err(Errno::IO));
    assert_eq!(share.attr(file).size, BYTES as u64);
    let unmounted = Command::new("umount").arg("-l").arg(share.host("disk")).status();
    assert!(unmounted.unwrap().success());
}

#[test]
fn a_file_that_is_removed_while_it_is_open_stays_until_it_is_closed() {
    let share = Share::new();
    let (file, opened) = share.create(Node::ROOT, "a", O_RDWR, 0o644).unwrap();
    share.write(file.node, opened.handle, 0, b"kept").unwrap();
    fs::remove_file(share.host("a")).unwrap();
    assert_eq!(share.lookup(Node::ROOT, "a").unwrap_err(), Errno::NOENT);
    assert_eq!(share.read(file.node, opened.handle, 0, 9).unwrap(), b"kept");
    let (attr, _) = share.tree.getattr(file.node, Some(opened.handle)).unwrap();
    assert_eq!((attr.size, attr.nlink), (4, 0));
    let (new, _) = share.create(Node::ROOT, "a", O_RDWR, 0o644).unwrap();
    assert_ne!(new.node, file.node);
}

#[test]
fn a_directory_that_is_removed_is_empty_for_who_has_it() {
    let share = Share::new();
    let dir = share.mkdir(Node::ROOT, "dir", 0o755).unwrap().node;
    let handle = share.tree.opendir(dir).unwrap().handle;
    fs::remove_dir(share.host("dir")).unwrap();
    assert_eq!(share.mkdir(dir, "x", 0o755).unwrap_err(), Errno::NOENT);
    assert_eq!(share.lookup(dir, "x").unwrap_err(), Errno::NOENT);
    let listed = share.tree.readdir(dir, handle, 0, false, &mut |_| true);
    assert!(matches!(listed, Ok(()) | Err(Errno::NOENT)), "{listed:?}");
}
