//! Command lines as they are given to virtiofsd.

use std::ffi::OsString;
use std::path::Path;

use clap::Parser;
use husk_virtio::fs::share::{Cache, IdMap, IdMapKind};

use super::*;
use crate::cli::{Cli, Command};

pub(super) fn parse(line: &str) -> Result<FileServerArgs, clap::Error> {
    let args = under_alias(line.split(' ').map(OsString::from).collect());
    match Cli::try_parse_from(args)?.command {
        Some(Command::Fs(args)) => Ok(*args),
        other => panic!("{other:?}"),
    }
}

pub(super) fn options(line: &str) -> Options {
    parse(line).unwrap().into_options().unwrap()
}

pub(super) fn refused(line: &str) -> String {
    match parse(line) {
        Ok(args) => args.into_options().unwrap_err().to_string(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn the_rust_shim_starts_it() {
    let found = options(
        "/usr/libexec/virtiofsd --socket-path /run/kata/s/virtiofsd.sock --shared-dir \
         /run/kata-containers/shared/sandboxes/s/ro --cache auto --thread-pool-size=1 -o announce_submounts --xattr",
    );
    let socket = Listen::Path {
        path: "/run/kata/s/virtiofsd.sock".into(),
        group: None,
    };
    assert_eq!(found.listen, socket);
    assert_eq!(found.share.dir, Path::new("/run/kata-containers/shared/sandboxes/s/ro"));
    assert_eq!(found.share.cache, Cache::Auto);
    assert!(found.share.xattr && found.share.announce_submounts && !found.share.readonly);
    assert!(!found.share.security_label, "it is for --security-label to say");
    assert_eq!((found.sandbox, found.seccomp), (Sandbox::Namespace, Mode::On));
    assert_eq!((found.threads, found.ignored), (1, vec![]));
    assert_eq!(found.log_level, LevelFilter::Info);
}

#[test]
fn the_go_shim_starts_it() {
    let found = options(
        "/usr/libexec/virtiofsd --syslog --cache=auto --shared-dir=/run/kata-containers/shared/sandboxes/s/shared --fd=3 \
         --thread-pool-size=1 --announce-submounts",
    );
    assert_eq!(found.listen, Listen::Descriptor(3));
    assert!(found.syslog && found.share.announce_submounts && !found.share.xattr);
    assert_eq!(
        found.share.dir,
        Path::new("/run/kata-containers/shared/sandboxes/s/shared")
    );
}

#[test]
fn of_an_option_that_is_repeated_the_last_counts() {
    let found = options("virtiofsd --fd 3 --shared-dir /a --cache auto --cache Always --shared-dir /b --cache=never");
    assert_eq!((found.share.cache, found.share.dir), (Cache::Never, "/b".into()));
}

#[test]
fn of_two_options_that_contradict_each_other_the_last_counts_and_the_old_form_over_both() {
    for (given, announced, killpriv) in [
        ("", true, true),
        ("--no-announce-submounts --no-killpriv-v2", false, false),
        (
            "--no-announce-submounts --announce-submounts --no-killpriv-v2 --killpriv-v2",
            true,
            true,
        ),
        (
            "--announce-submounts --no-announce-submounts --killpriv-v2 --no-killpriv-v2",
            false,
            false,
        ),
        (
            "-o announce_submounts,killpriv_v2 --no-announce-submounts --no-killpriv-v2",
            true,
            true,
        ),
        (
            "-o no_announce_submounts,no_killpriv_v2 --announce-submounts --killpriv-v2",
            false,
            false,
        ),
        (
            "-o no_announce_submounts,announce_submounts,no_killpriv_v2,killpriv_v2",
            true,
            true,
        ),
    ] {
        let share = options(format!("virtiofsd --fd 3 --shared-dir /d {given}").trim_end()).share;
        assert_eq!(
            (share.announce_submounts, share.killpriv),
            (announced, killpriv),
            "{given}"
        );
    }
    for (given, readdirplus) in [
        ("--no-readdirplus", false),
        ("-o no_readdirplus", false),
        ("-o no_readdirplus,readdirplus", true),
    ] {
        let share = options(&format!("virtiofsd --fd 3 --shared-dir /d {given}")).share;
        assert_eq!(share.readdirplus, readdirplus, "{given}");
    }
}

#[test]
fn every_option_of_virtiofsd_is_known() {
    let found = options(
        "virtiofsd --shared-dir /d --tag t --socket-path /s --socket-group kvm --thread-pool-size 8 --xattr --posix-acl=auto \
         --sandbox none --readonly --seccomp log --announce-submounts --no-announce-submounts --inode-file-handles=fallback \
         --cache metadata --allow-mmap --no-readdirplus --writeback --allow-direct-io --modcaps=-mknod --log-level off \
         --syslog --rlimit-nofile 0 -d --no-killpriv-v2 --killpriv-v2 -f --security-label --uid-map :0:100000:65536: \
         --gid-map :0:100000:65536: --preserve-noatime --migration-mode find-paths --migration-on-error guest-error \
         --migration-verify-handles --migration-confirm-paths",
    );
    assert_eq!(found.tag.as_deref(), Some("t"));
    assert!(found.share.security_label && found.share.xattr);
    assert!(found.share.readonly && !found.share.announce_submounts && found.share.posix_acl);
    assert_eq!((found.sandbox, found.seccomp), (Sandbox::None, Mode::Log));
    assert_eq!((found.log_level, found.descriptors), (LevelFilter::Debug, Some(0)));
    assert_eq!((found.users.len(), found.groups.len()), (1, 1));
    assert!(found.share.allow_mmap);
    assert!(found.share.killpriv && !found.share.readdirplus);
    assert_eq!(found.ignored.len(), 8, "{:?}", found.ignored);
    let mapped =
        options("virtiofsd --fd 3 --shared-dir /d --posix-acl --translate-uid map:0:1000:10 --translate-gid map:1:2:3");
    assert!(mapped.share.posix_acl);
    let map = IdMap::both_ways;
    assert_eq!(
        (mapped.share.uid_map, mapped.share.gid_map),
        (vec![map(0, 1000, 10)], vec![map(1, 2, 3)])
    );
    // As its README has it for an ordinary user.
    let squashed = options(
        "virtiofsd --fd 3 --shared-dir /d --translate-uid squash-guest:0:1001:4294967295 --translate-gid squash-guest:0:100:4294967295 \
         --translate-uid host:1001:1000:1 --translate-gid host:100:1000:1",
    );
    let of = |kind, guest, host, count| IdMap {
        kind,
        guest,
        host,
        count,
    };
    let expected = |host| {
        vec![
            of(IdMapKind::SquashGuest, 0, host, u32::MAX),
            of(IdMapKind::Host, 1000, host, 1),
        ]
    };
    assert_eq!(
        (squashed.share.uid_map, squashed.share.gid_map),
        (expected(1001), expected(100))
    );
}

#[test]
fn attributes_are_mapped_in_either_form_and_lists_go_with_a_map_that_leaves_them() {
    let map = "/map/trusted./user.virtiofs./";
    for given in [format!("--xattrmap {map}"), format!("-o xattrmap={map}")] {
        let share = options(&format!("virtiofsd --fd 3 --shared-dir /d {given}")).share;
        assert_eq!(share.xattr_map, Some(map.parse().unwrap()), "{given}");
        assert!(share.xattr && !share.posix_acl, "{given}");
        let share = options(&format!("virtiofsd --fd 3 --shared-dir /d --posix-acl {given}")).share;
        assert!(share.posix_acl, "{given}");
    }
    let without = options("virtiofsd --fd 3 --shared-dir /d --xattr").share;
    assert_eq!(without.xattr_map, None);
}

#[test]
fn what_is_made_has_a_label_of_the_shares_own() {
    let share = options("husk fs --fd 3 --shared-dir /d --label u:r:t:s0:c1,c2").share;
    assert_eq!(share.label.as_deref(), Some(c"u:r:t:s0:c1,c2"));
    assert!(!share.xattr, "it takes none");
    assert_eq!(options("husk fs --fd 3 --shared-dir /d").share.label, None);
}

#[test]
fn what_cannot_be_is_told_with_what_can() {
    for (line, says) in [
        ("virtiofsd --fd 3", "--shared-dir DIR is needed"),
        ("virtiofsd --shared-dir /d", "--socket-path PATH or --fd N is needed"),
        ("virtiofsd --fd=-1 --shared-dir /d", "--fd -1 is no descriptor"),
        (
            "virtiofsd --fd 3 --socket-path /s --shared-dir /d",
            "cannot be used with",
        ),
        ("virtiofsd --fd 3 --shared-dir /d --cache some", "possible values: auto"),
        ("virtiofsd --fd 3 --shared-dir /d --dax", "--dax"),
        ("virtiofsd --fd 3 --shared-dir /d -o dax", "-o dax is not known"),
        (
            "virtiofsd --fd 3 --shared-dir /d -o cache=some",
            "-o cache=some: allowed: auto",
        ),
        (
            "virtiofsd --fd 3 --shared-dir /d -o loglevel=x",
            "allowed: error|err|warn",
        ),
        ("virtiofsd --fd 3 --shared-dir /d --tag=", "--tag has 0 bytes"),
        (
            "virtiofsd --fd 3 --shared-dir /d --xattrmap :ok:all:::bad:all:::",
            "rule 2: it begins with 'b'",
        ),
        (
            "virtiofsd --fd 3 --shared-dir /d -o xattrmap=:ok:both:::",
            "-o xattrmap=:ok:both:::: rule 1: scope 'both', allowed: client, server, all",
        ),
        (
            "virtiofsd --fd 3 --shared-dir /d --posix-acl --xattrmap :map::user.virtiofs.:",
            "--posix-acl and --xattrmap",
        ),
        (
            "virtiofsd --fd 3 --shared-dir /d --label u:r",
            "--label u:r is no SELinux label, written as user:role:type",
        ),
        ("virtiofsd --fd 3 --shared-dir /d --modcaps=chown", "+NAME or -NAME"),
        ("virtiofsd --fd 3 --shared-dir /d --modcaps=+all", "no capability ALL"),
        (
            "virtiofsd --fd 3 --shared-dir /d --uid-map 0:1",
            ":INSIDE:OUTSIDE:COUNT:",
        ),
        (
            "virtiofsd --fd 3 --shared-dir /d --translate-uid squash-all:0:1:1",
            "squash-guest:GUEST:HOST:COUNT",
        ),
        (
            "virtiofsd --fd 3 --shared-dir /d --translate-uid map:0:1",
            "allowed: map, guest or squash-guest:GUEST:HOST:COUNT",
        ),
        (
            "virtiofsd --fd 3 --shared-dir /d --translate-uid map:0:1:2:3",
            "forbid-guest:GUEST:COUNT",
        ),
        (
            "virtiofsd --fd 3 --shared-dir /d --posix-acl --translate-uid squash-guest:0:1:2",
            "--posix-acl and --translate-uid squash-guest:0:1:2",
        ),
    ] {
        let told = refused(line);
        assert!(told.contains(says), "{line}: {told}");
    }
}
