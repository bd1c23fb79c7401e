//! `husk fs` as a process: how it starts, whom it serves, how it ends; with a front-end that speaks FUSE by hand.
#![allow(clippy::unwrap_used, reason = "helpers of a test fail as the test does")]

mod front_end;

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{chown, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Output, Stdio};

use front_end::FrontEnd;
use husk_devices::testing::until;
use rustix::process::{Pid, Resource, Rlimit, Signal, geteuid, kill_process, prlimit};
use tempfile::TempDir;

const HUSK: &str = env!("CARGO_BIN_EXE_husk");
/// What the Rust shim waits for.
const READY: &str = "Waiting for vhost-user socket connection";

/// A folder with a share in it, and `husk fs`. Killed at the end, should it still be there.
struct Daemon {
    folder: TempDir,
    child: Child,
    stderr: ChildStderr,
    said: String,
}

impl Daemon {
    fn start(options: &[&str]) -> Self {
        let folder = folder();
        let socket = folder.path().join("fs.sock");
        // A signal that the tests' own parent ignores would stay ignored.
        let mut command = Command::new("env");
        command.args(["--default-signal", HUSK]);
        command.arg("fs").arg("--socket-path").arg(socket);
        Self::spawn(folder, command, options)
    }

    fn spawn(folder: TempDir, command: Command, options: &[&str]) -> Self {
        let shared = folder.path().join("shared");
        Self::sharing(folder, command, &shared, options)
    }

    fn sharing(folder: TempDir, mut command: Command, shared: &Path, options: &[&str]) -> Self {
        command.arg("--shared-dir").arg(shared).args(options);
        command.stderr(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let mut daemon = Self {
            folder,
            child,
            stderr,
            said: String::new(),
        };
        daemon.hear(READY);
        daemon
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("fs.sock")
    }

    fn front_end(&self) -> FrontEnd {
        FrontEnd::connect(&self.socket())
    }

    /// Waits until it has said `text`.
    fn hear(&mut self, text: &str) {
        let mut piece = [0; 1024];
        while !self.said.contains(text) {
            let count = self.stderr.read(&mut piece).unwrap();
            assert_ne!(count, 0, "not said: {text}; but {}", self.said);
            self.said.push_str(&String::from_utf8_lossy(&piece[..count]));
        }
    }

    /// What it says until it ends, and how it ends.
    fn end(&mut self) -> ExitStatus {
        self.stderr.read_to_string(&mut self.said).unwrap();
        self.child.wait().unwrap()
    }

    /// How many of its files are there: of socket and process number.
    fn left(&self) -> usize {
        let files = ["fs.sock", "fs.sock.pid"].map(|name| self.folder.path().join(name));
        files.iter().filter(|file| file.exists()).count()
    }

    /// A field of `/proc/PID/status`.
    fn status(&self, field: &str) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        line.unwrap().trim_start_matches(':').trim().to_string()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A folder with a share in it that has a file.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let shared = folder.path().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("greeting"), "hello").unwrap();
    fs::write(folder.path().join("secret"), "of the host").unwrap();
    folder
}

fn husk_fs(arguments: &[&str]) -> Output {
    Command::new(HUSK).arg("fs").args(arguments).output().unwrap()
}

fn one_line(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let errors: Vec<_> = text.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{text}");
    errors[0].to_string()
}

#[test]
fn under_virtiofsds_name_a_file_is_served_and_the_end_of_the_front_end_is_the_end() {
    let folder = folder();
    let program = folder.path().join("virtiofsd");
    symlink(HUSK, &program).unwrap();
    let socket = folder.path().join("fs.sock");
    let mut command = Command::new(program);
    command.arg("--socket-path").arg(socket);
    // As the Rust shim goes on.
    let mut daemon = Daemon::spawn(
        folder,
        command,
        &[
            "--cache",
            "auto",
            "--thread-pool-size=1",
            "-o",
            "announce_submounts",
            "--xattr",
        ],
    );
    let mut front_end = daemon.front_end();
    front_end.mount();
    assert_eq!(front_end.read("greeting"), b"hello");
    assert_eq!(front_end.lookup("missing"), Err(-libc::ENOENT));
    front_end.write("greeting", b"HELLO");
    assert_eq!(
        fs::read(daemon.folder.path().join("shared/greeting")).unwrap(),
        b"HELLO"
    );
    drop(front_end);
    assert_eq!(daemon.end().code(), Some(0), "{}", daemon.said);
}

#[test]
fn the_go_shims_descriptor_is_listened_to() {
    let folder = folder();
    let listener = UnixListener::bind(folder.path().join("fs.sock")).unwrap();
    let mut command = Command::new(HUSK);
    command.args(["fs", "--syslog", "--cache=auto", "--fd=0"]);
    command.stdin(OwnedFd::from(listener));
    // Without a system's log there is standard error, and the line that is waited for.
    if UnixStream::connect("/dev/log").is_ok() || Path::new("/dev/log").exists() {
        return;
    }
    let mut daemon = Daemon::spawn(folder, command, &["--thread-pool-size=1", "--announce-submounts"]);
    assert!(
        daemon.said.contains("the system's log at /dev/log takes no lines"),
        "{}",
        daemon.said
    );
    let mut front_end = daemon.front_end();
    front_end.mount();
    assert_eq!(front_end.read("greeting"), b"hello");
    drop(front_end);
    assert!(daemon.end().success());
    assert!(daemon.socket().exists(), "it is the shim's");
}

#[test]
fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
    let folder = folder();
    let socket = folder.path().join("fs.sock");
    drop(UnixListener::bind(&socket).unwrap());
    let mut command = Command::new(HUSK);
    command.arg("fs").arg("--socket-path").arg(&socket);
    let mut daemon = Daemon::spawn(folder, command, &["--sandbox", "none"]);
    let pid = fs::read_to_string(daemon.folder.path().join("fs.sock.pid")).unwrap();
    assert_eq!(pid, format!("{}\n", daemon.child.id()));
    let shared = daemon.folder.path().join("shared");
    let arguments = [
        "--shared-dir",
        shared.to_str().unwrap(),
        "--socket-path",
        socket.to_str().unwrap(),
    ];
    let second = husk_fs(&arguments);
    assert_eq!(second.status.code(), Some(1));
    assert!(one_line(&second).contains("another process serves at"));
    let mut front_end = daemon.front_end();
    front_end.mount();
    assert_eq!(front_end.read("greeting"), b"hello");
    drop(front_end);
    assert!(daemon.end().success());
    // Where the process could still reach them.
    assert!(!socket.exists() && !daemon.folder.path().join("fs.sock.pid").exists());
}

#[test]
fn a_socket_by_a_relative_path_goes_with_its_process_whose_directory_has_become_another() {
    let folder = folder();
    let mut command = Command::new(HUSK);
    command
        .current_dir(folder.path())
        .args(["fs", "--socket-path", "fs.sock"]);
    let daemon = Daemon::spawn(folder, command, &["--sandbox", "none"]);
    let pid = daemon.folder.path().join("fs.sock.pid");
    assert!(pid.exists());
    let mut front_end = daemon.front_end();
    front_end.mount();
    drop(front_end);
    let socket = daemon.socket();
    let mut daemon = daemon;
    assert!(daemon.end().success());
    assert!(!socket.exists() && !pid.exists());
}

#[test]
fn what_cannot_be_served_is_told_in_a_line() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let (shared, socket) = (path("shared"), path("s.sock"));
    for (arguments, code, says) in [
        (vec!["--shared-dir", &shared], 2, "--socket-path PATH or --fd N"),
        (
            vec!["--socket-path", &socket, "--shared-dir", &shared, "--dax"],
            2,
            "--dax",
        ),
        (
            vec!["--socket-path", &socket, "--shared-dir", &path("none")],
            1,
            "No such file",
        ),
        (
            vec!["--socket-path", &socket, "--shared-dir", &path("secret")],
            1,
            "is no directory",
        ),
        (
            vec!["--socket-path", &path("no/s.sock"), "--shared-dir", &shared],
            1,
            "no/s.sock.pid",
        ),
        (
            vec!["--socket-path", &path("secret"), "--shared-dir", &shared],
            1,
            "is not a socket",
        ),
        (vec!["--fd", "0", "--shared-dir", &shared], 1, "--fd 0 is "),
        (vec!["--fd", "99", "--shared-dir", &shared], 1, "--fd 99 is not open"),
        (
            vec![
                "--socket-path",
                &socket,
                "--shared-dir",
                &shared,
                "--socket-group",
                "no-such",
            ],
            1,
            "--socket-group no-such",
        ),
        (
            vec![
                "--socket-path",
                &socket,
                "--shared-dir",
                &shared,
                "--sandbox",
                "none",
                "--uid-map",
                ":0:1:1:",
            ],
            1,
            "--uid-map",
        ),
        (
            vec![
                "--socket-path",
                &socket,
                "--shared-dir",
                &shared,
                "--label",
                "no:such:label",
            ],
            1,
            "with the label no:such:label: it takes a host with SELinux that knows it",
        ),
    ] {
        let output = husk_fs(&arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
        let line = one_line(&output);
        assert!(line.contains(says), "{arguments:?}: {line}");
        let left: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        assert_eq!(left.len(), 2, "{arguments:?} left {left:?}");
    }
    assert_eq!(fs::read(path("secret")).unwrap(), b"of the host");
}

#[test]
fn what_it_can_do_is_printed_without_a_share() {
    let output = husk_fs(&["--print-capabilities"]);
    assert!(output.status.success() && output.stderr.is_empty());
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["type"], "fs");
}

#[test]
fn a_front_end_that_speaks_nonsense_ends_itself_only() {
    let mut daemon = Daemon::start(&[]);
    for nonsense in [&[0xff; 64][..], &[1, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f]] {
        let mut stream = UnixStream::connect(daemon.socket()).unwrap();
        stream.write_all(nonsense).unwrap();
        // It is hung up on: nothing comes, and then the end.
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{rest:?}");
    }
    daemon.hear("hung up on");
    let mut front_end = daemon.front_end();
    front_end.mount();
    assert_eq!(front_end.read("greeting"), b"hello");
    drop(front_end);
    assert!(daemon.end().success(), "{}", daemon.said);
}

#[test]
fn a_ring_that_breaks_the_rules_is_left_alone_and_the_others_go_on() {
    let mut daemon = Daemon::start(&[]);
    let mut front_end = daemon.front_end();
    front_end.mount();
    front_end.break_queue(2);
    daemon.hear("a queue is left alone");
    assert_eq!(front_end.read("greeting"), b"hello");
    drop(front_end);
    assert!(daemon.end().success());
}

#[test]
fn every_queue_is_served() {
    let daemon = Daemon::start(&["--tag", "data"]);
    let mut front_end = daemon.front_end();
    assert_eq!(front_end.queues(), 33);
    assert_eq!(front_end.tag(), "data");
    front_end.mount();
    for queue in [0, 1, 2, 32] {
        front_end.use_queue(queue);
        assert_eq!(front_end.read("greeting"), b"hello", "queue {queue}");
    }
}

#[test]
fn a_request_that_waits_for_a_lock_is_answered_when_the_lock_goes() {
    let daemon = Daemon::start(&["--locks"]);
    let mut front_end = daemon.front_end();
    front_end.mount();
    let file = front_end.open("greeting");
    assert_eq!(front_end.lock(file, 1, true), Ok(()));
    let waiting = front_end.begin_lock(file, 2);
    // Others are served meanwhile, on the same queue.
    assert_eq!(front_end.read("greeting"), b"hello");
    assert!(!front_end.is_answered(waiting));
    assert_eq!(front_end.lock(file, 1, false), Ok(()));
    assert_eq!(front_end.wait_for(waiting), Ok(vec![]));
}

#[test]
fn helpers_go_when_there_is_nothing_to_do_and_come_again() {
    let daemon = Daemon::start(&["--locks"]);
    let mut front_end = daemon.front_end();
    front_end.mount();
    let file = front_end.open("greeting");
    let helpers = || {
        let tasks = fs::read_dir(format!("/proc/{}/task", daemon.child.id()))
            .unwrap()
            .flatten();
        let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
        names.filter(|name| name.trim_end() == "fs-0").count()
    };
    for _ in 0..2 {
        // It takes a helper to hand a request in again.
        assert_eq!(front_end.lock(file, 1, true), Ok(()));
        let waiting = front_end.begin_lock(file, 2);
        until(|| {
            assert!(!front_end.is_answered(waiting));
            helpers() > 0
        });
        assert_eq!(front_end.lock(file, 1, false), Ok(()));
        assert_eq!(front_end.wait_for(waiting), Ok(vec![]));
        assert_eq!(front_end.lock(file, 2, false), Ok(()));
        until(|| helpers() == 0);
        assert_eq!(front_end.read("greeting"), b"hello");
    }
}

#[test]
fn those_who_wait_for_a_lock_leave_room_for_who_has_it() {
    let daemon = Daemon::start(&["--locks"]);
    let mut front_end = daemon.front_end();
    front_end.mount();
    let file = front_end.open("greeting");
    assert_eq!(front_end.lock(file, 1, true), Ok(()));
    // One more than the eighth part of the queue's 64 entries: one is refused, whichever comes last.
    let asked: Vec<_> = (2..11).map(|owner| front_end.begin_lock(file, owner)).collect();
    let mut answered = Vec::new();
    while answered.is_empty() {
        answered = asked.iter().filter(|asked| front_end.is_answered(**asked)).collect();
    }
    assert_eq!(front_end.wait_for(*answered[0]), Err(-libc::ENOLCK));
    assert_eq!(front_end.read("greeting"), b"hello");
    let waiting = asked.iter().filter(|asked| !front_end.is_answered(**asked));
    assert_eq!(waiting.count(), 8);
    assert_eq!(front_end.lock(file, 1, false), Ok(()));
}

#[test]
fn a_pause_keeps_the_request_that_waits() {
    let daemon = Daemon::start(&["--locks"]);
    let mut front_end = daemon.front_end();
    front_end.mount();
    let file = front_end.open("greeting");
    assert_eq!(front_end.lock(file, 1, true), Ok(()));
    let waiting = front_end.begin_lock(file, 2);
    assert_eq!(front_end.read("greeting"), b"hello");
    front_end.pause_and_go_on();
    assert!(!front_end.is_answered(waiting));
    assert_eq!(front_end.lock(file, 1, false), Ok(()));
    assert_eq!(front_end.wait_for(waiting), Ok(vec![]));
    // A driver that begins anew is not answered for the one before it.
    assert_eq!(front_end.lock(file, 1, true), Err(-libc::EAGAIN));
    front_end.begin_anew();
    front_end.mount();
    assert_eq!(front_end.read("greeting"), b"hello");
}

#[test]
fn a_ring_that_was_brought_and_not_started_stands_where_it_was_brought() {
    let daemon = Daemon::start(&[]);
    let mut front_end = daemon.front_end();
    front_end.mount();
    assert_eq!(front_end.read("greeting"), b"hello");
    assert_eq!(front_end.begin_anew_after_a_pause(), 0);
    assert_eq!(front_end.read("greeting"), b"hello");
}

/// Each takes threads, and what these are ended by.
#[test]
fn nothing_is_left_of_a_front_end_that_was_hung_up_on() {
    let descriptors_after = |front_ends: usize| {
        let daemon = Daemon::start(&[]);
        for _ in 0..front_ends {
            let mut stream = UnixStream::connect(daemon.socket()).unwrap();
            stream.write_all(&[0xff; 64]).unwrap();
            let _ = stream.read_to_end(&mut Vec::new());
        }
        // Served once the one before has gone.
        let mut front_end = daemon.front_end();
        front_end.mount();
        fs::read_dir(format!("/proc/{}/fd", daemon.child.id())).unwrap().count()
    };
    assert_eq!(descriptors_after(20), descriptors_after(0));
}

#[test]
fn memory_that_comes_later_is_reached() {
    let daemon = Daemon::start(&[]);
    let mut front_end = daemon.front_end();
    front_end.mount();
    front_end.add_memory();
    assert_eq!(front_end.read("greeting"), b"hello");
}

#[test]
fn memory_that_vanishes_ends_the_process_with_a_word() {
    let mut daemon = Daemon::start(&[]);
    let mut front_end = daemon.front_end();
    front_end.mount();
    front_end.truncate_memory_and_kick();
    let status = daemon.end();
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{}", daemon.said);
    assert!(daemon.said.contains("SIGBUS"), "{}", daemon.said);
}

#[test]
fn a_sandbox_leaves_the_process_with_what_it_needs() {
    for sandbox in ["namespace", "chroot", "none"] {
        let mut daemon = Daemon::start(&["--sandbox", sandbox]);
        assert!(daemon.said.contains("is shared; sandbox: "), "{}", daemon.said);
        // All that is in force is in one line.
        let line = daemon.said.lines().find(|line| line.contains("is shared; ")).unwrap();
        for what in [
            "umask: own",
            "capabilities: ",
            "seccomp: on",
            "Landlock: ",
            "opened again by ",
        ] {
            assert!(line.contains(what), "{what}: {line}");
        }
        let mut front_end = daemon.front_end();
        front_end.mount();
        assert_eq!(front_end.read("greeting"), b"hello", "{sandbox}");
        assert_eq!(daemon.status("NoNewPrivs"), "1");
        assert_eq!(daemon.status("Seccomp"), "2");
        let capabilities = u64::from_str_radix(&daemon.status("CapPrm"), 16).unwrap();
        assert!(capabilities.count_ones() <= 9, "{capabilities:x}");
        let root = fs::read_link(format!("/proc/{}/root", daemon.child.id())).unwrap();
        let shared = daemon.folder.path().join("shared");
        match sandbox {
            "none" => assert_eq!(root, Path::new("/")),
            // As this process sees it: where it is mounted, or, in another namespace, that it is a root.
            _ if geteuid().is_root() => {
                assert!(daemon.said.contains("root in the directory"), "{}", daemon.said);
                let inside = fs::read(format!("/proc/{}/root/greeting", daemon.child.id())).unwrap();
                assert_eq!(inside, b"hello", "{} {}", root.display(), shared.display());
            }
            _ => {}
        }
        drop(front_end);
        assert!(daemon.end().success(), "{}", daemon.said);
        assert_eq!(daemon.left(), 0, "{sandbox}: {}", daemon.said);
    }
}

#[test]
fn the_files_of_the_socket_go_when_the_process_is_asked_to_end() {
    for sandbox in ["namespace", "chroot", "none"] {
        for (signal, connected) in [(Signal::TERM, false), (Signal::INT, true), (Signal::HUP, false)] {
            let mut daemon = Daemon::start(&["--sandbox", sandbox]);
            assert_eq!(daemon.left(), 2);
            let front_end = connected.then(|| {
                let mut front_end = daemon.front_end();
                front_end.mount();
                front_end
            });
            kill_process(Pid::from_child(&daemon.child), signal).unwrap();
            assert_eq!(daemon.end().code(), Some(5), "{sandbox} {signal:?}: {}", daemon.said);
            assert_eq!(daemon.left(), 0, "{sandbox} {signal:?}: {}", daemon.said);
            drop(front_end);
        }
    }
}

/// As Kata's Rust shim starts it.
#[test]
fn a_process_that_was_started_with_the_signal_ignored_can_be_asked_to_end() {
    let folder = folder();
    let mut command = Command::new("/bin/sh");
    let script = "trap '' TERM; exec \"$@\"";
    command.args(["-c", script, "sh", HUSK, "fs", "--socket-path"]);
    command.arg(folder.path().join("fs.sock"));
    let mut daemon = Daemon::spawn(folder, command, &[]);
    kill_process(Pid::from_child(&daemon.child), Signal::TERM).unwrap();
    assert_eq!(daemon.end().code(), Some(5), "{}", daemon.said);
    assert_eq!(daemon.left(), 0);
}

#[test]
fn a_socket_that_others_have_put_in_its_place_stays() {
    for sandbox in ["namespace", "none"] {
        let mut daemon = Daemon::start(&["--sandbox", sandbox]);
        let socket = daemon.socket();
        let _other = UnixListener::bind(socket.with_extension("new")).unwrap();
        fs::rename(socket.with_extension("new"), &socket).unwrap();
        kill_process(Pid::from_child(&daemon.child), Signal::TERM).unwrap();
        assert_eq!(daemon.end().code(), Some(5), "{}", daemon.said);
        assert_eq!(daemon.left(), 1, "{sandbox}");
        assert!(socket.exists(), "{sandbox}");
    }
}

#[test]
fn a_link_to_the_directory_is_shared_as_the_directory_is() {
    let in_force = |daemon: &Daemon| {
        let line = daemon.said.lines().find(|line| line.contains("is shared; ")).unwrap();
        line.split_once("; sandbox: ").unwrap().1.to_string()
    };
    let shared_by = |link: Option<&str>, sandbox: &str| {
        let folder = folder();
        let (link, path) = (folder.path().join(link.unwrap_or("shared")), folder.path().to_owned());
        if !link.exists() {
            // Relative, and one more to follow.
            symlink("second", &link).unwrap();
            symlink("shared", path.join("second")).unwrap();
        }
        let mut command = Command::new(HUSK);
        command.current_dir(&path);
        command.args(["fs", "--socket-path", "fs.sock", "--sandbox", sandbox]);
        let link = link.file_name().unwrap().to_owned();
        Daemon::sharing(folder, command, Path::new(&link), &[])
    };
    for sandbox in ["namespace", "chroot", "none"] {
        let directly = in_force(&shared_by(None, sandbox));
        let mut daemon = shared_by(Some("link"), sandbox);
        assert_eq!(in_force(&daemon), directly, "{sandbox}: {}", daemon.said);
        assert!(!daemon.said.contains("WARN"), "{}", daemon.said);
        // What the log says is so: with a mount namespace of its own, it has no mount but the directory's.
        let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", daemon.child.id())).unwrap();
        if directly.contains("mount, network and IPC namespaces, root in the directory") {
            assert_eq!(mounts.lines().count(), 1, "{mounts}");
        }
        let mut front_end = daemon.front_end();
        front_end.mount();
        assert_eq!(front_end.read("greeting"), b"hello", "{sandbox}");
        drop(front_end);
        assert!(daemon.end().success(), "{}", daemon.said);
    }
}

/// As one that is there and not his to give: the host says something else of the former.
#[test]
fn an_owner_whom_the_user_namespace_does_not_have_is_not_permitted() {
    for sandbox in ["namespace", "none"] {
        let folder = folder();
        let mut command = Command::new(HUSK);
        command.args(["fs", "--sandbox", sandbox, "--socket-path"]);
        command.arg(folder.path().join("fs.sock"));
        if geteuid().is_root() {
            let own = |path: &Path| chown(path, Some(1000), Some(1000)).unwrap();
            own(folder.path());
            own(&folder.path().join("shared"));
            own(&folder.path().join("shared/greeting"));
            command.uid(1000).gid(1000);
        }
        let daemon = Daemon::spawn(folder, command, &[]);
        if sandbox == "namespace" && !daemon.said.contains("sandbox: user, mount") {
            return println!("skipped: needs user namespaces: {}", daemon.said);
        }
        let mut front_end = daemon.front_end();
        front_end.mount();
        for uid in [0, 77] {
            assert_eq!(front_end.chown("greeting", uid), Err(-libc::EPERM), "{sandbox} {uid}");
        }
    }
}

/// The process has no descriptor left: who wants one is told, and what has one goes on.
#[test]
fn a_process_without_descriptors_serves_what_is_open_and_everything_once_it_has_some() {
    let mut daemon = Daemon::start(&["--locks"]);
    let mut front_end = daemon.front_end();
    front_end.mount();
    let file = front_end.open("greeting");
    let pid = Pid::from_child(&daemon.child);
    let descriptors = fs::read_dir(format!("/proc/{}/fd", daemon.child.id())).unwrap();
    let numbers = descriptors.map(|entry| {
        entry
            .unwrap()
            .file_name()
            .into_string()
            .unwrap()
            .parse::<u64>()
            .unwrap()
    });
    // From a limit at or below the lowest that is free on, none can be had.
    let mut taken: Vec<_> = numbers.collect();
    taken.sort_unstable();
    let all = taken.len() as u64;
    let free = (0..)
        .zip(taken)
        .find(|(number, taken)| number != taken)
        .map_or(all, |(number, _)| number);
    let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.child.id())).unwrap();
    let files = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .unwrap();
    let maximum = files.split_whitespace().nth(1).unwrap().parse().ok();
    let limit = |current| {
        let limit = Rlimit { current, maximum };
        prlimit(Some(pid), Resource::Nofile, limit).unwrap().current
    };
    let before = limit(Some(free));
    assert_eq!(front_end.open_to_write("greeting"), Err(-libc::EMFILE));
    assert_eq!(front_end.lock(file, 1, true), Err(-libc::EMFILE));
    limit(before);
    assert_eq!(front_end.open_to_write("greeting"), Ok(()));
    assert_eq!(front_end.lock(file, 1, true), Ok(()));
    drop(front_end);
    assert!(daemon.end().success(), "{}", daemon.said);
}

/// Nodes beyond the limit have no descriptor, and are looked up and opened all the same; open files
/// are as many as there is room for.
#[test]
fn with_few_descriptors_every_request_is_answered_and_all_is_well_once_there_are_some() {
    const FILES: usize = 300;
    // A server takes about fifty for itself.
    let mut daemon = Daemon::start(&["--rlimit-nofile", "96", "--locks"]);
    let name = |file: usize| format!("file-{file}");
    let none = [-libc::ENFILE, -libc::EMFILE];
    for file in 0..FILES {
        fs::write(daemon.folder.path().join("shared").join(name(file)), name(file)).unwrap();
    }
    let mut front_end = daemon.front_end();
    front_end.mount();
    for file in 0..FILES {
        front_end.lookup(&name(file)).unwrap();
    }
    for _ in 0..2 {
        let (mut open, mut refused) = (Vec::new(), 0);
        for file in 0..FILES {
            match front_end.try_open(&name(file)) {
                Ok(opened) => open.push(opened),
                Err(error) => {
                    assert!(none.contains(&error), "{file}: {error}");
                    refused += 1;
                }
            }
        }
        assert!(!open.is_empty() && refused > 0, "{} {refused}", open.len());
        // A lock takes a descriptor, too; what is open goes on.
        let locked = front_end.lock(open[0], 1, true);
        assert!(none.map(Err).contains(&locked), "{locked:?}");
        let later = open.split_off(1);
        assert!(!later.is_empty());
        later.into_iter().for_each(|file| front_end.release(file));
        assert_eq!(front_end.lock(open[0], 1, true), Ok(()));
        assert_eq!(front_end.read("file-299"), b"file-299");
        open.into_iter().for_each(|file| front_end.release(file));
    }
    for file in 0..FILES {
        let opened = front_end.try_open(&name(file)).unwrap();
        front_end.release(opened);
    }
    drop(front_end);
    assert!(daemon.end().success(), "{}", daemon.said);
}

#[test]
fn a_share_for_reading_is_not_written() {
    let daemon = Daemon::start(&["--readonly"]);
    let mut front_end = daemon.front_end();
    front_end.mount();
    assert_eq!(front_end.read("greeting"), b"hello");
    assert_eq!(front_end.open_to_write("greeting"), Err(-libc::EROFS));
}

#[test]
fn what_has_no_effect_is_said() {
    let mut daemon = Daemon::start(&["-f", "--preserve-noatime"]);
    daemon.hear("option -f is accepted and has no effect");
    daemon.hear("option --preserve-noatime is accepted and has no effect: ");
    // The line that is waited for comes at every level.
    let mut silent = Daemon::start(&["--log-level", "off"]);
    kill_process(Pid::from_child(&silent.child), Signal::TERM).unwrap();
    assert_eq!(silent.end().code(), Some(5));
    assert_eq!(silent.said.lines().count(), 1, "{}", silent.said);
}

#[test]
fn a_server_has_room_for_its_descriptors_before_it_has_threads() {
    let daemon = Daemon::start(&[]);
    // A VMM has a table of 256 when it starts (`FDSize` of proc(5)).
    let table: u32 = daemon.status("FDSize").parse().unwrap();
    assert!(table >= 4096, "{table}");
}

#[test]
fn an_idle_server_takes_little_memory() {
    let daemon = Daemon::start(&[]);
    let mut front_end = daemon.front_end();
    front_end.mount();
    assert_eq!(front_end.read("greeting"), b"hello");
    let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", daemon.child.id())).unwrap();
    let kib = |field: &str| -> u64 {
        let line = rollup.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    // Of the program's file more may be mapped, which the page cache has anyway. Builds without
    // optimisation have more of everything.
    assert!(kib("Anonymous:") < 2048, "{rollup}");
}
