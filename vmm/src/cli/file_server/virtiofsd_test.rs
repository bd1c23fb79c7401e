use super::super::tests::{options, parse, refused};
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

/// What `-o word` makes of the options, or why it makes nothing.
fn with(word: &str) -> Result<FileServerArgs, String> {
    let mut args = parse("husk fs").unwrap();
    args.take_old(word).map_err(|error| error.to_string())?;
    Ok(args)
}

#[test]
fn every_word_of_the_old_form_is_taken_and_told_as_its_table_has_it() {
    let (help, unknown) = (old_help(), with("dax").unwrap_err());
    assert_eq!(unknown, format!("-o dax is not known, allowed: {}", forms()));
    for word in OLD {
        let name = word.name;
        let form = match word.takes {
            Takes::Value { form, .. } => format!("{name}={}", form()),
            Takes::Switch(_) => format!("[no_]{name}"),
            Takes::Off(_) => format!("no_{name}"),
        };
        assert!(help.contains(&form) && unknown.contains(&form), "{form}");
        match word.takes {
            Takes::Switch(_) => {
                let (on, off) = (with(name).unwrap(), with(&format!("no_{name}")).unwrap());
                assert_ne!(format!("{on:?}"), format!("{off:?}"), "{name} changes nothing");
                with(&format!("{name}=on")).unwrap_err();
            }
            Takes::Off(_) => {
                with(&format!("no_{name}")).unwrap();
                with(name).unwrap_err();
            }
            Takes::Value { form, .. } => {
                with(name).unwrap_err();
                with(&format!("no_{name}=x")).unwrap_err();
                let choices = form();
                if !choices.contains('|') {
                    continue;
                }
                for choice in choices.split('|') {
                    with(&format!("{name}={choice}")).unwrap();
                }
                let told = with(&format!("{name}=x")).unwrap_err();
                assert_eq!(told, format!("-o {name}=x: allowed: {choices}"));
            }
        }
    }
    assert!(
        refused("virtiofsd --fd 3 --shared-dir /d -o modcaps=x").contains("-o modcaps=x: 'x': allowed: +NAME or -NAME")
    );
}
