//! Nodes: counted, bounded, without descriptors, gone from the host, and taken by many threads at once.

use super::*;

/// The names in `dir`, with their nodes given once each.
fn list_all(share: &Share, dir: Node) -> Vec<(String, Entry)> {
    let handle = share.tree.opendir(dir).unwrap().handle;
    let (mut found, mut offset) = (Vec::new(), 0);
    loop {
        let part = share.list(dir, handle, offset, true, 1000);
        let Some((_, next, _)) = part.last() else { break };
        offset = *next;
        found.extend(part.into_iter().filter_map(|(name, _, entry)| Some((name, entry?))));
    }
    share.tree.releasedir(dir, handle).unwrap();
    found
}

/// Whether the nodes of `share` can be opened by handle; says so if not.
fn has_handles(share: &Share) -> bool {
    let mount = fs::File::open(share.host("")).unwrap();
    let opened = host::FileHandle::of(&mount).and_then(|handle| handle.open(mount.as_fd(), libc::O_PATH));
    if opened.is_err() {
        eprintln!("skipped: needs file handles");
    }
    opened.is_ok()
}

#[test]
fn a_hundred_thousand_nodes_need_64_descriptors() {
    const FILES: usize = 1000;
    // `HUSK_TEST_NODES=1000000` takes as many.
    let nodes = std::env::var("HUSK_TEST_NODES").map_or(100_000, |text| text.parse().unwrap());
    let dirs = nodes / FILES;
    let share = Share::in_memory(|config| config.max_node_descriptors = 64);
    if !has_handles(&share) {
        return;
    }
    for dir in 0..dirs {
        fs::create_dir(share.host(&format!("{dir}"))).unwrap();
        for file in 0..FILES {
            fs::File::create(share.host(&format!("{dir}/{file}"))).unwrap();
        }
    }
    let mut nodes = Vec::new();
    for (name, dir) in list_all(&share, Node::ROOT) {
        let files = list_all(&share, dir.node);
        assert_eq!(files.len(), FILES);
        nodes.extend(files.into_iter().map(|(file, entry)| (format!("{name}/{file}"), entry)));
    }
    assert_eq!(share.counter("nodes"), (1 + dirs + dirs * FILES) as u64);
    assert!(
        share.counter("node_descriptors") <= 65,
        "{}",
        share.counter("node_descriptors")
    );
    for (path, entry) in nodes.iter().step_by(997) {
        assert_eq!(share.attr(entry.node).ino, entry.attr.ino);
        let handle = share.open(entry.node, O_RDWR).unwrap();
        share.write(entry.node, handle, 0, path.as_bytes()).unwrap();
        share.tree.release(entry.node, handle, None).unwrap();
        assert_eq!(content(share.host(path)), *path);
    }
    assert!(share.counter("nodes_reopened") >= (nodes.len() / 997) as u64);
    // A name looked up again is the node that it was.
    let (dir, file) = nodes[12_345].0.split_once('/').unwrap();
    let dir = share.node(dir);
    assert_eq!(share.lookup(dir, file).unwrap().node, nodes[12_345].1.node);
    for (_, entry) in &nodes {
        share.tree.forget(entry.node, 2);
    }
    assert_eq!(share.counter("nodes"), 1 + dirs as u64);
}

#[test]
fn lookups_are_counted_exactly() {
    let share = Share::new();
    fs::write(share.host("a"), "").unwrap();
    let node = share.node("a");
    for _ in 0..9 {
        assert_eq!(share.node("a"), node);
    }
    share.tree.forget(node, 9);
    share.attr(node);
    share.tree.forget(node, 0);
    share.attr(node);
    share.tree.forget(node, 1);
    assert_eq!(share.tree.getattr(node, None), Err(Errno::BADF));
    // More than were given, of one that is gone, and of the root.
    let again = share.node("a");
    assert_ne!(again, node);
    share.tree.forget(node, 1);
    share.tree.forget(again, u64::MAX);
    share.tree.forget(Node::ROOT, u64::MAX);
    assert_eq!(share.counter("nodes"), 1);
    share.attr(Node::ROOT);
}

#[test]
fn a_name_leads_to_its_node_whatever_was_looked_up_before() {
    let share = Share::within(FdBudget::new(8), |_| {});
    for name in ["a", "b", "c"] {
        fs::write(share.host(name), "").unwrap();
    }
    // New ones, known ones, and both in turn.
    let (a, b) = (share.node("a"), share.node("b"));
    assert_eq!([share.node("a"), share.node("b"), share.node("b")], [a, b, b]);
    let c = share.node("c");
    assert_eq!([share.node("a"), share.node("c")], [a, c]);
    assert_eq!(share.counter("nodes"), 4);
    for (node, lookups) in [(a, 3), (b, 3), (c, 2)] {
        share.tree.forget(node, lookups - 1);
        share.attr(node);
        share.tree.forget(node, 1);
        assert_eq!(share.tree.getattr(node, None), Err(Errno::BADF));
    }
    // One that is known is found without a descriptor, also right after one that was new.
    let a = share.node("a");
    let mut handles = Vec::new();
    let error = loop {
        match share.open(a, O_RDONLY) {
            Ok(handle) => handles.push(handle),
            Err(error) => break error,
        }
    };
    assert_eq!(error, Errno::NFILE);
    assert_eq!(share.node("a"), a);
    assert_eq!(share.lookup(Node::ROOT, "b").unwrap_err(), Errno::NFILE);
}

#[test]
fn there_is_room_for_the_descriptors_of_all_nodes() {
    // No other test has so many at a time.
    let share = Share::within(FdBudget::new(4 * 896), |config| config.max_node_descriptors = 896);
    let table = || -> usize {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("FDSize:"));
        size.unwrap().trim().parse().unwrap()
    };
    share.tree.reserve_fds();
    assert!(table() >= 896, "{}", table());
    // It stays open to the root alone.
    assert_eq!(share.counter("node_descriptors"), 1);
}

#[test]
fn a_directory_on_another_device_than_what_it_is_in_is_shown_as_a_mount() {
    for announced in [true, false] {
        let share = Share::with(|config| config.announce_submounts = announced);
        fs::create_dir(share.host("subvolume")).unwrap();
        fs::write(share.host("file"), "").unwrap();
        // As btrfs answers: no mount, and yet other numbers.
        let add = |name: &str| {
            let fd = fs::File::open(share.host(name)).unwrap();
            let fd = share.tree.nodes.open(|| Ok(fd.into())).unwrap();
            let stat = attributes::of(&fd).unwrap();
            let (mut key, kind) = (attributes::key(&stat), attributes::Kind::of(stat.stx_mode));
            key.dev += 1;
            named(name, |name| {
                let parent = Node::ROOT;
                share
                    .tree
                    .nodes
                    .add(key, kind, fd, Some(place::NameInDir { parent, name }))
            })
            .unwrap()
            .node()
        };
        let (subvolume, file) = (add("subvolume"), add("file"));
        assert_eq!(share.attr(subvolume).submount, announced);
        let changed = share.setattr(
            subvolume,
            Change {
                mode: Some(0o700),
                ..Change::default()
            },
        );
        assert_eq!(changed.unwrap().submount, announced);
        let handle = share.tree.opendir(subvolume).unwrap().handle;
        assert_eq!(
            share.tree.getattr(subvolume, Some(handle)).unwrap().0.submount,
            announced
        );
        assert!(!share.attr(file).submount && !share.attr(Node::ROOT).submount);
    }
}

#[test]
fn subvolumes_of_btrfs_are_told_apart() {
    if !may_mount() {
        return;
    }
    let share = Share::new();
    let image = share.outside("image");
    fs::File::create(&image).unwrap().set_len(128 << 20).unwrap();
    let done = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
    if !done(Command::new("mkfs.btrfs").arg("-q").arg(&image)) {
        eprintln!("skipped: needs mkfs.btrfs");
        return;
    }
    fs::create_dir(share.host("disk")).unwrap();
    let mut mount = Command::new("mount");
    if !done(mount.args(["-o", "loop"]).arg(&image).arg(share.host("disk"))) {
        eprintln!("skipped: needs btrfs, mounts, a loop device");
        return;
    }
    for name in ["one", "two"] {
        let made = share.host(&format!("disk/{name}"));
        assert!(done(Command::new("btrfs").args(["subvolume", "create"]).arg(&made)));
        fs::write(made.join("file"), name).unwrap();
    }
    fs::create_dir(share.host("disk/folder")).unwrap();
    let disk = share.node("disk");
    let [one, two, folder] = ["one", "two", "folder"].map(|name| share.lookup(disk, name).unwrap());
    assert_eq!(one.attr.ino, two.attr.ino, "the host's are not told apart by that");
    assert!(one.attr.submount && two.attr.submount && !folder.attr.submount);
    assert_eq!(share.attr(one.node).submount, one.attr.submount);
    let handle = share.tree.opendir(disk).unwrap().handle;
    for (name, _, entry) in share.list(disk, handle, 0, true, 9) {
        let Some(entry) = entry else { continue };
        assert_eq!(entry.attr.submount, name != "folder", "{name}");
    }
    share.tree.reset();
    assert!(done(Command::new("umount").arg(share.host("disk"))));
}

#[test]
fn nodes_handles_and_descriptors_are_bounded() {
    let share = Share::with(|config| {
        config.max_nodes = 3;
        config.max_handles = 2;
    });
    for name in ["a", "b", "c"] {
        fs::write(share.host(name), "").unwrap();
    }
    let (a, _) = (share.node("a"), share.node("b"));
    assert_eq!(share.lookup(Node::ROOT, "c").unwrap_err(), Errno::NFILE);
    assert_eq!(share.node("a"), a, "one that is known is no more");
    for made in [
        share.create(Node::ROOT, "new", O_RDWR, 0o644).map(|(entry, _)| entry),
        share.mkdir(Node::ROOT, "new", 0o755),
        share.mknod("new", 0o100_644, 0),
        share.mknod("new", 0o010_644, 0),
        share.symlink(Node::ROOT, "new", "a"),
    ] {
        assert_eq!(made.unwrap_err(), Errno::NFILE);
        let left = fs::symlink_metadata(share.host("new"));
        assert!(left.is_err(), "nothing is half done: {left:?}");
    }
    let handles = [share.open(a, O_RDONLY).unwrap(), share.open(a, O_RDONLY).unwrap()];
    assert_eq!(share.open(a, O_RDONLY), Err(Errno::NFILE));
    assert_eq!(share.tree.opendir(Node::ROOT).unwrap_err(), Errno::NFILE);
    share.tree.release(a, handles[0], None).unwrap();
    share.open(a, O_RDONLY).unwrap();
    share.tree.forget(a, 2);
    share.node("c");

    // Descriptors of the whole process: nodes leave some for files.
    let share = Share::within(FdBudget::new(8), |config| config.max_node_descriptors = 1);
    let a = share.mknod("a", 0o100_644, 0).unwrap().node;
    // Without handles, nodes keep theirs, and some are refused.
    let made = ["b", "c", "d", "e", "f", "g", "h"].map(|name| share.mknod(name, 0o100_644, 0));
    assert!(
        made.iter().all(|made| matches!(made, Ok(_) | Err(Errno::NFILE))),
        "{made:?}"
    );
    for (name, made) in ["b", "c", "d", "e", "f", "g", "h"].iter().zip(&made) {
        assert_eq!(share.host(name).exists(), made.is_ok(), "{name}");
    }
    let mut opened = 0;
    let error = loop {
        match share.open(a, O_RDONLY) {
            Ok(_) => opened += 1,
            Err(error) => break error,
        }
    };
    assert_eq!((error, (2..8).contains(&opened)), (Errno::NFILE, true), "{opened}");
}

#[test]
fn a_number_of_the_host_that_is_used_again_is_another_node() {
    let share = Share::with(|config| config.max_node_descriptors = 1);
    if !has_handles(&share) {
        return;
    }
    let mut met = 0;
    for round in 0..200 {
        let name = format!("{round}");
        fs::write(share.host(&name), "old").unwrap();
        let old = share.lookup(Node::ROOT, &name).unwrap();
        // Closes the descriptor of the one before.
        fs::write(share.host("other"), "").unwrap();
        share.node("other");
        fs::remove_file(share.host(&name)).unwrap();
        fs::write(share.host("new"), "new").unwrap();
        let new = share.lookup(Node::ROOT, "new").unwrap();
        assert_ne!(new.node, old.node);
        if new.attr.ino == old.attr.ino {
            met += 1;
            assert_eq!(share.tree.getattr(old.node, None), Err(Errno::STALE));
            assert_eq!(share.attr(new.node).size, 3);
        }
        share.tree.forget(old.node, 1);
        assert_eq!(share.node("new"), new.node, "forgetting one does not lose the other");
        fs::remove_file(share.host("new")).unwrap();
    }
    if met == 0 {
        eprintln!("skipped: needs inode numbers that are used again");
    }
}

#[test]
fn what_has_no_name_any_more_keeps_its_descriptor() {
    let share = Share::with(|config| config.max_node_descriptors = 1);
    let (file, opened) = share.create(Node::ROOT, "a", O_RDWR, 0o644).unwrap();
    share.unlink(Node::ROOT, "a").unwrap();
    for name in ["b", "c", "d"] {
        share.mknod(name, 0o100_644, 0).unwrap();
    }
    share.tree.release(file.node, opened.handle, None).unwrap();
    assert_eq!(share.attr(file.node).nlink, 0);
    let handle = share.open(file.node, O_RDWR).unwrap();
    share.write(file.node, handle, 0, b"still there").unwrap();
    assert_eq!(share.read(file.node, handle, 6, 9).unwrap(), b"there");
}

/// A file, a directory and a file that another takes the place of, which the guest holds without having them open, as a
/// process does whose working directory is removed.
fn hold_what_loses_its_name(close_descriptors: impl Fn(&Share)) {
    let share = Share::with(|config| config.max_node_descriptors = 1);
    fs::write(share.host("file"), "text").unwrap();
    fs::write(share.host("replaced"), "old").unwrap();
    fs::create_dir(share.host("dir")).unwrap();
    fs::write(share.host("new"), "another").unwrap();
    let [file, replaced, dir, new] = ["file", "replaced", "dir", "new"].map(|name| share.node(name));
    let parked = || {
        close_descriptors(&share);
        assert!(share.counter("node_descriptors") < share.counter("nodes"));
    };
    parked();
    share.unlink(Node::ROOT, "file").unwrap();
    parked();
    share.rmdir(Node::ROOT, "dir").unwrap();
    parked();
    share.rename((Node::ROOT, "new"), (Node::ROOT, "replaced"), 0).unwrap();
    parked();
    for (node, size) in [(file, 4), (replaced, 3)] {
        let found = share.tree.getattr(node, None);
        assert_eq!(found.map(|(attr, _)| (attr.nlink, attr.size)), Ok((0, size)));
    }
    assert_eq!(share.tree.getattr(dir, None).map(|(attr, _)| attr.nlink), Ok(0));
    assert_eq!(share.attr(new).size, 7);
    let handle = share.open(file, O_RDWR).unwrap();
    assert_eq!(share.read(file, handle, 0, 9).unwrap(), b"text");
    // With the guest they go.
    let open = share.counter("node_descriptors");
    for node in [file, replaced, dir] {
        share.tree.forget(node, 1);
    }
    assert_eq!(share.counter("node_descriptors"), open - 3);
}

#[test]
fn what_the_guest_holds_may_lose_its_name_without_being_open() {
    hold_what_loses_its_name(|share| {
        for number in 0..8 {
            fs::write(share.host(&format!("other {number}")), "").unwrap();
            share.node(&format!("other {number}"));
        }
    });
}

#[test]
fn what_the_guest_holds_may_lose_its_name_without_being_open_also_without_handles() {
    without_handles(|| hold_what_loses_its_name(close_descriptors));
}

/// Has `work` run as somebody who may not open by handle, which takes `CAP_DAC_READ_SEARCH`, or
/// since Linux 6.11 `CAP_SYS_ADMIN`.
fn without_handles<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let sets = capabilities(None).unwrap();
            let needed = CapabilitySet::DAC_READ_SEARCH | CapabilitySet::SYS_ADMIN;
            let effective = sets.effective.difference(needed);
            let permitted = sets.permitted.difference(needed);
            let fewer = CapabilitySets {
                effective,
                permitted,
                inheritable: CapabilitySet::empty(),
            };
            set_capabilities(None, fewer).unwrap();
            work()
        });
        thread.join().unwrap()
    })
}

#[test]
fn an_ordinary_user_needs_no_more_descriptors() {
    const DIRS: usize = 20;
    const FILES: usize = 500;
    without_handles(|| {
        let share = Share::in_memory(|config| config.max_node_descriptors = 16);
        assert!(!share.tree.confinement().unwrap().handles);
        for dir in 0..DIRS {
            fs::create_dir(share.host(&format!("{dir}"))).unwrap();
            for file in 0..FILES {
                fs::write(share.host(&format!("{dir}/{file}")), format!("{dir}/{file}")).unwrap();
            }
        }
        let mut nodes = Vec::new();
        for (dir, entry) in list_all(&share, Node::ROOT) {
            let files = list_all(&share, entry.node).into_iter();
            nodes.extend(files.map(|(file, entry)| (format!("{dir}/{file}"), entry)));
        }
        assert_eq!(share.counter("nodes"), (1 + DIRS + DIRS * FILES) as u64);
        let few = |share: &Share| {
            let open = share.counter("node_descriptors");
            assert!(open <= 17, "{open}");
        };
        few(&share);
        for (path, entry) in nodes.iter().step_by(97) {
            assert_eq!(share.attr(entry.node).ino, entry.attr.ino);
            let handle = share.open(entry.node, O_RDONLY).unwrap();
            assert_eq!(share.read(entry.node, handle, 0, 99).unwrap(), path.as_bytes());
            share.tree.release(entry.node, handle, None).unwrap();
        }
        few(&share);
        assert!(share.counter("nodes_reopened") >= (nodes.len() / 97) as u64);
        // One that is looked up again is the node that it was.
        let (dir, file) = nodes[1234].0.split_once('/').unwrap();
        assert_eq!(share.lookup(share.node(dir), file).unwrap().node, nodes[1234].1.node);
    });
}

/// Has the descriptors of all nodes but the last few closed.
fn close_descriptors(share: &Share) {
    for number in 0..40 {
        let name = format!("filler {number}");
        let node = share.mknod(&name, 0o100_644, 0).unwrap().node;
        share.unlink(Node::ROOT, &name).unwrap();
        share.tree.forget(node, 1);
    }
    for number in 0..3 {
        let _ = share.mknod(&format!("last {number}"), 0o100_644, 0);
        share.node(&format!("last {number}"));
    }
}

#[test]
fn a_node_that_is_known_by_name_is_itself_or_stale() {
    without_handles(|| {
        let share = Share::with(|config| config.max_node_descriptors = 1);
        fs::create_dir_all(share.host("a/b/c")).unwrap();
        for name in ["a/b/c/file", "replaced", "moved", "kept", "gone"] {
            fs::write(share.host(name), name).unwrap();
        }
        let a = share.node("a");
        let b = share.lookup(a, "b").unwrap().node;
        let c = share.lookup(b, "c").unwrap().node;
        let deep = share.lookup(c, "file").unwrap().node;
        let [replaced, moved, kept, gone] = ["replaced", "moved", "kept", "gone"].map(|name| share.node(name));
        close_descriptors(&share);
        let before = share.counter("nodes_reopened");
        // On the host.
        fs::write(share.host("new"), "another").unwrap();
        fs::rename(share.host("new"), share.host("replaced")).unwrap();
        fs::rename(share.host("moved"), share.outside("moved")).unwrap();
        fs::remove_file(share.host("gone")).unwrap();
        std::os::unix::fs::symlink(share.outside("moved"), share.host("moved")).unwrap();
        for node in [replaced, moved, gone] {
            assert_eq!(share.tree.getattr(node, None), Err(Errno::STALE));
            assert_eq!(share.open(node, O_RDONLY), Err(Errno::STALE));
        }
        // By the guest, which does not look it up again.
        share.rename((Node::ROOT, "kept"), (c, "kept"), 0).unwrap();
        share.rename((Node::ROOT, "a"), (Node::ROOT, "z"), 0).unwrap();
        share.mkdir(Node::ROOT, "other", 0o755).unwrap();
        share.rename((Node::ROOT, "z"), (Node::ROOT, "other"), 2).unwrap();
        close_descriptors(&share);
        for (node, text) in [(deep, "a/b/c/file"), (kept, "kept")] {
            let handle = share.open(node, O_RDONLY).unwrap();
            assert_eq!(share.read(node, handle, 0, 99).unwrap(), text.as_bytes());
            share.tree.release(node, handle, None).unwrap();
        }
        assert!(share.counter("nodes_reopened") > before);
        // A directory that the host replaced is not walked through.
        close_descriptors(&share);
        fs::rename(share.host("other/b"), share.outside("b")).unwrap();
        fs::create_dir_all(share.host("other/b/c")).unwrap();
        fs::write(share.host("other/b/c/file"), "another").unwrap();
        assert_eq!(share.tree.getattr(deep, None), Err(Errno::STALE));
        // The guest looks it up again, and has what is there now.
        let again = share.lookup(share.lookup(a, "b").unwrap().node, "c").unwrap().node;
        let again = share.lookup(again, "file").unwrap().node;
        assert_ne!(again, deep);
        assert_eq!(share.attr(again).size, 7);
    });
}

#[test]
fn what_is_opened_at_the_limit_may_lose_its_name_also_without_handles() {
    without_handles(|| {
        let share = Share::with(|config| config.max_node_descriptors = 1);
        let dir = share.mkdir(Node::ROOT, "dir", 0o755).unwrap().node;
        // Whoever looks for a descriptor to close finds this one, which was used a moment ago, and
        // then what is being opened.
        let used = || assert_eq!([share.attr(dir).nlink, share.attr(dir).nlink], [2, 2]);
        used();
        let (file, opened) = share.create(dir, "file", O_RDWR, 0o644).unwrap();
        share.unlink(dir, "file").unwrap();
        assert_eq!(share.attr(file.node).nlink, 0, "created");
        share.tree.release(file.node, opened.handle, None).unwrap();

        let (file, opened) = share.create(dir, "file", O_RDWR, 0o644).unwrap();
        share.tree.release(file.node, opened.handle, None).unwrap();
        used();
        share.open(file.node, O_RDWR).unwrap();
        share.unlink(dir, "file").unwrap();
        assert_eq!(share.attr(file.node).nlink, 0, "opened");
    });
}

#[test]
fn what_is_open_may_lose_its_name_also_without_handles() {
    without_handles(|| {
        let share = Share::with(|config| config.max_node_descriptors = 1);
        let (file, opened) = share.create(Node::ROOT, "a", O_RDWR, 0o644).unwrap();
        close_descriptors(&share);
        share.unlink(Node::ROOT, "a").unwrap();
        assert_eq!(share.attr(file.node).nlink, 0);
        share.tree.release(file.node, opened.handle, None).unwrap();
    });
}

#[test]
fn directories_that_are_in_each_other_come_to_an_end() {
    without_handles(|| {
        let share = Share::with(|config| config.max_node_descriptors = 8);
        fs::create_dir_all(share.host("a/b")).unwrap();
        let a = share.node("a");
        let b = share.lookup(a, "b").unwrap().node;
        // On the host, b comes out of a, and a goes into b.
        fs::rename(share.host("a/b"), share.host("b")).unwrap();
        fs::rename(share.host("a"), share.host("b/a")).unwrap();
        assert_eq!(share.lookup(b, "a").unwrap().node, a);
        close_descriptors(&share);
        assert_eq!(share.tree.getattr(a, None), Err(Errno::STALE));
        assert_eq!(share.tree.getattr(b, None), Err(Errno::STALE));
        assert_eq!(share.node("b"), b);
        assert_eq!(share.attr(b).nlink, 3);
    });
}

/// Some threads look up, list, open, rename, remove and forget the same few names; each forgets
/// exactly what it was given.
#[test]
fn many_threads_leave_nothing_behind() {
    const ROUNDS: u64 = 600;
    let share = Share::with(|config| config.max_node_descriptors = 4);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let share = &share;
            scope.spawn(move || {
                share.tree.enter().unwrap();
                let mut random = thread + 1;
                let mut next = |below: u64| {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (random >> 33) % below
                };
                for _ in 0..ROUNDS {
                    let (name, other) = (format!("{}", next(6)), format!("{}", next(6)));
                    let given = match next(6) {
                        0 => share.create(Node::ROOT, &name, O_RDWR, 0o644).map(|(entry, opened)| {
                            share
                                .write(entry.node, opened.handle, 0, name.as_bytes().repeat(2).as_slice())
                                .unwrap();
                            share.tree.release(entry.node, opened.handle, None).unwrap();
                            vec![entry]
                        }),
                        1 => share.unlink(Node::ROOT, &name).map(|()| vec![]),
                        2 => share
                            .rename((Node::ROOT, &name), (Node::ROOT, &other), 0)
                            .map(|()| vec![]),
                        3 => {
                            let listed = list_all(share, Node::ROOT);
                            Ok(listed.into_iter().map(|(_, entry)| entry).collect())
                        }
                        4 => share.lookup(Node::ROOT, &name).and_then(|entry| {
                            let link = share.link(entry.node, Node::ROOT, &other);
                            let link = link.inspect_err(|_| share.tree.forget(entry.node, 1))?;
                            Ok(vec![entry, link])
                        }),
                        _ => share.lookup(Node::ROOT, &name).map(|entry| {
                            // Somebody else may have removed it on the host.
                            if let Ok(handle) = share.open(entry.node, O_RDONLY) {
                                let read = share.read(entry.node, handle, 0, 4).unwrap();
                                assert!(read.is_empty() || read.len() == 2, "{read:?}");
                                share.tree.release(entry.node, handle, None).unwrap();
                            }
                            vec![entry]
                        }),
                    };
                    match given {
                        Ok(given) => {
                            for entry in given {
                                match share.tree.getattr(entry.node, None) {
                                    Ok((attr, _)) => assert_eq!(attr.ino, entry.attr.ino),
                                    Err(error) => assert_eq!(error, Errno::STALE),
                                }
                                share.tree.forget(entry.node, 1);
                            }
                        }
                        Err(Errno::NOENT | Errno::EXIST | Errno::STALE) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
    });
    let counters = ["nodes", "node_descriptors", "handles"].map(|name| share.counter(name));
    assert_eq!(counters, [1, 1, 0]);
    assert_eq!(share.tree.budget.open(), share.tree.nodes.mounts_open() + 1);
}

/// What the table of nodes takes for each, beside what a descriptor does.
#[test]
fn a_node_takes_less_than_200_bytes() {
    // Its handle and its name come on top, 32 bytes each.
    assert!(size_of::<Inode>() <= 112, "{}", size_of::<Inode>());
}
