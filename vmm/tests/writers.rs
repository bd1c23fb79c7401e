//! Files on a file system that stops answering, as those of a network do when their server is away: nobody waits for
//! them. The file system is one of FUSE, which the test serves. Needs `/dev/fuse` and mounts; a guest needs `/dev/kvm`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod process;

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use process::{Husk, Signal, has_kvm};
use serde_json::{Value, json};
use tempfile::TempDir;

/// No answer takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

// linux/fuse.h: requests, sizes of their answers.
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const SETATTR: u32 = 4;
const OPEN: u32 = 14;
const WRITE: u32 = 16;
const STATFS: u32 = 17;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;
const HEADER: usize = 40;
/// The number of the only file, which is called whatever it is asked for.
const FILE: u64 = 2;

/// A file system with one file, and the thread that serves it.
struct Fuse {
    folder: TempDir,
    device: File,
    state: Arc<Mutex<State>>,
    /// A write has come that is not answered.
    held: Receiver<()>,
    server: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    /// Writes are not answered.
    hangs: bool,
    /// Those that wait for an answer, and how many bytes each has.
    waiting: Vec<(u64, u32)>,
}

impl Fuse {
    /// `None` where none can be mounted, which is said.
    fn mount() -> Option<Self> {
        let Ok(device) = File::options().read(true).write(true).open("/dev/fuse") else {
            println!("skipped: needs /dev/fuse");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let options = "fd=0,rootmode=40000,user_id=0,group_id=0,allow_other";
        // Without the helper, which would serve it: the descriptor is standard input.
        let mut mount = Command::new("mount");
        mount
            .args(["-i", "-t", "fuse", "-o", options, "husk-test"])
            .arg(folder.path());
        mount
            .stdin(Stdio::from(device.try_clone().unwrap()))
            .stderr(Stdio::null());
        let state = Arc::<Mutex<State>>::default();
        let (told, held) = channel();
        if !mount.status().is_ok_and(|status| status.success()) {
            println!("skipped: needs mounts");
            return None;
        }
        let (of, from) = (state.clone(), device.try_clone().unwrap());
        let server = Some(thread::spawn(move || serve(&from, &of, &told)));
        Some(Self {
            folder,
            device,
            state,
            held,
            server,
        })
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("file")
    }

    /// From now on writes are not answered.
    fn hang(&self) {
        self.state.lock().unwrap().hangs = true;
    }

    /// Waits until somebody is inside of a write.
    fn wait_for_write(&self) {
        self.held.recv_timeout(PATIENCE).expect("a write");
    }

    /// Answers all that wait, and what comes.
    fn answer(&self) {
        let mut state = self.state.lock().unwrap();
        state.hangs = false;
        for (unique, size) in state.waiting.drain(..) {
            reply(&self.device, unique, 0, &wrote(size));
        }
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        self.answer();
        let unmounted = Command::new("umount").arg("-l").arg(self.folder.path()).status();
        assert!(unmounted.unwrap().success());
        // It ends when the last who has the file open has gone.
        drop(self.server.take());
    }
}

fn serve(device: &File, state: &Mutex<State>, told: &Sender<()>) {
    let mut request = vec![0; 1 << 20];
    loop {
        let count = match (&*device).read(&mut request) {
            Ok(count) => count,
            // One that was taken back before it was read.
            Err(error) if error.kind() == ErrorKind::NotFound || error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        let request = &request[..count];
        let (opcode, unique) = (u32_at(request, 4), u64_at(request, 8));
        match opcode {
            // Version 7.31, no options, 16 requests in the background, 64 KiB a write, time in nanoseconds.
            INIT => reply(
                device,
                unique,
                0,
                &words(&[7, 31, 0, 0, 0x0c_0010, 65_536, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            ),
            LOOKUP => reply(device, unique, 0, &[long(FILE), vec![0; 32], attributes(FILE)].concat()),
            GETATTR | SETATTR => {
                let node = u64_at(request, 16);
                reply(device, unique, 0, &[vec![0; 16], attributes(node)].concat());
            }
            OPEN => reply(device, unique, 0, &[0; 16]),
            STATFS => reply(device, unique, 0, &[0; 80]),
            WRITE => {
                let size = u32_at(request, HEADER + 16);
                let mut state = state.lock().unwrap();
                if state.hangs {
                    state.waiting.push((unique, size));
                    // The test may be over.
                    let _ = told.send(());
                } else {
                    reply(device, unique, 0, &wrote(size));
                }
            }
            RELEASE | FLUSH => reply(device, unique, 0, &[]),
            FORGET | BATCH_FORGET | INTERRUPT => {}
            _ => reply(device, unique, -libc::ENOSYS, &[]),
        }
    }
}

/// fuse_out_header and what follows. Nobody may wait for it any more.
fn reply(mut device: &File, unique: u64, error: i32, body: &[u8]) {
    let length = u32::try_from(body.len() + 16).unwrap();
    let parts = [
        length.to_ne_bytes().into(),
        error.to_ne_bytes().into(),
        long(unique),
        body.into(),
    ];
    let _ = device.write(&parts.concat());
}

/// fuse_write_out.
fn wrote(size: u32) -> Vec<u8> {
    words(&[size, 0])
}

/// fuse_attr: of the folder, or of a file without contents.
fn attributes(node: u64) -> Vec<u8> {
    let mode = if node == FILE {
        libc::S_IFREG | 0o644
    } else {
        libc::S_IFDIR | 0o755
    };
    let times = vec![0; 5 * 8 + 3 * 4];
    [long(node), times, words(&[mode, 1, 0, 0, 0, 4096, 0])].concat()
}

fn long(number: u64) -> Vec<u8> {
    number.to_ne_bytes().into()
}

fn words(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// The status and the body of an answer, for which nobody waits for ever.
fn ask(husk: &Husk, method: &str, name: &str, body: Option<&Value>) -> (u16, Value) {
    let mut client = husk.client();
    client.0.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
    client.send(method, name, body.map(Value::to_string).as_deref(), &[]);
    client.answer()
}

fn put(husk: &Husk, name: &str, body: Option<&Value>) {
    let (status, answer) = ask(husk, "PUT", name, body);
    assert!([200, 204].contains(&status), "{name}: {status} {answer}");
}

/// Whether husk is over: its first thread, with all but those that the file system keeps.
fn is_over(husk: &Husk) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", husk.child.id())).unwrap();
    stat.rsplit_once(") ").unwrap().1.starts_with('Z')
}

fn end(husk: &Husk) {
    husk.signal(Signal::TERM);
    let begun = Instant::now();
    while !is_over(husk) {
        assert!(begun.elapsed() < PATIENCE, "SIGTERM does not end husk");
        thread::yield_now();
    }
}

fn vm(husk: &Husk, serial: &Value) -> Value {
    // mov dx, 0x3f8; mov al, 'x'; out dx, al; jmp to it
    let code = [0x66, 0xba, 0xf8, 0x03, 0xb0, b'x', 0xee, 0xeb, 0xfd];
    let kernel = husk.folder.path().join("kernel");
    fs::write(&kernel, husk_benches::elf_of(&code)).unwrap();
    json!({
        "payload": {"kernel": kernel}, "memory": {"size": 64 << 20}, "rng": null,
        "serial": serial, "console": {"mode": "Off"},
    })
}

#[test]
fn a_log_or_monitor_whose_file_system_hangs_holds_up_neither_commands_nor_the_end() {
    for option in ["--log-file", "--event-monitor"] {
        let Some(fuse) = Fuse::mount() else { return };
        let path = fuse.path().display().to_string();
        let path = match option {
            "--log-file" => path,
            _ => format!("path={path}"),
        };
        let started = Husk::start(&["-vv", option, &path]);
        // Dropped last: it cannot end before the file system has answered.
        let (mut husk, fuse) = (started, fuse);
        fuse.hang();
        let config = vm(&husk, &json!({"mode": "Null"}));
        for round in 0..3 {
            put(&husk, "vm.create", Some(&config));
            if round == 0 {
                fuse.wait_for_write();
            }
            assert_eq!(ask(&husk, "GET", "vmm.ping", None).0, 200);
            assert_eq!(ask(&husk, "GET", "vm.info", None).0, 200);
            put(&husk, "vm.delete", None);
        }
        end(&husk);
        fuse.answer();
        husk.child.wait().unwrap();
    }
}

#[test]
fn a_port_whose_file_system_hangs_holds_up_neither_guest_nor_the_end() {
    if !has_kvm() {
        return;
    }
    for limit in [None, Some(1 << 20)] {
        // Dropped last: it cannot end before the file system has answered.
        let mut husk = Husk::start(&[]);
        let Some(fuse) = Fuse::mount() else { return };
        let serial = match limit {
            None => json!({"mode": "File", "file": fuse.path()}),
            Some(limit) => json!({"mode": "File", "file": fuse.path(), "limit": limit}),
        };
        fuse.hang();
        put(&husk, "vm.create", Some(&vm(&husk, &serial)));
        put(&husk, "vm.boot", None);
        fuse.wait_for_write();
        // The guest prints on; what has no room is counted.
        let begun = Instant::now();
        loop {
            let (status, counters) = ask(&husk, "GET", "vm.counters", None);
            assert_eq!(status, 200);
            if counters["__serial"]["tx_lost_bytes"].as_u64().unwrap() > 0 {
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "{counters}");
            thread::yield_now();
        }
        put(&husk, "vm.pause", None);
        assert_eq!(ask(&husk, "GET", "vmm.ping", None).0, 200);
        put(&husk, "vm.resume", None);
        put(&husk, "vm.shutdown", None);
        put(&husk, "vm.delete", None);
        put(&husk, "vm.create", Some(&vm(&husk, &json!({"mode": "Null"}))));
        put(&husk, "vm.boot", None);
        end(&husk);
        fuse.answer();
        husk.child.wait().unwrap();
    }
}
