use clap::Parser;

use super::super::{Cli, Command};
use super::*;

fn parse(words: &[&str]) -> Result<CtlArgs, String> {
    let parsed = Cli::try_parse_from(["husk", "ctl", "/s"].iter().chain(words));
    match parsed.map_err(|error| super::super::one_line(&error))?.command {
        Some(Command::Ctl(args)) => Ok(args),
        other => panic!("{other:?}"),
    }
}

#[test]
fn sizes_and_waits_are_read_wherever_they_stand() {
    let args = parse(&[
        "resize",
        "--vcpus",
        "4",
        "--memory",
        "1536M",
        "--balloon",
        "0",
        "--wait",
        "0.5",
        "--json",
    ])
    .unwrap();
    assert!(args.json);
    let Request::Resize { wanted, wait } = args.command.into() else {
        panic!("another request")
    };
    let expected = TargetSize {
        vcpus: Some(4),
        memory_bytes: Some(1536 << 20),
        balloon_bytes: Some(0),
    };
    assert_eq!((wanted, wait), (expected, Duration::from_millis(500)));
    let args = parse(&["--json", "--timeout", "3", "container", "list"]).unwrap();
    assert_eq!((args.json, args.timeout), (true, Some(Duration::from_secs(3))));
    assert!(matches!(args.command.into(), Request::List));
}

#[test]
fn wrong_values_are_named_with_what_is_allowed() {
    for (words, says) in [
        (&["resize"][..], "required arguments were not provided: <--"),
        (&["resize", "--vcpus", "0"], "allowed: a whole number from 1"),
        (&["resize", "--vcpus", "-1"], "allowed: a whole number from 1"),
        (&["resize", "--memory", "0"], "allowed: more than nothing"),
        (&["resize", "--memory", "-1"], "a size is a whole number"),
        (&["resize", "--memory", "16777216T"], "more bytes than 2^64"),
        (&["resize", "--vcpus", "1", "--wait", "-1"], "--wait"),
        (
            &["resize", "--vcpus", "1", "--wait", "NaN"],
            "allowed: a number of seconds from 0 to 86400",
        ),
        (
            &["resize", "--vcpus", "1", "--wait", "1e99"],
            "allowed: a number of seconds from 0 to 86400",
        ),
        (&["ping", "--timeout", "0"], "allowed: a number of seconds above 0"),
        (&["container", "add", "a"], "<FILE>"),
        (&["container", "add", "", "f"], "allowed: up to 255 letters"),
        (&["container", "remove", "a/b"], "allowed: up to 255 letters"),
        (
            &["container", "add", "a", "f", "--enable-annotations", "("],
            "no regular expression",
        ),
        (&["frobnicate"], "frobnicate"),
    ] {
        let refusal = parse(words).unwrap_err();
        assert!(
            refusal.contains(says) && refusal.lines().count() == 1,
            "{words:?}: {refusal}"
        );
    }
}

#[test]
fn a_path_is_sent_as_what_it_is_here() {
    let here = std::env::current_dir().unwrap();
    let at = |path: &str| here.join(path).to_str().unwrap().to_owned();
    for (words, paths) in [
        (["add-disk", "path=d/../disk.raw"], vec![("path", at("d/../disk.raw"))]),
        (["add-disk", "path=/disk.raw"], vec![("path", "/disk.raw".into())]),
        (["add-pmem", "file=./pmem"], vec![("file", at("pmem"))]),
        (["add-vsock", "socket=vsock.sock"], vec![("socket", at("vsock.sock"))]),
        (["add-vsock", "backend=vhost"], vec![("socket", String::new())]),
        (["add-fs", "tag=t,socket=fs.sock"], vec![("socket", at("fs.sock"))]),
        (
            ["add-fs", "tag=t,dir=data"],
            vec![("dir", at("data")), ("socket", String::new())],
        ),
    ] {
        let Request::Do(_, Some(body)) = parse(&words).unwrap().command.into() else {
            panic!("{words:?}: another request")
        };
        for (field, path) in paths {
            assert_eq!(body[field], path, "{words:?}");
        }
    }
}
