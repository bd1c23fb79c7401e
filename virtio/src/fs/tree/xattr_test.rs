//! Extended attributes: which are served, of which nodes, and access control lists in the guest's numbers.

use super::*;
use crate::fs::share::IdMap;

fn share() -> Share {
    Share::with(|config| config.xattr = true)
}

#[test]
fn attributes_are_set_read_listed_and_removed() {
    let share = share();
    let file = share.create(Node::ROOT, "a", O_RDWR, 0o600).unwrap().0.node;
    let set = |name: &CStr, value: &[u8], flags| share.tree.setxattr(file, name, value, flags, false);
    set(c"user.one", b"value", 0).unwrap();
    assert_eq!(set(c"user.one", b"", 1), Err(Errno::EXIST));
    assert_eq!(set(c"user.two", b"", 2), Err(Errno::NODATA));
    assert_eq!(set(c"user.two", b"", 4), Err(Errno::INVAL));
    set(c"user.two", b"", 1).unwrap();
    assert_eq!(share.tree.getxattr(file, c"user.one", 5).unwrap(), b"value");
    assert_eq!(share.tree.getxattr(file, c"user.one", 4), Err(Errno::RANGE));
    assert_eq!(share.tree.getxattr_len(file, c"user.one"), Ok(5));
    assert_eq!(share.tree.getxattr(file, c"user.none", 9), Err(Errno::NODATA));
    let names = share.tree.listxattr(file, 99).unwrap();
    let mut names: Vec<_> = names.split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    names.sort_unstable();
    assert_eq!(names, [&b"user.one"[..], b"user.two"]);
    assert_eq!(share.tree.listxattr_len(file), Ok(18));
    assert_eq!(share.tree.listxattr(file, 17), Err(Errno::RANGE));
    share.tree.removexattr(file, c"user.one").unwrap();
    assert_eq!(share.tree.removexattr(file, c"user.one"), Err(Errno::NODATA));
    assert_eq!(share.tree.listxattr(file, 99).unwrap(), b"user.two\0");
}

#[test]
fn names_that_are_not_served_are_refused_and_not_listed() {
    let share = share();
    let file = share.create(Node::ROOT, "a", O_RDWR, 0o644).unwrap().0.node;
    for name in [
        c"system.posix_acl_access",
        c"system.other",
        c"other",
        c"xuser.a",
        c"user",
        c"os2.x",
    ] {
        assert_eq!(
            share.tree.setxattr(file, name, b"x", 0, false),
            Err(Errno::OPNOTSUPP),
            "{name:?}"
        );
        assert_eq!(share.tree.getxattr(file, name, 9), Err(Errno::OPNOTSUPP), "{name:?}");
        assert_eq!(share.tree.getxattr_len(file, name), Err(Errno::OPNOTSUPP), "{name:?}");
        assert_eq!(share.tree.removexattr(file, name), Err(Errno::OPNOTSUPP), "{name:?}");
    }
    let without = Share::new();
    let file = without.create(Node::ROOT, "a", O_RDWR, 0o644).unwrap().0.node;
    assert_eq!(without.tree.getxattr(file, c"user.a", 9), Err(Errno::NOSYS));
    assert_eq!(without.tree.listxattr(file, 9), Err(Errno::NOSYS));
}

#[test]
fn a_link_and_a_special_file_have_attributes_of_their_own() {
    let share = share();
    if !is_root() {
        return;
    }
    fs::write(share.outside("target"), "").unwrap();
    let link = share.symlink(Node::ROOT, "l", "../target").unwrap().node;
    let fifo = share.mknod("fifo", 0o010_644, 0).unwrap().node;
    for node in [link, fifo, Node::ROOT] {
        share.tree.setxattr(node, c"trusted.mine", b"here", 0, false).unwrap();
        assert_eq!(share.tree.getxattr(node, c"trusted.mine", 9).unwrap(), b"here");
        assert_eq!(share.tree.listxattr(node, 99).unwrap(), b"trusted.mine\0");
        share.tree.removexattr(node, c"trusted.mine").unwrap();
    }
    let target = rustix::fs::listxattr(share.outside("target"), &mut [0u8; 99][..]).unwrap();
    assert_eq!(target, 0);
    // The host does not allow `user.` there.
    assert_eq!(share.tree.setxattr(link, c"user.a", b"x", 0, false), Err(Errno::PERM));
}

#[test]
fn what_overlayfs_of_the_host_goes_by_is_not_the_guests_to_change() {
    if !is_root() {
        return;
    }
    let on_host = |path: &Path| {
        let mut value = [0; 99];
        let found = rustix::fs::lgetxattr(path, c"trusted.overlay.redirect", &mut value[..]);
        found.map(|len| value[..len].to_vec())
    };
    let redirect = c"trusted.overlay.redirect";
    let share = share();
    let dir = share.mkdir(Node::ROOT, "dir", 0o755).unwrap().node;
    let path = share.host("dir");
    for name in [redirect, c"trusted.overlay.opaque", c"trusted.overlay.metacopy"] {
        assert_eq!(
            share.tree.setxattr(dir, name, b"/../x", 0, false),
            Err(Errno::PERM),
            "{name:?}"
        );
        assert_eq!(share.tree.removexattr(dir, name), Err(Errno::PERM), "{name:?}");
    }
    assert_eq!(on_host(&path), Err(Errno::NODATA));
    // What the host has there is to be seen, and stays.
    rustix::fs::setxattr(&path, redirect, b"/of-the-host", rustix::fs::XattrFlags::empty()).unwrap();
    assert_eq!(share.tree.getxattr(dir, redirect, 99).unwrap(), b"/of-the-host");
    assert_eq!(share.tree.removexattr(dir, redirect), Err(Errno::PERM));
    assert_eq!(on_host(&path).unwrap(), b"/of-the-host");
    // Others, and those of an unprivileged overlay, are the guest's.
    for name in [c"trusted.overlayed", c"user.overlay.opaque"] {
        share.tree.setxattr(dir, name, b"y", 0, false).unwrap();
    }
    let share = Share::with(|config| {
        config.xattr = true;
        config.overlay_xattr = true;
    });
    let dir = share.mkdir(Node::ROOT, "dir", 0o755).unwrap().node;
    share.tree.setxattr(dir, redirect, b"/x", 0, false).unwrap();
    assert_eq!(on_host(&share.host("dir")).unwrap(), b"/x");
}

#[test]
fn a_thread_that_was_not_prepared_is_refused() {
    let share = share();
    let file = share.create(Node::ROOT, "a", O_RDWR, 0o644).unwrap().0.node;
    std::thread::scope(|scope| {
        let answer = scope.spawn(|| share.tree.getxattr(file, c"user.a", 9)).join().unwrap();
        assert_eq!(answer, Err(Errno::IO));
    });
}

#[test]
fn a_label_that_the_guest_wants_is_there_with_the_file() {
    let share = share();
    let label = Creation {
        label: Some((c"security.husk_test", b"label")),
        ..creation(0o644)
    };
    let name = |name| Name::new(name).unwrap();
    let made = share.tree.mkdir(&ROOT, Node::ROOT, name(c"dir"), &label);
    match made {
        Err(Errno::PERM | Errno::OPNOTSUPP) => {
            assert!(!share.host("dir").exists(), "nothing is half done");
            eprintln!("skipped: needs security attributes");
            return;
        }
        made => {
            let dir = made.unwrap().node;
            assert_eq!(share.tree.getxattr(dir, c"security.husk_test", 9).unwrap(), b"label");
        }
    }
    let (file, _) = share
        .tree
        .create(&ROOT, Node::ROOT, name(c"a"), O_RDWR, false, &label)
        .unwrap();
    assert_eq!(
        share.tree.getxattr(file.node, c"security.husk_test", 9).unwrap(),
        b"label"
    );
    let link = share
        .tree
        .symlink(&ROOT, Node::ROOT, name(c"l"), c"t", &label)
        .unwrap()
        .node;
    assert_eq!(share.tree.getxattr(link, c"security.husk_test", 9).unwrap(), b"label");
    let wrong = Creation {
        label: Some((c"user.x", b"label")),
        ..creation(0o644)
    };
    assert_eq!(
        share.tree.mkdir(&ROOT, Node::ROOT, name(c"x"), &wrong).unwrap_err(),
        Errno::INVAL
    );
    assert!(!share.host("x").exists());
}

/// An access control list: tag, permissions, number.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut list = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        list.extend_from_slice(&tag.to_le_bytes());
        list.extend_from_slice(&permissions.to_le_bytes());
        list.extend_from_slice(&id.to_le_bytes());
    }
    list
}

const NONE: u32 = u32::MAX;

#[test]
fn a_default_list_takes_the_place_of_the_umask() {
    let share = Share::with(|config| {
        config.xattr = true;
        config.posix_acl = true;
    });
    let list = acl(&[(1, 7, NONE), (2, 6, 0), (4, 5, NONE), (16, 7, NONE), (32, 0, NONE)]);
    let set = share
        .tree
        .setxattr(Node::ROOT, c"system.posix_acl_default", &list, 0, false);
    if set == Err(Errno::OPNOTSUPP) {
        eprintln!("skipped: needs access control lists");
        return;
    }
    set.unwrap();
    let new = Creation {
        umask: 0o077,
        ..creation(0o666)
    };
    let name = |name| Name::new(name).unwrap();
    let (file, _) = share
        .tree
        .create(&ROOT, Node::ROOT, name(c"a"), O_RDWR, false, &new)
        .unwrap();
    assert_eq!(file.attr.mode, 0o100_660, "as the list says, and not the umask");
    let access = share.tree.getxattr(file.node, c"system.posix_acl_access", 99).unwrap();
    assert_eq!(access[12..20], acl(&[(2, 6, 0)])[4..]);
    share.tree.removexattr(Node::ROOT, c"system.posix_acl_default").unwrap();
    let (file, _) = share
        .tree
        .create(&ROOT, Node::ROOT, name(c"b"), O_RDWR, false, &new)
        .unwrap();
    assert_eq!(file.attr.mode, 0o100_600);
    share.tree.begin(Abilities::default());
    let gone = share.tree.getxattr(Node::ROOT, c"system.posix_acl_access", 99);
    assert_eq!(gone, Err(Errno::OPNOTSUPP), "a session without lists has none");
}

#[test]
fn lists_have_the_numbers_of_the_guest_there_and_of_the_host_here() {
    if !is_root() {
        return;
    }
    let map = IdMap::both_ways(0, 0, 1000);
    let users = IdMap::both_ways(1000, 5000, 10);
    let share = Share::with(|config| {
        config.xattr = true;
        config.posix_acl = true;
        config.uid_map = vec![map, users];
        config.gid_map = vec![map];
    });
    let file = share.create(Node::ROOT, "a", O_RDWR, 0o644).unwrap().0.node;
    let list = |user, group| {
        acl(&[
            (1, 6, NONE),
            (2, 4, user),
            (4, 4, NONE),
            (8, 4, group),
            (16, 4, NONE),
            (32, 0, NONE),
        ])
    };
    let name = c"system.posix_acl_access";
    let set = |value: &[u8]| share.tree.setxattr(file, name, value, 0, false);
    if set(&list(1003, 7)) == Err(Errno::OPNOTSUPP) {
        eprintln!("skipped: needs access control lists");
        return;
    }
    let mut of_host = [0u8; 99];
    let len = rustix::fs::getxattr(share.host("a"), name, &mut of_host[..]).unwrap();
    assert_eq!(of_host[..len], list(5003, 7));
    assert_eq!(share.tree.getxattr(file, name, 99).unwrap(), list(1003, 7));
    assert_eq!(set(&list(2000, 7)), Err(Errno::PERM));
    assert_eq!(set(&[2, 0, 0]), Err(Errno::INVAL));
}

#[test]
fn set_group_id_goes_with_a_list_if_the_guest_says_so() {
    let share = Share::with(|config| {
        config.xattr = true;
        config.posix_acl = true;
    });
    let file = share.create(Node::ROOT, "a", O_RDWR, 0o2755).unwrap().0.node;
    fs::set_permissions(share.host("a"), fs::Permissions::from_mode(0o2755)).unwrap();
    let list = acl(&[(1, 7, NONE), (4, 5, NONE), (32, 5, NONE)]);
    let set = |clear| share.tree.setxattr(file, c"system.posix_acl_access", &list, 0, clear);
    if set(false) == Err(Errno::OPNOTSUPP) {
        eprintln!("skipped: needs access control lists");
        return;
    }
    assert_eq!(share.attr(file).mode, 0o102_755);
    set(true).unwrap();
    assert_eq!(share.attr(file).mode, 0o100_755);
}

/// A share whose attributes are all behind a prefix on the host, with a file.
fn mapped() -> (Share, Node) {
    let share = Share::with(|config| {
        config.xattr = true;
        config.xattr_map = Some(":map::user.virtiofs.:".parse().unwrap());
    });
    let file = share.create(Node::ROOT, "a", O_RDWR, 0o600).unwrap().0.node;
    (share, file)
}

#[test]
fn capabilities_under_another_name_go_when_the_file_changes_as_the_hosts_own_do() {
    let (share, file) = mapped();
    let handle = share.open(file, O_RDWR).unwrap();
    let uid = Some(share.attr(file).uid);
    let size = |size| Change {
        size: Some(size),
        ..Change::default()
    };
    let mode = Change {
        mode: Some(0o700),
        ..Change::default()
    };
    let owner = Change {
        uid,
        ..Change::default()
    };
    type Step<'s> = &'s dyn Fn(&Share);
    let steps: [(&str, Step<'_>, bool); 9] = [
        ("read", &|share| assert!(share.read(file, handle, 0, 9).is_ok()), true),
        ("chmod", &|share| assert!(share.setattr(file, mode).is_ok()), true),
        (
            "another attribute",
            &|share| share.tree.setxattr(file, c"user.a", b"", 0, false).unwrap(),
            true,
        ),
        (
            "write",
            &|share| assert_eq!(share.write(file, handle, 0, b"abc"), Ok(3)),
            false,
        ),
        (
            "truncate",
            &|share| assert!(share.setattr(file, size(2)).is_ok()),
            false,
        ),
        (
            "fallocate",
            &|share| share.tree.fallocate(file, handle, 0, 0, 10).unwrap(),
            false,
        ),
        ("chown", &|share| assert!(share.setattr(file, owner).is_ok()), false),
        (
            "open",
            &|share| assert!(share.open(file, O_WRONLY | O_TRUNC).is_ok()),
            false,
        ),
        (
            "copy",
            &|share| {
                let copied = share.tree.copy_file_range((file, handle, 0), (file, handle, 100), 1, 0);
                assert!(copied.is_ok(), "{copied:?}");
            },
            false,
        ),
    ];
    for (what, step, stays) in steps {
        share
            .tree
            .setxattr(file, c"security.capability", b"all", 0, false)
            .unwrap();
        step(&share);
        let left = share.tree.getxattr(file, c"security.capability", 9);
        assert_eq!(left.is_ok(), stays, "{what}: {left:?}");
    }
    // Without any, and where a rule has them elsewhere, there is nothing to be done.
    assert_eq!(share.write(file, handle, 0, b"abc"), Ok(3));
    let (kept, hidden) = (":ok:all:::", ":bad:all:security.:security.: :ok:all:::");
    for map in [kept, hidden] {
        assert_eq!(xattrs::mapped_capability(&map.parse().unwrap()), None, "{map}");
    }
}

#[test]
fn a_label_under_another_name_is_there_with_the_file_or_nothing_is_made() {
    let (share, _) = mapped();
    let label = Creation {
        label: Some((c"security.husk_test", b"label")),
        ..creation(0o755)
    };
    let name = |name| Name::new(name).unwrap();
    let dir = share.tree.mkdir(&ROOT, Node::ROOT, name(c"dir"), &label).unwrap().node;
    assert_eq!(share.tree.getxattr(dir, c"security.husk_test", 9).unwrap(), b"label");
    let mut of_host = [0; 9];
    let there = "user.virtiofs.security.husk_test";
    let len = rustix::fs::getxattr(share.host("dir"), there, &mut of_host[..]).unwrap();
    assert_eq!(&of_host[..len], b"label");
    // The host has no `user.` there.
    let link = share.tree.symlink(&ROOT, Node::ROOT, name(c"l"), c"t", &label);
    assert_eq!(link.unwrap_err(), Errno::PERM);
    assert!(fs::symlink_metadata(share.host("l")).is_err());
    let hiding = Share::with(|config| {
        config.xattr = true;
        config.xattr_map = Some(":bad:client:security.:: :ok:all:::".parse().unwrap());
    });
    let refused = hiding.tree.mkdir(&ROOT, Node::ROOT, name(c"dir"), &label);
    assert_eq!(refused.unwrap_err(), Errno::PERM);
    assert!(!hiding.host("dir").exists());
}

#[test]
fn what_a_map_leads_to_is_served_as_it_is_without_one() {
    if !is_root() {
        return;
    }
    let share = Share::with(|config| {
        config.xattr = true;
        config.xattr_map = Some(
            ":prefix:all:user.o.:trusted.overlay.: :prefix:all:user.s.:system.: :ok:all:::"
                .parse()
                .unwrap(),
        );
    });
    let file = share.create(Node::ROOT, "a", O_RDWR, 0o644).unwrap().0.node;
    let set = |name| share.tree.setxattr(file, name, b"x", 0, false);
    assert_eq!(
        set(c"user.o.redirect"),
        Err(Errno::PERM),
        "overlayfs of the host goes by it"
    );
    assert_eq!(set(c"user.s.a"), Err(Errno::OPNOTSUPP));
    assert_eq!(set(c"trusted.a"), Ok(()));
}
