//! `husk overhead` on VMs of a few instructions.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod process;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use husk_devices::testing::until;
use process::HUSK;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// `husk overhead OPTIONS` with its scratch below `folder`.
fn overhead(folder: &Path, options: &[&str]) -> Output {
    let mut command = Command::new(HUSK);
    command
        .args(["overhead", "--rest", "1", "--memory", "64M"])
        .args(options);
    command.env("TMPDIR", folder).stdin(Stdio::null()).output().unwrap()
}

fn kernel(folder: &Path, action: husk_benches::GuestAction) -> String {
    let path = folder.join("vmlinux");
    fs::write(&path, husk_benches::elf_of(&husk_benches::code(action))).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn what_vms_cost_is_measured_and_installed() {
    if !process::has_kvm() {
        return;
    }
    let (files, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let kernel = kernel(files.path(), husk_benches::GuestAction::Halt);
    let told = overhead(scratch.path(), &["--kernel", &kernel, "--pods", "3", "--shim", "0"]);
    assert!(told.status.success(), "{told:?}");
    let table = String::from_utf8(told.stdout).unwrap();
    let kibibytes = |name: &str| -> Vec<u64> {
        let row = table
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or_else(|| panic!("no {name}: {table}"));
        row.split_whitespace().map(|value| value.parse().unwrap()).collect()
    };
    // The guest's 64 MiB are no part of it, and neither of the processes costs nothing.
    for row in [
        "VMM, private",
        "VMM, page tables",
        "file server, private",
        "file server, page tables",
    ] {
        let values = kibibytes(row);
        assert!(
            values.is_sorted() && values[0] > 0 && values[2] < 32 << 10,
            "{row}: {table}"
        );
    }
    let all = kibibytes("all of these")[1];
    let told = overhead(
        scratch.path(),
        &["--kernel", &kernel, "--pods", "2", "--shim", "1000", "--json"],
    );
    let found: Value = serde_json::from_slice(&told.stdout).unwrap();
    let memory_mib = found["memory_mib"].as_u64().unwrap();
    assert!(
        (1000 + all / 2048..1064 + all / 512).contains(&memory_mib),
        "{found}: {table}"
    );
    assert!(
        found["method"]
            .as_str()
            .unwrap()
            .starts_with("p99 of 2 pods at rest, 1 vCPUs and 64 MiB each: ")
    );
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0, "nothing is left");
    // husk install reads what it prints.
    let measured = files.path().join("overhead.json");
    fs::write(&measured, told.stdout).unwrap();
    assert_eq!(husk::install::Overhead::read(&measured).unwrap().memory_mib, memory_mib);
}

/// A process whose program is called as Kata's shims are; it ends with this.
struct Shim(Child);

impl Shim {
    fn start(folder: &Path) -> Self {
        let program = folder.join("containerd-shim-kata-v2");
        fs::copy(HUSK, &program).unwrap();
        let mut shim = Command::new(program);
        shim.arg("--api-socket")
            .arg(folder.join("shim.sock"))
            .stdin(Stdio::null());
        Self(shim.spawn().unwrap())
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The recipe of docs/operate.md: measured with a shim that runs, and told to Kubernetes.
#[test]
fn a_runtime_class_has_room_for_katas_shim() {
    let (files, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    if running("containerd-shim-kata-v2", 0).is_empty() {
        let told = overhead(scratch.path(), &["--kernel", "/k", "--json"]);
        let line = String::from_utf8(told.stderr).unwrap();
        assert_eq!((told.status.code(), line.lines().count()), (Some(2), 1), "{line}");
        assert!(
            line.contains("--shim is missing: no containerd-shim-kata-v2 "),
            "{line}"
        );
    }
    if !process::has_kvm() {
        return;
    }
    let kernel = kernel(files.path(), husk_benches::GuestAction::Halt);
    let shim = Shim::start(files.path());
    until(|| files.path().join("shim.sock").exists());
    let told = overhead(scratch.path(), &["--kernel", &kernel, "--pods", "2", "--json"]);
    drop(shim);
    assert!(told.status.success(), "{told:?}");
    let found: Value = serde_json::from_slice(&told.stdout).unwrap();
    let [memory, shim] = ["memory_mib", "shim_mib"].map(|name| found[name].as_u64().unwrap());
    assert!(shim > 0 && memory > shim, "{found}");
    let method = found["method"].as_str().unwrap();
    assert!(
        method.contains(&format!("; {shim} MiB for Kata's shim, the largest of ")),
        "{method}"
    );
    let root = files.path().join("root");
    for (path, text) in [
        ("opt/kata/bin/containerd-shim-kata-v2", ""),
        (
            "opt/kata/share/defaults/kata-containers/configuration-clh.toml",
            "[hypervisor.clh]\n",
        ),
        ("etc/containerd/config.toml", "version = 3\n"),
    ] {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let install = |measured: &str| {
        let path = files.path().join("overhead.json");
        fs::write(&path, measured).unwrap();
        let mut install = Command::new(HUSK);
        install
            .args(["install", "--root"])
            .arg(&root)
            .arg("--overhead")
            .arg(path);
        let told = install.stdin(Stdio::null()).output().unwrap();
        assert!(told.status.success(), "{told:?}");
        String::from_utf8(told.stderr).unwrap()
    };
    let without = "the overhead of the runtime classes is without Kata's shim";
    let told = install(&found.to_string());
    assert!(!told.contains(without), "{told}");
    let classes = fs::read_to_string(root.join("opt/husk/share/husk/kubernetes/runtimeclass.yaml")).unwrap();
    assert!(
        classes.contains(&format!("podFixed:\n    memory: \"{memory}Mi\"\n")),
        "{classes}"
    );
    let told = install(r#"{"memory_mib": 2, "cpu_millis": 250, "method": "without Kata's shim"}"#);
    assert!(told.contains(&format!("note     {without}")), "{told}");
}

/// Processes whose command line has `word` in it, but for this one and `parent`.
fn running(word: &str, parent: u32) -> Vec<String> {
    let own = [std::process::id(), parent].map(|pid| pid.to_string());
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let is_one = |name: &String| {
        let words = fs::read(format!("/proc/{name}/cmdline")).unwrap_or_default();
        !own.contains(name) && String::from_utf8_lossy(&words).contains(word)
    };
    names.filter(is_one).collect()
}

#[test]
fn whoever_is_asked_to_end_or_killed_takes_its_vms_along() {
    if !process::has_kvm() {
        return;
    }
    let (files, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let kernel = kernel(files.path(), husk_benches::GuestAction::Halt);
    let word = scratch.path().to_str().unwrap();
    for signal in [Signal::TERM, Signal::INT, Signal::KILL] {
        // A signal that the tests' own parent ignores would stay ignored.
        let mut command = Command::new("env");
        command.args(["--default-signal", HUSK]);
        command.args([
            "overhead", "--pods", "2", "--rest", "600", "--memory", "64M", "--shim", "0", "--kernel", &kernel,
        ]);
        command
            .env("TMPDIR", scratch.path())
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        let measuring = command.spawn().unwrap();
        let pid = measuring.id();
        until(|| running(word, pid).len() >= 4);
        kill_process(Pid::from_child(&measuring), signal).unwrap();
        let ended = measuring.wait_with_output().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        if signal == Signal::KILL {
            // They are told as it ends, and nobody waits for them.
            until(|| running(word, pid).is_empty());
        } else {
            assert_eq!(ended.status.code(), Some(5), "{said}");
            assert_eq!(said, "error: the measurement was ended by a signal\n");
            assert_eq!(running(word, pid), [""; 0]);
            assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
        }
    }
}

#[test]
fn a_vm_that_cannot_be_measured_is_named() {
    let (files, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let told = overhead(scratch.path(), &["--kernel", "/nowhere", "--pods", "2", "--shim", "0"]);
    let line = String::from_utf8(told.stderr).unwrap();
    assert_eq!((told.status.code(), line.lines().count()), (Some(1), 1), "{line}");
    assert!(
        line.starts_with("error: VM 1 of 2 did not start: ") && line.contains(process::refusal("/nowhere")),
        "{line}"
    );
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    if process::has_kvm() {
        let kernel = kernel(files.path(), husk_benches::GuestAction::PowerOff);
        let told = overhead(scratch.path(), &["--kernel", &kernel, "--pods", "1", "--shim", "0"]);
        let line = String::from_utf8(told.stderr).unwrap();
        assert!(
            told.status.code() == Some(1) && line.starts_with("error: VM 1 of 1 "),
            "{line}"
        );
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    }
    for (option, value) in [("--pods", "0"), ("--rest", "0"), ("--memory", "x"), ("--shim", "-1")] {
        let told = overhead(scratch.path(), &["--kernel", "/k", option, value]);
        assert_eq!(told.status.code(), Some(2), "{option} {value}");
    }
}
