//! Each call: that it does what it should, each of its errors, and what it does to times.

use std::sync::mpsc;

use rustix::fs::IFlags;

use super::*;

/// A write of a file that appends.
const APPENDS: Writing = Writing {
    append: true,
    kill_priv: false,
    direct: false,
};

#[test]
fn a_file_is_made_written_read_and_found_on_the_host() {
    let share = Share::new();
    let (entry, opened) = share.create(Node::ROOT, "a", O_RDWR, 0o640).unwrap();
    assert_eq!(share.write(entry.node, opened.handle, 3, b"hello").unwrap(), 5);
    assert_eq!(share.read(entry.node, opened.handle, 0, 16).unwrap(), b"\0\0\0hello");
    assert_eq!(share.read(entry.node, opened.handle, 8, 16).unwrap(), b"");
    assert_eq!(content(share.host("a")), "\0\0\0hello");
    assert_eq!(fs::metadata(share.host("a")).unwrap().mode(), 0o100_640);
    assert_eq!((entry.attr.mode, entry.attr.size, entry.attr.nlink), (0o100_640, 0, 1));
    assert_eq!(share.attr(entry.node).size, 8);
    share.tree.release(entry.node, opened.handle, None).unwrap();
    assert_eq!(share.read(entry.node, opened.handle, 0, 1), Err(Errno::BADF));
    assert_eq!((share.counter("handles"), share.counter("nodes")), (0, 2));
    share.tree.forget(entry.node, 1);
    assert_eq!(share.counter("nodes"), 1);
}

#[test]
fn an_append_goes_to_the_end_and_a_truncation_to_nothing() {
    let share = Share::new();
    fs::write(share.host("a"), "one").unwrap();
    let node = share.node("a");
    let handle = share.open(node, O_WRONLY | O_APPEND).unwrap();
    share.write_as(node, handle, 0, b"two", APPENDS).unwrap();
    assert_eq!(content(share.host("a")), "onetwo");
    // A flag that the guest's process took away again, and what it mapped, have their places.
    share.write(node, handle, 1, b"NE").unwrap();
    assert_eq!(content(share.host("a")), "oNEtwo");
    // And one that was opened without may have it now.
    let handle = share.open(node, O_WRONLY).unwrap();
    share.write_as(node, handle, 0, b"!!", APPENDS).unwrap();
    assert_eq!(content(share.host("a")), "oNEtwo!!");
    let handle = share.open(node, O_WRONLY | O_APPEND).unwrap();
    assert_eq!(share.read(node, handle, 0, 1), Err(Errno::BADF));
    share.open(node, O_WRONLY | O_TRUNC).unwrap();
    assert_eq!(content(share.host("a")), "");
    assert_eq!(share.open(node, 3), Err(Errno::INVAL));
}

#[test]
fn a_new_file_that_appends_has_places_as_well() {
    let share = Share::new();
    let (file, opened) = share.create(Node::ROOT, "a", O_RDWR | O_APPEND, 0o644).unwrap();
    share.write_as(file.node, opened.handle, 9, b"one", APPENDS).unwrap();
    share.write(file.node, opened.handle, 0, b"ON").unwrap();
    assert_eq!(content(share.host("a")), "ONe");
}

#[test]
fn what_may_only_be_appended_to_is_opened_for_that() {
    // The thread of a share may not do this (CAP_LINUX_IMMUTABLE), nor may one that it starts.
    let (set, to_set) = mpsc::channel::<(fs::File, IFlags)>();
    let (done, is_set) = mpsc::channel();
    let marks = std::thread::spawn(move || {
        to_set.iter().for_each(|(file, flags)| {
            done.send(rustix::fs::ioctl_setflags(&file, flags)).unwrap();
        });
    });
    let share = Share::new();
    fs::write(share.host("a"), "one").unwrap();
    let mark = |flags| {
        set.send((fs::File::open(share.host("a")).unwrap(), flags)).unwrap();
        is_set.recv().unwrap()
    };
    if let Err(error) = mark(IFlags::APPEND) {
        return println!("skipped: needs files that can only be appended to: {error}");
    }
    let node = share.node("a");
    let appends = share.open(node, O_WRONLY | O_APPEND);
    let appended = appends.and_then(|handle| share.write_as(node, handle, 0, b"two", APPENDS));
    let others = [O_WRONLY, O_RDWR, O_WRONLY | O_APPEND | O_TRUNC].map(|flags| share.open(node, flags));
    mark(IFlags::empty()).unwrap();
    drop(set);
    marks.join().unwrap();
    assert_eq!((appended, content(share.host("a"))), (Ok(3), "onetwo".into()));
    assert_eq!(others, [Err(Errno::PERM); 3]);
}

#[test]
fn with_writeback_the_guest_reads_what_it_writes_and_knows_the_end() {
    let share = Share::with(|config| config.writeback = true);
    fs::write(share.host("a"), "one").unwrap();
    let node = share.node("a");
    let handle = share.open(node, O_WRONLY | O_APPEND).unwrap();
    assert_eq!(share.read(node, handle, 0, 9).unwrap(), b"one");
    share.write_as(node, handle, 0, b"two", APPENDS).unwrap();
    assert_eq!(content(share.host("a")), "two");
    share.tree.begin(Abilities::default());
    let handle = share.open(node, O_WRONLY).unwrap();
    assert_eq!(share.read(node, handle, 0, 9), Err(Errno::BADF));
}

#[test]
fn with_writeback_a_file_that_may_not_be_read_is_written_nevertheless() {
    use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
    let share = Share::with(|config| config.writeback = true);
    let (made, opened) = share.create(Node::ROOT, "a", O_WRONLY, 0o200).unwrap();
    share.tree.release(made.node, opened.handle, None).unwrap();
    // As an ordinary user, who may not read whatever there is.
    let sets = capabilities(None).unwrap();
    let all = CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
    let effective = sets.effective.difference(all);
    set_capabilities(None, CapabilitySets { effective, ..sets }).unwrap();
    let handle = share.open(made.node, O_WRONLY).unwrap();
    share.write(made.node, handle, 0, b"text").unwrap();
    assert_eq!(share.read(made.node, handle, 0, 9), Err(Errno::BADF));
    assert_eq!(share.open(made.node, O_RDWR), Err(Errno::ACCESS));
    assert_eq!(share.attr(made.node).size, 4);
}

#[test]
fn what_is_no_regular_file_is_never_opened() {
    let share = Share::new();
    share.mknod("fifo", 0o010_644, 0).unwrap();
    share.mknod("socket", 0o140_644, 0).unwrap();
    share.symlink(Node::ROOT, "link", "fifo").unwrap();
    share.mkdir(Node::ROOT, "dir", 0o755).unwrap();
    for (name, error) in [
        ("fifo", Errno::NXIO),
        ("socket", Errno::NXIO),
        ("link", Errno::LOOP),
        ("dir", Errno::ISDIR),
    ] {
        let node = share.node(name);
        for flags in [O_RDONLY, O_WRONLY, O_RDWR] {
            assert_eq!(share.open(node, flags), Err(error), "{name}");
        }
        if name != "dir" {
            assert_eq!(share.tree.opendir(node), Err(Errno::NOTDIR), "{name}");
            assert_eq!(share.lookup(node, "x").unwrap_err(), Errno::NOTDIR, "{name}");
        }
        let created = share.create(Node::ROOT, name, O_RDWR, 0o644);
        assert_eq!(created.unwrap_err(), error, "{name}");
        let created = share.create(Node::ROOT, name, O_RDWR | O_EXCL, 0o644);
        assert_eq!(created.unwrap_err(), Errno::EXIST, "{name}");
    }
    assert!(fs::metadata(share.host("fifo")).unwrap().file_type().is_fifo());
    assert_eq!(share.counter("handles"), 0);
}

#[test]
fn a_creation_that_another_was_faster_with_opens_what_is_there() {
    let share = Share::new();
    fs::write(share.host("a"), "there").unwrap();
    let (entry, opened) = share.create(Node::ROOT, "a", O_RDWR, 0o644).unwrap();
    assert_eq!(share.read(entry.node, opened.handle, 0, 9).unwrap(), b"there");
    let (again, _) = share.create(Node::ROOT, "a", O_RDWR | O_TRUNC, 0o644).unwrap();
    assert_eq!((again.node, content(share.host("a"))), (entry.node, String::new()));
}

#[test]
fn every_call_with_a_name_says_why_not() {
    let share = Share::new();
    let dir = share.mkdir(Node::ROOT, "dir", 0o755).unwrap().node;
    let (file, _) = share.create(dir, "file", O_RDWR, 0o644).unwrap();
    let file = file.node;
    let long = "x".repeat(256);
    for (name, error) in [
        ("", Errno::INVAL),
        (".", Errno::INVAL),
        ("..", Errno::INVAL),
        ("a/b", Errno::INVAL),
        (&*long, Errno::NAMETOOLONG),
    ] {
        assert_eq!(share.lookup(dir, name).unwrap_err(), error, "{name}");
    }
    share.mkdir(dir, &long[..255], 0o755).unwrap();

    assert_eq!(share.lookup(dir, "none").unwrap_err(), Errno::NOENT);
    assert_eq!(share.mkdir(dir, "file", 0o755).unwrap_err(), Errno::EXIST);
    assert_eq!(share.mkdir(file, "x", 0o755).unwrap_err(), Errno::NOTDIR);
    assert_eq!(share.unlink(dir, "none").unwrap_err(), Errno::NOENT);
    assert_eq!(share.unlink(Node::ROOT, "dir").unwrap_err(), Errno::ISDIR);
    assert_eq!(share.unlink(file, "x").unwrap_err(), Errno::NOTDIR);
    assert_eq!(share.rmdir(dir, "file").unwrap_err(), Errno::NOTDIR);
    assert_eq!(share.rmdir(Node::ROOT, "dir").unwrap_err(), Errno::NOTEMPTY);
    assert_eq!(share.rmdir(Node::ROOT, "none").unwrap_err(), Errno::NOENT);
    assert_eq!(share.symlink(dir, "file", "x").unwrap_err(), Errno::EXIST);
    assert_eq!(share.link(file, dir, "file").unwrap_err(), Errno::EXIST);
    assert_eq!(share.link(dir, dir, "hard").unwrap_err(), Errno::PERM);
    assert_eq!(share.link(file, file, "x").unwrap_err(), Errno::NOTDIR);
    assert_eq!(share.mknod("x", 0o040_755, 0).unwrap_err(), Errno::PERM);
    assert_eq!(share.mknod("x", 0o120_755, 0).unwrap_err(), Errno::INVAL);
    assert_eq!(share.mknod("dir", 0o100_644, 0).unwrap_err(), Errno::EXIST);
    assert_eq!(share.rename((dir, "none"), (dir, "x"), 0).unwrap_err(), Errno::NOENT);
    assert_eq!(
        share.rename((Node::ROOT, "dir"), (dir, "x"), 0).unwrap_err(),
        Errno::INVAL
    );
    assert_eq!(
        share.rename((dir, "file"), (Node::ROOT, "dir"), 0).unwrap_err(),
        Errno::NOTEMPTY
    );
    assert_eq!(share.rename((dir, "file"), (file, "x"), 0).unwrap_err(), Errno::NOTDIR);
    assert_eq!(share.rename((dir, "file"), (dir, "x"), 8).unwrap_err(), Errno::INVAL);
    for node in [Node(0), Node(2), Node(u64::MAX), Node(file.0 ^ 1 << 40)] {
        assert_eq!(share.lookup(node, "x").unwrap_err(), Errno::BADF);
        assert_eq!(share.open(node, O_RDONLY).unwrap_err(), Errno::BADF);
        assert_eq!(share.tree.getattr(node, None).unwrap_err(), Errno::BADF);
    }
    assert_eq!(share.tree.readlink(file).unwrap_err(), Errno::INVAL);
}

#[test]
fn a_handle_is_of_one_node_only() {
    let share = Share::new();
    let (a, opened) = share.create(Node::ROOT, "a", O_RDWR, 0o644).unwrap();
    let (b, _) = share.create(Node::ROOT, "b", O_RDWR, 0o644).unwrap();
    assert_eq!(share.write(b.node, opened.handle, 0, b"xy"), Err(Errno::BADF));
    assert_eq!(share.tree.release(b.node, opened.handle, None), Err(Errno::BADF));
    assert_eq!(share.tree.getattr(b.node, Some(opened.handle)), Err(Errno::BADF));
    assert_eq!(share.write(a.node, opened.handle, 0, b"xy"), Ok(2));
    let dir = share.tree.opendir(Node::ROOT).unwrap().handle;
    assert_eq!(share.read(Node::ROOT, dir, 0, 4), Err(Errno::ISDIR));
    let list = share.tree.readdir(a.node, opened.handle, 0, false, &mut |_| true);
    assert_eq!(list, Err(Errno::NOTDIR));
}

#[test]
fn a_rename_takes_the_place_of_another_or_changes_places_or_does_not() {
    let share = Share::new();
    fs::write(share.host("a"), "a").unwrap();
    fs::write(share.host("b"), "b").unwrap();
    let root = Node::ROOT;
    let (a, b) = (share.node("a"), share.node("b"));
    assert_eq!(share.rename((root, "a"), (root, "b"), 1), Err(Errno::EXIST));
    share.rename((root, "a"), (root, "b"), 2).unwrap();
    assert_eq!(
        (content(share.host("a")), content(share.host("b"))),
        ("b".into(), "a".into())
    );
    assert_eq!((share.node("a"), share.node("b")), (b, a));
    share.rename((root, "a"), (root, "b"), 0).unwrap();
    assert_eq!(
        (share.node("b"), share.lookup(root, "a").unwrap_err()),
        (b, Errno::NOENT)
    );
    // Its name is gone, and the node is there as long as the guest has it.
    assert_eq!(share.attr(a).nlink, 0);
    assert_eq!(share.rename((root, "b"), (root, "c"), 4), Ok(()));
    let whiteout = share.lookup(root, "b").unwrap().attr;
    assert_eq!((whiteout.mode & 0o170_000, whiteout.rdev), (0o020_000, 0));
}

#[test]
fn links_are_one_node_and_symbolic_links_are_read_and_not_followed() {
    let share = Share::new();
    let (a, _) = share.create(Node::ROOT, "a", O_RDWR, 0o644).unwrap();
    let b = share.link(a.node, Node::ROOT, "b").unwrap();
    assert_eq!((b.node, b.attr.nlink, share.node("a")), (a.node, 2, a.node));
    let link = share.symlink(Node::ROOT, "l", "/etc/passwd").unwrap();
    assert_eq!(share.tree.readlink(link.node).unwrap(), b"/etc/passwd");
    assert_eq!(link.attr.mode, 0o120_777);
    let hard = share.link(link.node, Node::ROOT, "hard").unwrap();
    assert_eq!((hard.node, hard.attr.nlink), (link.node, 2));
    let chmod = Change {
        mode: Some(0o600),
        ..Change::default()
    };
    assert_eq!(share.setattr(link.node, chmod).unwrap_err(), Errno::OPNOTSUPP);
    let target = "t".repeat(4095);
    let long = share.symlink(Node::ROOT, "long", &target).unwrap();
    assert_eq!(share.tree.readlink(long.node).unwrap(), target.as_bytes());
    assert_eq!(share.symlink(Node::ROOT, "empty", "").unwrap_err(), Errno::NOENT);
}

#[test]
fn times_follow_what_is_done() {
    let share = Share::new();
    let (file, opened) = share.create(Node::ROOT, "a", O_RDWR, 0o644).unwrap();
    let old = Time {
        sec: 1_000_000,
        nsec: 7,
    };
    let age = Change {
        atime: Some(Stamp::At(old)),
        mtime: Some(Stamp::At(old)),
        ..Change::default()
    };
    let aged = share.setattr(file.node, age).unwrap();
    assert_eq!((aged.atime, aged.mtime), (old, old));
    assert!(aged.ctime > old && aged.btime.is_some());
    // The link itself, not what it leads to.
    let link = share.symlink(Node::ROOT, "l", "a").unwrap();
    assert_eq!(share.setattr(link.node, age).unwrap().mtime, old);
    share.setattr(Node::ROOT, age).unwrap();

    share.write(file.node, opened.handle, 0, b"xx").unwrap();
    let written = share.attr(file.node);
    assert!(written.mtime > old && written.atime == old);
    assert_eq!(share.attr(Node::ROOT).mtime, old);
    share.link(file.node, Node::ROOT, "b").unwrap();
    let linked = share.attr(file.node);
    assert_eq!(linked.mtime, written.mtime);
    assert!(share.attr(Node::ROOT).mtime > old);
    let now = Change {
        mtime: Some(Stamp::Now),
        ..Change::default()
    };
    share.setattr(file.node, age).unwrap();
    let touched = share.setattr(file.node, now).unwrap();
    assert!(touched.mtime > old && touched.atime == old);
    let wrong = Change {
        mtime: Some(Stamp::At(Time {
            sec: 1,
            nsec: 1_000_000_000,
        })),
        ..Change::default()
    };
    assert_eq!(share.setattr(file.node, wrong), Err(Errno::INVAL));
    let size = Change {
        size: Some(1),
        ..Change::default()
    };
    share.setattr(file.node, age).unwrap();
    assert!(share.setattr(file.node, size).unwrap().mtime > old);
}

#[test]
fn sizes_are_set_with_and_without_an_open_file() {
    let share = Share::new();
    fs::write(share.host("a"), "0123456789").unwrap();
    let node = share.node("a");
    let size = |size| Change {
        size: Some(size),
        ..Change::default()
    };
    assert_eq!(share.setattr(node, size(5)).unwrap().size, 5);
    let handle = share.open(node, O_RDWR).unwrap();
    fs::remove_file(share.host("a")).unwrap();
    let (attr, _) = share.tree.setattr(node, Some(handle), &size(3 << 32)).unwrap();
    assert_eq!((attr.size, attr.nlink), (3 << 32, 0));
    assert_eq!(share.read(node, handle, 3, 4).unwrap(), b"34\0\0");
    assert_eq!(share.setattr(Node::ROOT, size(0)), Err(Errno::ISDIR));
    let fifo = share.mknod("fifo", 0o010_644, 0).unwrap().node;
    assert_eq!(share.setattr(fifo, size(0)), Err(Errno::INVAL));
}

#[test]
fn space_is_allocated_punched_collapsed_sought_and_copied() {
    let share = Share::new();
    let (file, opened) = share.create(Node::ROOT, "a", O_RDWR, 0o644).unwrap();
    let (node, handle) = (file.node, opened.handle);
    let block: u64 = 4096;
    share.tree.fallocate(node, handle, 0, 0, 4 * block).unwrap();
    assert_eq!(share.attr(node).size, 4 * block);
    share.tree.fallocate(node, handle, 1, 4 * block, block).unwrap();
    assert_eq!(share.attr(node).size, 4 * block);
    share.write(node, handle, 0, &vec![7; 16384]).unwrap();
    share.tree.fsync(node, handle, false).unwrap();
    share.tree.fallocate(node, handle, 3, block, block).unwrap();
    assert_eq!(share.tree.lseek(node, handle, 0, 4), Ok(block));
    assert_eq!(share.tree.lseek(node, handle, block, 3), Ok(2 * block));
    assert_eq!(share.tree.lseek(node, handle, 5 * block, 3), Err(Errno::NXIO));
    assert_eq!(share.tree.lseek(node, handle, 0, 0), Err(Errno::INVAL));
    assert_eq!(share.tree.fallocate(node, handle, 1 << 30, 0, 1), Err(Errno::OPNOTSUPP));
    assert_eq!(share.tree.fallocate(node, handle, 0, 0, 0), Err(Errno::INVAL));
    // ext4 and XFS can; what others say is passed on.
    match share.tree.fallocate(node, handle, 8, block, block) {
        Ok(()) => assert_eq!(share.attr(node).size, 3 * block),
        Err(error) => assert_eq!(error, Errno::OPNOTSUPP),
    }
    let (other, to) = share.create(Node::ROOT, "b", O_RDWR, 0o644).unwrap();
    let copied = share
        .tree
        .copy_file_range((node, handle, 0), (other.node, to.handle, 5), 100, 0);
    assert_eq!(copied, Ok(100));
    assert_eq!(share.read(other.node, to.handle, 5, 200).unwrap(), [7; 100]);
    let flags = share
        .tree
        .copy_file_range((node, handle, 0), (other.node, to.handle, 0), 1, 1);
    assert_eq!(flags, Err(Errno::INVAL));
}

#[test]
fn a_file_without_a_name_gets_one_by_a_link() {
    let share = Share::new();
    let new = creation(0o600);
    let (entry, opened) = share.tree.tmpfile(&ROOT, Node::ROOT, O_RDWR, &new).unwrap();
    assert_eq!((entry.attr.nlink, entry.attr.mode), (0, 0o100_600));
    share.write(entry.node, opened.handle, 0, b"data").unwrap();
    assert_eq!(share.names(Node::ROOT, 9), [".", ".."]);
    assert_eq!(share.link(entry.node, Node::ROOT, "a").unwrap().node, entry.node);
    assert_eq!(content(share.host("a")), "data");
    let (never, _) = share.tree.tmpfile(&ROOT, Node::ROOT, O_RDWR | O_EXCL, &new).unwrap();
    assert_eq!(share.link(never.node, Node::ROOT, "b").unwrap_err(), Errno::NOENT);
}

#[test]
fn a_directory_is_listed_in_pieces_from_any_place_and_anew() {
    let share = Share::new();
    let mut expected: Vec<_> = (0..300).map(|n| format!("file-{n:03}")).collect();
    for name in &expected {
        fs::write(share.host(name), "").unwrap();
    }
    expected.insert(0, "..".into());
    expected.insert(0, ".".into());
    for room in [1, 2, 7, 1000] {
        assert_eq!(share.names(Node::ROOT, room), expected, "{room} at a time");
    }
    let handle = share.tree.opendir(Node::ROOT).unwrap().handle;
    let first = share.list(Node::ROOT, handle, 0, false, 20);
    let (_, tenth, _) = first[9];
    let again = share.list(Node::ROOT, handle, tenth, false, 10);
    assert_eq!(again, first[10..], "a place that was given is a place to go back to");
    fs::write(share.host("later"), "").unwrap();
    let mut offset = 0;
    let mut found = false;
    loop {
        let part = share.list(Node::ROOT, handle, offset, false, 50);
        let Some((_, next, _)) = part.last() else { break };
        offset = *next;
        found |= part.iter().any(|(name, ..)| name == "later");
    }
    assert!(found, "from the beginning, it is read anew");
}

#[test]
fn a_listing_with_nodes_counts_only_what_was_taken() {
    let share = Share::new();
    for name in ["a", "b", "c"] {
        fs::write(share.host(name), name).unwrap();
    }
    let handle = share.tree.opendir(Node::ROOT).unwrap().handle;
    let listed = share.list(Node::ROOT, handle, 0, true, 4);
    let with_nodes: Vec<_> = listed
        .iter()
        .filter_map(|(name, _, entry)| Some((name, (*entry)?)))
        .collect();
    let names = listed.iter().filter(|(name, ..)| !name.starts_with('.')).count();
    assert_eq!(with_nodes.len(), names, "all but . and ..");
    for (name, entry) in &with_nodes {
        assert_eq!(share.node(name), entry.node);
        assert_eq!(entry.attr.size, 1);
        share.tree.forget(entry.node, 1);
        share.tree.forget(entry.node, 1);
    }
    assert_eq!(share.counter("nodes"), 1);
}

#[test]
fn what_the_guest_may_keep_is_as_the_share_says() {
    for (cache, seconds, keep, direct, dir) in [
        (Cache::Auto, 1, false, false, true),
        (Cache::Never, 0, false, true, false),
        (Cache::Always, 86_400, true, false, true),
        (Cache::Metadata, 86_400, false, true, true),
    ] {
        let share = Share::with(|config| config.cache = cache);
        let (entry, opened) = share.create(Node::ROOT, "a", O_RDWR, 0o644).unwrap();
        let time = Duration::from_secs(seconds);
        assert_eq!(
            entry.ttl,
            Ttl {
                entry: time,
                attr: time
            }
        );
        assert_eq!(share.tree.getattr(entry.node, None).unwrap().1, time);
        assert_eq!((opened.keep_cache, opened.direct), (keep, direct), "{cache:?}");
        assert_eq!(share.tree.opendir(Node::ROOT).unwrap().cache_dir, dir, "{cache:?}");
    }
}

#[test]
fn nothing_is_changed_in_a_share_that_is_read_only() {
    let share = Share::with(|config| {
        config.readonly = true;
        config.xattr = true;
    });
    fs::create_dir(share.host("dir")).unwrap();
    fs::write(share.host("a"), "text").unwrap();
    let tree: &dyn FileSystem = &share.tree;
    let (root, a) = (Node::ROOT, share.node("a"));
    let handle = share.open(a, O_RDONLY).unwrap();
    let x = Name::new(c"x").unwrap();
    let name = Name::new(c"a").unwrap();
    let dir = Name::new(c"dir").unwrap();
    let new = creation(0o644);
    let mut byte = [0u8; 2];
    let mut iovecs = Iovecs::default();
    let mut live = iovecs.begin();
    live.push(VolatileSlice::from(&mut byte[..]));
    let lock = (a, handle, 0);
    let rofs = Errno::ROFS;
    assert_eq!(tree.create(&ROOT, root, x, O_RDWR, false, &new).unwrap_err(), rofs);
    assert_eq!(tree.mkdir(&ROOT, root, x, &new).unwrap_err(), rofs);
    assert_eq!(tree.mknod(&ROOT, root, x, &creation(0o100_644)).unwrap_err(), rofs);
    assert_eq!(tree.symlink(&ROOT, root, x, c"t", &new).unwrap_err(), rofs);
    assert_eq!(tree.link(&ROOT, a, root, x).unwrap_err(), rofs);
    assert_eq!(tree.tmpfile(&ROOT, root, O_RDWR, &new).unwrap_err(), rofs);
    assert_eq!(tree.unlink(&ROOT, root, name), Err(rofs));
    assert_eq!(tree.rmdir(&ROOT, root, dir), Err(rofs));
    assert_eq!(tree.rename(&ROOT, (root, name), (root, x), 0), Err(rofs));
    assert_eq!(tree.setattr(&ROOT, a, None, &Change::default()).unwrap_err(), rofs);
    for flags in [O_WRONLY, O_RDWR, O_RDONLY | O_TRUNC] {
        assert_eq!(tree.open(&ROOT, a, flags, false).unwrap_err(), rofs);
    }
    assert_eq!(
        tree.write(&ROOT, a, handle, 0, live.buffers(), Writing::default()),
        Err(rofs)
    );
    assert_eq!(tree.fallocate(a, handle, 0, 0, 1), Err(rofs));
    assert_eq!(tree.copy_file_range(lock, lock, 1, 0), Err(rofs));
    assert_eq!(tree.setxattr(&ROOT, a, c"user.x", b"", 0, false), Err(rofs));
    assert_eq!(tree.removexattr(&ROOT, a, c"user.x"), Err(rofs));
    assert_eq!(tree.access(&ROOT, a, 2), Err(rofs));
    assert_eq!(tree.read(a, handle, 0, live.buffers(), false), Ok(2));
    assert!(tree.abilities().readonly && !tree.abilities().writeback);
    assert_eq!(content(share.host("a")), "text");
    assert_eq!(fs::read_dir(share.host("")).unwrap().count(), 2);
}

#[test]
fn access_goes_by_the_mode() {
    if !is_root() {
        return;
    }
    let share = Share::new();
    let (file, _) = share.create(Node::ROOT, "a", O_RDWR, 0o640).unwrap();
    std::os::unix::fs::chown(share.host("a"), Some(1000), Some(2000)).unwrap();
    let caller = |uid, gid, group| Caller {
        uid,
        gid,
        group,
        pid: 1,
    };
    for (who, read, write, execute) in [
        (caller(0, 0, None), true, true, false),
        (caller(1000, 9, None), true, true, false),
        (caller(9, 2000, None), true, false, false),
        (caller(9, 9, Some(2000)), true, false, false),
        (caller(9, 9, None), false, false, false),
    ] {
        let may = |mask| share.tree.access(&who, file.node, mask).is_ok();
        assert_eq!((may(4), may(2), may(1)), (read, write, execute), "{who:?}");
    }
}

#[test]
fn the_file_system_says_how_full_it_is_and_is_synced() {
    let share = Share::new();
    let space = share.tree.statfs(Node::ROOT).unwrap();
    assert!(space.blocks > 0 && space.name_max == 255 && space.block_size > 0);
    share.tree.syncfs(Node::ROOT).unwrap();
    let fifo = share.mknod("fifo", 0o010_644, 0).unwrap().node;
    assert_eq!(share.tree.syncfs(fifo), Err(Errno::INVAL));
    let handle = share.tree.opendir(Node::ROOT).unwrap().handle;
    share.tree.fsyncdir(Node::ROOT, handle, true).unwrap();
    share.tree.fsyncdir(Node::ROOT, handle, false).unwrap();
}

#[test]
fn a_reset_forgets_everything_but_the_root() {
    let share = Share::new();
    let (a, opened) = share.create(Node::ROOT, "a", O_RDWR, 0o644).unwrap();
    share.tree.reset();
    assert_eq!(share.tree.getattr(a.node, None), Err(Errno::BADF));
    assert_eq!(share.read(a.node, opened.handle, 0, 1), Err(Errno::BADF));
    let counters = ["nodes", "node_descriptors", "handles", "locks"].map(|name| share.counter(name));
    assert_eq!(counters, [1, 1, 0, 0]);
    assert_ne!(share.node("a"), a.node, "no number is given twice");
}

/// The memory of a process has no bytes at the address 0, and its file says of them what a disk
/// says of a broken sector.
#[test]
fn what_the_host_cannot_read_or_write_is_told_and_the_file_goes_on() {
    let own = format!("/proc/{}", std::process::id());
    let tree = Tree::open_within(&ShareConfig::new(own), FdBudget::new(64)).unwrap();
    tree.begin(tree.abilities());
    tree.enter().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let share = Share { dir, tree };
    let memory = share.node("mem");
    let handle = share.open(memory, O_RDWR).unwrap();
    assert_eq!(share.read(memory, handle, 0, 16), Err(Errno::IO));
    assert_eq!(share.write(memory, handle, 0, b"x"), Err(Errno::IO));
    // Beside what is broken the rest is read.
    let known = *b"what is there";
    let at = known.as_ptr().addr() as u64;
    assert_eq!(share.read(memory, handle, at, known.len()).unwrap(), known);
}
