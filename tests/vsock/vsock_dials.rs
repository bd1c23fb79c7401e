//! How streams begin, or do not.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;

use husk_guest::{AGENT_PORT, Call, Reply, Step};
use husk_tests::Boot;

use crate::vm::{PACE, Vm, answer, call, dial};

/// Nobody listens there.
const DEAD_PORT: u32 = 1025;

#[test]
fn a_shim_that_dials_while_the_guest_boots_costs_nothing() {
    let vm = Vm::start(Boot::new([Step::Agent]));
    while !vm.socket.exists() {
        thread::sleep(PACE);
    }
    let mode = fs::metadata(&vm.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let log_port = vm.socket.clone();
    let log = thread::spawn(move || {
        let dials = (0..1000).map(|_| {
            thread::sleep(PACE);
            dial(&log_port, DEAD_PORT)
        });
        dials.filter(Option::is_some).count()
    });
    let refused = vm.await_agent();
    assert!(refused > 0, "the guest was up before it booted");
    let before = vm.descriptors();
    assert_eq!(log.join().unwrap(), 0);
    vm.await_descriptors(before);
    vm.power_off();
}

#[test]
fn refused_dials_end_in_silence() {
    let vm = Vm::with_agent(Boot::new([Step::Agent]));
    let before = vm.descriptors();
    for line in [
        format!("connect {DEAD_PORT}\n"),
        format!("CONNECT {DEAD_PORT}\n"),
        "connect\n".into(),
        "GET / HTTP/1.1\r\n\r\n".into(),
        "connect 99999999999\n".into(),
    ] {
        let mut stream = UnixStream::connect(&vm.socket).unwrap();
        stream.write_all(line.as_bytes()).unwrap();
        let mut said = Vec::new();
        let ended = stream.read_to_end(&mut said);
        assert!(said.is_empty(), "{line:?} was answered {said:?}");
        assert!(ended.is_ok() || line.starts_with("GET"), "{line:?} ended in {ended:?}");
    }
    vm.await_descriptors(before);
    vm.power_off();
}

#[test]
fn commands_are_understood_in_any_case_and_torn_anywhere() {
    let vm = Vm::with_agent(Boot::new([Step::Agent]));
    let mut ports = Vec::new();
    for line in [format!("connect {AGENT_PORT}\n"), format!("CoNNECT {AGENT_PORT}\n")] {
        for tear in 1..line.len() {
            let mut stream = UnixStream::connect(&vm.socket).unwrap();
            let (head, tail) = line.as_bytes().split_at(tear);
            stream.write_all(head).unwrap();
            thread::yield_now();
            stream.write_all(tail).unwrap();
            ports.push(answer(&mut stream).unwrap());
            // Nothing comes before the client speaks.
            let reply = call(&mut stream, &Call::step(&Step::Report));
            assert!(matches!(reply, Reply::Answer { .. }), "{reply:?}");
        }
    }
    let streams = ports.len();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), streams, "every stream has a port of its own");
    vm.power_off();
}

#[test]
fn what_follows_the_command_belongs_to_the_stream() {
    let vm = Vm::with_agent(Boot::new([Step::Agent]));
    let mut stream = UnixStream::connect(&vm.socket).unwrap();
    let mut early = format!("connect {AGENT_PORT}\n").into_bytes();
    early.extend(serde_json::to_vec(&Call::Echo).unwrap());
    early.extend(b"\nhello");
    stream.write_all(&early).unwrap();
    answer(&mut stream).unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"hello");
    drop(stream);
    vm.power_off();
}

#[test]
fn clients_that_say_nothing_give_way() {
    let vm = Vm::with_agent(Boot::new([Step::Agent]));
    let before = vm.descriptors();
    let mut silent: Vec<UnixStream> = (0..300).map(|_| UnixStream::connect(&vm.socket).unwrap()).collect();
    assert!(matches!(
        call(&mut vm.agent(), &Call::step(&Step::Report)),
        Reply::Answer { .. }
    ));
    assert!(vm.descriptors() <= before + 130);
    assert_eq!(silent[0].read(&mut [0]).unwrap(), 0, "the oldest has gone first");
    drop(silent);
    vm.await_descriptors(before);
    vm.power_off();
}

/// Runs a VM whose socket cannot be; returns what it says.
fn refusal(socket: &Path, code: i32) -> String {
    let vsock = format!("cid=3,socket={}", socket.display());
    let ended = Boot::new([Step::PowerOff]).arguments(["--vsock", &vsock]).run();
    ended.assert_code(code);
    assert_eq!(ended.errors.trim_end().lines().count(), 1, "{}", ended.errors);
    ended.errors
}

#[test]
fn sockets_that_cannot_be_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let errors = refusal(&at("missing/v.sock"), 1);
    assert!(
        errors.contains("there is no folder") && errors.contains("missing"),
        "{errors}"
    );
    let errors = refusal(&at(&"x".repeat(120)), 2);
    assert!(errors.contains("allowed: up to 107"), "{errors}");
    fs::write(at("file"), "precious").unwrap();
    let errors = refusal(&at("file"), 1);
    assert!(errors.contains("exists and is not a socket"), "{errors}");
    assert_eq!(fs::read(at("file")).unwrap(), b"precious");
    let taken = UnixListener::bind(at("taken")).unwrap();
    let errors = refusal(&at("taken"), 1);
    assert!(errors.contains("already in use by another process"), "{errors}");
    drop(taken);
}

#[test]
fn the_socket_of_a_killed_vm_is_no_obstacle() {
    let vm = Vm::with_agent(Boot::new([Step::Agent]));
    let socket = vm.socket.clone();
    let folder = vm.guest.folder().to_owned();
    vm.guest.signal(libc::SIGKILL);
    while UnixStream::connect(&socket).is_ok() {
        thread::sleep(PACE);
    }
    assert!(folder.exists() && socket.exists());
    let vsock = format!("socket={}", socket.display());
    let ended = Boot::new([Step::PowerOff]).arguments(["--vsock", &vsock]).run();
    ended.assert_code(0);
    assert!(!socket.exists());
    drop(vm);
}
