//! The vsock of the host's kernel (`backend=vhost`): both sides have AF_VSOCK sockets.
//!
//! A context is the host's to give once, so each test has one of its own.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use husk_guest::{AGENT_PORT, Call, Reply, Step, pattern, stream};
use husk_tests::agent::Agent;
use husk_tests::api::Shim;
use husk_tests::body::Shape;
use husk_tests::pod::Pod;
use husk_tests::{Boot, PATIENCE, kernel_file};
use serde_json::{Value, json};

use crate::vm::PACE;

/// Bytes of a stream.
const BYTES: u64 = 8 << 20;

/// Whether the host's kernel has what these tests need.
fn vhost() -> bool {
    let there = Path::new("/dev/vhost-vsock").exists();
    if !there {
        println!("skipped: needs /dev/vhost-vsock");
    }
    there
}

/// A pod whose guest is context `cid` of this host.
struct Vm {
    pod: Pod,
    cid: u32,
}

impl Vm {
    fn start(kernel: &str, cid: u32, folder: &Path) -> Self {
        let shape = Shape::new(
            Shim::Rust,
            kernel_file(kernel, "vmlinux"),
            kernel_file(kernel, "pod.cpio"),
        );
        let mut pod = Pod::launch(shape, folder).unwrap();
        let mut body = pod.shape().create(&pod.vsock());
        body["vsock"] = json!({"cid": cid, "backend": "vhost"});
        // The kernel needs no RAM that is shared.
        body["memory"]["shared"] = json!(false);
        pod.put("vm.create", Some(&body)).unwrap().done().unwrap();
        pod.boot().unwrap();
        Self { pod, cid }
    }

    /// A stream to the agent, once it listens.
    fn dial(&self) -> UnixStream {
        let start = Instant::now();
        loop {
            match stream::connect(self.cid, AGENT_PORT) {
                Ok(stream) => return stream,
                Err(error) => assert!(start.elapsed() < PATIENCE, "nobody answers: {error}"),
            }
            thread::sleep(PACE);
        }
    }

    fn agent(&self) -> Agent {
        Agent::new(self.dial())
    }

    /// Both ways, with checksums of both sides.
    fn traffic(&self, seed: u64) {
        let mut sink = self.agent().stream(&Call::Sink).unwrap();
        let sent = pattern::write(&mut sink, seed, BYTES).unwrap();
        sink.shutdown(Shutdown::Write).unwrap();
        match Agent::new(sink).reply().unwrap() {
            Reply::Data { bytes, checksum } => assert_eq!((bytes, checksum), (BYTES, sent)),
            other => panic!("{other:?}"),
        }
        let mut source = self.agent().stream(&Call::Source { seed, bytes: BYTES }).unwrap();
        assert_eq!(pattern::read(&mut source).unwrap(), (BYTES, sent));
    }

    fn counter(&mut self, name: &str) -> u64 {
        let counters: Value = self.pod.api().get("vm.counters").unwrap().json().unwrap();
        counters["_vsock0"][name].as_u64().unwrap()
    }
}

/// A program of the guest reaches one of the host.
fn guest_dials(vm: &Vm, port: u32) {
    let listener = stream::listen(port).unwrap();
    let host = thread::spawn(move || {
        let mut stream = stream::accept(&listener).unwrap();
        let mut heard = [0; 5];
        stream.read_exact(&mut heard).unwrap();
        stream.write_all(b"welcome").unwrap();
        heard
    });
    let call = Call::Dial {
        port,
        text: "hello".into(),
    };
    let reply = vm.agent().must(&call).unwrap();
    assert_eq!(reply, Reply::Text { text: "welcome".into() });
    assert_eq!(&host.join().unwrap(), b"hello");
}

#[test]
fn the_kernel_carries_streams_both_ways_through_pauses_and_reboots() {
    if !vhost() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut vm = Vm::start("6.12", 1001, folder.path());
    vm.traffic(1);
    guest_dials(&vm, 61_001);

    let mut echo = vm.agent().stream(&Call::Echo).unwrap();
    let mut back = [0; 5];
    for _ in 0..3 {
        vm.pod.put("vm.pause", None).unwrap().done().unwrap();
        echo.write_all(b"still").unwrap();
        echo.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        assert_eq!(echo.read(&mut back).unwrap_err().kind(), ErrorKind::WouldBlock);
        echo.set_read_timeout(None).unwrap();
        vm.pod.put("vm.resume", None).unwrap().done().unwrap();
        echo.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"still");
    }
    vm.traffic(2);
    assert_eq!((vm.counter("starts"), vm.counter("ring_faults")), (1, 0));

    vm.pod.put("vm.reboot", None).unwrap().done().unwrap();
    let ended = echo.read(&mut back);
    assert!(matches!(ended, Ok(0) | Err(_)), "the stream has ended with its guest");
    vm.traffic(3);
    vm.pod.stop().unwrap();
    let refused = stream::connect(1001, AGENT_PORT).unwrap_err();
    assert!(refused.raw_os_error().is_some(), "nobody has the context any more");
}

#[test]
fn the_older_kernel_and_a_driver_that_comes_again_have_streams_of_the_kernel() {
    if !vhost() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut vm = Vm::start("6.1", 1002, folder.path());
    vm.traffic(4);
    // No reply comes, and no end either: of a guest's reset the host's kernel does not know.
    let _stream = vm.agent().stream(&Call::step(&Step::RebindVsock)).unwrap();
    while vm.counter("starts") < 2 {
        thread::sleep(PACE);
    }
    vm.traffic(5);
    guest_dials(&vm, 61_002);
    vm.pod.stop().unwrap();
}

#[test]
fn a_context_is_one_guests() {
    if !vhost() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let vm = Vm::start("6.12", 1003, folder.path());
    let ended = Boot::new([Step::PowerOff])
        .arguments(["--vsock", "cid=1003,backend=vhost"])
        .run();
    ended.assert_code(1);
    assert!(
        ended.errors.contains("vsock: cid 1003 is in use on this host"),
        "{}",
        ended.errors
    );
    assert_eq!(ended.errors.trim_end().lines().count(), 1, "{}", ended.errors);
    drop(vm);
    let ended = Boot::new([Step::PowerOff])
        .arguments(["--vsock", "cid=1003,backend=vhost"])
        .run();
    ended.assert_code(0);
}
