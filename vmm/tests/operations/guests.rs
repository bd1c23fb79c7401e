//! Guests of a few instructions, and what is asked of a husk that runs one.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use husk_devices::testing::until;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::{Client, Husk};

/// A store of `value`, of as many bytes as it has, to a guest-physical address (32-bit mode, no paging: PVH).
pub(crate) fn store(code: &mut Vec<u8>, gpa: u32, value: &[u8]) {
    match value.len() {
        1 => code.extend([0xc6, 0x05]),       // mov byte [gpa], imm8
        2 => code.extend([0x66, 0xc7, 0x05]), // mov word [gpa], imm16
        _ => code.extend([0xc7, 0x05]),       // mov dword [gpa], imm32
    }
    code.extend(gpa.to_le_bytes());
    code.extend(value);
}

/// A guest that starts the device in PCI slot 1 with its first queue, as a driver does (virtio 1.2
/// §3.1.1), says so on the serial port, and halts.
pub(crate) fn kernel(folder: &Path) -> Value {
    kernel_that(folder, &husk_benches::code(husk_benches::GuestAction::Halt))
}

/// A guest that starts that device, and lets go of whatever it is told to (`hotplug/src/bank.rs`):
/// it asks all the time.
pub(crate) fn ejecting_kernel(folder: &Path) -> Value {
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
pub(crate) fn kernel_that(folder: &Path, then: &[u8]) -> Value {
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

/// A guest that computes for ever, and leaves KVM for nothing but a signal.
pub(crate) fn spinning_vm(folder: &Path) -> Value {
    let kernel = folder.join("spin");
    fs::write(&kernel, husk_benches::elf_of(&[0xeb, 0xfe])).unwrap(); // jmp to itself
    json!({
        "memory": {"size": 64 << 20},
        "payload": {"kernel": kernel},
        "serial": {"mode": "Off"},
        "console": {"mode": "Off"},
    })
}

/// The smallest VM that runs, with its kernel in `folder`.
pub(crate) fn vm(folder: &Path) -> Value {
    json!({
        "memory": {"size": 64 << 20},
        "payload": {"kernel": kernel(folder)},
        "serial": {"mode": "Off"},
        "console": {"mode": "Off"},
    })
}

/// husk with a running guest, whose first device is `rng` with the thread `io-rng`.
pub(crate) fn running() -> (Husk, Client) {
    running_in(tempfile::tempdir().unwrap(), &[])
}

pub(crate) fn running_in(folder: TempDir, options: &[&str]) -> (Husk, Client) {
    let husk = Husk::start_in(folder, options);
    let client = booted(&husk, vm(husk.folder.path()));
    (husk, client)
}

/// A client that has made and booted `vm`.
pub(crate) fn booted(husk: &Husk, vm: Value) -> Client {
    let mut client = husk.client();
    assert_eq!(client.put("vm.create", Some(vm)), DONE);
    done(&mut client, "vm.boot");
    client
}

/// husk, and the file that it writes events to.
pub(crate) fn with_events() -> (Husk, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let events = folder.path().join("events");
    let monitor = format!("path={}", events.display());
    (Husk::start_in(folder, &["--event-monitor", &monitor]), events)
}

pub(crate) fn done(client: &mut Client, command: &str) {
    assert_eq!(client.put(command, None), (204, Value::Null), "{command}");
}

pub(crate) fn state(client: &mut Client) -> Value {
    client.get("vm.info").1["state"].clone()
}

/// What the threads are called that there are.
pub(crate) fn thread_names(husk: &Husk) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", husk.child.id()))
        .unwrap()
        .flatten();
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    names.map(|name| name.trim_end().to_owned()).collect()
}

/// The thread of the process `pid` that is called `name`, once there is one.
pub(crate) fn thread_of(pid: u32, name: &str) -> libc::pid_t {
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

/// A file of 1 MiB for a disk called `name`, and how it is described.
pub(crate) fn disk(folder: &Path, name: &str) -> Value {
    let path = folder.join(name);
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    json!({"id": name, "path": path})
}

/// How many events of this name there are in the file `events` for the device `id`.
pub(crate) fn told(events: &Path, event: &str, id: &str) -> usize {
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
pub(crate) const DONE: (u16, Value) = (204, Value::Null);
