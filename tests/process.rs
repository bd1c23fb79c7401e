//! The VMM as a process among others: who may run it, where, and what it leaves to others.
#![allow(clippy::unwrap_used, reason = "helpers of a test fail as the test does")]
#![expect(
    unsafe_code,
    reason = "what a process does between fork and exec is a closure that must keep to system calls"
)]

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use husk_guest::{Answer, Step};
use husk_tests::{Boot, PATIENCE, husk};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// A user and a group that own nothing, and a group that `/dev/kvm` is lent to.
const NOBODY: u32 = 54_321;
const KVM_GROUP: u32 = 54_322;

/// Whether these tests may become somebody else.
fn is_root() -> bool {
    let root = fs::metadata("/proc/self").unwrap().uid() == 0;
    if !root {
        println!("skipped: needs root: another user is to be become");
    }
    root
}

fn as_nobody(command: &mut Command) {
    command.uid(NOBODY).gid(KVM_GROUP);
}

/// Lends `/dev/kvm` to [`KVM_GROUP`], as distributions do to `kvm`. Root's tests beside this one do not mind.
fn lend_kvm() {
    chown("/dev/kvm", Some(0), Some(KVM_GROUP)).unwrap();
    fs::set_permissions("/dev/kvm", fs::Permissions::from_mode(0o660)).unwrap();
}

#[test]
fn a_user_who_may_open_dev_kvm_and_nothing_else_runs_a_vm() {
    if !is_root() {
        return;
    }
    lend_kvm();
    let boot = Boot::new([Step::write("vda", 0, 1 << 20, 1), Step::PowerOff]).adjust(as_nobody);
    let disk = boot.folder().join("disk");
    fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    chown(&disk, Some(NOBODY), Some(NOBODY)).unwrap();
    chown(boot.folder(), Some(NOBODY), Some(NOBODY)).unwrap();
    let ended = boot.disk(&disk, "").run();
    ended.assert_code(0).assert_nothing_refused();
}

#[test]
fn a_user_who_may_not_open_dev_kvm_is_told_so() {
    if !is_root() {
        return;
    }
    lend_kvm();
    let boot = Boot::new([Step::PowerOff]).adjust(|command| {
        command.uid(NOBODY).gid(NOBODY);
    });
    chown(boot.folder(), Some(NOBODY), Some(NOBODY)).unwrap();
    let ended = boot.run();
    ended.assert_code(1);
    assert!(
        ended
            .errors
            .contains("cannot open /dev/kvm (try `husk check`): Permission denied"),
        "{}",
        ended.errors
    );
}

/// A cgroup with room for one VMM.
const CGROUP: &str = "/sys/fs/cgroup/husk-test";

fn elsewhere(command: &mut Command) {
    let enter = || {
        // SAFETY: numbers only.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // 0 is whoever writes it (cgroups(7)).
        let mut procs = fs::File::options()
            .write(true)
            .open("/sys/fs/cgroup/husk-test/cgroup.procs")?;
        procs.write_all(b"0")
    };
    // SAFETY: the closure makes system calls, and allocates nothing.
    unsafe { command.pre_exec(enter) };
}

/// As a shim starts it: in the pod's network namespace, and in a cgroup with limits that just suffice.
#[test]
fn a_vm_runs_in_another_network_namespace_and_in_a_narrow_cgroup() {
    if !is_root() {
        return;
    }
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+pids +memory").unwrap();
    fs::create_dir(CGROUP).unwrap();
    fs::write(format!("{CGROUP}/pids.max"), "16").unwrap();
    fs::write(format!("{CGROUP}/memory.max"), "400M").unwrap();
    let boot = Boot::new([Step::write("vda", 0, 1 << 20, 1), Step::Idle])
        .cpus(2)
        .adjust(elsewhere);
    let disk = boot.folder().join("disk");
    fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let mut guest = boot.disk(&disk, "").start();
    guest.answer();
    guest.answer();
    let own = |what: &str| format!("/proc/{}/{what}", guest.pid());
    assert_eq!(fs::read_to_string(own("cgroup")).unwrap().trim(), "0::/husk-test");
    assert_ne!(
        fs::read_link(own("ns/net")).unwrap(),
        fs::read_link("/proc/self/ns/net").unwrap()
    );
    guest.signal(libc::SIGTERM);
    guest.wait().assert_code(5);
    // Only an empty one can be removed: nothing is left of the VMM.
    fs::remove_dir(CGROUP).unwrap();
}

/// The guest's secrets stay out of core dumps: its RAM is marked `dd`, do not dump (proc_pid_smaps(5)).
#[test]
fn guest_ram_is_left_out_of_core_dumps() {
    let mut guest = Boot::new([Step::Idle]).memory("300M").start();
    guest.answer();
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", guest.pid())).unwrap();
    // Found by its size: not every kernel shows its name.
    let after_size = smaps
        .split("\nSize:")
        .find(|rest| rest.trim_start().starts_with("307200 kB"));
    let flags = after_size.and_then(|rest| rest.lines().find_map(|line| line.strip_prefix("VmFlags:")));
    let flags = flags.unwrap_or_else(|| panic!("no mapping of 300 MiB: {smaps}"));
    assert!(flags.split(' ').any(|flag| flag == "dd"), "{flags}");
}

/// Half a mebibyte for any file that is written.
fn with_short_files(command: &mut Command) {
    let limit = || {
        let limit = libc::rlimit {
            rlim_cur: 512 << 10,
            rlim_max: 512 << 10,
        };
        // SAFETY: reads the structure.
        match unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure makes one system call, and allocates nothing.
    unsafe { command.pre_exec(limit) };
}

#[test]
fn a_write_beyond_the_limit_of_file_sizes_is_an_error_of_the_disk() {
    for options in ["", ",io_uring=off"] {
        let steps = [
            Step::write("vda", 0, 4096, 1),
            Step::write("vda", 768 << 10, 4096, 1),
            Step::PowerOff,
        ];
        let boot = Boot::new(steps).adjust(with_short_files);
        let disk = boot.folder().join("disk");
        fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
        let ended = boot.disk(&disk, options).run();
        ended.assert_code(0);
        let answers = &ended.answers;
        assert!(matches!(answers[0], Answer::Data { .. }), "{answers:?}");
        assert!(matches!(answers[1], Answer::Failed { .. }), "{answers:?}");
    }
}

/// Starts the API in `folder`, for which the kernel has no random numbers: of its filter and husk's
/// own, the kernel does what the stricter says.
fn without_random_numbers(folder: &Path) -> Child {
    let calls = [(libc::SYS_getrandom, Vec::new())].into();
    let failure = SeccompAction::Errno(libc::EIO.cast_unsigned());
    let architecture = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(calls, SeccompAction::Allow, failure, architecture).unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    let mut command = husk();
    command
        .args(["--api-socket", "api.sock", "--log-file", "log"])
        .current_dir(folder);
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    let start = move || {
        // It holds this thread, and what it starts.
        seccompiler::apply_filter(&program).unwrap();
        command.spawn().unwrap()
    };
    thread::spawn(start).join().unwrap()
}

/// Of the standard library, which knows no other way, in a thread that has its filter by then. A
/// husk that is built to be tested by itself unwinds instead; this is one that is built as releases
/// are.
#[test]
fn a_panic_is_one_line_there_and_in_the_log_and_sigabrt() {
    /// An interface without an address gets one at random.
    const CREATE: &str = r#"{"payload":{"kernel":"k"},"net":[{"tap":"t"}]}"#;
    let folder = tempfile::tempdir().unwrap();
    let husk = without_random_numbers(folder.path());
    let begun = Instant::now();
    let mut client = loop {
        match UnixStream::connect(folder.path().join("api.sock")) {
            Ok(client) => break client,
            Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
        }
        thread::sleep(Duration::from_millis(5));
    };
    let length = CREATE.len();
    let request = format!("PUT /api/v1/vm.create HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n{CREATE}");
    client.write_all(request.as_bytes()).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = String::new();
    // Whoever has asked is told nothing any more.
    let _ = client.read_to_string(&mut answer);
    assert_eq!(answer, "");
    let pid = husk.id();
    let ended = husk.wait_with_output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.signal(), Some(libc::SIGABRT), "{:?}: {said}", ended.status);
    assert_eq!(said.lines().count(), 1, "{said}");
    let place = said.strip_prefix(&format!("ERRO: panic in thread api of process {pid} at "));
    let place = place.and_then(|rest| rest.strip_suffix("; husk ends here: failed to generate random data\n"));
    let (file, line) = place
        .and_then(|place| place.rsplit_once(':'))
        .unwrap_or_else(|| panic!("{said}"));
    assert!(file.ends_with(".rs") && line.parse::<u32>().is_ok(), "{said}");
    let logged = fs::read_to_string(folder.path().join("log")).unwrap();
    let told = said.trim_start_matches("ERRO: ").trim_end();
    assert!(
        logged.lines().last().is_some_and(|last| last.contains(told)),
        "{logged}"
    );
}
