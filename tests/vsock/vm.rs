//! A VM with a vsock device, and both ways to its agent.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use husk_guest::{AGENT_PORT, Call, Reply, Step};
use husk_tests::{Boot, Ended, Guest, PATIENCE};

/// How often a shim dials.
pub const PACE: Duration = Duration::from_millis(10);

/// A running VM.
pub struct Vm {
    pub guest: Guest,
    pub socket: PathBuf,
}

impl Vm {
    /// Not yet booted.
    pub fn start(boot: Boot) -> Self {
        let socket = boot.folder().join("v.sock");
        let vsock = format!("cid=3,socket={}", socket.display());
        let guest = boot.arguments(["--vsock", &vsock]).start();
        Self { guest, socket }
    }

    /// With the agent up.
    pub fn with_agent(boot: Boot) -> Self {
        let vm = Self::start(boot);
        vm.await_agent();
        vm
    }

    /// Dials until the agent answers, as a shim does. Returns how often nobody did.
    pub fn await_agent(&self) -> usize {
        let start = Instant::now();
        for refused in 0.. {
            if dial(&self.socket, AGENT_PORT).is_some() {
                return refused;
            }
            assert!(start.elapsed() < PATIENCE, "nobody answered");
            thread::sleep(PACE);
        }
        unreachable!("an endless loop")
    }

    /// A stream to the agent.
    pub fn agent(&self) -> UnixStream {
        dial(&self.socket, AGENT_PORT).expect("the agent is up")
    }

    /// The socket of a program of the host that serves `port` to the guest.
    pub fn path_of_port(&self, port: u32) -> PathBuf {
        PathBuf::from(format!("{}_{port}", self.socket.display()))
    }

    /// Descriptors that the VMM has open.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.guest.pid())).unwrap().count()
    }

    /// Waits until the VMM has no more than `count` descriptors.
    pub fn await_descriptors(&self, count: usize) {
        let start = Instant::now();
        while self.descriptors() > count {
            assert!(start.elapsed() < PATIENCE, "{} descriptors", self.descriptors());
            thread::sleep(PACE);
        }
    }

    /// Ends the guest, and with it the VM, which must have had nothing to say.
    pub fn power_off(self) -> Ended {
        let bye = call(&mut self.agent(), &Call::step(&Step::PowerOff));
        assert_eq!(bye, Reply::Done);
        let ended = self.guest.wait();
        ended.assert_code(0);
        assert_eq!(ended.errors, "", "nothing that a guest or client does is worth a line");
        assert!(!self.socket.exists(), "the socket goes with the VM");
        ended
    }
}

/// One dial: the stream, or `None` if it was closed.
pub fn dial(socket: &Path, port: u32) -> Option<UnixStream> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.write_all(format!("connect {port}\n").as_bytes()).ok()?;
    answer(&mut stream)?;
    Some(stream)
}

/// The port in the answer to a dial, or `None` if it was closed.
pub fn answer(stream: &mut UnixStream) -> Option<u32> {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        line.extend(byte);
    }
    let line = String::from_utf8(line).unwrap();
    let port = line.strip_prefix("OK ").and_then(|port| port.trim_end().parse().ok());
    Some(port.unwrap_or_else(|| panic!("answered {line:?}")))
}

/// Asks the agent.
pub fn ask(stream: &mut UnixStream, call: &Call) {
    let mut line = serde_json::to_vec(call).unwrap();
    line.push(b'\n');
    stream.write_all(&line).unwrap();
}

/// What the agent replies.
pub fn reply(stream: &mut UnixStream) -> Reply {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
}

/// Both.
pub fn call(stream: &mut UnixStream, call: &Call) -> Reply {
    ask(stream, call);
    reply(stream)
}
