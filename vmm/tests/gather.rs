//! `husk gather` against processes that it is about.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod process;

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use process::{HUSK, Husk, Signal};
use serde_json::{Value, json};

const SECRET: &str = "hunter2";

fn gather(args: &[&str]) -> Output {
    let mut command = Command::new(HUSK);
    command.arg("gather").args(args).env("HUSK_TEST", SECRET);
    command.stdin(Stdio::null()).output().unwrap()
}

/// Gathers into a folder, and returns the one below it that is about the husk.
fn gathered(husk: &Husk, args: &[&str], name: &str) -> (PathBuf, PathBuf) {
    let all = husk.folder.path().join(name);
    let output = gather(&[args, &["--dir", all.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{output:?}");
    let end = format!("-{}", husk.child.id());
    let mut folders = fs::read_dir(&all).unwrap().map(|entry| entry.unwrap().path());
    let own = folders.find(|path| path.to_str().unwrap().ends_with(&end)).unwrap();
    (all, own)
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found
}

/// A husk with a VM whose command line has a secret in it, and the path of its log and of its guest's console.
fn husk() -> (Husk, PathBuf, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let (log, console) = (folder.path().join("log"), folder.path().join("console"));
    let husk = Husk::start_in(folder, &["-v", "--log-file", log.to_str().unwrap()]);
    fs::write(
        &console,
        format!("Command line: quiet db_password={SECRET}\nlast words\n"),
    )
    .unwrap();
    let vm = json!({
        "payload": {"kernel": "/nowhere/vmlinux", "cmdline": format!("quiet db_password={SECRET}")},
        "memory": {"size": 64 << 20},
        "serial": {"mode": "File", "file": console},
        "console": {"mode": "Off"},
    });
    assert_eq!(husk.client().put("vm.create", Some(vm)).0, 204);
    (husk, log, console)
}

#[test]
fn a_bundle_has_all_there_is_and_no_secret_and_explains_itself() {
    let (mut husk, _, _) = husk();
    let socket = husk.socket();
    let (all, own) = gathered(&husk, &[socket.to_str().unwrap()], "bundle");
    let info: Value = serde_json::from_str(&text(&own.join("api/info.json"))).unwrap();
    assert_eq!(
        (&info["state"], &info["config"]["payload"]["cmdline"]),
        (&json!("Created"), &json!("quiet db_password=***"))
    );
    assert!(text(&own.join("api/ping.json")).contains("husk v"));
    assert!(text(&own.join("api/metrics.txt")).contains("husk_vm_state"));
    assert!(text(&own.join("api/events.jsonl")).contains("\"starting\""));
    assert!(text(&own.join("log.txt")).contains("vm.create"));
    let console = text(&own.join("console.txt"));
    assert!(console.contains("db_password=***\nlast words\n"), "{console}");
    let threads = text(&own.join("threads.txt"));
    assert!(threads.contains(" api\n") && threads.contains("  wchan: "), "{threads}");
    assert!(text(&own.join("proc/status")).contains("VmRSS:"));
    assert!(text(&own.join("descriptors.txt")).contains("socket:["));
    let check: Value = serde_json::from_str(&text(&all.join("host/check.json"))).unwrap();
    assert!(check.is_object(), "{check}");
    let husks: Value = serde_json::from_str(&text(&all.join("host/husks.json"))).unwrap();
    assert_eq!(husks[0]["pid"], husk.child.id());
    let index = text(&all.join("index.txt"));
    for file in files(&all) {
        let name = file.strip_prefix(&all).unwrap().to_str().unwrap();
        let content = fs::read(&file).unwrap();
        assert!(!String::from_utf8_lossy(&content).contains(SECRET), "{name}");
        assert!(
            name == "index.txt" || index.lines().any(|line| line.starts_with(&format!("{name} "))),
            "{name}: {index}"
        );
    }
    // It has no counters without a machine, and says so.
    let (_, missing) = index.split_once("\nCould not be had:\n").unwrap();
    assert!(
        missing.contains("api/counters.json") && missing.contains("refused (409)"),
        "{missing}"
    );

    // The same by its process, as an archive.
    let archive = husk.folder.path().join("bundle.tar.zst");
    let pid = husk.child.id().to_string();
    let output = gather(&[&pid, "-o", archive.to_str().unwrap()]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        said.starts_with("1 husks, ") && said.contains("see index.txt"),
        "{said}"
    );
    let mut unpacked = tar::Archive::new(zstd::Decoder::new(File::open(&archive).unwrap()).unwrap());
    let mut names = Vec::new();
    for entry in unpacked.entries().unwrap() {
        let mut entry = entry.unwrap();
        names.push(entry.path().unwrap().to_str().unwrap().to_owned());
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
    }
    assert_eq!(names[0], "husk-gather/index.txt");
    assert!(names.iter().any(|name| name.ends_with("/api/info.json")), "{names:?}");
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn a_log_and_a_console_are_found_from_where_the_process_stands() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = process::command(Path::new("api.sock"), &["-v", "--log", "file=l"]);
    let child = command.current_dir(folder.path()).spawn().unwrap();
    let mut husk = Husk { folder, child };
    husk.ready();
    let vm = json!({
        "payload": {"kernel": "/nowhere/vmlinux"}, "memory": {"size": 64 << 20},
        "serial": {"mode": "File", "file": "c"}, "console": {"mode": "Off"},
    });
    assert_eq!(husk.client().put("vm.create", Some(vm)).0, 204);
    fs::write(husk.folder.path().join("c"), "last words\n").unwrap();
    let (_, own) = gathered(&husk, &[&husk.child.id().to_string()], "bundle");
    assert!(text(&own.join("log.txt")).contains("vm.create"));
    assert_eq!(text(&own.join("console.txt")), "==> c <==\nlast words\n");
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn a_husk_that_hangs_costs_what_it_would_say_and_nothing_else() {
    let (husk, _, _) = husk();
    husk.signal(Signal::STOP);
    let stat = format!("/proc/{}/stat", husk.child.id());
    while !text(Path::new(&stat)).contains(") T ") {}
    let socket = husk.socket();
    let (all, own) = gathered(&husk, &[socket.to_str().unwrap(), "--timeout", "0.3"], "bundle");
    assert!(!own.join("api").exists());
    let index = text(&all.join("index.txt"));
    let (_, missing) = index.split_once("\nCould not be had:\n").unwrap();
    assert!(
        missing.contains("api/ping.json") && missing.contains("vmm.ping was not answered within 0.3 s"),
        "{missing}"
    );
    assert!(
        missing.contains("api/info.json") && missing.contains("not asked for"),
        "{missing}"
    );
    assert!(text(&own.join("threads.txt")).contains("State: T (stopped)"));
    assert!(text(&own.join("log.txt")).contains("vm.create"));
    let husks: Value = serde_json::from_str(&text(&all.join("host/husks.json"))).unwrap();
    assert_eq!(husks[0]["state"], "stopped");
    husk.signal(Signal::CONT);
}

#[test]
fn what_cannot_be_gathered_is_said_in_one_line_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("there"), "kept").unwrap();
    for (args, code, says) in [
        (&["1", "-o", &path("new")][..], 1, "process 1 is no husk"),
        (&[&path("socket"), "-o", &path("new")], 1, "nobody serves it"),
        (&["--all"], 2, "--output"),
        (&["-o", &path("new")], 2, "SOCKET|PID"),
        (&["1", "--all", "-o", &path("new")], 2, "cannot be used with"),
        (
            &["1", "-o", &path("new"), "--dir", &path("d")],
            2,
            "cannot be used with",
        ),
        (&["0", "-o", &path("new")], 2, "from 1 on"),
    ] {
        let output = gather(args);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            (output.status.code(), error.lines().count()),
            (Some(code), 1),
            "{args:?}: {error}"
        );
        assert!(error.contains(says), "{args:?}: {error}");
    }
    let husk = Husk::start(&[]);
    let pid = husk.child.id().to_string();
    for output in ["-o", "--dir"] {
        let output = gather(&[&pid, output, &path("there")]);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains("cannot be written: File exists"), "{error}");
    }
    assert_eq!(text(Path::new(&path("there"))), "kept");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_host_without_a_thread_to_spare_gets_an_index_that_says_so() {
    let husk = Husk::start(&[]);
    let folder = husk.folder.path().join("bundle");
    let mut command = Command::new(HUSK);
    command.arg("gather").arg(husk.socket()).arg("--dir").arg(&folder);
    // No thread can be started with such a stack, as none can at a limit of processes.
    command
        .env("RUST_MIN_STACK", usize::MAX.to_string())
        .stdin(Stdio::null());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let index = text(&folder.join("index.txt"));
    assert!(index.contains("no thread to read it: "), "{index}");
}
