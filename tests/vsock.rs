//! vsock: streams between programs of the host and of the guest, opened from both sides.
#![allow(clippy::unwrap_used, reason = "helpers of a test fail as the test does")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use husk_guest::{AGENT_PORT, Call, Reply, Step, pattern};
use husk_tests::{Boot, Guest, PATIENCE};

/// A VM with a vsock device.
struct Vm {
    guest: Guest,
    socket: PathBuf,
}

impl Vm {
    fn start(boot: Boot) -> Self {
        let socket = boot.folder().join("v.sock");
        let guest = boot
            .arguments(["--vsock", &format!("cid=3,socket={}", socket.display())])
            .start();
        Self { guest, socket }
    }

    /// With the agent up.
    fn with_agent() -> Self {
        let vm = Self::start(Boot::new([Step::Agent]));
        vm.patiently(AGENT_PORT);
        vm
    }

    /// Dials until somebody answers, as a shim does.
    fn patiently(&self, port: u32) -> UnixStream {
        let start = Instant::now();
        loop {
            match dial(&self.socket, port) {
                Some(stream) => return stream,
                None if start.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(10)),
                None => panic!("nobody answered at port {port}"),
            }
        }
    }

    fn power_off(self) {
        let mut stream = dial(&self.socket, AGENT_PORT).unwrap();
        assert_eq!(call(&mut stream, &Call::step(&Step::PowerOff)), Reply::Done);
        let ended = self.guest.wait();
        ended.assert_code(0);
        assert!(!self.socket.exists(), "the socket goes with the VM");
    }
}

/// One dial: the stream, or `None` if it was closed at once.
fn dial(socket: &Path, port: u32) -> Option<UnixStream> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.write_all(format!("connect {port}\n").as_bytes()).ok()?;
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        line.extend(byte);
    }
    let line = String::from_utf8(line).unwrap();
    let port = line
        .strip_prefix("OK ")
        .and_then(|port| port.trim_end().parse::<u32>().ok());
    assert!(port.is_some(), "{line:?}");
    Some(stream)
}

fn call(stream: &mut UnixStream, call: &Call) -> Reply {
    let mut line = serde_json::to_vec(call).unwrap();
    line.push(b'\n');
    stream.write_all(&line).unwrap();
    reply(stream)
}

fn reply(stream: &mut UnixStream) -> Reply {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap()
}

fn begin(stream: &mut UnixStream, call: &Call) {
    let mut line = serde_json::to_vec(call).unwrap();
    line.push(b'\n');
    stream.write_all(&line).unwrap();
}

#[test]
fn what_the_host_sends_comes_back() {
    let vm = Vm::with_agent();
    let mut stream = dial(&vm.socket, AGENT_PORT).unwrap();
    begin(&mut stream, &Call::Echo);
    for length in [1, 2, 4095, 4096, 70_000] {
        let sent = pattern::bytes(length as u64, length);
        stream.write_all(&sent).unwrap();
        let mut back = vec![0; length];
        stream.read_exact(&mut back).unwrap();
        assert!(back == sent, "{length} bytes");
    }
    drop(stream);
    vm.power_off();
}

#[test]
fn big_transfers_arrive_whole() {
    const BYTES: u64 = 32 << 20;
    let vm = Vm::with_agent();
    let mut stream = dial(&vm.socket, AGENT_PORT).unwrap();
    begin(&mut stream, &Call::Sink);
    let checksum = pattern::write(&mut stream, 5, BYTES).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(reply(&mut stream), Reply::Data { bytes: BYTES, checksum });

    let mut stream = dial(&vm.socket, AGENT_PORT).unwrap();
    begin(&mut stream, &Call::Source { seed: 5, bytes: BYTES });
    assert_eq!(pattern::read(&mut stream).unwrap(), (BYTES, checksum));
    vm.power_off();
}

#[test]
fn ports_without_a_listener_are_refused_at_once() {
    let vm = Vm::with_agent();
    for _ in 0..100 {
        assert!(dial(&vm.socket, 1025).is_none());
    }
    vm.power_off();
}
