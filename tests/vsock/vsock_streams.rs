//! What goes through a stream.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Duration;

use husk_guest::{Call, Reply, Step, pattern};
use husk_tests::{Boot, Image};

use crate::vm::{Vm, ask, call, reply};

const MIB: u64 = 1 << 20;

fn boot() -> Boot {
    Boot::new([Step::Agent])
}

fn echo(vm: &Vm) -> UnixStream {
    let mut stream = vm.agent();
    ask(&mut stream, &Call::Echo);
    stream
}

/// Sends `length` bytes and takes them back.
fn there_and_back(stream: &mut UnixStream, length: usize) {
    let sent = pattern::bytes(length as u64, length);
    stream.write_all(&sent).unwrap();
    let mut back = vec![0; length];
    stream.read_exact(&mut back).unwrap();
    assert!(back == sent, "{length} bytes");
}

#[test]
fn what_the_host_sends_comes_back() {
    let vm = Vm::with_agent(boot());
    let mut stream = echo(&vm);
    for length in [1, 2, 4095, 4096, 70_000] {
        there_and_back(&mut stream, length);
    }
    vm.power_off();
}

fn both_ways(vm: &Vm, bytes: u64) {
    let mut stream = vm.agent();
    ask(&mut stream, &Call::Sink);
    let checksum = pattern::write(&mut stream, 5, bytes).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(reply(&mut stream), Reply::Data { bytes, checksum });
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "and that was all");

    let mut stream = vm.agent();
    ask(&mut stream, &Call::Source { seed: 5, bytes });
    assert_eq!(pattern::read(&mut stream).unwrap(), (bytes, checksum));
}

#[test]
fn big_transfers_arrive_whole_and_half_closes_are_passed_on() {
    let vm = Vm::with_agent(boot().cpus(2));
    both_ways(&vm, 32 * MIB);
    vm.power_off();
}

#[test]
fn the_older_kernel_with_its_buffers_of_two_parts_gets_the_same() {
    let vm = Vm::with_agent(boot().kernel("6.1", Image::BzImage));
    both_ways(&vm, 4 * MIB);
    vm.power_off();
}

#[test]
fn the_guest_reaches_programs_of_the_host() {
    let vm = Vm::with_agent(boot());
    let mut agent = vm.agent();
    let text = "x".repeat(300_000);
    let dial = Call::Dial {
        port: 70_000,
        text: text.clone(),
    };
    assert!(
        matches!(call(&mut agent, &dial), Reply::Failed { .. }),
        "nobody listens there yet"
    );

    let listener = UnixListener::bind(vm.path_of_port(70_000)).unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut heard = String::new();
        stream.read_to_string(&mut heard).unwrap();
        stream.write_all(heard.to_uppercase().as_bytes()).unwrap();
    });
    let answer = call(&mut agent, &dial);
    server.join().unwrap();
    assert!(
        answer
            == Reply::Text {
                text: text.to_uppercase()
            }
    );
    vm.power_off();
}

#[test]
fn a_thousand_streams_at_once() {
    let vm = Vm::with_agent(boot().memory("512M"));
    let before = vm.descriptors();
    let mut streams: Vec<UnixStream> = (0..1000).map(|_| echo(&vm)).collect();
    // The stream that found the agent up may have been open before.
    assert!(vm.descriptors() >= before + 999);
    for (n, stream) in streams.iter_mut().enumerate() {
        stream.write_all(&pattern::bytes(n as u64, 500)).unwrap();
    }
    for (n, stream) in streams.iter_mut().enumerate() {
        let mut back = [0; 500];
        stream.read_exact(&mut back).unwrap();
        assert!(back == *pattern::bytes(n as u64, 500), "stream {n}");
    }
    drop(streams);
    vm.await_descriptors(before);
    vm.power_off();
}

#[test]
fn stalled_peers_stall_nobody_else() {
    let vm = Vm::with_agent(boot());
    // The host's program does not read.
    let mut deaf = vm.agent();
    ask(
        &mut deaf,
        &Call::Source {
            seed: 9,
            bytes: 4 * MIB,
        },
    );
    // Nor does the guest's: it waits for room to send back what it was sent before.
    let mut full = echo(&vm);
    full.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut taken = 0;
    let stalled = loop {
        match full.write(&[7; 64 << 10]) {
            Ok(count) => taken += count as u64,
            Err(error) => break error,
        }
        assert!(taken < 16 * MIB, "buffers without bound");
    };
    assert_eq!(stalled.kind(), ErrorKind::WouldBlock);

    let mut stream = echo(&vm);
    for _ in 0..20 {
        there_and_back(&mut stream, 100_000);
    }

    let checksum = pattern::checksum(&pattern::bytes(9, 4 << 20));
    assert_eq!(pattern::read(&mut deaf).unwrap(), (4 * MIB, checksum));
    full.shutdown(Shutdown::Write).unwrap();
    assert_eq!(pattern::read(&mut full).unwrap().0, taken);
    vm.power_off();
}

#[test]
fn a_program_that_vanishes_takes_only_its_own_stream_along() {
    let vm = Vm::with_agent(boot());
    let before = vm.descriptors();
    for _ in 0..20 {
        let mut stream = vm.agent();
        ask(
            &mut stream,
            &Call::Source {
                seed: 1,
                bytes: 64 * MIB,
            },
        );
        stream.read_exact(&mut [0; 1000]).unwrap();
    }
    there_and_back(&mut echo(&vm), 10_000);
    vm.await_descriptors(before);
    vm.power_off();
}

#[test]
fn streams_end_with_their_driver_and_begin_anew_with_the_next() {
    let vm = Vm::with_agent(boot());
    let mut idle = echo(&vm);
    there_and_back(&mut idle, 1000);
    for _ in 0..3 {
        let mut agent = vm.agent();
        ask(&mut agent, &Call::step(&Step::RebindVsock));
        let mut rest = Vec::new();
        agent.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"", "the stream died with the driver");
        vm.await_agent();
        there_and_back(&mut echo(&vm), 10_000);
    }
    assert_eq!(idle.read(&mut [0]).unwrap(), 0);
    vm.power_off();
}
