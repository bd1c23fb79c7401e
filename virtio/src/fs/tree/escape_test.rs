//! What is beside the share, and cannot be reached.

use super::*;
use std::os::unix::fs::symlink;

/// A share with a file beside it, which no test may see changed, and whose text no test may read.
fn share() -> Share {
    let share = Share::new();
    fs::create_dir(share.outside("canary")).unwrap();
    fs::write(share.outside("canary/file"), "secret").unwrap();
    share
}

fn is_unharmed(share: &Share) {
    assert_eq!(content(share.outside("canary/file")), "secret");
    assert_eq!(fs::read_dir(share.outside("canary")).unwrap().count(), 1);
    assert_eq!(fs::read_dir(share.dir.path()).unwrap().count(), 2);
}

#[test]
fn links_lead_nowhere() {
    let share = share();
    let canary = share.outside("canary");
    for (name, target) in [
        ("absolute", canary.as_path()),
        ("up", Path::new("../canary")),
        ("root", Path::new("/")),
        ("self", Path::new("/proc/self/root")),
        ("file", &canary.join("file")),
        ("dangling", &canary.join("new")),
    ] {
        symlink(target, share.host(name)).unwrap();
        let entry = share.lookup(Node::ROOT, name).unwrap();
        assert_eq!(entry.attr.mode & 0o170_000, 0o120_000);
        let node = entry.node;
        for inner in ["file", "canary", "etc"] {
            assert_eq!(share.lookup(node, inner).unwrap_err(), Errno::NOTDIR);
            assert_eq!(share.mkdir(node, inner, 0o755).unwrap_err(), Errno::NOTDIR);
            assert_eq!(share.create(node, inner, O_RDWR, 0o644).unwrap_err(), Errno::NOTDIR);
            assert_eq!(share.unlink(node, inner).unwrap_err(), Errno::NOTDIR);
            assert_eq!(
                share.rename((Node::ROOT, "up"), (node, inner), 0).unwrap_err(),
                Errno::NOTDIR
            );
        }
        assert_eq!(share.open(node, O_RDONLY).unwrap_err(), Errno::LOOP);
        assert_eq!(share.tree.opendir(node).unwrap_err(), Errno::NOTDIR);
        assert_eq!(share.create(Node::ROOT, name, O_RDWR, 0o644).unwrap_err(), Errno::LOOP);
        assert_eq!(
            share.create(Node::ROOT, name, O_RDWR | O_EXCL, 0o644).unwrap_err(),
            Errno::EXIST
        );
        assert_eq!(share.mkdir(Node::ROOT, name, 0o755).unwrap_err(), Errno::EXIST);
        let size = Change {
            size: Some(0),
            ..Change::default()
        };
        assert_eq!(share.setattr(node, size).unwrap_err(), Errno::INVAL);
        let owner = Change {
            uid: Some(7),
            ..Change::default()
        };
        // The link, not what it leads to.
        match share.setattr(node, owner) {
            Ok(attr) => assert_eq!(
                (attr.uid, fs::symlink_metadata(share.host(name)).unwrap().uid()),
                (7, 7)
            ),
            Err(error) => assert!(!is_root(), "{error}"),
        }
        share.link(node, Node::ROOT, "hard").unwrap();
        assert!(fs::symlink_metadata(share.host("hard")).unwrap().is_symlink());
        share.unlink(Node::ROOT, "hard").unwrap();
    }
    assert_eq!(
        fs::metadata(share.outside("canary/file")).unwrap().uid(),
        fs::metadata(share.outside("canary")).unwrap().uid()
    );
    is_unharmed(&share);
}

#[test]
fn a_name_that_becomes_a_link_between_two_calls_is_not_followed() {
    let share = share();
    fs::create_dir(share.host("dir")).unwrap();
    fs::write(share.host("dir/file"), "mine").unwrap();
    let dir = share.node("dir");
    fs::rename(share.host("dir"), share.host("moved")).unwrap();
    symlink(share.outside("canary"), share.host("dir")).unwrap();
    // What was looked up is what it was.
    let file = share.lookup(dir, "file").unwrap();
    assert_eq!(file.attr.size, 4);
    share.create(dir, "new", O_RDWR, 0o644).unwrap();
    assert!(share.host("moved/new").exists());
    assert_eq!(share.lookup(share.node("dir"), "file").unwrap_err(), Errno::NOTDIR);
    is_unharmed(&share);
}

/// A thread of the host changes a name between a directory and a link to the outside, as fast as it can.
#[test]
fn a_race_for_a_name_is_lost() {
    let share = share();
    fs::create_dir(share.host("a")).unwrap();
    symlink(share.outside("canary"), share.host("b")).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                let cwd = rustix::fs::CWD;
                rustix::fs::renameat_with(cwd, share.host("a"), cwd, share.host("b"), flags).unwrap();
            }
        });
        let mut reached = [0; 2];
        for _ in 0..3000 {
            for name in ["a", "b"] {
                let entry = share.lookup(Node::ROOT, name).unwrap();
                let made = share.create(entry.node, "new", O_RDWR, 0o644);
                let found = share.lookup(entry.node, "file");
                reached[usize::from(made.is_ok())] += 1;
                assert!(matches!(found, Err(Errno::NOENT | Errno::NOTDIR)), "{found:?}");
                if let Ok((new, opened)) = made {
                    share.tree.release(new.node, opened.handle, None).unwrap();
                }
            }
        }
        over.store(true, Ordering::Relaxed);
        assert!(reached.iter().all(|count| *count > 0), "{reached:?}");
    });
    is_unharmed(&share);
}

/// It is held as an open directory is held by a process. What is around it there cannot be reached.
#[test]
fn a_directory_that_is_moved_out_stays_what_the_guest_holds_and_no_more() {
    let share = share();
    fs::create_dir_all(share.host("dir/inner")).unwrap();
    fs::write(share.host("dir/inner/file"), "mine").unwrap();
    let dir = share.node("dir");
    let inner = share.lookup(dir, "inner").unwrap().node;
    fs::rename(share.host("dir"), share.outside("canary/dir")).unwrap();
    assert_eq!(share.lookup(Node::ROOT, "dir").unwrap_err(), Errno::NOENT);
    assert_eq!(share.lookup(inner, "file").unwrap().attr.size, 4);
    assert_eq!(share.lookup(dir, "..").unwrap_err(), Errno::INVAL);
    let handle = share.tree.opendir(dir).unwrap().handle;
    let listed = share.list(dir, handle, 0, true, 9);
    let up = listed.iter().find(|(name, ..)| name == "..").unwrap();
    assert!(
        up.2.is_none(),
        "what is above is listed, as in any directory, and not looked up"
    );
    fs::rename(share.outside("canary/dir"), share.host("dir")).unwrap();
    is_unharmed(&share);
}

#[test]
fn the_share_is_the_directory_that_was_opened() {
    let share = share();
    fs::write(share.host("a"), "old").unwrap();
    fs::rename(share.host(""), share.outside("old")).unwrap();
    fs::create_dir(share.host("")).unwrap();
    fs::write(share.host("a"), "another").unwrap();
    assert_eq!(share.lookup(Node::ROOT, "a").unwrap().attr.size, 3);
    fs::remove_dir_all(share.outside("old")).unwrap();
    assert_eq!(share.lookup(Node::ROOT, "a").unwrap_err(), Errno::NOENT);
    assert_eq!(share.create(Node::ROOT, "b", O_RDWR, 0o644).unwrap_err(), Errno::NOENT);
    is_unharmed(&share);
}

#[test]
fn a_handle_of_the_process_cannot_be_named() {
    let share = Share::new();
    // The working directory of this thread is /proc/self/fd: a name that is the number of a
    // descriptor must not lead there.
    for name in ["0", "1", "2", "self", "exe"] {
        assert_eq!(share.lookup(Node::ROOT, name).unwrap_err(), Errno::NOENT);
        let (entry, opened) = share.create(Node::ROOT, name, O_RDWR, 0o644).unwrap();
        assert!(share.host(name).exists());
        share.tree.release(entry.node, opened.handle, None).unwrap();
        share.unlink(Node::ROOT, name).unwrap();
    }
}

#[test]
fn a_mount_in_the_share_is_shown_as_one_and_can_go() {
    if !may_mount() {
        return;
    }
    for announce in [true, false] {
        let share = Share::with(|config| {
            config.announce_submounts = announce;
            config.max_node_descriptors = 1;
        });
        fs::create_dir(share.host("mount")).unwrap();
        mount("mode=755", share.host("mount"));
        fs::create_dir(share.host("mount/dir")).unwrap();
        fs::write(share.host("mount/dir/file"), "there").unwrap();
        let mount = share.lookup(Node::ROOT, "mount").unwrap();
        assert_eq!(mount.attr.submount, announce);
        assert_eq!(share.attr(mount.node).submount, announce);
        let dir = share.lookup(mount.node, "dir").unwrap();
        assert!(!dir.attr.submount);
        let file = share.lookup(dir.node, "file").unwrap().node;
        // The same file system elsewhere in the share is another place.
        assert_eq!(share.attr(file).size, 5);
        assert_eq!(
            share.rename((Node::ROOT, "mount"), (Node::ROOT, "x"), 0),
            Err(Errno::BUSY)
        );
        assert_eq!(share.rmdir(Node::ROOT, "mount"), Err(Errno::BUSY));
        let moved = share.rename((dir.node, "file"), (Node::ROOT, "file"), 0);
        assert_eq!(moved, Err(Errno::XDEV));
        // What the guest holds keeps the mount busy; unmounted lazily, it is there for whoever has it.
        let unmounted = Command::new("umount")
            .arg("-l")
            .arg(share.host("mount"))
            .status()
            .unwrap();
        assert!(unmounted.success());
        assert_eq!(share.attr(file).size, 5);
        let below = share.lookup(Node::ROOT, "mount").unwrap();
        assert!(below.node != mount.node && !below.attr.submount);
        assert_eq!(share.lookup(below.node, "dir").unwrap_err(), Errno::NOENT);
    }
}
