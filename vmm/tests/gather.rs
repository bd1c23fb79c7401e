//! `husk gather` against processes that it is about.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod process;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use husk_devices::testing::until;
use process::{HUSK, Husk, Signal, has_kvm};
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
    let pid = husk.child.id().to_string();
    let mut folders = fs::read_dir(&all).unwrap().map(|entry| entry.unwrap().file_name());
    let is_own = |name: &std::ffi::OsString| name.to_str().unwrap().rsplit('-').next() == Some(&pid);
    let own = all.join(folders.find(is_own).unwrap());
    (all, own)
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Why `index` says that the part whose name ends so could not be had.
fn why<'a>(index: &'a str, part: &str) -> &'a str {
    let is_it = |line: &&str| line.split(' ').next().is_some_and(|name| name.ends_with(part));
    index.lines().find(is_it).unwrap_or_default()
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

/// A husk with a VM whose command line has a secret in it; with a guest that has printed one where
/// it `boots`, if one can run here.
fn husk(boots: bool) -> Option<Husk> {
    if boots && !has_kvm() {
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let (log, console) = (folder.path().join("log"), folder.path().join("console"));
    let kernel = kernel(folder.path());
    let husk = Husk::start_in(folder, &["-v", "--log-file", log.to_str().unwrap()]);
    let vm = json!({
        "payload": {"kernel": kernel, "cmdline": format!("quiet db_password={SECRET}")},
        "memory": {"size": 64 << 20},
        "serial": {"mode": "File", "file": console},
        "console": {"mode": "Off"},
    });
    assert_eq!(husk.client().put("vm.create", Some(vm)).0, 204);
    if boots {
        assert_eq!(husk.client().put("vm.boot", None).0, 204);
        print(
            &console,
            &format!("Command line: quiet db_password={SECRET}\nlast words\n"),
        );
    }
    Some(husk)
}

/// A kernel of a few instructions, which stays.
fn kernel(folder: &Path) -> PathBuf {
    let path = folder.join("vmlinux");
    fs::write(
        &path,
        husk_benches::elf_of(&husk_benches::code(husk_benches::GuestAction::Halt)),
    )
    .unwrap();
    path
}

/// As if the guest had printed `text`.
fn print(console: &Path, text: &str) {
    let mut file = File::options().append(true).open(console).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

#[test]
fn a_bundle_has_all_there_is_and_no_secret_and_explains_itself() {
    let mut husk = husk(false).unwrap();
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
    assert!(
        missing.contains("console.txt") && missing.contains("console: not open there for writing"),
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
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let kernel = kernel(folder.path());
    let mut command = process::command(Path::new("api.sock"), &["-v", "--log", "file=l"]);
    let child = command.current_dir(folder.path()).spawn().unwrap();
    let mut husk = Husk { folder, child };
    husk.ready();
    let vm = json!({
        "payload": {"kernel": kernel}, "memory": {"size": 64 << 20},
        "serial": {"mode": "File", "file": "c"}, "console": {"mode": "Off"},
    });
    assert_eq!(husk.client().put("vm.create", Some(vm)).0, 204);
    assert_eq!(husk.client().put("vm.boot", None).0, 204);
    print(&husk.folder.path().join("c"), "last words\n");
    let (_, own) = gathered(&husk, &[&husk.child.id().to_string()], "bundle");
    assert!(text(&own.join("log.txt")).contains("vm.create"));
    let said = text(&own.join("console.txt"));
    assert!(
        said.starts_with("==> c <==\n") && said.contains("last words\n"),
        "{said}"
    );
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn a_husk_that_hangs_costs_what_it_would_say_and_nothing_else() {
    let Some(husk) = husk(true) else { return };
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
    // What it has open tells where its guest printed, and nothing else that it writes is taken for that.
    let (console, said) = (husk.folder.path().join("console"), text(&own.join("console.txt")));
    assert!(
        said.starts_with(&format!("==> {} <==\n", console.display()))
            && said.contains("Command line: quiet db_password=***\nlast words\n")
            && said.matches("==>").count() == 1,
        "{said}"
    );
    let husks: Value = serde_json::from_str(&text(&all.join("host/husks.json"))).unwrap();
    assert_eq!(husks[0]["state"], "stopped");
    husk.signal(Signal::CONT);
}

#[test]
fn a_husk_without_an_api_has_a_console_and_the_index_says_what_it_has_not() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (console, kernel) = (folder.path().join("console"), kernel(folder.path()));
    let mut command = Command::new(HUSK);
    command.arg("run").arg("--kernel").arg(kernel).args(["--memory", "64M"]);
    command.arg("--serial").arg(format!("file={}", console.display()));
    let child = command.stdin(Stdio::null()).spawn().unwrap();
    let husk = Husk { folder, child };
    // Its guest says something, and goes on.
    until(|| fs::metadata(&console).is_ok_and(|found| found.len() > 0));
    print(&console, "last words\n");
    let (all, own) = gathered(&husk, &[&husk.child.id().to_string()], "bundle");
    let said = text(&own.join("console.txt"));
    assert!(
        said.starts_with(&format!("==> {} <==\n", console.display())) && said.ends_with("last words\n"),
        "{said}"
    );
    let index = text(&all.join("index.txt"));
    let (_, missing) = index.split_once("\nCould not be had:\n").unwrap();
    for part in ["api/ping.json", "api/info.json", "api/metrics.txt", "api/events.jsonl"] {
        assert!(why(missing, part).contains("it serves no API"), "{part}: {missing}");
    }
}

/// Whoever listens first is whom the kernel names as the socket's owner: a shim, or systemd.
#[test]
fn a_husk_is_found_by_a_socket_that_was_passed_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("api.sock")).unwrap();
    let mut command = Command::new(HUSK);
    command.args(["--api-socket", "fd=0"]).stdin(OwnedFd::from(listener));
    let child = command.stderr(Stdio::null()).spawn().unwrap();
    let mut husk = Husk { folder, child };
    // It answers: it has become what its command line says.
    assert_eq!(husk.client().get("vmm.ping").0, 200);
    let (_, own) = gathered(&husk, &[husk.socket().to_str().unwrap()], "bundle");
    assert!(text(&own.join("proc/status")).contains("VmRSS:"));
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn a_husk_whose_program_is_called_something_else_is_found_when_it_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("my-vmm");
    fs::copy(HUSK, &program).unwrap();
    let mut command = Command::new(program);
    command.arg("--api-socket").arg(folder.path().join("api.sock"));
    let child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut husk = Husk { folder, child };
    husk.ready();
    for (name, target) in [
        ("a", husk.socket().to_str().unwrap().to_owned()),
        ("b", husk.child.id().to_string()),
    ] {
        let (_, own) = gathered(&husk, &[&target], name);
        assert!(text(&own.join("proc/status")).contains("VmRSS:"), "{target}");
    }
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn a_husk_that_takes_no_connection_is_found_by_whatever_path_leads_to_its_socket() {
    let husk = Husk::start(&[]);
    husk.signal(Signal::STOP);
    let stat = format!("/proc/{}/stat", husk.child.id());
    while !text(Path::new(&stat)).contains(") T ") {}
    let link = tempfile::tempdir().unwrap();
    let link = link.path().join("link");
    std::os::unix::fs::symlink(husk.folder.path(), &link).unwrap();
    // Until its queue is full.
    let connect = || husk_virtio::unix::connect(&husk.socket());
    let waiting: Vec<_> = std::iter::repeat_with(connect).take_while(Result::is_ok).collect();
    assert!(!waiting.is_empty());
    let socket = link.join("api.sock");
    let (all, own) = gathered(&husk, &[socket.to_str().unwrap(), "--timeout", "0.3"], "bundle");
    assert!(text(&own.join("proc/status")).contains("VmRSS:"));
    let index = text(&all.join("index.txt"));
    assert!(why(&index, "api/ping.json").contains("takes no connection"), "{index}");
    husk.signal(Signal::CONT);
}

/// `run` in a mount namespace where an empty file system lies over `place`, which is `$1` there;
/// `$2` is husk, and `$3` its `socket`. `None` where there can be none, which is said.
fn behind_a_mount(place: &Path, run: &str, socket: &Path) -> Option<Child> {
    let inside = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]);
        command.arg(place).arg(HUSK).arg(socket);
        command.stdin(Stdio::null()).stderr(Stdio::null());
        command
    };
    let mount = "mount -t tmpfs none $1";
    if !inside(mount).status().is_ok_and(|status| status.success()) {
        println!("skipped: needs unshare, user namespaces");
        return None;
    }
    Some(inside(&format!("{mount} && {run}")).spawn().unwrap())
}

/// The host has another file of that name.
#[test]
fn a_husk_in_a_mount_namespace_of_its_own_has_its_own_log() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("place");
    fs::create_dir(&place).unwrap();
    fs::write(place.join("log"), "of the host\n").unwrap();
    let socket = folder.path().join("api.sock");
    let run = "exec $2 --api-socket $3 -v --log-file $1/log";
    let Some(child) = behind_a_mount(&place, run, &socket) else {
        return;
    };
    let husk = Husk { folder, child };
    husk.ready();
    let vm = json!({"payload": {"kernel": "/nowhere"}});
    assert_eq!(husk.client().put("vm.create", Some(vm)).0, 204);
    let (_, own) = gathered(&husk, &[&husk.child.id().to_string()], "bundle");
    let log = text(&own.join("log.txt"));
    assert!(log.contains("vm.create") && !log.contains("of the host"), "{log}");
}

/// As in a container, of a path that the host does not have.
#[test]
fn a_husk_whose_socket_is_in_another_mount_namespace_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api.sock");
    let Some(child) = behind_a_mount(folder.path(), "exec $2 --api-socket $3", &socket) else {
        return;
    };
    let husk = Husk { folder, child };
    let pid = husk.child.id();
    // Its socket is there, and answers, once husk has begun.
    let seen = loop {
        let output = Command::new(HUSK).args(["ps", "--json"]).output().unwrap();
        let all: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        let found = all.into_iter().find(|seen| seen["pid"] == pid);
        match found {
            Some(seen) if seen["state"] != "unreachable" => break seen,
            _ => assert!(Path::new(&format!("/proc/{pid}/exe")).read_link().is_ok()),
        }
    };
    assert_eq!(
        (&seen["state"], &seen["socket"]),
        (&json!("no VM"), &json!(husk.socket()))
    );
    let elsewhere = tempfile::tempdir().unwrap();
    let all = elsewhere.path().join("bundle");
    let output = gather(&[&pid.to_string(), "--dir", all.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    let answers = files(&all).into_iter().filter(|file| file.ends_with("api/ping.json"));
    assert_eq!(answers.count(), 1);
}

/// Of whoever calls itself a husk, and is a user's, root's bundle must have nothing but what that user writes.
#[test]
fn a_name_on_a_command_line_opens_no_file_of_roots() {
    const NOBODY: u32 = 65_534;
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    let (own, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let secret = own.path().join("secret");
    fs::write(&secret, "of root alone\n").unwrap();
    let program = folder.path().join("husk");
    fs::copy("/bin/bash", &program).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(&program);
    command.args(["-c", "read line", "--log-file"]).arg(&secret);
    command.arg("--serial").arg(format!("file={}", secret.display()));
    let child = command.uid(NOBODY).gid(NOBODY).stdin(Stdio::piped()).spawn().unwrap();
    let husk = Husk {
        folder: tempfile::tempdir().unwrap(),
        child,
    };
    let (all, found) = gathered(&husk, &["--all"], "bundle");
    assert!(!found.join("log.txt").exists() && !found.join("console.txt").exists());
    let index = text(&all.join("index.txt"));
    for part in ["log.txt", "console.txt"] {
        let why = why(&index, &format!("{}/{part}", husk.child.id()));
        assert!(why.contains("secret: not open there for writing"), "{part}: {index}");
    }
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
        (&["1", "-o", "-"], 2, "is not written to standard output; allowed: "),
        (&["1", "--dir", "-"], 2, "is not written to standard output; allowed: "),
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
