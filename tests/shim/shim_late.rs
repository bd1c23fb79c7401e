//! Devices that come while the guest runs, beside disks: the shims have code for them, for prestart
//! hooks and VM templates.

use std::os::fd::AsRawFd;

use husk_guest::Call;
use husk_tests::api::Shim;
use husk_tests::info::PciDevice;
use husk_tests::pod::Pod;
use husk_tests::tap::{Tap, own_network};
use serde_json::json;

use crate::{folder, initrd};

const MAC: &str = "02:42:ac:11:00:02";

/// Waits for the network device at `bdf`; its name.
fn find(bdf: &str) -> String {
    format!(
        "for i in $(seq 600); do name=$(ls /sys/bus/pci/devices/{bdf}/virtio*/net 2>/dev/null) && break; sleep 0.1; done; echo $name"
    )
}

fn comes_while_the_guest_runs(shim: Shim) {
    if own_network().is_err() {
        println!("skipped: needs a network namespace");
        return;
    }
    let folder = folder();
    let tap = Tap::new("late", false, "10.9.9.1/24");
    let settings = tap.settings();
    let mut pod = Pod::launch(initrd(shim), folder.path()).unwrap();
    let mut agent = pod.start().unwrap();
    // Blocking, as the Go shim may pass it, and closed when the request is answered. The Rust shim
    // names no number after the boot.
    let descriptor = tap.open();
    let mut body = pod.shape().add_net(descriptor.as_raw_fd());
    body.as_object_mut().unwrap().remove("fds");
    let response = pod.api().put_with_fds("vm.add-net", &body, &[descriptor.as_raw_fd()]);
    let device: PciDevice = response.unwrap().json().unwrap();
    drop(descriptor);
    assert!(device.is_on_bus_0(), "{device:?}");

    let name = agent.run(&["sh", "-c", &find(&device.bdf)]).unwrap();
    let name = name.trim();
    let address = Call::Text {
        path: format!("/sys/class/net/{name}/address"),
    };
    assert!(format!("{:?}", agent.must(&address).unwrap()).contains(MAC));
    let talk = format!("ip link set {name} up && ip addr add 10.9.9.2/24 dev {name} && ping -c 3 -w 120 10.9.9.1 >&2");
    agent.run(&["sh", "-c", &talk]).unwrap();

    let nets = pod.info().unwrap().config.net.unwrap_or_default();
    assert_eq!((nets.len(), nets[0].mac.as_str()), (1, MAC));
    assert_eq!(nets[0].id.as_deref(), Some(device.id.as_str()));
    // The interface is its owner's: nothing of it has been changed.
    assert_eq!(tap.settings(), settings);
    assert!(pod.stop().unwrap().status.success());
}

#[test]
fn a_network_device_of_the_rust_shim_comes_while_the_guest_runs() {
    comes_while_the_guest_runs(Shim::Rust);
}

#[test]
fn a_network_device_of_the_go_shim_comes_while_the_guest_runs() {
    comes_while_the_guest_runs(Shim::Go);
}

#[test]
fn the_vsock_device_comes_while_the_guest_runs() {
    let folder = folder();
    let mut pod = Pod::launch(initrd(Shim::Rust), folder.path()).unwrap();
    let socket = pod.vsock();
    let mut body = pod.shape().create(&socket);
    body.as_object_mut().unwrap().remove("vsock");
    pod.api().put("vm.create", Some(&body)).unwrap().done().unwrap();
    pod.boot().unwrap();
    assert!(!socket.exists());
    let late = json!({"cid": 3, "socket": socket, "iommu": false, "id": null, "pci_segment": 1});
    let device: PciDevice = pod.api().put("vm.add-vsock", Some(&late)).unwrap().json().unwrap();
    assert!(device.is_on_bus_0(), "{device:?}");
    let (mut agent, _) = pod.agent().unwrap();
    let bound = format!("ls -d /sys/bus/pci/devices/{}/virtio*/driver", device.bdf);
    agent.run(&["sh", "-c", &bound]).unwrap();
    pod.api()
        .put("vm.add-vsock", Some(&late))
        .unwrap()
        .failure(409)
        .unwrap();
    assert!(pod.stop().unwrap().status.success());
}
