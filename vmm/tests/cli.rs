//! The binary as a shell sees it: what it prints where, and its exit codes. No guest runs here.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod process;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

use process::make_fifo;
use serde_json::Value;

fn husk(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_husk"))
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> &str {
    str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    str::from_utf8(&output.stderr).unwrap()
}

/// The one line on standard error of a command that fails with `code` and prints nothing else.
fn complaint(args: &[&str], code: i32) -> String {
    let output = husk(args);
    let line = stderr(&output)
        .strip_suffix('\n')
        .unwrap_or_else(|| panic!("no whole line: {}", stderr(&output)));
    assert_eq!(
        (output.status.code(), stdout(&output), line.lines().count()),
        (Some(code), "", 1),
        "{args:?}: {line}"
    );
    line.to_string()
}

#[test]
fn wrong_usage_is_one_line_and_exit_code_2() {
    for (args, thing) in [
        (&["frobnicate"][..], "frobnicate"),
        (&["run", "--kernle", "/k"], "--kernle"),
        (&["run", "--kernel", "/k", "--memory", "12Q"], "12Q"),
        (&["run", "--kernel", "/k", "--memory", "0"], "memory: 0 bytes"),
        (
            &["run", "--kernel", "/k", "--memory", "999999T"],
            "memory: 1099510528264372224 bytes",
        ),
        (&["run", "--kernel", "/k", "--cpus", "0"], "cpus: 0 vCPUs"),
        (&["run", "--kernel", "/k", "--cpus", "100000"], "cpus: 100000 vCPUs"),
        (
            &["run", "--kernel", "/k", "--disk", "path=/d,colour=red"],
            "unknown key 'colour', allowed: path, readonly",
        ),
        (
            &["run", "--kernel", "/k", "--serial", "stdio", "--console", "stdio"],
            "serial and console both use stdio",
        ),
        (
            &["run", "--kernel", "/k", "--net", "fd=0:1,queues=3"],
            "2 descriptors for 3 queue pairs, one for each is needed",
        ),
        (
            &["run", "--kernel", "/k", "--net", "fd=0", "--net", "fd=1:0"],
            "net: descriptor 0 is given twice",
        ),
        (
            &["run", "--kernel", "/k", "--api-socket", "/s", "--metrics", "path=/s"],
            "--api-socket and --metrics both are /s",
        ),
        (
            &["--api-socket", "fd=0", "--metrics", "fd=0"],
            "--api-socket and --metrics both are fd 0",
        ),
        (
            &["--api-socket", "/s", "--event-monitor", "path=/s"],
            "--api-socket and --event-monitor both are /s",
        ),
        (
            &["run", "--kernel", "/k", "--api-socket", "/s", "--vsock", "socket=/s"],
            "vsock and --api-socket both have the socket /s",
        ),
        (&["check", "--json", "--nfd"], "--nfd"),
        (&["completions", "cobol"], "cobol"),
        (&["ctl", "/s", "frobnicate"], "frobnicate"),
        (
            &["ctl", "/s", "resize", "--vcpus", "0"],
            "allowed: a whole number from 1",
        ),
        (
            &["run", "--kernel", "/k", "--pod", "/dev/null"],
            "pod /dev/null: is no regular file",
        ),
    ] {
        let line = complaint(args, 2);
        assert!(line.starts_with("error: ") && line.contains(thing), "{args:?}: {line}");
    }
}

#[test]
fn a_kernel_that_is_not_there_is_a_failure_that_names_it() {
    let line = complaint(&["run", "--kernel", "/nowhere/vmlinux", "--serial", "null"], 1);
    assert!(
        line.starts_with("error: ") && line.contains(process::refusal("/nowhere/vmlinux")),
        "{line}"
    );
}

#[test]
fn a_pod_that_is_not_there_is_a_failure_that_names_it() {
    let line = complaint(&["run", "--kernel", "/k", "--pod", "/nowhere/config.json"], 1);
    assert!(
        line.starts_with("error: pod /nowhere/config.json: cannot be read: No such file"),
        "{line}"
    );
}

#[test]
fn a_fifo_that_nobody_is_at_the_other_end_of_holds_up_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    make_fifo(&fifo);
    let fifo = fifo.to_str().unwrap();
    let line = complaint(&["run", "--kernel", "/nowhere/vmlinux", "--boot-trace", fifo], 1);
    assert!(line.contains(process::refusal("/nowhere/vmlinux")), "{line}");
    let line = complaint(&["run", "--kernel", fifo], 1);
    let is_none = process::refusal("it is a FIFO; it must be a regular file");
    assert!(line.contains(is_none), "{line}");
}

#[test]
fn help_and_version_go_to_standard_output() {
    for (args, text) in [
        (&["--help"][..], "Exit codes:"),
        (&["run", "--help"], "--boot-trace"),
        (&["help", "check"], "--nfd"),
        (&["--version"], concat!("husk ", env!("CARGO_PKG_VERSION"))),
    ] {
        let output = husk(args);
        assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""), "{args:?}");
        assert!(stdout(&output).contains(text), "{args:?}: {}", stdout(&output));
    }
}

#[test]
fn no_arguments_at_all_show_the_help_and_are_wrong_usage() {
    let output = husk(&[]);
    assert_eq!((output.status.code(), stdout(&output)), (Some(2), ""));
    assert!(
        stderr(&output).contains("husk run --kernel") || stderr(&output).contains("Usage: husk"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn the_three_forms_of_check_agree() {
    let (table, json, nfd) = (husk(&["check"]), husk(&["check", "--json"]), husk(&["check", "--nfd"]));
    let report: Value = serde_json::from_slice(&json.stdout).unwrap();
    let eligible = report["eligible"].as_bool().unwrap();
    let failed = report["checks"]
        .as_array()
        .unwrap()
        .iter()
        .any(|check| check["mandatory"] == true && check["status"] == "fail");
    assert_eq!(eligible, !failed);
    for output in [&table, &json, &nfd] {
        assert_eq!((output.status.code(), stderr(output)), (Some(i32::from(!eligible)), ""));
    }
    let features = stdout(&nfd);
    assert_eq!(
        features.starts_with("feature.node.kubernetes.io/runtime.kata=true\n"),
        eligible
    );
    assert_eq!(features.is_empty(), !eligible);
    assert!(
        features
            .lines()
            .all(|line| line.starts_with("feature.node.kubernetes.io/"))
    );
    let verdict = if eligible {
        "This host can run pods.\n"
    } else {
        "This host cannot run pods: "
    };
    assert!(stdout(&table).contains(verdict), "{}", stdout(&table));
}

#[test]
fn an_exit_code_or_a_line_of_the_log_is_explained_or_said_to_be_unknown() {
    let explained = |words: &[&str]| {
        let output = husk(&[&["explain"], words].concat());
        assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""), "{words:?}");
        stdout(&output).to_owned()
    };
    assert!(explained(&["137"]).contains("oom_kill"));
    assert!(explained(&["SIGSEGV"]).contains("\ndo: "));
    let line = "WARN: the tap of a network device is gone: its link is down";
    assert_eq!(
        explained(&[line]),
        explained(&line.split(' ').collect::<Vec<_>>()),
        "with and without quotes"
    );
    for what in ["99", "it does not work"] {
        let line = complaint(&["explain", what], 1);
        assert!(line.contains(&format!("nothing is known of '{what}'")), "{line}");
    }
    assert!(complaint(&["explain"], 2).contains("WHAT"));
}

#[test]
fn completions_are_made_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = husk(&["completions", shell]);
        assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""), "{shell}");
        for word in ["boot-trace", "enable-annotations", "container", "vcpus"] {
            assert!(stdout(&output).contains(word), "{shell}: {word}");
        }
    }
}

#[test]
fn bash_completes_the_ids_of_devices_that_a_husk_counts_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("completions"), stdout(&husk(&["completions", "bash"]))).unwrap();
    // In the place of a husk: what its counters look like, for one socket.
    fs::write(
        path("husk"),
        "#!/bin/sh\n[ \"$2\" = './a b' ] || exit 1\nprintf '__rng     bytes  1\\n_disk0    reads  1\\n_disk0    writes  1\\ndata      reads  1\\n'\n",
    )
    .unwrap();
    fs::set_permissions(path("husk"), fs::Permissions::from_mode(0o700)).unwrap();
    let completed = |words: &[&str]| {
        let script = r#"PATH=.:$PATH; source ./completions
            COMP_WORDS=(husk "$@"); COMP_CWORD=$#; _husk_with_ids husk "${!#}" "${COMP_WORDS[$#-1]}"; echo "${COMPREPLY[*]}""#;
        let mut bash = Command::new("bash");
        bash.args(["--norc", "-c", script, "bash"]).args(words);
        let output = bash.current_dir(folder.path()).output().unwrap();
        assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""), "{words:?}");
        stdout(&output).trim_end().to_owned()
    };
    assert_eq!(completed(&["ctl", "./a b", "remove", ""]), "_disk0 data");
    assert_eq!(
        completed(&["ctl", "./a b", "--timeout", "3", "remove", "--json", "_"]),
        "_disk0"
    );
    assert_eq!(completed(&["ctl", "./other", "remove", ""]), "");
    assert!(completed(&["ctl", "./a b", "remove", "--"]).contains("--timeout"));
    assert!(completed(&["ctl", "./a b", "remo"]).contains("remove"));
    assert!(completed(&["ga"]).contains("gather"));
}

#[test]
fn a_reader_that_has_gone_is_an_error_and_no_panic() {
    for args in [&["check"][..], &["completions", "bash"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = Command::new(env!("CARGO_BIN_EXE_husk"))
            .args(args)
            .stdout(writer)
            .output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(
            stderr(&output).starts_with("error: cannot write to standard output"),
            "{}",
            stderr(&output)
        );
    }
    let full = File::create("/dev/full").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_husk"))
        .args(["check"])
        .stdout(full)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
}
