//! Labels and groups that come with what is made.

use proptest::prelude::*;
use rustix::io::Errno;

use super::*;

/// A label as Linux sends it: header of all, header of this one, name, value, zeroes.
fn label(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut body = [&u32s([u32::try_from(value.len()).unwrap(), 0])[..], name, b"\0", value].concat();
    body.resize(body.len().next_multiple_of(8), 0);
    [&u32s([u32::try_from(8 + body.len()).unwrap(), 1])[..], &body].concat()
}

fn group(gid: u32) -> Vec<u8> {
    u32s([16, 32, 1, gid])
}

/// `MKDIR` with `extensions`, whose length is told.
fn mkdir(extensions: &[u8]) -> Request {
    let mut request = request(9, 1, &[&u32s([0o755, 0]), b"new\0", extensions]);
    request.extensions = (extensions.len() / 8).try_into().unwrap();
    request
}

fn made(group: &str, label: &str) -> String {
    format!(
        r#"mkdir Caller {{ uid: 1000, gid: 100, pid: 77, group: {group} }} 1 "new" Creation {{ mode: 16877, umask: 0, rdev: 0, label: {label} }}"#
    )
}

const LABELLED: &str = r#"Some(("security.selinux", [115, 121, 115]))"#;

#[test]
fn a_label_and_a_group_reach_the_file_system() {
    let selinux = label(b"security.selinux", b"sys");
    let cases = [
        (vec![], "None", "None"),
        (u32s([8, 0]), "None", "None"),
        (selinux.clone(), "None", LABELLED),
        (group(5), "Some(5)", "None"),
        (u32s([16, 32, 0, 0]), "None", "None"),
        ([selinux.clone(), group(5)].concat(), "Some(5)", LABELLED),
        ([u32s([8, 0]), group(5)].concat(), "Some(5)", "None"),
        ([group(7), selinux].concat(), "Some(7)", LABELLED),
    ];
    for (extensions, group, label) in cases {
        let rig = Rig::new();
        assert_eq!(rig.ask(&mkdir(&extensions)).error, 0, "{extensions:?}");
        assert_eq!(rig.model.calls(), [made(group, label)]);
    }
}

#[test]
fn all_that_is_made_may_have_them() {
    let selinux = [label(b"security.selinux", b"sys"), group(5)].concat();
    let made = [
        request(6, 1, &[b"new\0target\0"]),
        request(8, 1, &[&u32s([0o100_644, 0, 0, 0]), b"new\0"]),
        request(9, 1, &[&u32s([0o755, 0]), b"new\0"]),
        request(35, 1, &[&u32s([2, 0o644, 0, 0]), b"new\0"]),
        request(51, 1, &[&u32s([2, 0o644, 0, 0]), b"/\0"]),
    ];
    for mut request in made {
        let rig = Rig::new();
        request.body.extend(&selinux);
        request.extensions = (selinux.len() / 8).try_into().unwrap();
        assert_eq!(rig.ask(&request).error, 0, "{request:?}");
        let calls = rig.model.calls();
        assert!(
            calls[0].contains(LABELLED) && calls[0].contains("group: Some(5)"),
            "{calls:?}"
        );
    }
}

#[test]
fn linux_6_1_does_not_tell_how_long_its_label_is() {
    let rig = Rig::with(ALL, LINUX_6_1);
    let mut untold = mkdir(&label(b"security.selinux", b"sys"));
    untold.extensions = 0;
    assert_eq!(rig.ask(&untold).error, 0);
    assert_eq!(rig.model.calls(), [made("None", LABELLED)]);
    // Without an agreement on labels it is something behind a name.
    let mut share = ALL;
    share.security_context = false;
    let rig = Rig::with(share, LINUX_6_1);
    assert_eq!(rig.ask(&untold), failure(Errno::INVAL));
    assert_eq!(rig.model.calls(), [""; 0]);
}

#[test]
fn a_label_without_agreement_is_left_out() {
    let mut share = ALL;
    share.security_context = false;
    let rig = Rig::with(share, LINUX_6_12);
    let labelled = [label(b"security.selinux", b"sys"), group(5)].concat();
    assert_eq!(rig.ask(&mkdir(&labelled)).error, 0);
    assert_eq!(rig.model.calls(), [made("Some(5)", "None")]);
}

#[test]
fn what_is_wrong_with_extensions_is_refused() {
    let selinux = label(b"security.selinux", b"sys");
    let with = |at: usize, number: u32| {
        let mut wrong = selinux.clone();
        wrong[at..at + 4].copy_from_slice(&number.to_le_bytes());
        wrong
    };
    let wrong = [
        // Lengths of all, of less than itself, of no multiple, of the value.
        with(0, 0),
        with(0, 4),
        with(0, 7),
        with(0, 12),
        with(0, u32::MAX),
        with(0, u32::try_from(selinux.len()).unwrap() + 8),
        with(8, 0),
        with(8, 12),
        with(8, u32::MAX),
        // Types: more labels than one, and unknown ones.
        with(4, 2),
        with(4, 31),
        with(4, 33),
        with(4, u32::MAX),
        // Names.
        label(b"", b"sys"),
        label(b"user.a", b"sys"),
        label(b"security.", b"sys"),
        label(b"selinux", b"sys"),
        label(&[&b"security."[..], &[b'x'; 250]].concat(), b"sys"),
        // Much behind the value.
        [&u32s([64, 1, 1, 0])[..], b"security.x\0v", &[0; 36]].concat(),
        // Groups: too many, and none where one is said to be.
        u32s([16, 32, 2, 5]),
        u32s([24, 32, 2, 5, 6, 0]),
        u32s([8, 32]),
        u32s([16, 32, u32::MAX, 5]),
    ];
    for extensions in wrong {
        let rig = Rig::new();
        assert_ne!(rig.ask(&mkdir(&extensions)).error, 0, "{extensions:?}");
        let mut shorter = mkdir(&selinux);
        shorter.extensions -= 1;
        assert_eq!(rig.ask(&shorter), failure(Errno::INVAL));
        shorter.extensions += 2;
        assert_eq!(rig.ask(&shorter), failure(Errno::INVAL));
        shorter.extensions = u16::MAX;
        assert_eq!(rig.ask(&shorter), failure(Errno::INVAL));
        assert_eq!(rig.model.calls(), [""; 0], "{extensions:?}");
    }
}

#[test]
fn the_longest_label_is_taken() {
    let rig = Rig::new();
    assert_eq!(rig.ask(&mkdir(&label(b"security.x", &[1; 65536]))).error, 0);
    let rig = Rig::new();
    assert_ne!(rig.ask(&mkdir(&label(b"security.x", &[1; 65537]))).error, 0);
    assert_eq!(rig.model.calls(), [""; 0]);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn extensions_of_any_bytes_are_taken_or_refused(
        mut bytes in prop::collection::vec(any::<u8>(), 0..64),
        size in 0..80_u32,
        kind in prop_oneof![Just(0_u32), Just(1), Just(2), Just(32), any::<u32>()],
    ) {
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        let extensions = [&u32s([size, kind])[..], &bytes].concat();
        let rig = Rig::new();
        let reply = rig.ask(&mkdir(&extensions));
        prop_assert_eq!(rig.model.calls().len(), usize::from(reply.error == 0));
    }
}
