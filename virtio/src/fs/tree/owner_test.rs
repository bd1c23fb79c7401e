//! Who owns what is made, what he may, and what becomes of set-user-ID.

use super::*;
use crate::fs::share::{IdMap, IdMapKind};

/// A write that takes set-user-ID and set-group-ID away.
const KILLS: Writing = Writing {
    append: false,
    kill_priv: true,
    direct: false,
};
const KIM: Caller = Caller {
    uid: 1000,
    gid: 2000,
    pid: 7,
    group: None,
};

/// Runs `call` on a thread that is an ordinary user of the host.
fn as_user<T: Send>(uid: u32, call: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let (user, group) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(uid));
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_res_gid(group, group, group).unwrap();
            rustix::thread::set_thread_res_uid(user, user, user).unwrap();
            call()
        });
        thread.join().unwrap()
    })
}

fn ids(path: impl AsRef<Path>) -> (u32, u32, u32) {
    let meta = fs::symlink_metadata(path).unwrap();
    (meta.uid(), meta.gid(), meta.mode() & 0o7777)
}

#[test]
fn what_is_made_is_his_who_asked() {
    if !is_root() {
        return;
    }
    let share = Share::new();
    // He may not write here: whether he may was for the guest to say.
    fs::set_permissions(share.host(""), fs::Permissions::from_mode(0o755)).unwrap();
    let new = Creation {
        umask: 0o027,
        ..creation(0o666)
    };
    let name = |name| Name::new(name).unwrap();
    let tree = &share.tree;
    tree.create(&KIM, Node::ROOT, name(c"file"), O_RDWR, false, &new)
        .unwrap();
    tree.mkdir(
        &KIM,
        Node::ROOT,
        name(c"dir"),
        &Creation {
            mode: 0o777,
            ..new.clone()
        },
    )
    .unwrap();
    tree.symlink(&KIM, Node::ROOT, name(c"link"), c"x", &new).unwrap();
    tree.mknod(
        &KIM,
        Node::ROOT,
        name(c"fifo"),
        &Creation {
            mode: 0o010_666,
            ..new.clone()
        },
    )
    .unwrap();
    let (unnamed, _) = tree.tmpfile(&KIM, Node::ROOT, O_RDWR, &new).unwrap();
    assert_eq!(
        (unnamed.attr.uid, unnamed.attr.gid, unnamed.attr.mode),
        (1000, 2000, 0o100_640)
    );
    assert_eq!(ids(share.host("file")), (1000, 2000, 0o640));
    assert_eq!(ids(share.host("dir")), (1000, 2000, 0o750));
    assert_eq!(ids(share.host("link")), (1000, 2000, 0o777));
    assert_eq!(ids(share.host("fifo")), (1000, 2000, 0o640));
    // The thread is itself again.
    share.create(Node::ROOT, "mine", O_RDWR, 0o666).unwrap();
    assert_eq!(ids(share.host("mine")), (0, 0, 0o666));
    // Also after a refusal.
    assert_eq!(
        share
            .create_as(&KIM, Node::ROOT, "mine", O_RDWR | O_EXCL, 0o666)
            .unwrap_err(),
        Errno::EXIST
    );
    assert!(rustix::process::geteuid().is_root() && rustix::process::getegid().is_root());
    assert!(rustix::process::getgroups().unwrap().is_empty());
    let nobody = Caller { uid: u32::MAX, ..KIM };
    assert_eq!(
        share.create_as(&nobody, Node::ROOT, "x", O_RDWR, 0o666).unwrap_err(),
        Errno::INVAL
    );
}

#[test]
fn a_device_is_made_for_root_and_opened_by_nobody() {
    if !is_root() {
        return;
    }
    let share = Share::new();
    let device = 1 << 8 | 3;
    let made = share.mknod("null", 0o020_666, device);
    if made == Err(Errno::PERM) {
        eprintln!("skipped: needs device nodes");
        return;
    }
    let made = made.unwrap();
    assert_eq!((made.attr.mode, made.attr.rdev), (0o020_666, device));
    assert_eq!(share.open(made.node, O_RDWR), Err(Errno::NXIO));
    let big = 0xfff << 8 | 0xff | 0xfff << 20;
    assert_eq!(share.mknod("big", 0o060_600, big).unwrap().attr.rdev, big);
    let new = Creation {
        rdev: device,
        ..creation(0o020_666)
    };
    let name = Name::new(c"his").unwrap();
    assert_eq!(share.tree.mknod(&KIM, Node::ROOT, name, &new).unwrap_err(), Errno::PERM);
    // What an overlay marks a removed file with.
    share
        .tree
        .mknod(&KIM, Node::ROOT, name, &Creation { rdev: 0, ..new })
        .unwrap();
}

#[test]
fn a_directory_gives_its_group_and_takes_the_bit_from_who_is_not_in_it() {
    if !is_root() {
        return;
    }
    let share = Share::new();
    fs::create_dir(share.host("dir")).unwrap();
    std::os::unix::fs::chown(share.host("dir"), Some(0), Some(3000)).unwrap();
    fs::set_permissions(share.host("dir"), fs::Permissions::from_mode(0o2777)).unwrap();
    let dir = share.node("dir");
    let member = Caller {
        group: Some(3000),
        ..KIM
    };
    share.create_as(&KIM, dir, "not", O_RDWR, 0o2775).unwrap();
    share.create_as(&member, dir, "member", O_RDWR, 0o2775).unwrap();
    let new = creation(0o755);
    share.tree.mkdir(&KIM, dir, Name::new(c"sub").unwrap(), &new).unwrap();
    assert_eq!(ids(share.host("dir/not")), (1000, 3000, 0o775));
    assert_eq!(ids(share.host("dir/member")), (1000, 3000, 0o2775));
    assert_eq!(ids(share.host("dir/sub")), (1000, 3000, 0o2755));
    assert!(
        rustix::process::getgroups().unwrap().is_empty(),
        "his group was his for a moment"
    );
}

#[test]
fn set_user_id_goes_when_the_guest_says_so_and_not_otherwise() {
    if !is_root() {
        return;
    }
    let share = Share::new();
    let path = share.host("a");
    fs::write(&path, "text").unwrap();
    let node = share.node("a");
    let arm = || fs::set_permissions(&path, fs::Permissions::from_mode(0o6755)).unwrap();
    let mode = || share.attr(node).mode & 0o7777;
    arm();
    let handle = share.open(node, O_RDWR).unwrap();
    share.write_as(node, handle, 0, b"xx", Writing::default()).unwrap();
    assert_eq!(mode(), 0o6755);
    share.write_as(node, handle, 0, b"xx", KILLS).unwrap();
    assert_eq!(mode(), 0o755);
    for (kill, left) in [(false, 0o6755), (true, 0o755)] {
        let size = Change {
            size: Some(2),
            kill_priv: kill,
            ..Change::default()
        };
        arm();
        assert_eq!(share.setattr(node, size).unwrap().mode & 0o7777, left);
        arm();
        let (attr, _) = share.tree.setattr(node, Some(handle), &size).unwrap();
        assert_eq!(attr.mode & 0o7777, left);
        arm();
        share.tree.open_node(node, O_WRONLY | O_TRUNC, kill).unwrap();
        assert_eq!(mode(), left);
    }
    arm();
    let owner = Change {
        uid: Some(1000),
        kill_priv: true,
        ..Change::default()
    };
    assert_eq!(share.setattr(node, owner).unwrap().mode & 0o7777, 0o755);
    let both = Change {
        mode: Some(0o4755),
        uid: Some(1001),
        ..Change::default()
    };
    let attr = share.setattr(node, both).unwrap();
    assert_eq!(
        (attr.mode & 0o7777, attr.uid),
        (0o4755, 1001),
        "the mode that was asked for"
    );
    arm();
    share.tree.fallocate(node, handle, 0, 0, 9).unwrap();
    assert_eq!(mode(), 0o755, "nobody says whether it was root");
    let (other, from) = share.create(Node::ROOT, "b", O_RDWR, 0o644).unwrap();
    share.write(other.node, from.handle, 0, b"xx").unwrap();
    arm();
    share
        .tree
        .copy_file_range((other.node, from.handle, 0), (node, handle, 0), 2, 0)
        .unwrap();
    assert_eq!(mode(), 0o755);
    // Nothing stays dropped.
    arm();
    share.write_as(node, handle, 0, b"xx", Writing::default()).unwrap();
    assert_eq!(mode(), 0o6755);
}

/// As on NFS, where the host does not do it: the device of the share stands for one.
#[test]
fn set_user_id_goes_where_the_host_leaves_it_to_a_server() {
    let share = Share::new();
    let path = share.host("a");
    fs::write(&path, "text").unwrap();
    let node = share.node("a");
    let root = share.tree.nodes.root();
    share.tree.remote.note(root.key().dev);
    let modes = |before: u32, call: &dyn Fn()| {
        fs::set_permissions(&path, fs::Permissions::from_mode(before)).unwrap();
        call();
        share.attr(node).mode & 0o7777
    };
    let handle = share.open(node, O_RDWR).unwrap();
    let size = Change {
        size: Some(2),
        kill_priv: true,
        ..Change::default()
    };
    let write = |how: Writing| {
        share.write_as(node, handle, 0, b"xx", how).unwrap();
    };
    // Nothing is left to the host: the bits go before it is asked to write.
    let alone = || {
        let file = fs::File::open(&path).unwrap();
        assert!(share.tree.kill_set_id(&root, file).unwrap().is_none());
    };
    assert_eq!(modes(0o6755, &alone), 0o755);
    assert_eq!(modes(0o6755, &|| write(KILLS)), 0o755);
    // A group that may not execute: mandatory locks, which stay.
    assert_eq!(modes(0o6745, &alone), 0o2745);
    let by_node = || assert_eq!(share.setattr(node, size).unwrap().size, 2);
    assert_eq!(modes(0o6755, &by_node), 0o755);
    let by_handle = || assert_eq!(share.tree.setattr(node, Some(handle), &size).unwrap().0.size, 2);
    assert_eq!(modes(0o6755, &by_handle), 0o755);
    let cut = || {
        share.tree.open_node(node, O_WRONLY | O_TRUNC, true).unwrap();
    };
    assert_eq!(modes(0o6755, &cut), 0o755);
    let allocate = || share.tree.fallocate(node, handle, 0, 0, 9).unwrap();
    assert_eq!(modes(0o6755, &allocate), 0o755);
    if is_root() {
        assert_eq!(modes(0o6755, &|| write(Writing::default())), 0o6755);
    }
}

#[test]
fn users_have_other_numbers_on_the_host() {
    if !is_root() {
        return;
    }
    let share = Share::with(|config| {
        config.uid_map = vec![IdMap::both_ways(0, 100_000, 2000)];
        config.gid_map = vec![IdMap::both_ways(0, 200_000, 3000)];
    });
    let (entry, _) = share.create_as(&KIM, Node::ROOT, "a", O_RDWR, 0o644).unwrap();
    assert_eq!((entry.attr.uid, entry.attr.gid), (1000, 2000));
    assert_eq!(ids(share.host("a")), (101_000, 202_000, 0o644));
    share.create(Node::ROOT, "b", O_RDWR, 0o644).unwrap();
    assert_eq!(ids(share.host("b")), (100_000, 200_000, 0o644));
    let owner = Change {
        uid: Some(1999),
        gid: Some(0),
        ..Change::default()
    };
    share.setattr(entry.node, owner).unwrap();
    assert_eq!(ids(share.host("a")), (101_999, 200_000, 0o644));
    let beyond = Change {
        uid: Some(2000),
        ..Change::default()
    };
    assert_eq!(share.setattr(entry.node, beyond), Err(Errno::PERM));
    let stranger = Caller { uid: 2000, ..KIM };
    assert_eq!(
        share.create_as(&stranger, Node::ROOT, "x", O_RDWR, 0o644).unwrap_err(),
        Errno::PERM
    );
    fs::write(share.host("host"), "").unwrap();
    let attr = share.lookup(Node::ROOT, "host").unwrap().attr;
    assert_eq!((attr.uid, attr.gid), (65_534, 65_534));
}

#[test]
fn an_ordinary_user_serves_with_his_own_rights() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let path = dir.path().join("share");
    fs::create_dir(&path).unwrap();
    std::os::unix::fs::chown(&path, Some(1234), Some(1234)).unwrap();
    fs::write(path.join("secret"), "root's").unwrap();
    fs::set_permissions(path.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(path.join("public"), "root's").unwrap();
    fs::set_permissions(path.join("public"), fs::Permissions::from_mode(0o666)).unwrap();
    let config = ShareConfig::new(&path);
    let mapped = ShareConfig {
        uid_map: vec![IdMap::both_ways(0, 1234, 1)],
        gid_map: vec![IdMap::both_ways(0, 1234, 1)],
        ..config.clone()
    };
    let one_way = |kind, guest, host, count| IdMap {
        kind,
        guest,
        host,
        count,
    };
    let squashed = ShareConfig {
        uid_map: vec![
            one_way(IdMapKind::SquashGuest, 0, 1234, 5000),
            one_way(IdMapKind::ForbidGuest, 5000, 0, u32::MAX - 5000),
            one_way(IdMapKind::Host, 1000, 1234, 1),
        ],
        gid_map: vec![one_way(IdMapKind::SquashGuest, 0, 1234, u32::MAX)],
        ..config.clone()
    };
    as_user(1234, || {
        let tree = Tree::open_within(&config, FdBudget::new(16)).unwrap();
        tree.begin(tree.abilities());
        tree.enter().unwrap();
        let share = Share { dir, tree };
        // Whoever asks in the guest.
        let (a, _) = share.create(Node::ROOT, "a", O_RDWR, 0o644).unwrap();
        let (b, _) = share.create_as(&KIM, Node::ROOT, "b", O_RDWR, 0o644).unwrap();
        assert_eq!((a.attr.uid, b.attr.uid), (1234, 1234));
        let secret = share.node("secret");
        assert_eq!(share.open(secret, O_RDONLY), Err(Errno::ACCESS));
        // Of another's file the host keeps the time of access, whatever somebody in the guest may ask for.
        let public = share.node("public");
        for flags in [O_RDONLY, O_RDWR, O_WRONLY | O_APPEND] {
            let handle = share.open(public, flags | O_NOATIME).unwrap();
            share.tree.release(public, handle, None).unwrap();
        }
        let (_, opened) = share.create(Node::ROOT, "public", O_RDONLY | O_NOATIME, 0o644).unwrap();
        share.tree.release(public, opened.handle, None).unwrap();
        let (own, opened) = share.create(Node::ROOT, "own", O_RDWR | O_NOATIME, 0o644).unwrap();
        share.tree.release(own.node, opened.handle, None).unwrap();
        let owner = Change {
            uid: Some(0),
            ..Change::default()
        };
        assert_eq!(share.setattr(a.node, owner), Err(Errno::PERM));
        let mode = Change {
            mode: Some(0o600),
            ..Change::default()
        };
        assert_eq!(share.setattr(secret, mode), Err(Errno::PERM));
        assert_eq!(share.setattr(a.node, mode).unwrap().mode, 0o100_600);
        assert_eq!(share.mknod("null", 0o020_666, 1 << 8 | 3).unwrap_err(), Errno::PERM);
        assert_eq!(share.link(a.node, Node::ROOT, "hard").unwrap().node, a.node);
        share.symlink(Node::ROOT, "l", "a").unwrap();

        // No handles for him: nodes whose descriptors are closed are opened again by name.
        let dirs: Vec<_> = (0..50)
            .map(|number| share.mkdir(Node::ROOT, &format!("dir{number}"), 0o755).unwrap())
            .collect();
        for dir in &dirs {
            assert_eq!(share.attr(dir.node).ino, dir.attr.ino);
        }
        assert!(share.open(a.node, O_RDONLY).is_ok());

        let tree = Tree::open_within(&mapped, FdBudget::new(16)).unwrap();
        tree.begin(tree.abilities());
        let share = Share {
            dir: tempfile::tempdir().unwrap(),
            tree,
        };
        let (c, _) = share.create(Node::ROOT, "c", O_RDWR, 0o644).unwrap();
        assert_eq!((c.attr.uid, c.attr.gid), (0, 0));
        assert_eq!(
            share.create_as(&KIM, Node::ROOT, "d", O_RDWR, 0o644).unwrap_err(),
            Errno::PERM
        );

        // Everybody in the guest is him, and his files are somebody's there.
        let tree = Tree::open_within(&squashed, FdBudget::new(16)).unwrap();
        tree.begin(tree.abilities());
        let share = Share {
            dir: tempfile::tempdir().unwrap(),
            tree,
        };
        let (e, _) = share.create_as(&KIM, Node::ROOT, "e", O_RDWR, 0o644).unwrap();
        assert_eq!((e.attr.uid, e.attr.gid), (1000, 1234));
        let owner = Change {
            uid: Some(77),
            gid: Some(78),
            ..Change::default()
        };
        assert_eq!(share.setattr(e.node, owner).unwrap().uid, 1000);
        let forbidden = Caller { uid: 5000, ..KIM };
        let made = share.create_as(&forbidden, Node::ROOT, "f", O_RDWR, 0o644);
        assert_eq!(made.unwrap_err(), Errno::PERM);
        let public = share.lookup(Node::ROOT, "public").unwrap();
        assert_eq!(public.attr.uid, 0, "who is in no range is who he is");
    });
}

#[test]
fn a_thread_that_serves_has_few_of_roots_capabilities() {
    use rustix::thread::{CapabilitySet, capabilities};
    for xattr in [false, true] {
        let left = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let _share = Share::with(|config| config.xattr = xattr);
                capabilities(None).unwrap()
            });
            thread.join().unwrap()
        });
        let before = capabilities(None).unwrap();
        for (now, then) in [(left.effective, before.effective), (left.permitted, before.permitted)] {
            let gone = CapabilitySet::SYS_RESOURCE | CapabilitySet::SYS_PTRACE | CapabilitySet::NET_ADMIN;
            assert!(!now.intersects(gone), "{now:?}");
            let kept = CapabilitySet::CHOWN | CapabilitySet::DAC_OVERRIDE | CapabilitySet::SETUID;
            assert_eq!(now & kept, then & kept);
            let admin = if xattr {
                then & CapabilitySet::SYS_ADMIN
            } else {
                CapabilitySet::empty()
            };
            assert_eq!(now & CapabilitySet::SYS_ADMIN, admin);
        }
    }
}
