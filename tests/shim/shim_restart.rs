//! A shim that is killed half-way, and what comes after it.

use std::thread;
use std::time::Duration;

use husk_guest::{Call, Step};
use husk_tests::api::{Api, Shim};
use husk_tests::body::Shape;
use husk_tests::pod::Pod;

use crate::{folder, initrd};

#[test]
fn the_vmm_outlives_its_shim_and_obeys_another_one() {
    let folder = folder();
    let shape = Shape {
        debug: true,
        kernel_params: "loglevel=5".into(),
        ..initrd(Shim::Rust)
    };
    let mut pod = Pod::launch(shape, folder.path()).unwrap();
    let mut agent = pod.start().unwrap();
    let socket = pod.api_socket();
    // The kernel closes a dead shim's ends: the pipes, the connection to the API, the one to the agent.
    let orphan = pod.abandon();
    for _ in 0..20 {
        // Each of these is a warning, and a line on the serial port, which leads to a pipe that nobody reads.
        agent.run(&["sh", "-c", "echo to nobody > /dev/kmsg"]).unwrap();
    }
    agent.must(&Call::step(&Step::Report)).unwrap();
    drop(agent);
    let mut other = Api::connect(&socket, Shim::Rust).unwrap();
    assert_eq!(other.get("vm.info").unwrap().status, 200);
    other.put("vmm.shutdown", None).unwrap().done().unwrap();
    assert!(orphan.wait().unwrap().success());
    assert!(!socket.exists());
}

#[test]
fn nothing_of_a_killed_vmm_is_in_the_way_of_the_next_one() {
    let folder = folder();
    for shim in [Shim::Rust, Shim::Go] {
        let mut pod = Pod::launch(initrd(shim), folder.path()).unwrap();
        pod.start().unwrap();
        pod.kill().unwrap();
        // Both sockets are still there, since nobody could remove them.
        assert!(pod.api_socket().exists() && pod.vsock().exists());
        let mut pod = Pod::launch(initrd(shim), folder.path()).unwrap();
        let mut agent = pod.start().unwrap();
        agent.must(&Call::step(&Step::Report)).unwrap();
        assert!(pod.stop().unwrap().status.success());
    }
}

#[test]
fn a_shim_that_dies_during_the_boot_leaves_a_vmm_that_can_be_stopped() {
    let folder = folder();
    let mut pod = Pod::launch(initrd(Shim::Rust), folder.path()).unwrap();
    pod.create().unwrap();
    let socket = pod.api_socket();
    let boot = thread::spawn(move || pod.boot().map(|()| pod));
    // Another client is served while the first one waits for its boot.
    let mut other = Api::connect(&socket, Shim::Go).unwrap();
    other.get("vmm.ping").unwrap();
    let orphan = boot.join().unwrap().unwrap().abandon();
    thread::sleep(Duration::from_millis(50));
    other.put("vmm.shutdown", None).unwrap().done().unwrap();
    assert!(orphan.wait().unwrap().success());
}
