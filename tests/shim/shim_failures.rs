//! What goes wrong around a pod: an agent that never answers, files and sockets that are not there or taken.

use std::fs::{self, File};
use std::process::Command;
use std::time::Duration;

use husk_guest::{AGENT_PORT, Call, Step};
use husk_tests::api::Shim;
use husk_tests::body::Shape;
use husk_tests::info::State;
use husk_tests::pod::Pod;

use crate::{folder, initrd};

#[test]
fn an_agent_that_never_answers_is_refused_at_once_each_time() {
    let folder = folder();
    // The last of several counts: this guest sleeps.
    let shape = Shape {
        kernel_params: "husk.do=idle".into(),
        ..initrd(Shim::Rust)
    };
    let mut pod = Pod::launch(shape, folder.path()).unwrap();
    pod.create().unwrap();
    pod.boot().unwrap();
    for tries in 0..1000 {
        assert!(
            pod.dial(AGENT_PORT).unwrap().is_none(),
            "somebody answers after {tries} tries"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    pod.expect_state(State::Running).unwrap();
    assert!(pod.stop().unwrap().status.success());
}

#[test]
fn a_disk_that_vanished_before_it_is_added_is_named_and_the_pod_goes_on() {
    let folder = folder();
    let mut pod = Pod::launch(initrd(Shim::Go), folder.path()).unwrap();
    let mut agent = pod.start().unwrap();
    let path = folder.path().join("vanished.img");
    let body = pod.shape().add_disk(&path);
    let response = pod.api().put("vm.add-disk", Some(&body)).unwrap();
    assert!((400..600).contains(&response.status), "{response:?}");
    let said = response.body.unwrap();
    assert!(said.contains("vanished.img") && said.contains("No such file"), "{said}");
    // Nothing half-done is left: the same disk can be added once it is there.
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let device = pod.add_disk(&path).unwrap();
    agent.must(&Call::DiskAt { bdf: device.bdf }).unwrap();
    pod.stop().unwrap();
}

#[test]
fn an_image_that_vanished_before_the_boot_is_named_and_the_vmm_still_ends_in_order() {
    let folder = folder();
    let path = folder.path().join("vanished.img");
    let shape = Shape {
        image: Some(path.clone()),
        ..initrd(Shim::Rust)
    };
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let mut pod = Pod::launch(shape, folder.path()).unwrap();
    pod.create().unwrap();
    fs::remove_file(&path).unwrap();
    let response = pod.api().put("vm.boot", None).unwrap();
    let said = response
        .failure(500)
        .or_else(|_| response.failure(400))
        .unwrap()
        .join(": ");
    assert!(said.contains("vanished.img"), "{said}");
    pod.expect_state(State::Created).unwrap();
    pod.stop().unwrap();
}

#[test]
fn an_api_socket_that_is_in_use_stays_with_its_owner() {
    let folder = folder();
    let mut first = Pod::launch(initrd(Shim::Rust), folder.path()).unwrap();
    let socket = first.api_socket();
    let second = husk_tests::husk().arg("--api-socket").arg(&socket).output().unwrap();
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success() && said.contains("ch-api.sock"), "{said}");
    assert!(first.api().get("vmm.ping").unwrap().status == 200);
    assert!(socket.exists());
    first.stop().unwrap();
}

#[test]
fn a_vsock_socket_that_is_in_use_stays_with_its_owner() {
    let other = folder();
    let folder = folder();
    let mut first = Pod::launch(initrd(Shim::Rust), folder.path()).unwrap();
    let mut agent = first.start().unwrap();
    let mut second = Pod::launch(initrd(Shim::Go), other.path()).unwrap();
    let body = second.shape().create(&first.vsock());
    let mut refused = second.api().put("vm.create", Some(&body)).unwrap();
    if refused.status == 204 {
        refused = second.api().put("vm.boot", None).unwrap();
    }
    assert!((400..600).contains(&refused.status), "{refused:?}");
    let said = refused.body.unwrap();
    assert!(said.contains("ch-vm.sock"), "{said}");
    second.stop().unwrap();
    // The owner's is still there, and still works.
    agent.must(&Call::step(&Step::Report)).unwrap();
    first.one_more().unwrap().must(&Call::step(&Step::Report)).unwrap();
    first.stop().unwrap();
}

#[test]
fn a_tap_that_goes_away_is_the_guests_loss_only() {
    const NAME: &str = "husk-gone";
    let folder = folder();
    let tap = match husk_tests::tap(NAME) {
        Ok(tap) => tap,
        Err(error) => {
            println!("skipped: needs root, a tun device: {error}");
            return;
        }
    };
    let mut pod = Pod::launch(initrd(Shim::Rust), folder.path()).unwrap();
    pod.create().unwrap();
    pod.add_net(&tap).unwrap();
    drop(tap);
    pod.boot().unwrap();
    let (mut agent, _) = pod.agent().unwrap();
    let link = "ip link set eth0 up && ip addr add 10.9.8.7/24 dev eth0 && arping -c 1 -w 1 -I eth0 10.9.8.1; true";
    agent.run(&["sh", "-c", link]).unwrap();
    let gone = Command::new("ip").args(["link", "delete", NAME]).output().unwrap();
    assert!(gone.status.success(), "{gone:?}");
    // The guest goes on sending into nothing, and the rest of the pod does not notice.
    agent
        .run(&["sh", "-c", "arping -c 3 -w 3 -I eth0 10.9.8.1; true"])
        .unwrap();
    agent.must(&Call::step(&Step::Report)).unwrap();
    pod.expect_state(State::Running).unwrap();
    assert!(pod.stop().unwrap().status.success());
}
