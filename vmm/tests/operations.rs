//! Commands that take their time, on a guest of a few instructions: what is served meanwhile, and how a thread that never stops is
//! survived. Needs `/dev/kvm`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(
    unsafe_code,
    reason = "ptrace(2) stops one thread of a process and lets the others go on"
)]

mod process;

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use husk_devices::testing::until;
use process::{Client, HUSK, Husk, Signal, has_kvm};
use rustix::process::{Pid, Resource, Rlimit, kill_process, prlimit};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A store of `value`, of as many bytes as it has, to a guest-physical address (32-bit mode, no paging: PVH).
fn store(code: &mut Vec<u8>, gpa: u32, value: &[u8]) {
    match value.len() {
        1 => code.extend([0xc6, 0x05]),       // mov byte [gpa], imm8
        2 => code.extend([0x66, 0xc7, 0x05]), // mov word [gpa], imm16
        _ => code.extend([0xc7, 0x05]),       // mov dword [gpa], imm32
    }
    code.extend(gpa.to_le_bytes());
    code.extend(value);
}

/// A guest that starts the device in PCI slot 1 with its first queue, as a driver does (virtio 1.2 §3.1.1), says so on the serial port,
/// and halts.
fn kernel(folder: &Path) -> Value {
    kernel_that(folder, &husk_benches::code(husk_benches::GuestAction::Halt))
}

/// A guest that starts that device, and lets go of whatever it is told to (`hotplug/src/bank.rs`): it asks all the time.
fn ejecting_kernel(folder: &Path) -> Value {
    let eject = [
        &[0xa1, 0x00, 0x10, 0xb0, 0xfe][..], // mov eax, [TAKE]
        &[0x85, 0xc0, 0x74, 0xf7],           // test eax, eax; jz back to it
        &[0x0f, 0xb7, 0xc0],                 // movzx eax, ax: the slot
        &[0xa3, 0x04, 0x10, 0xb0, 0xfe],     // mov [EJCT], eax
        &[0xeb, 0xed],                       // jmp back to the first
    ];
    kernel_that(folder, &eject.concat())
}

/// A guest that starts that device and does `then`.
fn kernel_that(folder: &Path, then: &[u8]) -> Value {
    const CONFIG: u32 = 0xe800_0000 + (1 << 15);
    const BAR: u32 = 0xc000_0000;
    let mut code = Vec::new();
    store(&mut code, CONFIG + 4, &[2, 0]); // Memory Space Enable
    for (register, value) in [
        (0x14, &[1][..]),                     // ACKNOWLEDGE
        (0x14, &[3]),                         // DRIVER
        (0x08, &1_u32.to_le_bytes()),         // the upper features
        (0x0c, &1_u32.to_le_bytes()),         // VIRTIO_F_VERSION_1
        (0x14, &[11]),                        // FEATURES_OK
        (0x20, &0x20_0000_u32.to_le_bytes()), // the queue: descriptors, available ring, used ring
        (0x28, &0x20_2000_u32.to_le_bytes()),
        (0x30, &0x20_3000_u32.to_le_bytes()),
        (0x1c, &[1, 0]), // enabled
        (0x14, &[15]),   // DRIVER_OK
    ] {
        store(&mut code, BAR + register, value);
    }
    code.extend(then);
    let path = folder.join("vmlinux");
    fs::write(&path, husk_benches::elf_of(&code)).unwrap();
    json!(path)
}

/// The smallest VM that runs, with its kernel in `folder`.
fn vm(folder: &Path) -> Value {
    json!({
        "memory": {"size": 64 << 20},
        "payload": {"kernel": kernel(folder)},
        "serial": {"mode": "Off"},
        "console": {"mode": "Off"},
    })
}

/// husk with a running guest, whose first device is `rng` with the thread `io-rng`.
fn running() -> (Husk, Client) {
    running_in(tempfile::tempdir().unwrap(), &[])
}

fn running_in(folder: TempDir, options: &[&str]) -> (Husk, Client) {
    let husk = Husk::start_in(folder, options);
    let client = booted(&husk, vm(husk.folder.path()));
    (husk, client)
}

/// A client that has made and booted `vm`.
fn booted(husk: &Husk, vm: Value) -> Client {
    let mut client = husk.client();
    assert_eq!(client.put("vm.create", Some(vm)), DONE);
    done(&mut client, "vm.boot");
    client
}

/// husk, and the file that it writes events to.
fn with_events() -> (Husk, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let events = folder.path().join("events");
    let monitor = format!("path={}", events.display());
    (Husk::start_in(folder, &["--event-monitor", &monitor]), events)
}

/// A folder that has gone from the host, and RAM that has grown, are none of a new disk's affair; and the next boot has room for what there is.
#[test]
fn a_disk_comes_whatever_has_become_of_the_rest_of_the_vm_and_the_next_guest_was_asked_for_nothing() {
    if !has_kvm() {
        return;
    }
    let mut husk = Husk::start(&["--resize-timeout", "0"]);
    let place = |name| husk.folder.path().join(name);
    let (share, disk, kernel) = (place("share"), place("disk"), place("vmlinux"));
    fs::create_dir(&share).unwrap();
    File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    fs::write(
        &kernel,
        husk_benches::elf_of(&husk_benches::code(husk_benches::GuestAction::Halt)),
    )
    .unwrap();
    let most: u64 = 32 << 30;
    let mut client = husk.client();
    let vm = json!({
        "cpus": {"boot_vcpus": 1, "max_vcpus": 1, "max_phys_bits": 36},
        "memory": {"size": 64 << 20, "hotplug_size": most - (64 << 20), "acpi_only": true},
        "payload": {"kernel": kernel},
        "fs": [{"tag": "t", "dir": share}],
        "serial": {"mode": "Off"},
        "console": {"mode": "Off"},
    });
    assert_eq!(client.put("vm.create", Some(vm)), DONE);
    done(&mut client, "vm.boot");
    assert_eq!(client.put("vm.resize", Some(json!({"desired_ram": 1_u64 << 30}))), DONE);
    assert_eq!(client.get("vm.resize-status").1["last"]["outcome"], "timed-out");
    fs::remove_dir(&share).unwrap();
    let (status, added) = client.put("vm.add-disk", Some(json!({"path": disk})));
    assert_eq!(status, 200, "{added}");
    fs::create_dir(&share).unwrap();
    done(&mut client, "vm.reboot");
    let memory = client.get("vm.info").1["config"]["memory"].take();
    let bytes = |field: &str| memory[field].as_u64().unwrap();
    assert!(bytes("size") >= 1 << 30, "{memory}");
    assert_eq!(bytes("size") + bytes("hotplug_size"), most);
    assert_eq!(client.get("vm.resize-status").1["last"], Value::Null);
    husk.shut_down();
}

/// What `husk check` says, `vm.create` takes and `vm.boot` builds.
#[test]
fn as_many_vcpus_as_the_host_allows_are_possible_and_one_more_is_refused_by_name() {
    if !has_kvm() {
        return;
    }
    let said = Command::new(HUSK).arg("check").output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    let (_, after) = said.split_once("every capability, up to ").unwrap();
    let most: u32 = after.split_once(" vCPUs").unwrap().0.parse().unwrap();
    let mut husk = Husk::start(&[]);
    let mut client = husk.client();
    let mut vm = vm(husk.folder.path());
    vm["memory"]["hotplug_size"] = json!(1 << 30);
    vm["cpus"] = json!({"boot_vcpus": 1, "max_vcpus": most + 1});
    let (status, told) = client.put("vm.create", Some(vm.clone()));
    let refusal = format!("cpus.max_vcpus: {} vCPUs asked for, 1 to {most} allowed", most + 1);
    assert_eq!((status, told.to_string().contains(&refusal)), (400, true), "{told}");
    vm["cpus"] = json!({"boot_vcpus": 1, "max_vcpus": most});
    let mut client = booted(&husk, vm);
    assert_eq!(client.get("vm.info").1["state"], "Running");
    husk.shut_down();
}

#[test]
fn a_resize_that_the_host_cannot_begin_is_the_last_one_and_told_and_counted_and_an_empty_one_is_none() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (events, kernel) = (folder.path().join("events"), folder.path().join("vmlinux"));
    fs::write(
        &kernel,
        husk_benches::elf_of(&husk_benches::code(husk_benches::GuestAction::Halt)),
    )
    .unwrap();
    let monitor = format!("path={}", events.display());
    let mut husk = Husk::start_in(folder, &["--event-monitor", &monitor]);
    let mut client = booted(
        &husk,
        json!({
            "cpus": {"boot_vcpus": 1, "max_vcpus": 2},
            "memory": {"size": 64 << 20},
            "payload": {"kernel": kernel},
            "serial": {"mode": "Off"},
            "console": {"mode": "Off"},
        }),
    );
    // Nothing can be mapped any more, for a vCPU or its thread.
    let pid = Pid::from_raw(husk.child.id().cast_signed());
    let limit = |current| Rlimit {
        current: Some(current),
        maximum: None,
    };
    let before = prlimit(pid, Resource::As, limit(4096)).unwrap();
    let (status, told) = client.put("vm.resize", Some(json!({"desired_vcpus": 2})));
    prlimit(pid, Resource::As, before).unwrap();
    assert_eq!(status, 500, "{told}");
    let last = |client: &mut Client| client.get("vm.resize-status").1["last"].take();
    let noted = last(&mut client);
    assert_eq!(
        (&noted["outcome"], &noted["desired_vcpus"]),
        (&json!("refused"), &json!(2))
    );
    assert!(noted["what"].as_str().unwrap().contains("add vCPU 1"), "{noted}");
    assert_eq!(client.put("vm.resize", Some(json!({}))), DONE);
    assert_eq!(last(&mut client), noted, "one that asks for nothing begins nothing");
    until(|| fs::read_to_string(&events).unwrap().contains("resize-refused"));
    let written = fs::read_to_string(&events).unwrap();
    let refused: Vec<&str> = written.lines().filter(|line| line.contains("resize-refused")).collect();
    assert!(
        matches!(refused[..], [line] if line.contains("add vCPU 1")),
        "{written}"
    );
    assert_eq!(client.put("vm.resize", Some(json!({"desired_ram": 64 << 20}))), DONE);
    assert_eq!(last(&mut client)["outcome"], "accepted");
    husk.shut_down();
}

/// How many `vm.resize` have ended without the guest.
fn unanswered_in(events: &Path) -> usize {
    let lines = fs::read_to_string(events).unwrap();
    lines.matches("\"resize-unanswered\"").count()
}

/// Of a guest that takes nothing, each client is told what became of its own request.
#[test]
fn a_resize_is_answered_for_what_it_asked_for_whatever_others_ask_for_meanwhile() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (events, kernel) = (folder.path().join("events"), folder.path().join("vmlinux"));
    fs::write(
        &kernel,
        husk_benches::elf_of(&husk_benches::code(husk_benches::GuestAction::Halt)),
    )
    .unwrap();
    let monitor = format!("path={}", events.display());
    let mut husk = Husk::start_in(folder, &["--event-monitor", &monitor, "--resize-timeout", "3000"]);
    let mut client = booted(
        &husk,
        json!({
            "cpus": {"boot_vcpus": 1, "max_vcpus": 8},
            "memory": {"size": 64 << 20},
            "balloon": {"size": 0},
            "payload": {"kernel": kernel},
            "serial": {"mode": "Off"},
            "console": {"mode": "Off"},
        }),
    );
    let asking = |vcpus: u32| {
        let (mut other, mut client) = (husk.client(), husk.client());
        let asked = thread::spawn(move || other.put("vm.resize", Some(json!({"desired_vcpus": vcpus}))));
        until(|| client.get("vm.resize-status").1["vcpus"]["desired"] == vcpus);
        asked
    };
    let unanswered = |count| unanswered_in(&events) == count;
    let last = |client: &mut Client| client.get("vm.resize-status").1["last"].take();
    // Of another kind.
    let vcpus = asking(8);
    assert_eq!(client.put("vm.resize", Some(json!({"desired_balloon": 4096}))), DONE);
    let balloon = last(&mut client);
    assert_eq!(
        (&balloon["outcome"], &balloon["desired_balloon"]),
        (&json!("accepted"), &json!(4096))
    );
    assert_eq!(vcpus.join().unwrap(), DONE);
    until(|| unanswered(1));
    assert_eq!(last(&mut client), balloon, "the other was not the last one");
    // The same again.
    let first = asking(6);
    assert_eq!(client.put("vm.resize", Some(json!({"desired_vcpus": 6}))), DONE);
    assert_eq!(first.join().unwrap(), DONE);
    until(|| unanswered(3));
    // Another number: the first is wanted no more.
    let first = asking(8);
    assert_eq!(client.put("vm.resize", Some(json!({"desired_vcpus": 4}))), DONE);
    assert_eq!(first.join().unwrap(), DONE);
    until(|| unanswered(4));
    assert_eq!(last(&mut client)["desired_vcpus"], 4);
    let counted = client.scrape("/api/v1/vmm.metrics", "text/plain").unwrap().1;
    assert!(
        counted.contains("husk_resize_failures_total{outcome=\"unanswered\"} 4"),
        "{counted}"
    );
    assert!(
        counted.contains("husk_resize_failures_total{outcome=\"superseded\"} 1"),
        "{counted}"
    );
    // What it comes to is what there is to see, and what the next guest begins with.
    let in_balloon = |client: &mut Client| {
        let (info, status) = (client.get("vm.info").1, client.get("vm.resize-status").1);
        let target = status["memory"]["balloon"]["target_bytes"].clone();
        [info["config"]["balloon"]["size"].clone(), target]
    };
    assert_eq!(in_balloon(&mut client), [4096, 4096]);
    done(&mut client, "vm.reboot");
    assert_eq!(in_balloon(&mut client), [4096, 4096]);
    // What became of a resize is known until the next guest.
    assert_eq!(last(&mut client), Value::Null);
    let asked = asking(7);
    until(|| last(&mut client)["outcome"] == "in-progress");
    done(&mut client, "vm.shutdown");
    assert_eq!(asked.join().unwrap().0, 409);
    let (status, told) = client.get("vm.resize-status");
    assert_eq!((status, told.as_object().unwrap().len()), (200, 1), "{told}");
    assert_eq!(
        (&told["last"]["outcome"], &told["last"]["desired_vcpus"]),
        (&json!("abandoned"), &json!(7))
    );
    done(&mut client, "vm.boot");
    assert_eq!(last(&mut client), Value::Null);
    husk.shut_down();
}

#[test]
fn a_life_can_be_read_from_the_log_in_about_ten_lines() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let mut husk = Husk::start_in(folder, &["-v", "--log-file", log.to_str().unwrap()]);
    let vm = vm(husk.folder.path());
    let disk = husk.folder.path().join("disk");
    File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let mut client = husk.client();
    assert_eq!(client.put("vm.create", Some(vm)).0, 204);
    done(&mut client, "vm.boot");
    done(&mut client, "vm.pause");
    done(&mut client, "vm.resume");
    assert_eq!(client.put("vm.add-disk", Some(json!({"path": disk}))).0, 200);
    done(&mut client, "vm.shutdown");
    husk.shut_down();
    let log = fs::read_to_string(log).unwrap();
    let lines: Vec<&str> = log.lines().filter_map(|line| line.strip_prefix("INFO: ")).collect();
    let begins = [
        "husk ",
        "vm.create: 1 vCPUs, 64 MiB of RAM, kernel /",
        "the guest runs after ",
        "vm.pause: the VM is at rest",
        "the VM runs on",
        "_disk0 is at 0000:00:",
        "vm.shutdown: the VM has ended",
        "vmm.shutdown: the VM has ended, and husk ends",
    ];
    assert_eq!(lines.len(), begins.len(), "{log}");
    for (line, begin) in lines.iter().zip(begins) {
        assert!(line.starts_with(begin), "{line} is no {begin}: {log}");
    }
    for phase in ["kvm open", "ram", "devices", "tables"] {
        assert!(lines[2].contains(&format!("{phase} ")), "{phase}: {}", lines[2]);
    }
}

fn done(client: &mut Client, command: &str) {
    assert_eq!(client.put(command, None), (204, Value::Null), "{command}");
}

fn state(client: &mut Client) -> Value {
    client.get("vm.info").1["state"].clone()
}

/// What the threads are called that there are.
fn thread_names(husk: &Husk) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", husk.child.id()))
        .unwrap()
        .flatten();
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    names.map(|name| name.trim_end().to_owned()).collect()
}

/// The thread of the process `pid` that is called `name`, once there is one.
fn thread_of(pid: u32, name: &str) -> libc::pid_t {
    let mut found = None;
    until(|| {
        found = fs::read_dir(format!("/proc/{pid}/task"))
            .unwrap()
            .flatten()
            .find(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name));
        found.is_some()
    });
    found.unwrap().file_name().to_str().unwrap().parse().unwrap()
}

/// A thread that does nothing any more, whatever it is asked. Only the thread that made this may end it.
struct Stuck(libc::pid_t);

impl Stuck {
    fn new(husk: &Husk, name: &str) -> Self {
        let thread = thread_of(husk.child.id(), name);
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: numbers only; the tracee is a thread of a child.
        let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, thread, none, none) };
        assert_eq!(seized, 0, "{}", io::Error::last_os_error());
        // SAFETY: as above.
        let stopped = unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, thread, none, none) };
        assert_eq!(stopped, 0, "{}", io::Error::last_os_error());
        let stuck = Self(thread);
        assert!(libc::WIFSTOPPED(stuck.wait()));
        stuck
    }

    /// Waits until the thread has stopped, or has ended with its process.
    fn wait(&self) -> libc::c_int {
        let mut status = 0;
        // SAFETY: the call fills a number.
        let waited = unsafe { libc::waitpid(self.0, &raw mut status, libc::__WALL) };
        assert_eq!(waited, self.0, "{}", io::Error::last_os_error());
        status
    }

    /// Lets it go on.
    fn release(self) {}
}

impl Drop for Stuck {
    /// Also when a test fails: its process could not be waited for.
    fn drop(&mut self) {
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: numbers only. Fails if it has ended.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, none, none) };
    }
}

/// A file of 1 MiB for a disk called `name`, and how it is described.
fn disk(folder: &Path, name: &str) -> Value {
    let path = folder.join(name);
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    json!({"id": name, "path": path})
}

/// How many events of this name there are in the file `events` for the device `id`.
fn told(events: &Path, event: &str, id: &str) -> usize {
    let lines = fs::read_to_string(events).unwrap();
    let is_meant = |line: &&str| {
        let line: Value = serde_json::from_str(line).unwrap();
        line["event"] == event && line["properties"]["id"] == id
    };
    // What is being written has no end yet.
    let whole = lines.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    whole.filter(is_meant).count()
}

/// What a client is told of a stop that came to no end: the VM is gone, which it asked for.
const DONE: (u16, Value) = (204, Value::Null);

#[test]
fn a_vm_goes_through_its_life_by_command() {
    if !has_kvm() {
        return;
    }
    let (mut husk, mut client) = running();
    for _ in 0..3 {
        done(&mut client, "vm.pause");
        assert_eq!(state(&mut client), "Paused");
        assert_eq!(client.put("vm.pause", None).0, 409);
        done(&mut client, "vm.resume");
        assert_eq!(state(&mut client), "Running");
        assert_eq!(client.put("vm.resume", None).0, 409);
        done(&mut client, "vm.reboot");
        assert_eq!(state(&mut client), "Running");
    }
    done(&mut client, "vm.pause");
    done(&mut client, "vm.shutdown");
    assert_eq!(state(&mut client), "Shutdown");
    done(&mut client, "vm.boot");
    done(&mut client, "vm.delete");
    assert_eq!(client.get("vm.info").0, 404);
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn clients_are_served_while_a_device_does_not_stop_and_the_vm_ends_without_it() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (events, log) = (folder.path().join("events"), folder.path().join("log"));
    let monitor = format!("path={}", events.display());
    let options = ["--event-monitor", &monitor, "--log-file", log.to_str().unwrap()];
    let (mut husk, mut client) = running_in(folder, &options);
    let stuck = Stuck::new(&husk, "io-rng");
    let mut other = husk.client();
    client.send("PUT", "vm.shutdown", None, &[]);
    // Whether it has begun by now or not, nothing waits for it.
    loop {
        assert_eq!(other.get("vmm.ping").0, 200);
        assert_eq!(other.get("vm.counters").0, 200);
        let (status, body) = other.put("vm.resume", None);
        assert_eq!(status, 409);
        if body[0] == "vm.shutdown is being carried out, vm.resume has to wait for its end" {
            break;
        }
    }
    assert_eq!(other.put("vm.delete", None).0, 409);
    assert_eq!(client.answer(), DONE);
    assert_eq!(state(&mut client), "Shutdown");
    until(|| fs::read_to_string(&log).unwrap().contains("WARN: __rng: left behind"));
    until(|| fs::read_to_string(&events).unwrap().contains("device-stuck"));
    let (events, log) = (fs::read_to_string(events).unwrap(), fs::read_to_string(log).unwrap());
    assert!(
        events.contains(r#""event":"device-stuck","properties":{"id":"__rng"}"#),
        "{events}"
    );
    assert!(log.contains("ERRO: __rng has not stopped within 2 s"), "{log}");
    assert!(log.contains("WARN: __rng: left behind"), "{log}");
    // What was left behind is in nobody's way, and is taken apart when it comes to its end after all.
    let before = husk.descriptors();
    stuck.release();
    while husk.descriptors() >= before {
        assert_eq!(client.get("vmm.ping").0, 200);
    }
    done(&mut client, "vm.boot");
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn a_device_that_was_asked_back_goes_with_its_machine_although_the_guest_never_answered() {
    if !has_kvm() {
        return;
    }
    let (mut husk, events) = with_events();
    let folder = husk.folder.path();
    let (mut vm, goes) = (vm(folder), disk(folder, "goes"));
    vm["disks"] = json!([goes, disk(folder, "stays")]);
    let mut client = booted(&husk, vm);
    assert_eq!(client.put("vm.remove-device", Some(json!({"id": "goes"}))), DONE);
    assert_eq!(client.get("vm.info").1["config"]["disks"][0]["id"], "goes");
    done(&mut client, "vm.reboot");
    let disks = client.get("vm.info").1["config"]["disks"].take();
    assert_eq!((disks[0]["id"].as_str(), &disks[1]), (Some("stays"), &Value::Null));
    until(|| told(&events, "device-removed", "goes") == 1);
    let (status, added) = client.put("vm.add-disk", Some(goes));
    assert_eq!(status, 200, "nobody has its image: {added}");
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn a_device_that_the_guest_let_go_of_does_not_come_back_although_its_thread_stands_still() {
    if !has_kvm() {
        return;
    }
    let (mut husk, events) = with_events();
    let folder = husk.folder.path();
    let mut vm = vm(folder);
    vm["payload"]["kernel"] = ejecting_kernel(folder);
    vm["disks"] = json!([disk(folder, "d")]);
    let mut client = booted(&husk, vm);
    let stuck = Stuck::new(&husk, "io-d");
    assert_eq!(client.put("vm.remove-device", Some(json!({"id": "d"}))), DONE);
    while told(&events, "device-stuck", "d") == 0 {
        assert_eq!(client.get("vmm.ping").0, 200);
    }
    assert_eq!(told(&events, "device-removed", "d"), 0);
    done(&mut client, "vm.shutdown");
    assert_eq!(client.get("vm.info").1["config"]["disks"], Value::Null);
    done(&mut client, "vm.boot");
    stuck.release();
    done(&mut client, "vm.reboot");
    assert_eq!(client.get("vm.info").1["config"]["disks"], Value::Null);
    until(|| told(&events, "device-removed", "d") > 0);
    let both = ["device-stuck", "device-removed"].map(|event| told(&events, event, "d"));
    assert_eq!(both, [1, 1], "each is said once");
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn a_device_that_does_not_stop_keeps_no_other_from_the_next_boot_and_no_socket() {
    if !has_kvm() {
        return;
    }
    let mut husk = Husk::start(&[]);
    let folder = husk.folder.path();
    let (mut vm, vsock) = (vm(folder), folder.join("vsock"));
    vm["disks"] = json!([disk(folder, "d"), disk(folder, "good")]);
    vm["vsock"] = json!({"cid": 3, "socket": vsock});
    let mut client = booted(&husk, vm);
    let stuck = Stuck::new(&husk, "io-d");
    done(&mut client, "vm.shutdown");
    assert!(!vsock.exists());
    let (status, body) = client.put("vm.boot", None);
    assert_eq!(status, 409, "{body}");
    assert_eq!(body[1], "d has ended with its machine, but not stopped yet");
    assert_eq!(body[2], json!(format!("disk {}", folder.join("d").display())));
    assert_eq!(client.put("vm.remove-device", Some(json!({"id": "d"}))), DONE);
    done(&mut client, "vm.boot");
    assert!(vsock.exists());
    assert_eq!(client.put("vmm.shutdown", None), DONE);
    assert!(!vsock.exists());
    stuck.wait();
    assert_eq!(husk.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_socket_that_somebody_listens_at_is_a_conflict() {
    if !has_kvm() {
        return;
    }
    let mut husk = Husk::start(&[]);
    let (mut vm, vsock) = (vm(husk.folder.path()), husk.folder.path().join("vsock"));
    vm["vsock"] = json!({"cid": 3, "socket": vsock});
    let mut client = husk.client();
    assert_eq!(client.put("vm.create", Some(vm)), DONE);
    let other = UnixListener::bind(&vsock).unwrap();
    let (status, body) = client.put("vm.boot", None);
    assert_eq!(status, 409, "{body}");
    drop(other);
    done(&mut client, "vm.boot");
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn a_shutdown_of_the_process_takes_the_place_of_one_of_the_vm() {
    if !has_kvm() {
        return;
    }
    let (mut husk, mut client) = running();
    let stuck = Stuck::new(&husk, "io-rng");
    client.send("PUT", "vm.delete", None, &[]);
    let mut other = husk.client();
    while other.put("vm.pause", None).1[0] != "vm.delete is being carried out, vm.pause has to wait for its end" {}
    other.send("PUT", "vmm.shutdown", None, &[]);
    let taken = json!(["vmm.shutdown has taken the place of vm.delete"]);
    assert_eq!(client.answer(), (409, taken));
    assert_eq!(other.answer(), DONE);
    stuck.wait();
    assert_eq!(husk.child.wait().unwrap().code(), Some(0));
    assert!(!husk.socket().exists());
}

#[test]
fn a_signal_ends_the_process_although_a_device_does_not_stop() {
    if !has_kvm() {
        return;
    }
    for during in [None, Some("vm.delete")] {
        let (mut husk, mut client) = running();
        let stuck = Stuck::new(&husk, "io-rng");
        if let Some(command) = during {
            client.send("PUT", command, None, &[]);
        }
        husk.signal(Signal::TERM);
        stuck.wait();
        assert_eq!(husk.child.wait().unwrap().code(), Some(5));
        if during.is_some() {
            let (status, body) = client.answer();
            assert_eq!(status, 500, "{body}");
        }
    }
}

/// husk that boots a VM whose back-end is connected to and says nothing, and the client that waits for that.
fn booting() -> (Husk, Client, UnixListener) {
    let husk = Husk::start(&[]);
    let socket = husk.folder.path().join("fs");
    let silent = UnixListener::bind(&socket).unwrap();
    let mut vm = vm(husk.folder.path());
    vm["memory"]["shared"] = true.into();
    vm["fs"] = json!([{"tag": "a", "socket": socket}]);
    let mut client = husk.client();
    assert_eq!(client.put("vm.create", Some(vm)), DONE);
    client.send("PUT", "vm.boot", None, &[]);
    let mut other = husk.client();
    while other.put("vm.pause", None).1[0] != "vm.boot is being carried out, vm.pause has to wait for its end" {}
    (husk, client, silent)
}

#[test]
fn clients_are_served_while_a_machine_is_built_and_can_call_it_off() {
    if !has_kvm() {
        return;
    }
    for command in ["vm.shutdown", "vm.delete", "vm.reboot", "vmm.shutdown"] {
        let (mut husk, mut client, silent) = booting();
        let mut other = husk.client();
        assert_eq!(other.get("vmm.ping").0, 200);
        assert_eq!(state(&mut other), "Created");
        assert_eq!(other.get("vm.counters").0, 409);
        for refused in ["vm.boot", "vm.resume"] {
            assert_eq!(other.put(refused, None).0, 409, "{refused}");
        }
        other.send("PUT", command, None, &[]);
        let taken = json!([format!("{command} has taken the place of vm.boot")]);
        assert_eq!(client.answer(), (409, taken));
        // The back-end leaves: nothing holds up the end of what is half built.
        drop(silent);
        if command == "vm.reboot" {
            // And is missed by what is built anew.
            let (status, body) = other.answer();
            assert_eq!(
                (status, &body[0]),
                (400, &json!("cannot boot the VM again: it is shut down"))
            );
            assert_eq!(state(&mut other), "Shutdown");
            continue;
        }
        assert_eq!(other.answer(), DONE, "{command}");
        match command {
            "vm.shutdown" => assert_eq!(state(&mut other), "Shutdown"),
            "vm.delete" => assert_eq!(other.get("vm.info").0, 404),
            _ => {
                assert_eq!(husk.child.wait().unwrap().code(), Some(0));
                continue;
            }
        }
        assert_eq!(husk.shut_down().code(), Some(0));
    }
}

#[test]
fn a_signal_ends_the_process_while_a_machine_is_built() {
    if !has_kvm() {
        return;
    }
    let (mut husk, mut client, silent) = booting();
    husk.signal(Signal::TERM);
    assert_eq!(client.answer().0, 500);
    assert_eq!(husk.child.wait().unwrap().code(), Some(5));
    drop(silent);
}

#[test]
fn a_machine_that_cannot_be_built_leaves_everything_as_it_was() {
    if !has_kvm() {
        return;
    }
    let (mut husk, mut client, silent) = booting();
    drop(silent);
    let (status, body) = client.answer();
    assert_eq!((status, &body[0]), (400, &json!("cannot boot the VM")), "{body}");
    assert!(body[1].as_str().unwrap().starts_with("fs a: back-end at "), "{body}");
    assert_eq!(state(&mut client), "Created");
    let before = husk.descriptors();
    assert_eq!(client.put("vm.boot", None).0, 400);
    assert_eq!(husk.descriptors(), before);
    assert_eq!(husk.shut_down().code(), Some(0));
}

/// `husk run` of a VM whose back-end has been connected to and says nothing.
fn running_for(folder: &Path, options: &[&str]) -> (Child, UnixStream) {
    let socket = folder.join("fs");
    let silent = UnixListener::bind(&socket).unwrap();
    let mut command = Command::new("env");
    command.args([
        "--default-signal",
        HUSK,
        "run",
        "--memory",
        "64M",
        "--serial",
        "off",
        "--console",
        "off",
    ]);
    command.arg("--kernel").arg(kernel(folder).as_str().unwrap());
    command.arg("--fs").arg(format!("tag=a,socket={}", socket.display()));
    let child = command
        .args(options)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (connection, _) = silent.accept().unwrap();
    (child, connection)
}

#[test]
fn husk_run_serves_signals_and_clients_while_its_machine_is_built() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (mut child, silent) = running_for(folder.path(), &[]);
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(5));
    drop(silent);

    let folder = tempfile::tempdir().unwrap();
    let api = folder.path().join("api");
    let (mut child, silent) = running_for(folder.path(), &["--api-socket", api.to_str().unwrap()]);
    let mut client = Client(BufReader::new(UnixStream::connect(&api).unwrap()));
    assert_eq!(state(&mut client), "Created");
    let (status, body) = client.put("vm.pause", None);
    let refusal = json!(["husk run is being carried out, vm.pause has to wait for its end"]);
    assert_eq!((status, body), (409, refusal));
    // What takes its place keeps the process: it is the client's now.
    client.send("PUT", "vm.shutdown", None, &[]);
    drop(silent);
    assert_eq!(client.answer(), DONE);
    assert_eq!(state(&mut client), "Shutdown");
    done(&mut client, "vmm.shutdown");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn husk_run_ends_with_one_line_when_its_machine_cannot_be_built() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (child, silent) = running_for(folder.path(), &[]);
    drop(silent);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("error: fs a: back-end at "), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

/// husk whose guest runs, the client that waits for a share `a` to be added whose back-end is connected to and says nothing, and one more.
fn adding(options: &[&str]) -> (Husk, Client, Client, UnixListener) {
    let husk = Husk::start(options);
    let socket = husk.folder.path().join("fs");
    let silent = UnixListener::bind(&socket).unwrap();
    let mut vm = vm(husk.folder.path());
    vm["memory"]["shared"] = true.into();
    let mut client = booted(&husk, vm);
    // What the guest starts is there: descriptors can be counted.
    thread_of(husk.child.id(), "io-rng");
    let share = json!({"id": "a", "tag": "a", "socket": socket}).to_string();
    client.send("PUT", "vm.add-fs", Some(&share), &[]);
    let mut other = husk.client();
    let being_added = json!(["a is being added, it can be removed once it is there"]);
    while other.put("vm.remove-device", Some(json!({"id": "a"}))).1 != being_added {}
    (husk, client, other, silent)
}

#[test]
fn clients_are_served_while_a_device_is_opened_and_nothing_is_left_of_one_that_cannot_be() {
    if !has_kvm() {
        return;
    }
    let (mut husk, mut client, mut other, silent) = adding(&[]);
    assert_eq!(other.get("vmm.ping").0, 200);
    let (status, info) = other.get("vm.info");
    assert_eq!(
        (status, &info["state"], &info["config"]["fs"]),
        (200, &json!("Running"), &Value::Null)
    );
    assert_eq!(other.get("vm.counters").0, 200);
    assert_eq!(other.put("vm.resize", Some(json!({"desired_vcpus": 1}))), DONE);
    done(&mut other, "vm.pause");
    done(&mut other, "vm.resume");
    assert_eq!(other.put("vm.boot", None).0, 409);
    // A name is taken from the first moment on, and nothing else is.
    let disk = husk.folder.path().join("disk");
    File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let named = |id: &str| Some(json!({"id": id, "path": disk}));
    let (status, body) = other.put("vm.add-disk", named("a"));
    assert_eq!((status, body), (409, json!(["id 'a' is taken by another device"])));
    let (status, first) = other.put("vm.add-disk", named("b"));
    assert_eq!(status, 200, "{first}");
    let (status, body) = other.put("vm.add-disk", named("c"));
    assert_eq!((status, &body[0]), (409, &json!("cannot add c: its image is b's")));

    drop(silent);
    let (status, body) = client.answer();
    assert_eq!((status, &body[0]), (400, &json!("cannot add a")), "{body}");
    assert!(body[1].as_str().unwrap().starts_with("fs a: back-end at "), "{body}");
    let before = husk.descriptors();
    let missing = json!({"id": "a", "tag": "a", "socket": husk.folder.path().join("fs")});
    assert_eq!(client.put("vm.add-fs", Some(missing)).0, 400);
    assert_eq!(husk.descriptors(), before);
    let more = husk.folder.path().join("more");
    File::create(&more).unwrap().set_len(1 << 20).unwrap();
    let (status, second) = client.put("vm.add-disk", Some(json!({"id": "a", "path": more})));
    assert_eq!(status, 200, "{second}");
    let slot = |added: &Value| u32::from_str_radix(&added["bdf"].as_str().unwrap()[8..10], 16).unwrap();
    assert_eq!(slot(&second), slot(&first) + 1, "what failed has no slot");
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn the_end_of_the_vm_calls_off_a_device_that_is_being_opened() {
    if !has_kvm() {
        return;
    }
    for command in ["vm.shutdown", "vm.delete", "vm.reboot", "vmm.shutdown"] {
        let (mut husk, mut client, mut other, silent) = adding(&[]);
        other.send("PUT", command, None, &[]);
        let taken = json!([format!("{command} has taken the place of vm.add-fs")]);
        assert_eq!(client.answer(), (409, taken));
        // The back-end leaves: nothing holds up the end of what is half open.
        drop(silent);
        assert_eq!(other.answer(), DONE, "{command}");
        match command {
            "vm.shutdown" => assert_eq!(state(&mut other), "Shutdown"),
            "vm.delete" => assert_eq!(other.get("vm.info").0, 404),
            "vm.reboot" => {
                let (_, info) = other.get("vm.info");
                assert_eq!(
                    (&info["state"], &info["config"]["fs"]),
                    (&json!("Running"), &Value::Null)
                );
            }
            _ => {
                assert_eq!(husk.child.wait().unwrap().code(), Some(0));
                continue;
            }
        }
        assert_eq!(husk.shut_down().code(), Some(0));
    }
}

#[test]
fn a_reboot_goes_on_without_a_device_that_does_not_open() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let (mut husk, mut client, mut other, silent) = adding(&["--log-file", log.to_str().unwrap()]);
    done(&mut other, "vm.reboot");
    let taken = json!(["vm.reboot has taken the place of vm.add-fs"]);
    assert_eq!(client.answer(), (409, taken));
    let (_, info) = other.get("vm.info");
    assert_eq!(
        (&info["state"], &info["config"]["fs"]),
        (&json!("Running"), &Value::Null)
    );
    until(|| {
        fs::read_to_string(&log)
            .unwrap()
            .contains("left behind by a VM that is built anew")
    });
    let log = fs::read_to_string(log).unwrap();
    assert!(
        log.contains("WARN: a: not open yet, left behind by a VM that is built anew"),
        "{log}"
    );
    drop(silent);
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn a_device_that_does_not_open_is_left_behind_by_name_and_goes_when_it_can() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let (mut husk, mut client, mut other, silent) = adding(&["--log-file", log.to_str().unwrap()]);
    let before = husk.descriptors();
    done(&mut other, "vm.delete");
    let taken = json!(["vm.delete has taken the place of vm.add-fs"]);
    assert_eq!(client.answer(), (409, taken));
    until(|| {
        fs::read_to_string(&log)
            .unwrap()
            .contains("a has not stopped within 2 s")
    });
    let log = fs::read_to_string(log).unwrap();
    assert!(log.contains("ERRO: a has not stopped within 2 s"), "{log}");
    assert!(!log.contains("__rng"), "what stops is not held up: {log}");
    // The connection, the memory and the VM that it was for: all go when the thread that has them is done.
    drop(silent);
    let smaps = format!("/proc/{}/smaps", husk.child.id());
    while husk.descriptors() >= before || fs::read_to_string(&smaps).unwrap().contains("guest-ram") {
        assert_eq!(client.get("vmm.ping").0, 200);
    }
    assert!(thread_names(&husk).contains(&"builder".to_owned()), "it stays");
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn a_signal_ends_the_process_while_a_device_is_opened() {
    if !has_kvm() {
        return;
    }
    let (mut husk, mut client, _other, silent) = adding(&[]);
    husk.signal(Signal::TERM);
    assert_eq!(client.answer().0, 500);
    assert_eq!(husk.child.wait().unwrap().code(), Some(5));
    drop(silent);
}

/// A client that asks and asks, and does not care for answers, until the connection ends.
fn hammer(client: Client) {
    let mut stream = client.0.into_inner();
    let mut answers = [0; 4096];
    let requests = b"GET /api/v1/vm.counters HTTP/1.1\r\n\r\n".repeat(16);
    while stream.write_all(&requests).is_ok() && stream.read(&mut answers).is_ok_and(|bytes| bytes > 0) {}
}

#[test]
fn a_flood_of_commands_keeps_neither_timers_nor_signals_from_their_turn() {
    if !has_kvm() {
        return;
    }
    let (mut husk, mut client) = running();
    let floods: Vec<_> = (0..8)
        .map(|_| {
            let client = husk.client();
            thread::spawn(|| hammer(client))
        })
        .collect();
    let stuck = Stuck::new(&husk, "io-rng");
    // Its deadline is a timer.
    client.send("PUT", "vm.reboot", None, &[]);
    let late = json!([
        "cannot boot the VM again: it is shut down",
        "__rng did not stop within 2 s and was left behind"
    ]);
    assert_eq!(client.answer(), (500, late));
    assert_eq!(state(&mut client), "Shutdown");
    husk.signal(Signal::TERM);
    stuck.wait();
    assert_eq!(husk.child.wait().unwrap().code(), Some(5));
    for flood in floods {
        flood.join().unwrap();
    }
}

#[test]
fn a_pause_that_comes_to_no_end_is_refused_by_name_and_all_others_go_on() {
    if !has_kvm() {
        return;
    }
    let (mut husk, mut client) = running();
    // It is in the guest: what is not yet there is at rest.
    thread_of(husk.child.id(), "io-rng");
    let stuck = Stuck::new(&husk, "vcpu0");
    let mut other = husk.client();
    client.send("PUT", "vm.pause", None, &[]);
    while other.put("vm.boot", None).1[0] == "the VM runs already" {}
    assert_eq!(other.put("vm.pause", None).0, 409);
    assert_eq!(state(&mut other), "Running");
    let late = json!([
        "cannot pause the VM",
        "__vcpus did not come to rest within 5 s: all others go on"
    ]);
    assert_eq!(client.answer(), (500, late));
    assert_eq!(state(&mut client), "Running");

    client.send("PUT", "vm.pause", None, &[]);
    while other.put("vm.boot", None).1[0] == "the VM runs already" {}
    done(&mut other, "vm.resume");
    assert_eq!(
        client.answer(),
        (409, json!(["vm.resume has taken the place of vm.pause"]))
    );

    stuck.release();
    done(&mut client, "vm.pause");
    assert_eq!(state(&mut client), "Paused");
    assert_eq!(husk.shut_down().code(), Some(0));
}

/// A guest that computes for ever, and leaves KVM for nothing but a signal.
fn spinning_vm(folder: &Path) -> Value {
    let kernel = folder.join("spin");
    fs::write(&kernel, husk_benches::elf_of(&[0xeb, 0xfe])).unwrap(); // jmp to itself
    json!({
        "memory": {"size": 64 << 20},
        "payload": {"kernel": kernel},
        "serial": {"mode": "Off"},
        "console": {"mode": "Off"},
    })
}

#[test]
fn a_limit_of_the_process_that_refuses_memory_is_named() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    kernel(folder.path());
    for (limit, memory, says) in [
        (
            "-f 100",
            "size=64M,shared=on",
            "64 MiB needed, RLIMIT_FSIZE (ulimit -f) allows ",
        ),
        (
            "-f 100",
            "size=64M,hotplug=1G",
            "2 MiB needed, RLIMIT_FSIZE (ulimit -f) allows ",
        ),
        ("-v 1000000", "size=1G", " in use, RLIMIT_AS (ulimit -v) allows "),
    ] {
        let script =
            format!("ulimit {limit}; exec \"$0\" run --kernel vmlinux --serial null --console off --memory {memory}");
        let mut command = Command::new("sh");
        command.args(["-c", &script, HUSK]).current_dir(&folder);
        let output = command.stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{limit}: {said}");
        assert!(said.contains(says), "{limit}: {said}");
    }
}

/// As where other processes of the user have used up the signals that may wait, and whoever started husk had blocked
/// all that it could.
#[test]
fn a_guest_that_computes_is_stopped_whatever_becomes_of_signals() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("env");
    command.args(["--default-signal", "--block-signal", HUSK, "--api-socket"]);
    let child = command.arg(folder.path().join("api.sock")).spawn().unwrap();
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    prlimit(Some(Pid::from_child(&child)), Resource::Sigpending, none).unwrap();
    let mut husk = Husk { folder, child };
    husk.ready();
    let vm = spinning_vm(husk.folder.path());
    let mut client = booted(&husk, vm);
    // What looks for a guest that waits for a page in vain has no timer, and comes all the same.
    until(|| {
        let counters = client.get("vm.counters").1;
        let exits = counters["__vcpu0"]["signal_exits"].as_u64();
        exits.is_none_or(|exits| exits >= 2)
    });
    done(&mut client, "vm.pause");
    assert_eq!(state(&mut client), "Paused");
    done(&mut client, "vm.resume");
    done(&mut client, "vm.delete");
    assert!(!thread_names(&husk).contains(&"vcpu0".to_owned()));
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn a_vm_whose_vcpu_does_not_come_has_no_devices_and_is_not_said_to_have_ended() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut spinning = spinning_vm(folder.path());
    spinning["disks"] = json!([disk(folder.path(), "a")]);
    let mut plain = vm(folder.path());
    plain["disks"] = spinning["disks"].clone();
    let mut husk = Husk::start_in(folder, &[]);
    let mut client = booted(&husk, spinning);
    let stuck = Stuck::new(&husk, "vcpu0");
    let left = json!([
        "a VM that has ended is left behind",
        "__vcpus did not leave the guest: its devices are taken away, but it may compute until husk ends"
    ]);
    assert_eq!(client.put("vm.shutdown", None), (500, left.clone()));
    assert_eq!(state(&mut client), "Shutdown");
    assert_eq!(client.put("vm.delete", None), (500, left.clone()));
    assert_eq!(client.get("vm.info").0, 404);
    assert_eq!(client.put("vm.delete", None), (500, left), "it is said again");
    // Its image is nobody's.
    assert_eq!(client.put("vm.create", Some(plain)), DONE);
    done(&mut client, "vm.boot");
    done(&mut client, "vm.shutdown");
    stuck.release();
    until(|| client.put("vm.delete", None) == DONE);
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn a_vcpu_that_does_not_come_keeps_the_process_from_nothing() {
    if !has_kvm() {
        return;
    }
    let (mut husk, mut client) = running();
    // It is in the guest: what is not yet there is at rest.
    thread_of(husk.child.id(), "io-rng");
    let stuck = Stuck::new(&husk, "vcpu0");
    assert_eq!(client.put("vmm.shutdown", None), DONE);
    stuck.wait();
    assert_eq!(husk.child.wait().unwrap().code(), Some(0));
}

#[test]
fn the_list_of_containers_ends_with_the_guest_that_they_ran_in() {
    if !has_kvm() {
        return;
    }
    let (mut husk, mut client) = running();
    let noted = json!({"revision": 0, "containers": {"a": {}}});
    assert_eq!(client.put("vm.set-containers", Some(noted)).0, 204);
    for (command, revision) in [("vm.reboot", 2), ("vm.shutdown", 3)] {
        done(&mut client, command);
        let none = json!({"revision": revision, "containers": null});
        assert_eq!(client.get("vm.containers"), (200, none), "{command}");
    }
    assert_eq!(husk.shut_down().code(), Some(0));
}
