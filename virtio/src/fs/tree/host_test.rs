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
    assert_eq!(
        share.tree.read(file.node, opened.handle, 0, live.buffers(), false),
        Ok(7000)
    );
    drop(iovecs);
    assert_eq!(read[..7000], expected);
    assert_eq!(
        share
            .tree
            .read(file.node, opened.handle, 0, Iovecs::default().begin().buffers(), false),
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

/// A file system on a loop device, mounted in the share under `disk`, whose image ends where the
/// data begins that `file` has at `from`: no longer does the device. None, and a line that says so,
/// where that cannot be had.
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

/// Room for a block and what brings its beginning to a multiple of its size.
const BLOCK: usize = 4096;

/// Writes a block of `byte`s from memory that is aligned to it, as a guest's pages are.
fn write_block(share: &Share, node: Node, handle: Handle, offset: u64, byte: u8, how: Writing) -> Result<usize, Errno> {
    let mut bytes = vec![byte; 2 * BLOCK];
    let skip = bytes.as_ptr().align_offset(BLOCK);
    let mut iovecs = Iovecs::default();
    let mut live = iovecs.begin();
    live.push(VolatileSlice::from(&mut bytes[skip..skip + BLOCK]));
    share.tree.write(node, handle, offset, live.buffers(), how)
}

/// A share whose guest goes past the host's cache, on a file system that can do so. `None` where there is none, which
/// is said.
fn past_caches() -> Option<Share> {
    let share = Share::with(|config| config.allow_direct_io = true);
    fs::write(share.host("probe"), "").unwrap();
    let can = share.open(share.node("probe"), O_RDWR | O_DIRECT);
    let can = can.inspect_err(|error| println!("skipped: needs a file system with O_DIRECT: {error}"));
    can.ok().map(|_| share)
}

#[test]
fn what_a_guest_wrote_to_its_cache_reaches_a_file_that_was_opened_past_it() {
    let Some(share) = past_caches() else { return };
    let contents = vec![1; 5000];
    fs::write(share.host("opened"), &contents).unwrap();
    let opened = share.node("opened");
    let (made, handle) = share.create(Node::ROOT, "made", O_RDWR | O_DIRECT, 0o644).unwrap();
    let unnamed = share
        .tree
        .tmpfile(&ROOT, Node::ROOT, O_RDWR | O_DIRECT, &creation(0o644));
    let (unnamed, unnamed_handle) = unnamed.unwrap();
    share.link(unnamed.node, Node::ROOT, "unnamed").unwrap();
    let files = [
        ("opened", opened, share.open(opened, O_RDWR | O_DIRECT).unwrap()),
        ("made", made.node, handle.handle),
        ("unnamed", unnamed.node, unnamed_handle.handle),
    ];
    let direct = Writing {
        direct: true,
        ..Writing::default()
    };
    for (name, node, handle) in files {
        // The last page of a file of 5000 bytes, as the guest's kernel writes back what was mapped; and any place, once
        // the flag is off.
        assert_eq!(share.write(node, handle, 4096, &[2; 904]), Ok(904), "{name}");
        assert_eq!(share.write(node, handle, 4097, b"three"), Ok(5), "{name}");
        assert_eq!(
            share.read(node, handle, 4096, 9).unwrap(),
            b"\x02three\x02\x02\x02",
            "{name}"
        );
        let on_host = fs::read(share.host(name)).unwrap();
        assert_eq!(
            (on_host.len(), &on_host[4095..4102]),
            (5000, &[on_host[4095], 2, b't', b'h', b'r', b'e', b'e'][..])
        );
        // What asks to go past the cache does, and has to be aligned.
        assert_eq!(write_block(&share, node, handle, 0, 7, direct), Ok(BLOCK), "{name}");
        assert_eq!(
            share.write_as(node, handle, 1, b"unaligned", direct),
            Err(Errno::INVAL),
            "{name}"
        );
        assert_eq!(share.read_as(node, handle, 1, 3, true), Err(Errno::INVAL), "{name}");
        assert_eq!(fs::read(share.host(name)).unwrap()[..BLOCK], [7; BLOCK], "{name}");
    }
    let held = share.tree.budget.open();
    for (_, node, handle) in files {
        share.tree.release(node, handle, None).unwrap();
    }
    assert_eq!(share.tree.budget.open(), held - 6);
}

#[test]
fn past_the_cache_goes_what_was_opened_so_and_nothing_is_cut_off_that_cannot() {
    let Some(share) = past_caches() else { return };
    fs::write(share.host("a"), "some").unwrap();
    let node = share.node("a");
    // The guest's process set the flag later.
    let handle = share.open(node, O_RDWR).unwrap();
    let direct = Writing {
        direct: true,
        ..Writing::default()
    };
    assert_eq!(share.write_as(node, handle, 1, b"OM", direct), Ok(2));
    assert_eq!(content(share.host("a")), "sOMe");
    share.open(node, O_RDWR | O_DIRECT | O_TRUNC).unwrap();
    assert_eq!(content(share.host("a")), "");
    // A mode that keeps an ordinary user from opening it again does not keep him from making it.
    let (made, opened) = share.create(Node::ROOT, "b", O_RDWR | O_DIRECT, 0o444).unwrap();
    assert_eq!(write_block(&share, made.node, opened.handle, 0, 1, direct), Ok(BLOCK));
}
