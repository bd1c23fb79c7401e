//! Few descriptors, and clients that take all of them.

use std::os::unix::net::UnixStream;

use husk_guest::{AGENT_PORT, Call, Step};
use husk_tests::api::Shim;
use husk_tests::pod::{Launch, Pod};

use crate::{folder, initrd};

/// Enough for a pod, and little more.
const FILES: u64 = 96;

#[test]
fn connections_beyond_the_limit_of_descriptors_are_refused_and_those_before_go_on() {
    let folder = folder();
    let launch = Launch {
        nofile: Some(FILES),
        ..Launch::default()
    };
    let mut pod = Pod::launch_with(initrd(Shim::Rust), folder.path(), launch).unwrap();
    let mut agent = pod.start().unwrap();
    // More than there can be: some of these are never accepted, some are closed.
    let mut held = Vec::new();
    for _ in 0..2 * FILES {
        let stream = UnixStream::connect(pod.vsock());
        held.extend(stream);
    }
    agent.must(&Call::step(&Step::Report)).unwrap();
    pod.info().unwrap();
    drop(held);
    // And with them gone there is room again.
    let mut tries = 0;
    while pod.dial(AGENT_PORT).unwrap().is_none() {
        tries += 1;
        assert!(tries < 1000, "the agent is out of reach");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert!(pod.stop().unwrap().status.success());
}

#[test]
fn clients_that_hold_the_api_do_not_delay_the_shim() {
    let folder = folder();
    let launch = Launch {
        nofile: Some(FILES),
        ..Launch::default()
    };
    let mut pod = Pod::launch_with(initrd(Shim::Rust), folder.path(), launch).unwrap();
    let held: Vec<_> = (0..2 * FILES)
        .map_while(|_| UnixStream::connect(pod.api_socket()).ok())
        .collect();
    assert_eq!(pod.api().get("vmm.ping").unwrap().status, 200);
    drop(held);
    let mut agent = pod.start().unwrap();
    agent.must(&Call::step(&Step::Report)).unwrap();
    assert!(pod.stop().unwrap().status.success());
}
