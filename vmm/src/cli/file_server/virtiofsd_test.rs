use super::super::tests::options;
use super::*;

#[test]
fn what_is_written_in_the_old_form_is_the_same() {
    let old = options(
        "virtiofsd --socket=/s -o source=/d,cache=none,xattr,posix_acl,writeback,allow_direct_io -o sandbox=chroot,loglevel=warn,modcaps=+sys_admin:-chown",
    );
    let new = options(
        "husk fs --socket-path /s --shared-dir /d --cache never --xattr --posix-acl --writeback --allow-direct-io --sandbox chroot --log-level warn --modcaps=+sys_admin:-chown",
    );
    assert_eq!(format!("{old:?}"), format!("{new:?}"));
    for (label, given) in [("", true), ("=always", true), ("=auto", true), ("=never", false)] {
        let share = options(&format!("virtiofsd --fd 3 --shared-dir /d --security-label{label}")).share;
        assert_eq!((share.security_label, share.xattr), (given, given), "{label}");
    }
    for (given, locks) in [
        ("", false),
        (" --locks", true),
        (" --locks -o no_posix_lock", false),
        (" -o no_flock", false),
    ] {
        let share = options(&format!("virtiofsd --fd 3 --shared-dir /d{given}")).share;
        assert_eq!(share.locks, locks, "{given}");
    }
    let taken_back = options("virtiofsd --socket-path /s -o source=/d,xattr,no_xattr,writeback,no_writeback,no_flock");
    assert!(!taken_back.share.xattr && !taken_back.share.writeback);
}

#[test]
fn under_no_other_name_it_is_the_file_server() {
    let same = |line: &str| {
        let args: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        under_alias(args.clone()) == args
    };
    assert!(same("husk run") && same("/virtiofsd/husk run") && same("virtiofsd2 --fd 3"));
    assert_eq!(under_alias(vec![]), Vec::<OsString>::new());
    assert_eq!(
        under_alias(vec!["/a/virtiofsd".into(), "-h".into()]),
        ["husk", "fs", "-h"]
    );
}

#[test]
fn what_the_program_can_do_is_json() {
    let found: serde_json::Value = serde_json::from_str(CAPABILITIES).unwrap();
    assert_eq!(found["type"], "fs");
    let features = found["features"].as_array().unwrap();
    assert!(features.contains(&"separate-options".into()));
    assert!(!features.contains(&"migrate-precopy".into()));
}
