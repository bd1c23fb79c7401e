use clap::{CommandFactory, Parser};

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

/// A line for each command: what it is, and whether its help has `--json`.
#[test]
fn json_is_offered_where_there_is_something_to_print_and_nowhere_else() {
    let lines = [
        ("info", true),
        ("ping", true),
        ("pause", false),
        ("resume", false),
        ("shutdown", false),
        ("counters", true),
        ("queues", true),
        ("metrics", false),
        ("events", true),
        ("log-level", true),
        ("create f", false),
        ("boot", false),
        ("reboot", false),
        ("delete", false),
        ("power-button", false),
        ("add-disk path=/d", true),
        ("add-net tap=t", true),
        ("add-fs tag=t,socket=/s", true),
        ("add-pmem file=/p", true),
        ("add-vsock cid=3,socket=/s", true),
        ("remove a", false),
        ("resize --vcpus 1", true),
        ("container add a f", true),
        ("container update a f", true),
        ("container remove a", true),
        ("container list", true),
    ];
    let mut root = Cli::command();
    root.build();
    let ctl = root.find_subcommand("ctl").unwrap();
    let mut leaves = 0;
    for command in ctl.get_subcommands().filter(|command| command.get_name() != "help") {
        leaves += command
            .get_subcommands()
            .filter(|inner| inner.get_name() != "help")
            .count()
            .max(1);
    }
    assert_eq!(leaves, lines.len());
    for (line, offered) in lines {
        let words: Vec<&str> = line.split(' ').collect();
        for words in [
            [&["--json"], words.as_slice()].concat(),
            [words.as_slice(), &["--json"]].concat(),
        ] {
            let args = parse(&words).unwrap();
            assert!(args.json && args.command.takes_json() == offered, "{line}");
        }
        let asked = ["husk", "ctl", "/s"].iter().chain(&words).chain(&["--help"]);
        let help = Cli::try_parse_from(asked).unwrap_err().to_string();
        let offers = |option: &str| help.lines().any(|line| line.trim_start().starts_with(option));
        assert_eq!((offers("--json"), offers("--timeout")), (offered, true), "{help}");
    }
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
