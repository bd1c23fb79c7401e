//! Files on a file system that does not answer: what is served meanwhile. Needs `/dev/kvm`, and a
//! mount of a FUSE of the tests' own.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod process;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;

use husk_devices::testing::{PATIENCE, until};
use process::fuse::{FLUSH, GETATTR, OPEN, SlowFiles};
use process::{Client, HUSK, Husk, Signal, has_kvm};
use serde_json::{Value, json};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

const DONE: (u16, Value) = (204, Value::Null);

/// A VM whose guest halts, with what `more` adds to its configuration.
fn vm(husk: &Husk, more: &Value) -> Value {
    let mut vm = json!({
        "memory": {"size": 64 << 20},
        "payload": {"kernel": husk.folder.path().join("vmlinux")},
        "serial": {"mode": "Off"},
        "console": {"mode": "Off"},
    });
    vm.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    vm
}

/// husk with that VM, and with a log.
fn running(more: &Value) -> (Husk, Client) {
    running_code(&husk_benches::code(husk_benches::GuestAction::Halt), more)
}

/// The same, with a guest of other machine code.
fn running_code(code: &[u8], more: &Value) -> (Husk, Client) {
    let folder = tempfile::tempdir().unwrap();
    let (log, kernel) = (folder.path().join("log"), folder.path().join("vmlinux"));
    fs::write(&kernel, husk_benches::elf_of(code)).unwrap();
    let husk = Husk::start_in(folder, &["-v", "--log-file", log.to_str().unwrap()]);
    let mut client = husk.client();
    assert_eq!(client.put("vm.create", Some(vm(&husk, more))), DONE);
    assert_eq!(client.put("vm.boot", None), DONE);
    (husk, client)
}

fn log_of(husk: &Husk) -> String {
    fs::read_to_string(husk.folder.path().join("log")).unwrap()
}

fn disk(on: &Path) -> Value {
    json!({"id": "slow", "path": on.join("disk")})
}

#[test]
fn an_image_that_does_not_close_is_left_behind_by_name_and_everybody_is_served() {
    let Some(slow) = has_kvm().then(SlowFiles::mount).flatten() else {
        return;
    };
    for command in ["vm.shutdown", "vm.delete"] {
        let disks = json!({"disks": [disk(slow.path())]});
        let (mut husk, mut client) = running(&disks);
        let hanging = slow.hang(FLUSH);
        client.send("PUT", command, None, &[]);
        slow.wait();
        let mut other = husk.client();
        // Whatever is asked of the main thread is answered, before the deadline and after it.
        assert_eq!(other.get("vm.counters").0, 200);
        assert_eq!(client.answer(), DONE);
        assert!([404, 409].contains(&other.get("vm.counters").0), "{command}");
        until(|| log_of(&husk).contains("ERRO: slow has not stopped within 2 s"));
        let log = log_of(&husk);
        assert!(
            log.contains("ERRO: slow has not stopped within 2 s"),
            "{command}: {log}"
        );
        assert!(!log.contains("__rng"), "what closes is not held up: {log}");
        // It is that machine's image still.
        if command == "vm.delete" {
            assert_eq!(client.put("vm.create", Some(vm(&husk, &disks))), DONE);
        }
        let (status, refusal) = client.put("vm.boot", None);
        let refusal = (status, refusal.to_string());
        assert!(
            refusal.0 == 409
                && refusal
                    .1
                    .contains("slow has ended with its machine, but not stopped yet"),
            "{refusal:?}"
        );
        drop(hanging);
        // Sooner or later.
        while client.put("vm.boot", None).0 == 409 {}
        assert_eq!(husk.shut_down().code(), Some(0));
    }
}

#[test]
fn a_device_that_does_not_close_keeps_its_name_until_it_has() {
    let Some(slow) = has_kvm().then(SlowFiles::mount).flatten() else {
        return;
    };
    let (mut husk, mut client) = running(&json!({}));
    assert_eq!(client.put("vm.add-disk", Some(disk(slow.path()))).0, 200);
    let hanging = slow.hang(FLUSH);
    // The guest has not heard of it, so that it goes at once.
    assert_eq!(client.put("vm.remove-device", Some(json!({"id": "slow"}))), DONE);
    slow.wait();
    let (status, refusal) = client.put("vm.add-disk", Some(disk(slow.path())));
    assert_eq!(status, 409, "{refusal}");
    while !log_of(&husk).contains("ERRO: slow has not stopped within 2 s") {
        assert_eq!(client.get("vm.counters").0, 200);
    }
    assert!(!log_of(&husk).contains("slow is gone"));
    drop(hanging);
    while !log_of(&husk).contains("slow is gone") {
        assert_eq!(client.get("vm.counters").0, 200);
    }
    assert_eq!(client.put("vm.add-disk", Some(disk(slow.path()))).0, 200);
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn a_device_whose_client_has_given_up_is_not_added_and_whoever_asks_again_has_it() {
    let Some(slow) = has_kvm().then(SlowFiles::mount).flatten() else {
        return;
    };
    let (mut husk, mut client) = running(&json!({}));
    let disk = json!({"path": slow.path().join("disk")});
    let hanging = slow.hang(OPEN);
    let mut impatient = husk.client();
    impatient.send("PUT", "vm.add-disk", Some(&disk.to_string()), &[]);
    slow.wait();
    drop(impatient);
    until(|| log_of(&husk).contains("_disk0 is not added, who asked for it has gone"));
    hanging.open();
    // The thread that has opened it closes it again, sooner or later.
    let mut added = (0, Value::Null);
    until(|| {
        added = client.put("vm.add-disk", Some(disk.clone()));
        added.0 != 409
    });
    assert_eq!(
        (added.0, &added.1["id"]),
        (200, &json!("_disk0")),
        "its name is free, too"
    );
    let (_, info) = client.get("vm.info");
    assert_eq!(info["config"]["disks"].as_array().unwrap().len(), 1, "{info}");
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn a_signal_ends_husk_run_while_its_kernel_is_opened() {
    let Some(slow) = has_kvm().then(SlowFiles::mount).flatten() else {
        return;
    };
    let hanging = slow.hang(OPEN);
    let mut command = std::process::Command::new("env");
    command.args(["--default-signal", HUSK, "run", "--console", "off", "--kernel"]);
    command.arg(slow.path().join("vmlinux")).stdin(Stdio::null());
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    slow.wait();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    // That is all that is left to do: the kernel lets no process go whose thread waits for a file system.
    let mut said = String::new();
    BufReader::new(child.stderr.take().unwrap())
        .read_line(&mut said)
        .unwrap();
    assert_eq!(said, "ERRO: __builder has not stopped within 2 s\n");
    drop(hanging);
    assert_eq!(child.wait().unwrap().code(), Some(5));
}

/// Whether the first thread has ended: a process whose other threads wait for a file system is kept by the kernel.
fn has_left(husk: &Husk) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", husk.child.id())).unwrap();
    stat.rsplit_once(") ").unwrap().1.starts_with('Z')
}

/// A client of one of the sockets of husk, which fails if it is not answered.
fn client(husk: &Husk, socket: &str) -> Client {
    let stream = UnixStream::connect(husk.folder.path().join(socket)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    Client(BufReader::new(stream))
}

#[test]
fn a_descriptor_that_does_not_close_stops_nobody_however_it_was_passed() {
    let Some(slow) = SlowFiles::mount() else { return };
    // Each passes a descriptor that husk has no use for.
    type Pass = fn(&Husk, RawFd);
    let ways: [(&str, Pass); 4] = [
        ("with a request that needs none", |husk, fd| {
            let mut client = client(husk, "api.sock");
            client.send("GET", "vmm.ping", None, &[fd]);
            assert_eq!(client.answer().0, 200);
        }),
        ("with half a request", |husk, fd| {
            let mut client = client(husk, "api.sock");
            client
                .0
                .get_mut()
                .send_with_fds(&[b"GET /api/v1/vmm".as_slice()], &[fd])
                .unwrap();
        }),
        ("by whoever may only read figures", |husk, fd| {
            client(husk, "metrics").send("GET", "vmm.metrics", None, &[fd]);
        }),
        ("with a device that cannot be", |husk, fd| {
            let mut client = client(husk, "api.sock");
            assert_eq!(client.put("vm.create", Some(vm(husk, &json!({})))), DONE);
            client.send("PUT", "vm.add-net", Some(r#"{"num_queues": 4}"#), &[fd]);
            assert_eq!(client.answer().0, 400);
        }),
    ];
    for (way, pass) in ways {
        let folder = tempfile::tempdir().unwrap();
        let metrics = folder.path().join("metrics");
        let mut husk = Husk::start_in(folder, &["--metrics", metrics.to_str().unwrap()]);
        // It stays open here: closing it would wait as well.
        let file = fs::File::open(slow.path().join("file")).unwrap();
        let hanging = slow.hang(FLUSH);
        pass(&husk, file.as_raw_fd());
        slow.wait();
        let mut other = client(&husk, "api.sock");
        assert_eq!(other.get("vmm.ping").0, 200, "{way}");
        assert!([404, 409].contains(&other.get("vm.counters").0), "{way}");
        assert!(
            client(&husk, "metrics").scrape("/metrics", "text/plain").is_ok(),
            "{way}"
        );
        husk.signal(Signal::TERM);
        until(|| has_left(&husk));
        drop(hanging);
        assert_eq!(husk.child.wait().unwrap().code(), Some(5), "{way}");
    }
}

/// How long a file is that is the guest's memory is asked for after each second of a vCPU's time, and when a vCPU is
/// kicked.
#[test]
fn a_file_that_is_memory_and_does_not_say_how_long_it_is_holds_up_no_vcpu() {
    let Some(slow) = has_kvm().then(SlowFiles::mount).flatten() else {
        return;
    };
    let halts = husk_benches::code(husk_benches::GuestAction::Halt);
    // inc dword [0x200000]; jmp to it.
    let spins = [0xff, 0x05, 0, 0, 0x20, 0, 0xeb, 0xf8];
    for (code, is_busy) in [(&halts[..], false), (&spins, true)] {
        let pmem = json!({"pmem": [{"file": slow.path().join("pmem"), "discard_writes": true}]});
        let (mut husk, mut client) = running_code(code, &pmem);
        let hanging = slow.hang(GETATTR);
        if is_busy {
            slow.wait();
        }
        for _ in 0..2 {
            assert_eq!(client.put("vm.pause", None), DONE);
            assert_eq!(client.put("vm.resume", None), DONE);
        }
        assert_eq!(client.get("vm.counters").0, 200);
        // What a vCPU is in, if it is in a call: that of its guest (ioctl).
        let vcpu = format!("/proc/{}/task/{}/syscall", husk.child.id(), thread_of(&husk, "vcpu0"));
        until(|| fs::read_to_string(&vcpu).is_ok_and(|call| call.starts_with("16 ") || call.starts_with("running")));
        let ended = client.put("vm.delete", None);
        drop(hanging);
        assert_eq!(ended, DONE);
        assert!(!log_of(&husk).contains("__vcpus"), "{}", log_of(&husk));
        assert_eq!(husk.shut_down().code(), Some(0));
    }
}

/// The number of husk's thread of this name.
fn thread_of(husk: &Husk, name: &str) -> String {
    let threads = fs::read_dir(format!("/proc/{}/task", husk.child.id())).unwrap();
    let mut numbers = threads.map(|thread| thread.unwrap().path());
    let found = numbers.find(|thread| fs::read_to_string(thread.join("comm")).is_ok_and(|comm| comm.trim() == name));
    found.unwrap().file_name().unwrap().to_str().unwrap().to_owned()
}
