//! Where husk's log goes: journald and the system's log, both played by a socket that speaks their
//! protocol; files, JSON, levels by signal; and what a husk that dies leaves there. All of them
//! confined.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod process;

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use husk_devices::testing::{PATIENCE, until};
use process::{HUSK, Husk, NO_HARDWARE, Signal, has_kvm};
use rustix::process::{Pid, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A daemon's socket.
struct Daemon {
    folder: TempDir,
    socket: UnixDatagram,
}

impl Daemon {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("socket")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { folder, socket }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn option(&self, kind: &str) -> String {
        format!("{kind}={}", self.path().display())
    }

    fn line(&self) -> String {
        let mut bytes = vec![0; 65_536];
        let count = self.socket.recv(&mut bytes).expect("a line");
        String::from_utf8(bytes[..count].to_vec()).unwrap()
    }

    /// The next entry, as journald reads it: none of husk's has a value of several lines.
    fn entry(&self) -> Entry {
        let datagram = self.line();
        let fields = datagram.lines().map(|line| line.split_once('=').unwrap());
        Entry(fields.map(|(name, value)| (name.into(), value.into())).collect())
    }

    fn entry_with(&self, part: &str) -> Entry {
        loop {
            let entry = self.entry();
            if entry.field("MESSAGE").contains(part) {
                return entry;
            }
        }
    }

    /// Ends it. What another test starts has the socket as well, until it has become a program of its own.
    fn end(self) {
        let path = self.path();
        let Self { folder, socket } = self;
        drop(socket);
        until(|| UnixDatagram::unbound().unwrap().connect(&path).is_err());
        drop(folder);
    }
}

#[derive(Debug)]
struct Entry(Vec<(String, String)>);

impl Entry {
    #[track_caller]
    fn field(&self, name: &str) -> &str {
        let mut found = self.0.iter().filter(|(found, _)| found == name);
        let value = &found.next().unwrap_or_else(|| panic!("no {name}: {self:?}")).1;
        assert!(found.next().is_none(), "{name} twice: {self:?}");
        value
    }
}

/// What the process has said on standard error, which is at its end.
fn said(husk: &mut Husk) -> String {
    std::io::read_to_string(husk.child.stderr.take().unwrap()).unwrap()
}

#[test]
fn journald_has_the_log_with_levels_and_the_pods_name() {
    let daemon = Daemon::start();
    let mut husk = Husk::start(&["-v", "--log", &daemon.option("journald")]);
    let begin = daemon.entry();
    assert!(begin.field("MESSAGE").starts_with("husk "), "{begin:?}");
    let pod = husk.folder.path().file_name().unwrap().to_str().unwrap();
    assert_eq!(
        (
            begin.field("PRIORITY"),
            begin.field("SYSLOG_IDENTIFIER"),
            begin.field("HUSK_LEVEL")
        ),
        ("6", pod, "info")
    );
    assert!(begin.field("CODE_FILE").ends_with("control/serve.rs"), "{begin:?}");
    begin.field("CODE_LINE").parse::<u32>().unwrap();
    // The thread `api`, which may address nobody.
    assert_eq!(husk.client().get("nowhere\\nPRIORITY=0").0, 404);
    let entry = daemon.entry_with("nowhere");
    assert_eq!(entry.field("PRIORITY"), "6");
    assert_eq!(husk.shut_down().code(), Some(0));
    assert_eq!(said(&mut husk), "");
}

#[test]
fn the_systems_log_has_it_under_a_name_of_choice() {
    let daemon = Daemon::start();
    let mut husk = Husk::start(&["-v", "--log", &daemon.option("syslog"), "--log-tag", "web-1"]);
    let process = husk.child.id();
    let line = daemon.line();
    assert!(line.starts_with(&format!("<14>web-1[{process}]: husk ")), "{line}");
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn a_daemon_that_is_away_or_goes_costs_nothing_but_its_lines() {
    let nobody = tempfile::tempdir().unwrap();
    let option = format!("journald={}", nobody.path().join("none").display());
    let mut husk = Husk::start(&["-v", "--log", &option]);
    assert_eq!(husk.shut_down().code(), Some(0));
    let told = said(&mut husk);
    assert!(
        told.starts_with("WARN: journald at ") && told.contains("; standard error has them\nINFO: husk "),
        "{told}"
    );

    let daemon = Daemon::start();
    let mut husk = Husk::start(&["-v", "--log", &daemon.option("journald")]);
    daemon.entry();
    daemon.end();
    assert_eq!(husk.client().get("nowhere").0, 404);
    assert_eq!(husk.shut_down().code(), Some(0));
    let told = said(&mut husk);
    assert!(
        told.contains("takes no lines any more") && told.contains("INFO: "),
        "{told}"
    );
}

#[test]
fn a_daemon_that_does_not_read_holds_nobody_up() {
    let daemon = Daemon::start();
    let mut husk = Husk::start(&["-v", "--log", &daemon.option("syslog")]);
    let mut client = husk.client();
    // Different places in the source, none of them too often for its limit, and more than a
    // socket's queue has room for.
    for _ in 0..100 {
        assert_eq!(client.get("nowhere").0, 404);
        assert_eq!(client.put("vm.pause", None).0, 404);
    }
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn json_is_an_object_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let options = [
        "-v",
        "--log-format",
        "json",
        "--log-tag",
        "web",
        "--log",
        log.to_str().unwrap(),
    ];
    let mut husk = Husk::start_in(folder, &options);
    assert_eq!(husk.client().get("a\"quote").0, 404);
    let process = u64::from(husk.child.id());
    husk.shut_down();
    let text = fs::read_to_string(log).unwrap();
    assert_eq!(text.lines().count(), 3, "{text}");
    for line in text.lines() {
        let entry: Value = serde_json::from_str(line).unwrap();
        let names: Vec<&String> = entry.as_object().unwrap().keys().collect();
        assert_eq!(names.len(), 6, "{line}");
        assert_eq!(
            (entry["level"].as_str(), entry["tag"].as_str()),
            (Some("info"), Some("web"))
        );
        assert_eq!(entry["pid"].as_u64(), Some(process));
        assert!(
            entry["time"].as_str().unwrap().ends_with('Z') && entry["target"].as_str().unwrap().starts_with("husk")
        );
        assert!(!entry["message"].as_str().unwrap().is_empty());
    }
}

#[test]
fn a_client_that_does_the_wrong_thing_again_and_again_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let mut husk = Husk::start_in(folder, &["-v", "--log", log.to_str().unwrap()]);
    let mut client = husk.client();
    for _ in 0..100 {
        assert_eq!(client.get("nowhere").0, 404);
    }
    let (_, figures) = client.scrape("/metrics", "*/*").unwrap();
    let figure = |name: &str| -> usize {
        let mut lines = figures.lines();
        let value = lines.find_map(|line| line.strip_prefix(&format!("{name}_total{{level=\"info\"}} ")));
        value.unwrap().parse().unwrap()
    };
    husk.shut_down();
    let text = fs::read_to_string(log).unwrap();
    let written = text.lines().filter(|line| line.contains("nowhere")).count();
    let more = text
        .lines()
        .filter_map(|line| line.split_once(" more like this (")?.0.strip_prefix("INFO: ... "));
    let more: usize = more.map(|count| count.parse::<usize>().unwrap()).sum();
    // A host that is slow gives them a second window, and a third.
    assert!(written >= 20, "{text}");
    assert_eq!(written + more, 100, "{text}");
    assert_eq!(figure("husk_log_left_out_lines"), more);
    // Nobody says what was left out in the middle, or it is not counted as a line.
    let said = text
        .lines()
        .filter(|line| line.starts_with("INFO: ") && !line.contains(" more like this ("));
    assert!(
        (written..=said.count()).contains(&figure("husk_log_lines")),
        "{figures}\n{text}"
    );
}

#[test]
fn signals_change_the_level_and_the_log_says_so() {
    let daemon = Daemon::start();
    let mut husk = Husk::start(&["--log", &daemon.option("journald")]);
    husk.signal(Signal::USR1);
    assert_eq!(daemon.entry().field("MESSAGE"), "log level: info");
    assert_eq!(husk.client().get("nowhere").0, 404);
    assert!(daemon.entry().field("MESSAGE").contains("nowhere"));
    for level in ["warn", "error", "error"] {
        husk.signal(Signal::USR2);
        assert_eq!(daemon.entry().field("MESSAGE"), format!("log level: {level}"));
    }
    assert_eq!(husk.client().get("vmm.log-level").1["level"], "error");
    assert_eq!(husk.shut_down().code(), Some(0));
}

/// A guest that does nothing, in a husk whose log goes to `log`; once it runs.
fn idle_guest(folder: &Path, log: &str) -> Husk {
    // hlt; jmp back to it
    fs::write(folder.join("kernel"), husk_benches::elf_of(&[0xf4, 0xeb, 0xfd])).unwrap();
    let folder = tempfile::tempdir_in(folder).unwrap();
    let mut command = Command::new(HUSK);
    command.args([
        "run", "--no-rng", "--serial", "off", "-v", "--log", log, "--memory", "64M", "--kernel",
    ]);
    command
        .arg(folder.path().join("../kernel"))
        .arg("--api-socket")
        .arg(folder.path().join("api.sock"));
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let husk = Husk { folder, child };
    husk.ready();
    husk
}

#[test]
fn whatever_a_husk_dies_of_is_in_the_journal_and_on_standard_error() {
    if !has_kvm() {
        return;
    }
    for (signal, name) in [
        (Signal::SEGV, "SIGSEGV"),
        (Signal::SYS, "SIGSYS"),
        (Signal::ABORT, "SIGABRT"),
    ] {
        let (daemon, folder) = (Daemon::start(), tempfile::tempdir().unwrap());
        let mut husk = idle_guest(folder.path(), &daemon.option("journald"));
        daemon.entry_with("the guest runs after ");
        let process = husk.child.id();
        // A thread that runs a guest, and whose filter knows nothing of sockets.
        let vcpu = loop {
            let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap().flatten();
            let is_vcpu = |task: &Path| fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "vcpu0");
            let mut vcpus = tasks.map(|task| task.path()).filter(|task| is_vcpu(task));
            // It gives itself its name.
            if let Some(vcpu) = vcpus.find_map(|task| task.file_name()?.to_str()?.parse().ok()) {
                break vcpu;
            }
        };
        // To a thread's number, kill(2) sends to its process.
        kill_process(Pid::from_raw(vcpu).unwrap(), signal).unwrap();
        assert_eq!(husk.child.wait().unwrap().signal(), Some(signal.as_raw()));
        let entry = daemon.entry_with("husk ends here");
        let message = entry.field("MESSAGE");
        assert!(
            message.starts_with(&format!("{name} sent by process {}, in thread ", std::process::id())),
            "{message}"
        );
        assert!(message.contains(&format!(" of process {process}; ")), "{message}");
        assert_eq!(entry.field("PRIORITY"), "3");
        let told = said(&mut husk);
        assert_eq!(told, format!("ERRO: {message}\n"));
    }
}

#[test]
fn why_there_is_no_vm_is_in_the_journal_as_well() {
    let daemon = Daemon::start();
    let output = Command::new(HUSK)
        .args([
            "run",
            "--kernel",
            "/nowhere/vmlinux",
            "--log",
            &daemon.option("journald"),
        ])
        .output()
        .unwrap();
    assert_ne!(output.status.code(), Some(0));
    let told = String::from_utf8(output.stderr).unwrap();
    let why = told.trim_end().strip_prefix("error: ").unwrap();
    assert!(why.contains(process::refusal("/nowhere/vmlinux")), "{told}");
    assert_eq!(daemon.entry().field("MESSAGE"), format!("{why}; husk ends here"));
}

/// A guest that prints the command line that it was started with, by the Linux boot protocol, and powers off.
fn prints_its_command_line() -> Vec<u8> {
    // rsi has boot_params, whose cmd_line_ptr is at 0x228 (boot.rst).
    let mut code = vec![0x8b, 0xb6, 0x28, 0x02, 0x00, 0x00]; // mov esi, [rsi + 0x228]
    code.extend([0x66, 0xba, 0xf8, 0x03]); // mov dx, 0x3f8
    code.extend([0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb, 0xf8]); // lodsb; test al, al; jz over; out dx, al; jmp to lodsb
    code.extend([0xb0, 5 << 2 | 1 << 5, 0x66, 0xba, 0x00, 0x06, 0xee]); // SLP_TYP 5 | SLP_EN to port 0x600
    code.extend([0xf4, 0xeb, 0xfd]); // hlt; jmp back to it
    husk_benches::elf_of(&code)
}

/// The host's kernel says that it is in FIPS mode, as far as husk can see.
#[test]
fn a_guest_is_in_the_fips_mode_of_its_host() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("kernel"), prints_its_command_line()).unwrap();
    // In place of all of /proc/sys, where a kernel that was built without has nothing to be covered.
    fs::create_dir_all(folder.path().join("sys/crypto")).unwrap();
    fs::write(folder.path().join("sys/crypto/fips_enabled"), "1\n").unwrap();
    if !has_kvm() {
        return;
    }
    let here = "mount --bind sys /proc/sys";
    let can = Command::new("unshare")
        .args(["-m", "sh", "-c", here])
        .current_dir(&folder)
        .output();
    if !can.is_ok_and(|output| output.status.success()) {
        println!("skipped: needs mounts");
        return;
    }
    for (fips, given, booted) in [
        (true, "quiet", "fips=1 quiet"),
        (true, "quiet fips=0", "quiet fips=0"),
        (false, "quiet", "quiet"),
    ] {
        let mount = if fips { here } else { ":" };
        let script = format!(
            "{mount}; exec {HUSK} run --no-rng --memory 64M --protocol linux64 --kernel kernel --cmdline '{given}'"
        );
        let output = Command::new("unshare")
            .args(["-m", "sh", "-c", &script])
            .current_dir(&folder)
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), booted, "{output:?}");
        assert_eq!(output.status.code(), Some(0));
    }
}

#[test]
fn what_a_full_disk_did_not_take_is_counted_and_no_line_is_glued_to_another() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let mut command = Command::new("sh");
    // A file that may not grow fails as a full file system does: what still fits is written.
    command.args(["-c", "ulimit -S -f 1; exec \"$@\"", "sh", HUSK, "-v", "--log-file"]);
    command
        .arg(&log)
        .arg("--api-socket")
        .arg(folder.path().join("api.sock"));
    let child = command.stdin(Stdio::null()).spawn().unwrap();
    let mut husk = Husk { folder, child };
    husk.ready();
    let another = || {
        let vm = serde_json::json!({"payload": {"kernel": "/nowhere"}});
        assert_eq!(husk.client().put("vm.create", Some(vm)).0, 204);
        assert_eq!(husk.client().put("vm.delete", None).0, 204);
    };
    let lost = || -> u64 {
        let text = husk.client().scrape("/api/v1/vmm.metrics", "text/plain").unwrap().1;
        let count = text
            .lines()
            .find_map(|line| line.strip_prefix("husk_log_lost_lines_total "));
        count.unwrap().parse().unwrap()
    };
    // Long before that the file is full.
    for _ in 0..1000 {
        if lost() >= 3 {
            break;
        }
        another();
    }
    assert!(lost() >= 3, "{} of {} bytes", lost(), fs::metadata(&log).unwrap().len());
    let torn = fs::read_to_string(&log).unwrap();
    assert!(torn.len().is_multiple_of(512), "{torn}");
    let pid = Pid::from_child(&husk.child);
    let limit = rustix::process::getrlimit(rustix::process::Resource::Fsize);
    rustix::process::prlimit(Some(pid), rustix::process::Resource::Fsize, limit).unwrap();
    another();
    let lost = lost();
    assert_eq!(husk.shut_down().code(), Some(0));
    let said = fs::read_to_string(&log).unwrap();
    let (before, after) = said.split_at(torn.len());
    assert_eq!(before, torn);
    // Now and then a line ends where the file does.
    let end = if torn.ends_with('\n') { "" } else { "\n" };
    assert!(after.starts_with(&format!("{end}WARN: ")), "{after}");
    let notice = " log lines were dropped: nobody read them, or there was no room for them";
    let told = after
        .lines()
        .filter_map(|line| line.strip_prefix("WARN: ")?.strip_suffix(notice));
    let told: u64 = told.map(|count| count.parse::<u64>().unwrap()).sum();
    assert_eq!(told, lost, "{after}");
}

#[test]
fn what_is_no_place_for_a_log_is_refused_in_one_line() {
    for (options, says) in [
        (&["--log", "journal"][..], "allowed: stderr, journald"),
        (&["--log", "journald="], "allowed: stderr, journald"),
        (
            &["--log", "/nowhere/log"],
            "error: log file /nowhere/log: cannot open it: No such file or directory",
        ),
        (
            &["--log", "/tmp"],
            "error: log file /tmp: it is a directory, allowed: a regular file",
        ),
        (
            &["--event-monitor", "path=/nowhere/events"],
            "error: event monitor /nowhere/events: cannot open it: No such file or directory",
        ),
        (&["--log-format", "xml"], "possible values: text, json"),
        (&["--log-tag", "a b"], "1 to 64 letters, digits"),
        (&["--log", "syslog", "--log-file", "/x"], "cannot be used with"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let output = process::command(&folder.path().join("api.sock"), options)
            .output()
            .unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(told.lines().count(), 1, "{told}");
        assert!(told.contains(says), "{told}");
        assert!(matches!(output.status.code(), Some(1 | 2)), "{told}");
    }
}

/// What a guest ends with.
#[derive(Clone, Copy)]
enum End {
    PowerOff,
    Halt,
}

/// A guest that prints `lines` lines of eight bytes on its serial port, and powers off.
fn prints_lines(lines: u32) -> Vec<u8> {
    prints_lines_to(End::PowerOff, lines)
}

fn prints_lines_to(end: End, lines: u32) -> Vec<u8> {
    let mut code = vec![0xb9]; // mov ecx, lines
    code.extend(lines.to_le_bytes());
    code.extend([0x66, 0xba, 0xf8, 0x03]); // mov dx, 0x3f8
    let begin = code.len();
    for byte in b"a line!" {
        code.extend([0xb0, *byte, 0xee]); // mov al, byte; out dx, al
    }
    code.extend([0xb0, b'\n', 0xee]);
    code.extend([0xff, 0xc9]); // dec ecx
    let back = i32::try_from(begin).unwrap() - i32::try_from(code.len() + 6).unwrap();
    code.extend([0x0f, 0x85]); // jnz back
    code.extend(back.to_le_bytes());
    if let End::PowerOff = end {
        code.extend([0xb0, 5 << 2 | 1 << 5, 0x66, 0xba, 0x00, 0x06, 0xee]); // SLP_TYP 5 | SLP_EN to port 0x600
    }
    code.extend([0xf4, 0xeb, 0xfd]); // hlt; jmp back to it
    husk_benches::elf_of(&code)
}

/// Runs it to its end, with a serial port that leads to `serial`.
fn run_printing(folder: &Path, lines: u32, serial: &str, options: &[&str]) {
    fs::write(folder.join("kernel"), prints_lines(lines)).unwrap();
    let mut command = Command::new(HUSK);
    command
        .args([
            "run", "--no-rng", "--memory", "64M", "--kernel", "kernel", "--serial", serial,
        ])
        .args(options);
    let output = command.current_dir(folder).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn a_guests_console_in_files_is_never_larger_than_it_may_be() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let size = |name: &str| fs::metadata(folder.path().join(name)).unwrap().len();
    // In husk run the first thread may open nothing any more: the files are there from the start.
    run_printing(folder.path(), 1_500, "file=console,limit=4K,keep=1", &[]);
    let (first, second) = (size("console"), size("console.1"));
    assert_eq!(first.max(second), 4_096, "the one before the last is full");
    assert_eq!((first + second) % 8, 0);
    let text = fs::read_to_string(folder.path().join("console")).unwrap();
    assert!(text.lines().all(|line| line == "a line!"), "{text}");
    assert_eq!(first.min(second), 1_500 * 8 % 4_096);
}

#[test]
fn a_guests_console_is_in_the_journal_beside_the_log_of_husk() {
    if !has_kvm() {
        return;
    }
    let (log, console, folder) = (Daemon::start(), Daemon::start(), tempfile::tempdir().unwrap());
    let serial = format!("journald,journal={}", console.path().display());
    let reader = thread::spawn(move || {
        let mut found = Vec::new();
        while found.len() < 100 {
            found.push(console.entry());
        }
        found
    });
    run_printing(
        folder.path(),
        100,
        &serial,
        &["-v", "--log", &log.option("journald"), "--log-tag", "web"],
    );
    for entry in reader.join().unwrap() {
        assert_eq!(
            (entry.field("MESSAGE"), entry.field("SYSLOG_IDENTIFIER")),
            ("a line!", "web-console")
        );
        assert_eq!((entry.field("PRIORITY"), entry.field("HUSK_CONSOLE")), ("6", "serial"));
    }
    assert_eq!(
        log.entry_with("the guest runs after ").field("SYSLOG_IDENTIFIER"),
        "web"
    );
}

/// Taken is not there yet: what waits for a journal that goes is lost, and its guest is told of nothing.
#[test]
fn what_waits_for_a_journal_that_goes_is_counted_as_lost() {
    if !has_kvm() {
        return;
    }
    let journal = Daemon::start();
    let mut husk = Husk::start(&[]);
    let folder = husk.folder.path().to_owned();
    let lines = 5_000;
    fs::write(folder.join("kernel"), prints_lines_to(End::Halt, lines)).unwrap();
    let vm = json!({
        "payload": {"kernel": folder.join("kernel")}, "memory": {"size": 64 << 20}, "rng": null, "console": {"mode": "Off"},
        "serial": {"mode": "Journald", "journal": journal.path()},
    });
    let mut client = husk.client();
    assert_eq!(client.put("vm.create", Some(vm)).0, 204);
    assert_eq!(client.put("vm.boot", None).0, 204);
    let printed = u64::from(lines) * "a line!\n".len() as u64;
    let mut counter = |name| client.get("vm.counters").1["__serial"][name].as_u64().unwrap();
    until(|| counter("tx_bytes") >= printed);
    assert_eq!(counter("tx_lost_bytes"), 0, "all of it waits");
    drop(journal);
    until(|| counter("tx_lost_bytes") > 0);
    assert!(counter("tx_lost_bytes") < printed, "the first lines had room");
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn a_console_with_a_limit_cannot_have_the_file_of_the_log_or_of_events() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("kernel"), prints_lines(1)).unwrap();
    fs::write(folder.path().join("log"), "of before\n").unwrap();
    symlink("log", folder.path().join("console")).unwrap();
    let output = Command::new(HUSK)
        .args([
            "run",
            "--no-rng",
            "--memory",
            "64M",
            "--kernel",
            "kernel",
            "--log-file",
            "log",
        ])
        .args(["--serial", "file=console,limit=4K"])
        .current_dir(&folder)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let why = "serial console: it is husk's log too: with a limit only the port can have it";
    let told = String::from_utf8(output.stderr).unwrap();
    let complaints: Vec<&str> = told.lines().filter(|line| !line.starts_with(NO_HARDWARE)).collect();
    assert!(
        complaints.len() == 1 && complaints[0].contains(process::refusal(why)),
        "{told}"
    );
    let log = fs::read_to_string(folder.path().join("log")).unwrap();
    assert!(
        log.starts_with("of before\n") && log.contains(process::refusal(why)),
        "{log}"
    );

    let events = folder.path().join("events");
    let monitor = format!("path={}", events.display());
    let mut husk = Husk::start_in(folder, &["--event-monitor", &monitor]);
    let vm = json!({
        "payload": {"kernel": husk.folder.path().join("kernel")}, "memory": {"size": 64 << 20}, "rng": null,
        "console": {"mode": "Off"}, "serial": {"mode": "File", "file": events, "limit": 4096},
    });
    let mut client = husk.client();
    let (status, why) = client.put("vm.create", Some(vm));
    assert_eq!(status, 400, "{why}");
    assert!(
        why.to_string()
            .contains("serial and --event-monitor both have the file"),
        "{why}"
    );
    let told = fs::read_to_string(&events).unwrap();
    assert!(told.contains("\"starting\""), "{told}");
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn where_no_journal_takes_a_console_there_is_no_vm_and_a_line_that_says_so() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("kernel"), prints_lines(1)).unwrap();
    for (serial, says) in [
        ("journald,journal=/nowhere/socket", "serial journald /nowhere/socket"),
        ("file=/dev/null,limit=4K", "it is no regular file"),
        ("file=x,limit=1K", "serial.limit: 1024 is not supported"),
        ("journald=a b", "serial.identifier"),
    ] {
        let mut command = Command::new(HUSK);
        command
            .args(["run", "--no-rng", "--kernel", "kernel", "--serial", serial])
            .current_dir(&folder);
        let output = command.stdin(Stdio::null()).output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        let complaints: Vec<&str> = told.lines().filter(|line| !line.starts_with(NO_HARDWARE)).collect();
        let expected = [says, process::refusal(says)];
        assert!(
            complaints.len() == 1 && expected.iter().any(|says| complaints[0].contains(says)),
            "{told}"
        );
        assert!(matches!(output.status.code(), Some(1 | 2)), "{told}");
    }
}
