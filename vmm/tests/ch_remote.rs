//! The commands of Cloud Hypervisor's `ch-remote`, in its wire format: a connection for each, a
//! request in three or four pieces, bodies with every field that it writes, and answers read 256
//! bytes at a time. Those with a guest need `/dev/kvm`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod process;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use process::Husk;
use serde_json::{Value, json};

/// What `ch-remote` makes of an answer: its status, and its body if it has one.
type Answer = (u16, Option<Value>);

/// One command.
fn ask(husk: &Husk, method: &str, name: &str, body: Option<&Value>) -> Answer {
    let mut stream = UnixStream::connect(husk.socket()).unwrap();
    let mut send = |piece: &str| stream.write_all(piece.as_bytes()).unwrap();
    send(&format!(
        "{method} /api/v1/{name} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n"
    ));
    let body = body.map(Value::to_string);
    if let Some(body) = &body {
        send(&format!("Content-Length: {}\r\n", body.len()));
    }
    send("\r\n");
    if let Some(body) = &body {
        send(body);
    }
    let mut answer = String::new();
    loop {
        let mut piece = [0; 256];
        let bytes = stream.read(&mut piece).unwrap();
        // Each piece has to be text by itself.
        answer.push_str(std::str::from_utf8(&piece[..bytes]).unwrap());
        let head = answer.find("\r\n\r\n").map(|end| end + 4);
        let length = answer
            .split("Content-Length: ")
            .nth(1)
            .map(|rest| rest.split('\r').next().unwrap());
        match (head, length) {
            _ if bytes == 0 => panic!("closed after {answer:?}"),
            (None, _) => {}
            (Some(_), None) => break,
            (Some(head), Some(length)) if answer.len() >= head + length.trim().parse::<usize>().unwrap() => break,
            (Some(_), Some(_)) => {}
        }
    }
    // All of the first line behind the protocol is the status.
    let status = answer.strip_prefix("HTTP/1.1 ").unwrap().split('\r').next().unwrap();
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    let body = answer
        .contains("Content-Length: ")
        .then(|| serde_json::from_str(body).unwrap());
    (status.trim().parse().unwrap(), body)
}

/// A description as a user writes one, of a guest of a few instructions.
fn description(husk: &Husk) -> Value {
    let kernel = husk.folder.path().join("vmlinux");
    let code = husk_benches::code(husk_benches::GuestAction::Halt);
    fs::write(&kernel, husk_benches::elf_of(&code)).unwrap();
    json!({
        "cpus": {"boot_vcpus": 1, "max_vcpus": 2},
        "memory": {"size": 64 << 20, "shared": true},
        "payload": {"kernel": kernel},
        "serial": {"mode": "Null"},
        "console": {"mode": "Off"},
    })
}

/// The bodies that options become: every field, those that were not given with their defaults.
fn disk(path: &str) -> Value {
    json!({
        "path": path, "readonly": true, "direct": false, "iommu": false, "num_queues": 1, "queue_size": 128, "vhost_user": false,
        "vhost_socket": null, "rate_limit_group": null, "rate_limiter_config": null, "id": "data", "disable_io_uring": false,
        "disable_aio": false, "pci_segment": 0, "pci_device_id": null, "serial": null, "queue_affinity": null, "backing_files": false,
        "sparse": true, "image_type": "Unknown", "lock_granularity": "ByteRange",
    })
}

fn resize(vcpus: Option<u32>, ram: Option<u64>, balloon: Option<u64>) -> Value {
    json!({"desired_vcpus": vcpus, "desired_ram": ram, "desired_balloon": balloon})
}

#[test]
fn a_vm_is_described_and_given_devices_before_it_boots() {
    let mut husk = Husk::start(&[]);
    let path = |name: &str| husk.folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("disk"), [0; 4096]).unwrap();
    let file = File::create(path("pmem")).unwrap();
    file.set_len(2 << 20).unwrap();
    let (status, pong) = ask(&husk, "GET", "vmm.ping", None);
    assert_eq!(
        (status, pong.unwrap()["pid"].as_u64()),
        (200, Some(husk.child.id().into()))
    );
    assert_eq!(ask(&husk, "GET", "vm.info", None).0, 404);
    assert_eq!(ask(&husk, "PUT", "vm.create", Some(&description(&husk))), (204, None));
    let fs = json!({"tag": "shared", "socket": path("fs.sock"), "num_queues": 1, "queue_size": 1024, "id": null, "pci_segment": 0});
    let pmem = json!({"file": path("pmem"), "size": null, "iommu": false, "discard_writes": false, "id": null, "pci_segment": 0});
    let vsock = json!({"cid": 3, "socket": path("vsock"), "iommu": false, "id": null, "pci_segment": 0});
    let net = json!({
        "tap": "husk-none", "ip": null, "mask": null, "mac": "12:34:56:78:90:ab", "host_mac": null, "mtu": null, "iommu": false,
        "num_queues": 2, "queue_size": 256, "vhost_user": false, "vhost_socket": null, "vhost_mode": "Client", "id": null, "fds": null,
        "rate_limiter_config": null, "pci_segment": 0, "offload_tso": true, "offload_ufo": true, "offload_csum": true,
    });
    for (name, body) in [
        ("vm.add-net", net),
        ("vm.add-disk", disk(&path("disk"))),
        ("vm.add-fs", fs),
        ("vm.add-pmem", pmem),
        ("vm.add-vsock", vsock),
        ("vm.resize", resize(Some(2), Some(64 << 20), None)),
    ] {
        assert_eq!(ask(&husk, "PUT", name, Some(&body)), (204, None), "{name}");
    }
    let (_, info) = ask(&husk, "GET", "vm.info", None);
    let config = &info.unwrap()["config"];
    assert_eq!(
        (&config["disks"][0]["id"], &config["cpus"]["boot_vcpus"]),
        (&json!("data"), &json!(2))
    );
    assert_eq!(
        (&config["fs"][0]["tag"], &config["vsock"]["cid"]),
        (&json!("shared"), &json!(3))
    );
    assert_eq!(
        ask(&husk, "PUT", "vm.remove-device", Some(&json!({"id": "data"}))),
        (204, None)
    );
    assert_eq!(ask(&husk, "PUT", "vm.delete", None), (204, None));
    assert_eq!(ask(&husk, "PUT", "vmm.shutdown", None), (204, None));
    assert_eq!(husk.child.wait().unwrap().code(), Some(0));
}

/// The Go shim asks for a queue a vCPU for each disk that it plugs in, the Rust shim for as many
/// pairs as it is configured with.
#[test]
fn a_device_may_have_a_queue_for_each_vcpu_of_a_large_pod() {
    let husk = Husk::start(&[]);
    let mut large = description(&husk);
    large["cpus"] = json!({"boot_vcpus": 96, "max_vcpus": 96});
    let mut initdata = disk("/initdata");
    (initdata["id"], initdata["num_queues"]) = (Value::Null, json!(96));
    large["disks"] = json!([initdata]);
    assert_eq!(ask(&husk, "PUT", "vm.create", Some(&large)), (204, None));
    for (name, body) in [
        ("vm.add-disk", json!({"path": "/d", "num_queues": 255})),
        ("vm.add-net", json!({"tap": "husk-none", "num_queues": 254})),
        ("vm.add-fs", json!({"tag": "t", "socket": "/s", "num_queues": 254})),
    ] {
        assert_eq!(ask(&husk, "PUT", name, Some(&body)), (204, None), "{name}");
        let mut more = body.clone();
        more["num_queues"] = json!(256);
        let (status, chain) = ask(&husk, "PUT", name, Some(&more));
        let told = chain.unwrap()[0].to_string();
        assert!(
            status == 400 && told.contains("256") && told.contains("allowed"),
            "{told}"
        );
    }
}

/// A refusal names the field of the body that was sent, wherever the device would have been in the VM's configuration.
#[test]
fn what_a_device_cannot_have_is_told_in_the_places_of_its_own_body() {
    let husk = Husk::start(&[]);
    assert_eq!(ask(&husk, "PUT", "vm.create", Some(&description(&husk))), (204, None));
    assert_eq!(ask(&husk, "PUT", "vm.add-disk", Some(&disk("/d"))), (204, None));
    for (name, field, value) in [
        ("vm.add-disk", "iommu", json!(true)),
        ("vm.add-disk", "vhost_user", json!(true)),
        ("vm.add-disk", "image_type", json!("Qcow2")),
        ("vm.add-disk", "pci_device_id", json!(9)),
        ("vm.add-net", "vhost_mode", json!("Server")),
    ] {
        let mut body = disk("/e");
        body["id"] = Value::Null;
        body[field] = value.clone();
        let (status, chain) = ask(&husk, "PUT", name, Some(&body));
        let told = chain.unwrap()[0].as_str().unwrap().to_owned();
        assert_eq!(status, 400, "{told}");
        assert!(
            told.starts_with(&format!("{field}: {value} is not supported, ")),
            "{told}"
        );
    }
}

#[test]
fn a_guest_is_booted_held_resized_and_ended() {
    if !process::has_kvm() {
        return;
    }
    let mut husk = Husk::start(&[]);
    let path = husk.folder.path().join("disk");
    fs::write(&path, [0; 4096]).unwrap();
    let mut disk = disk(path.to_str().unwrap());
    // As many as a device can have.
    disk["num_queues"] = json!(255);
    assert_eq!(ask(&husk, "PUT", "vm.create", Some(&description(&husk))), (204, None));
    for (method, name, body, status) in [
        ("PUT", "vm.boot", None, 204),
        ("PUT", "vm.add-disk", Some(disk), 200),
        ("GET", "vm.info", None, 200),
        ("GET", "vm.counters", None, 200),
        ("PUT", "vm.pause", None, 204),
        ("PUT", "vm.resume", None, 204),
        ("PUT", "vm.resize", Some(resize(Some(1), None, None)), 204),
        ("PUT", "vm.resize", Some(resize(None, Some(64 << 20), None)), 204),
        ("PUT", "vm.power-button", None, 204),
        ("PUT", "vm.reboot", None, 204),
        ("PUT", "vm.shutdown", None, 204),
        ("PUT", "vm.boot", None, 204),
        ("PUT", "vmm.shutdown", None, 204),
    ] {
        let (answered, body) = ask(&husk, method, name, body.as_ref());
        assert_eq!(answered, status, "{name}: {body:?}");
        assert_eq!(body.is_some(), status == 200, "{name}: {body:?}");
        match name {
            "vm.info" => assert_eq!(body.unwrap()["state"], "Running"),
            "vm.add-disk" => assert_eq!(body.unwrap()["id"], "data"),
            "vm.counters" => assert!(body.unwrap()["data"].is_object()),
            _ => {}
        }
    }
    assert_eq!(husk.child.wait().unwrap().code(), Some(0));
}

#[test]
fn what_husk_does_not_have_is_refused_by_its_name() {
    let husk = Husk::start(&[]);
    for (name, body) in [
        (
            "vm.add-device",
            Some(json!({"path": "/sys/bus/pci/devices/0000:01:00.0", "iommu": false, "id": null, "pci_segment": 0})),
        ),
        (
            "vm.add-user-device",
            Some(json!({"socket": "/s", "id": null, "pci_segment": 0})),
        ),
        (
            "vm.add-vdpa",
            Some(json!({"path": "/dev/vhost-vdpa-0", "num_queues": 1, "iommu": false, "id": null, "pci_segment": 0})),
        ),
        ("vm.resize-disk", Some(json!({"id": "a", "desired_size": 1}))),
        ("vm.resize-zone", Some(json!({"id": "a", "desired_ram": 1}))),
        ("vm.snapshot", Some(json!({"destination_url": "file:///x"}))),
        (
            "vm.restore",
            Some(json!({"source_url": "file:///x", "prefault": false})),
        ),
        ("vm.coredump", Some(json!({"destination_url": "file:///x"}))),
        (
            "vm.send-migration",
            Some(json!({"destination_url": "unix:/x", "local": false})),
        ),
        ("vm.receive-migration", Some(json!({"receiver_url": "unix:/x"}))),
        ("vmm.nmi", None),
    ] {
        let (status, chain) = ask(&husk, "PUT", name, body.as_ref());
        assert_eq!(status, 501, "{name}");
        assert_eq!(chain, Some(json!([format!("husk does not have {name}")])));
    }
}
