//! Networks whose frames the host's kernel moves (`backend=vhost`).

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use husk_guest::pattern;
use husk_tests::agent::Agent;
use husk_tests::api::{Response, Shim};
use husk_tests::body::Shape;
use husk_tests::info::PciDevice;
use husk_tests::pod::Pod;
use husk_tests::tap::Tap;
use husk_tests::{kernel_file, threads, until};
use serde_json::{Value, json};

use crate::session::{PREFIX, SET_UP, Session, a_driver_comes_again, boot, download, network, stream_bytes, upload};

/// Whether the host's kernel and this user have what these tests need.
fn vhost() -> bool {
    let there = Path::new("/dev/vhost-net").exists();
    if !there {
        println!("skipped: needs /dev/vhost-net");
    }
    there && network()
}

/// Threads that the kernel has in a process to serve its rings.
fn kernel_threads(pid: u32) -> usize {
    let names = threads::names(pid).into_iter();
    names
        .filter(|(name, _)| name.starts_with("vhost-"))
        .map(|(_, count)| count)
        .sum()
}

#[test]
fn the_kernel_moves_frames_over_a_tap_that_stays_as_it_was() {
    if !vhost() {
        return;
    }
    let tap = Tap::new("t0", false, PREFIX);
    let before = tap.settings();
    let mut guest = Session::start(boot("tap=t0,mac=02:00:00:00:00:07,backend=vhost"));
    assert!(guest.sh("ip link show eth0").contains("02:00:00:00:00:07"));
    assert_eq!(kernel_threads(guest.0.pid()), 1);
    guest.sh("ping -c 3 -w 60 10.0.0.1");
    guest.upload(5001, stream_bytes());
    guest.download(5002, stream_bytes());
    for offload in ["tso", "gso", "gro", "tx", "sg"] {
        assert_eq!(guest.sh(&format!("/init net offload eth0 {offload} off")), "off");
    }
    guest.upload(5003, stream_bytes() / 4);
    guest.download(5004, stream_bytes() / 4);
    let rows = guest.sh("cat /sys/class/net/eth0/statistics/rx_errors /sys/class/net/eth0/statistics/tx_errors");
    assert_eq!(rows, "0\n0");
    guest.end();
    assert_eq!(tap.settings(), before);
}

#[test]
fn the_older_kernel_and_a_driver_that_comes_again_are_served_by_the_kernel() {
    if !vhost() {
        return;
    }
    a_driver_comes_again("tap=t0,backend=vhost");
}

#[test]
fn each_pair_of_queues_has_a_thread_of_the_kernel() {
    if !vhost() {
        return;
    }
    let tap = Tap::new("t0", true, PREFIX);
    let fds = [tap.open_inherited(), tap.open_inherited()];
    let net = format!("fd={}:{},backend=vhost", fds[0].as_raw_fd(), fds[1].as_raw_fd());
    let mut guest = Session::start(boot(&net).cpus(2));
    drop(fds);
    assert_eq!(guest.sh("/init net queues eth0"), "2 of 2");
    assert_eq!(kernel_threads(guest.0.pid()), 2);
    for port in 5001..5005 {
        guest.upload(port, stream_bytes() / 8);
        guest.download(port + 100, stream_bytes() / 8);
    }
    // The host must not use a queue that the guest does not.
    assert_eq!(guest.sh("/init net queues eth0 1"), "1 of 2");
    guest.download(5201, stream_bytes() / 8);
    assert_eq!(guest.sh("/init net queues eth0 2"), "2 of 2");
    guest.download(5202, stream_bytes() / 8);
    guest.end();
}

#[test]
fn a_tap_in_use_is_named_whoever_would_move_its_frames() {
    if !vhost() {
        return;
    }
    let taken = Tap::new("t0", false, PREFIX);
    let _held = taken.open();
    let ended = boot("tap=t0,backend=vhost").run();
    ended.assert_code(1);
    assert!(ended.errors.contains("net t0: tap 't0' is in use"), "{}", ended.errors);
}

/// A pod whose agent does what a shell does in the other tests.
struct Networked(Agent);

impl Networked {
    fn sh(&mut self, line: &str) -> String {
        let said = self.0.run(&["sh", "-c", line]).unwrap();
        said.trim_end().into()
    }

    /// The interface of the only network device, whatever it is called, gets its address.
    fn set_up(&mut self) {
        self.sh(&format!(
            "until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done; {SET_UP}"
        ));
    }

    /// Both ways, with checksums of both sides.
    fn traffic(&mut self, port: u16) {
        let bytes = stream_bytes() / 4;
        let sent = upload(&mut |line| self.sh(line), port, bytes);
        let expected = pattern::bytes(port.into(), usize::try_from(bytes).unwrap());
        assert_eq!(sent.checksum, pattern::checksum(&expected));
        download(&mut |line| self.sh(line), port, bytes);
    }
}

/// Adds a device on `tap`, by a descriptor: the VMM's network is not the one that the tap is in, as with the shims.
fn add(pod: &mut Pod, tap: &OwnedFd) -> Response {
    let net = json!({"backend": "vhost", "id": "late"});
    pod.api().put_with_fds("vm.add-net", &net, &[tap.as_raw_fd()]).unwrap()
}

fn counter(pod: &mut Pod, device: &str, name: &str) -> u64 {
    let counters: Value = pod.api().get("vm.counters").unwrap().json().unwrap();
    counters[device][name].as_u64().unwrap()
}

#[test]
fn a_device_of_the_kernel_comes_pauses_goes_and_outlives_a_reboot() {
    if !vhost() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let tap = Tap::new("t0", false, PREFIX);
    let descriptor = tap.open();
    let shape = Shape::new(
        Shim::Rust,
        kernel_file("6.12", "vmlinux"),
        kernel_file("6.12", "pod.cpio"),
    );
    let mut pod = Pod::launch(shape, folder.path()).unwrap();
    // Without RAM that is shared: the kernel needs none.
    let mut body = pod.shape().create(&pod.vsock());
    body["memory"]["shared"] = json!(false);
    pod.put("vm.create", Some(&body)).unwrap().done().unwrap();
    pod.boot().unwrap();
    let mut guest = Networked(pod.agent().unwrap().0);

    let device: PciDevice = add(&mut pod, &descriptor).json().unwrap();
    guest.set_up();
    guest.traffic(5001);

    for round in 0..2 {
        pod.put("vm.pause", None).unwrap().done().unwrap();
        pod.put("vm.resume", None).unwrap().done().unwrap();
        guest.traffic(5002 + round);
    }
    let starts = counter(&mut pod, "late", "starts");

    // Memory that came later: what the guest receives fills it.
    guest.0.load_module("virtio_mem").unwrap();
    let more = pod.shape().resize_memory(768 << 20);
    pod.put("vm.resize", Some(&more)).unwrap().done().unwrap();
    guest.0.bring_online(1).unwrap();
    guest.sh("until [ $(sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo) -gt 600000 ]; do sleep 0.1; done");
    guest.sh("mkdir -p /tmp/fill && mount -t tmpfs -o size=600m none /tmp/fill");
    guest.sh("dd if=/dev/zero of=/tmp/fill/zeroes bs=1M count=300 2>/dev/null");
    guest.traffic(5010);
    guest.sh("rm /tmp/fill/zeroes");
    assert_eq!(counter(&mut pod, "late", "ring_faults"), 0);
    assert_eq!(counter(&mut pod, "late", "starts"), starts, "nothing began anew");

    pod.remove(&device).unwrap();
    guest.sh("while [ -e /sys/class/net/eth0 ]; do sleep 0.1; done");
    // The name is free once the device has gone.
    until(|| add(&mut pod, &descriptor).status == 200);
    guest.set_up();
    guest.traffic(5020);
    drop(guest);

    pod.put("vm.reboot", None).unwrap().done().unwrap();
    let mut guest = Networked(pod.agent().unwrap().0);
    guest.set_up();
    guest.traffic(5030);
    assert_eq!(counter(&mut pod, "late", "starts"), 1);
    pod.stop().unwrap();
}
