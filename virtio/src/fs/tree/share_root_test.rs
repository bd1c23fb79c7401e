//! What is wrong with a share is said in one line.

use super::*;
use crate::fs::share::{IdMap, IdMapKind};

fn refused(change: impl FnOnce(&mut ShareConfig)) -> String {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let mut config = ShareConfig::new(dir.path());
    change(&mut config);
    let error = Tree::open(&config).err().unwrap();
    let text = error.to_string();
    let path = config.dir.display().to_string();
    assert!(text.contains(&path) && !text.contains('\n'), "{text}");
    text.replace(&*dir.path().to_string_lossy(), "DIR")
}

#[test]
fn what_cannot_be_shared_is_named() {
    let missing = refused(|config| config.dir.push("none"));
    assert_eq!(missing, "cannot open the directory DIR/none");
    assert_eq!(
        refused(|config| config.dir.push("file")),
        "cannot open the directory DIR/file"
    );
    assert_eq!(
        refused(|config| config.posix_acl = true),
        "cannot share DIR with posix_acl: it needs xattr"
    );
    let map = IdMap::both_ways;
    let twice = refused(|config| config.uid_map = vec![map(0, 1000, 10), map(20, 1009, 5)]);
    let expected = "cannot share DIR: the user numbers 20 to 24 are mapped twice, or go beyond 4294967294";
    assert_eq!(twice, expected);
    let one_way = IdMap {
        kind: IdMapKind::SquashHost,
        ..map(0, 1000, 10)
    };
    let twice = refused(|config| config.uid_map = vec![map(0, 1000, 10), one_way]);
    let expected = "cannot share DIR: the user numbers 1000 to 1009 are mapped twice, or go beyond 4294967294";
    assert_eq!(twice, expected);
    let lists = refused(|config| {
        config.gid_map = vec![one_way];
        config.xattr = true;
        config.posix_acl = true;
    });
    let expected = "cannot share DIR with posix_acl: the group numbers may be mapped in both directions only";
    assert_eq!(lists, expected);
    let renamed = refused(|config| {
        config.xattr = true;
        config.posix_acl = true;
        config.xattr_map = Some(":map::user.virtiofs.:".parse().unwrap());
    });
    let expected = "cannot share DIR with posix_acl: the map of attributes gives access control lists other names";
    assert_eq!(renamed, expected);
    let beyond = refused(|config| config.gid_map = vec![map(u32::MAX - 1, 0, 2)]);
    assert!(
        beyond.contains("the group numbers 4294967294 to 4294967295"),
        "{beyond}"
    );
}

#[test]
fn a_label_without_selinux_is_refused_when_the_share_is_opened() {
    if Path::new("/sys/fs/selinux/enforce").exists() {
        eprintln!("skipped: needs no SELinux");
        return;
    }
    let text = refused(|config| config.label = Some(c"system_u:object_r:container_file_t:s0:c1,c2".into()));
    let expected = "cannot share DIR with the label system_u:object_r:container_file_t:s0:c1,c2: it takes a host with SELinux that knows it";
    assert_eq!(text, expected);
}

#[test]
fn a_label_is_written_whole_and_taken_back_by_an_empty_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("fscreate");
    assert!(
        thread::write_label(&file, None).is_err(),
        "nothing is made where the host has no such file"
    );
    let label = c"system_u:object_r:container_file_t:s0:c1,c2";
    for (label, expected) in [(Some(label), label.to_bytes_with_nul()), (None, b"\0")] {
        fs::write(&file, "").unwrap();
        thread::write_label(&file, label).unwrap();
        assert_eq!(fs::read(&file).unwrap(), expected);
    }
}

#[test]
fn a_thread_that_cannot_have_the_label_is_not_prepared() {
    if Path::new("/sys/fs/selinux/enforce").exists() {
        eprintln!("skipped: needs no SELinux");
        return;
    }
    let mut share = Share::new();
    share.tree.policy.label = Some(c"u:r:t:s0".into());
    std::thread::scope(|scope| {
        let prepare = || {
            share.tree.enter().unwrap_err();
            assert_eq!(thread::check(), Err(Errno::IO));
        };
        scope.spawn(prepare).join().unwrap();
    });
}

#[test]
fn a_thread_that_has_the_label_from_another_need_not_reach_for_it() {
    if Path::new("/sys/fs/selinux/enforce").exists() {
        eprintln!("skipped: needs no SELinux");
        return;
    }
    let mut share = Share::new();
    share.tree.policy.label = Some(c"u:r:t:s0".into());
    share.tree.label_process().unwrap_err();
    std::thread::scope(|scope| scope.spawn(|| share.tree.enter().unwrap_err()).join().unwrap());
    share.tree.policy.label_inherited = AtomicBool::new(true);
    std::thread::scope(|scope| scope.spawn(|| share.tree.enter().unwrap()).join().unwrap());
}
