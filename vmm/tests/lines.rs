//! A serial port that others attach to, by a socket or a pseudo-terminal, on a guest of a few
//! instructions that says what it hears. All of husk's threads are confined. Needs `/dev/kvm`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod process;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use husk_devices::testing::until;
use process::{HUSK, Husk, NO_HARDWARE, has_kvm};
use serde_json::{Value, json};

/// No run takes longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// A guest that prints `>`, then each byte that is typed, and powers off after a `q`.
fn echoes() -> Vec<u8> {
    let mut code = vec![0x66, 0xba, 0xf8, 0x03, 0xb0, b'>', 0xee]; // mov dx, 0x3f8; mov al, '>'; out dx, al
    code.extend([0x66, 0xba, 0xfd, 0x03, 0xec]); // next: mov dx, 0x3fd (line status); in al, dx
    code.extend([0xa8, 1, 0x74, 0xf7]); // test al, 1 (data ready); jz next
    code.extend([0x66, 0xba, 0xf8, 0x03, 0xec, 0xee]); // mov dx, 0x3f8; in al, dx; out dx, al
    code.extend([0x3c, b'q', 0x75, 0xed]); // cmp al, 'q'; jne next
    code.extend([0xb0, 5 << 2 | 1 << 5, 0x66, 0xba, 0x00, 0x06, 0xee]); // SLP_TYP 5 | SLP_EN to port 0x600
    code.extend([0xf4, 0xeb, 0xfd]); // hlt; jmp back to it
    husk_benches::elf_of(&code)
}

fn run(folder: &Path, serial: &str) -> Child {
    fs::write(folder.join("kernel"), echoes()).unwrap();
    let arguments = [
        "run", "--no-rng", "--memory", "64M", "--kernel", "kernel", "--serial", serial,
    ];
    let mut command = Command::new(HUSK);
    command.args(arguments).current_dir(folder).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Connects as soon as somebody listens.
fn connect(path: &Path) -> UnixStream {
    let mut stream = None;
    until(|| {
        stream = UnixStream::connect(path).ok();
        stream.is_some()
    });
    let stream = stream.unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[track_caller]
fn hears(from: &mut impl Read, expected: &str) {
    let mut bytes = vec![0; expected.len()];
    from.read_exact(&mut bytes).unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes), expected);
}

/// How it ended, and what it said on standard error but for what this host lacks.
fn end(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.stdout, b"");
    let told = String::from_utf8(output.stderr).unwrap();
    let told = told.lines().filter(|line| !line.starts_with(NO_HARDWARE));
    (output.status.code(), told.collect::<Vec<_>>().join("\n"))
}

#[test]
fn clients_of_a_socket_come_go_and_take_over_and_it_goes_with_the_vm() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    // As a killed husk leaves it.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let child = run(folder.path(), "socket=s");
    let mut first = connect(&path);
    hears(&mut first, ">");
    first.write_all(b"abc").unwrap();
    hears(&mut first, "abc");
    drop(first);
    let mut second = connect(&path);
    second.write_all(b"12").unwrap();
    hears(&mut second, "12");
    let mut third = connect(&path);
    third.write_all(b"more than the port has room for: ").unwrap();
    third.write_all(&[b'.'; 5000]).unwrap();
    hears(&mut third, "more than the port has room for: ");
    hears(&mut third, &".".repeat(5000));
    assert_eq!(second.read(&mut [0]).unwrap(), 0, "hung up on");
    third.write_all(b"q").unwrap();
    hears(&mut third, "q");
    assert_eq!(third.read(&mut [0]).unwrap(), 0);
    assert_eq!(end(child), (Some(0), String::new()));
    assert!(!path.exists());
}

#[test]
fn a_pseudo_terminal_is_told_and_leads_to_the_guest() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut child = run(folder.path(), "pty");
    let mut told = child.stderr.take().unwrap();
    let mut text = String::new();
    let path = loop {
        let mut byte = [0];
        assert_eq!(told.read(&mut byte).unwrap(), 1, "{text}");
        text.push(char::from(byte[0]));
        let line = text.lines().find_map(|line| line.strip_prefix("husk: serial is at "));
        if let (Some(path), true) = (line, text.ends_with('\n')) {
            break PathBuf::from(path);
        }
    };
    for typed in ["one", "two"] {
        let mut options = File::options();
        options.read(true).write(true).custom_flags(libc::O_NOCTTY);
        let mut terminal = options.open(&path).unwrap();
        if typed == "one" {
            hears(&mut terminal, ">");
        }
        terminal.write_all(typed.as_bytes()).unwrap();
        hears(&mut terminal, typed);
    }
    fs::write(&path, "q").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn clients_of_the_api_name_the_socket_and_are_told_the_terminal() {
    if !has_kvm() {
        return;
    }
    let mut husk = Husk::start(&[]);
    let folder = husk.folder.path().to_owned();
    let file = |name: &str| folder.join(name).display().to_string();
    fs::write(file("kernel"), echoes()).unwrap();
    let vm = json!({
        "payload": {"kernel": file("kernel")}, "memory": {"size": 64 << 20}, "rng": null,
        "serial": {"mode": "Socket", "socket": file("s")}, "console": {"mode": "Pty", "file": "/dev/pts/of-another-vm"},
    });
    let mut client = husk.client();
    assert_eq!(client.put("vm.create", Some(vm)).0, 204);
    let ports = |client: &mut process::Client| {
        let config = client.get("vm.info").1["config"].take();
        let Value::String(socket) = &config["serial"]["socket"] else {
            panic!("{config}");
        };
        assert_eq!(*socket, file("s"));
        config["console"]["file"].clone()
    };
    assert_eq!(ports(&mut client), Value::Null, "there is none yet");
    for _ in 0..2 {
        assert_eq!(client.put("vm.boot", None), (204, Value::Null));
        let terminal = ports(&mut client);
        let terminal = File::open(terminal.as_str().unwrap()).unwrap();
        let mut serial = connect(Path::new(&file("s")));
        hears(&mut serial, ">");
        // A second machine of the same process finds its socket free.
        assert_eq!(client.put("vm.reboot", None), (204, Value::Null));
        let mut serial = connect(Path::new(&file("s")));
        serial.write_all(b"x").unwrap();
        hears(&mut serial, ">x");
        assert_eq!(client.put("vm.shutdown", None), (204, Value::Null));
        assert!(!Path::new(&file("s")).exists());
        assert_eq!(ports(&mut client), Value::Null);
        drop(terminal);
    }
    let other = Husk::start(&[]);
    let mut neighbour = other.client();
    let _serial = UnixStream::connect(file("s")).unwrap_err();
    assert_eq!(client.put("vm.boot", None).0, 204);
    let taken = json!({
        "payload": {"kernel": file("kernel")}, "memory": {"size": 64 << 20}, "rng": null,
        "serial": {"mode": "Socket", "socket": file("s")},
    });
    assert_eq!(neighbour.put("vm.create", Some(taken)).0, 204);
    let (status, why) = neighbour.put("vm.boot", None);
    let expected = format!("socket {} is already in use by another process", file("s"));
    assert_eq!((status, &why[2]), (400, &Value::from(expected)), "{why}");
    assert_eq!(husk.shut_down().code(), Some(0));
    assert!(!Path::new(&file("s")).exists());
}

#[test]
fn a_guest_that_nobody_listens_to_goes_on() {
    if !has_kvm() {
        return;
    }
    let mut husk = Husk::start(&[]);
    let folder = husk.folder.path().to_owned();
    let path = |name: &str| folder.join(name);
    // Prints for as long as it is let.
    let mut code = vec![0x66, 0xba, 0xf8, 0x03, 0xb0, b'x', 0xee, 0xeb, 0xfd];
    code.push(0xf4);
    fs::write(path("kernel"), husk_benches::elf_of(&code)).unwrap();
    let vm = json!({
        "payload": {"kernel": path("kernel")}, "memory": {"size": 64 << 20}, "rng": null, "console": {"mode": "Off"},
        "serial": {"mode": "Socket", "socket": path("s")},
    });
    let mut client = husk.client();
    assert_eq!(client.put("vm.create", Some(vm)).0, 204);
    assert_eq!(client.put("vm.boot", None).0, 204);
    let lost = |client: &mut process::Client| {
        client.get("vm.counters").1["__serial"]["tx_lost_bytes"]
            .as_u64()
            .unwrap()
    };
    while lost(&mut client) == 0 {}
    // One that does not read does not hold it up either.
    let stalled = connect(&path("s"));
    let before = lost(&mut client);
    while lost(&mut client) <= before {}
    drop(stalled);
    let mut reader = connect(&path("s"));
    hears(&mut reader, &"x".repeat(300_000));
    assert_eq!(husk.shut_down().code(), Some(0));
}
