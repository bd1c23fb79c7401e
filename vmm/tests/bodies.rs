//! What clients send takes a bounded part of husk's memory, which is the pod's.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod process;

use std::fs;
use std::io::{BufReader, Write};
use std::os::unix::net::UnixStream;

use husk_devices::testing::{PATIENCE, until};
use process::{Client, Husk};
use serde_json::{Value, json};

const KIB: usize = 1 << 10;
/// The most that husk may ever have more than at its start, whatever clients send.
const MOST_KIB: u64 = 16 << 10;

/// What `/proc/PID/status` says of husk's memory, in KiB.
fn status(husk: &Husk, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", husk.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap()
}

/// A body of `bytes` bytes or a little less: `begin`, as often as there is room for it `element`, and the end.
fn long(begin: &str, element: &str, end: &str, bytes: usize) -> String {
    let count = (bytes - begin.len() - end.len()) / (element.len() + 1);
    format!("{begin}{}{end}", vec![element; count].join(","))
}

/// A client that fails where it is not answered.
fn client_of(husk: &Husk) -> Client {
    let client = husk.client();
    client.0.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
    client
}

fn put(client: &mut Client, name: &str, body: &str) -> (u16, Value) {
    client.send("PUT", name, Some(body), &[]);
    client.answer()
}

#[test]
fn a_body_is_as_long_as_its_endpoint_lets_it_and_refused_by_its_head() {
    let folder = tempfile::tempdir().unwrap();
    let metrics = folder.path().join("metrics.sock");
    let mut husk = Husk::start_in(folder, &["--metrics", metrics.to_str().unwrap()]);
    for (method, name, most) in [
        ("PUT", "vm.create", 256 * KIB),
        ("PUT", "vm.set-containers", 64 * KIB),
        ("PUT", "vm.add-disk", 64 * KIB),
        ("PUT", "vm.add-net", 64 * KIB),
        ("PUT", "vm.resize", 4 * KIB),
        ("PUT", "vm.remove-device", 4 * KIB),
        ("PUT", "vm.boot", 4 * KIB),
        ("PUT", "no.such", 4 * KIB),
        ("GET", "vm.info", 0),
        ("HEAD", "vm.info", 0),
    ] {
        let mut client = client_of(&husk);
        let head = |bytes| format!("{method} /api/v1/{name} HTTP/1.1\r\nContent-Length: {bytes}\r\n\r\n");
        if most > 0 {
            // It is heard to its end, whatever it says.
            client.0.get_mut().write_all(head(most).as_bytes()).unwrap();
            client.0.get_mut().write_all(&vec![b' '; most]).unwrap();
            let status = client.answer().0;
            assert!([204, 400, 404, 405].contains(&status), "{name}: {status}");
            client = client_of(&husk);
        }
        let text = head(most + 1);
        client.0.get_mut().write_all(text.as_bytes()).unwrap();
        let refusal = format!("body of {} bytes, at most {most} allowed", most + 1);
        assert_eq!(client.answer(), (413, json!([refusal])), "{method} {name}");
    }
    for text in [
        "PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 1\r\n\r\n",
        "GET /metrics HTTP/1.1\r\nContent-Length: 1\r\n\r\n",
    ] {
        let mut scraper = Client(BufReader::new(UnixStream::connect(&metrics).unwrap()));
        scraper.0.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
        scraper.0.get_mut().write_all(text.as_bytes()).unwrap();
        let refusal = json!(["body of 1 bytes, at most 0 allowed"]);
        assert_eq!(scraper.answer(), (413, refusal), "{text}");
    }
    husk.shut_down();
}

#[test]
fn of_bodies_that_never_end_the_oldest_are_refused_and_whole_requests_are_heard() {
    let mut husk = Husk::start(&[]);
    assert_eq!(put(&mut client_of(&husk), "vm.create", "{}").0, 400);
    let before = status(&husk, "VmRSS:");
    let mut clients: Vec<Client> = (0..40).map(|_| client_of(&husk)).collect();
    for client in &mut clients {
        let stream = client.0.get_mut();
        stream
            .write_all(b"PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 131072\r\n\r\n")
            .unwrap();
        stream.write_all(&vec![b' '; 120 * KIB]).unwrap();
        // It has been heard by the time another request is answered.
        assert_eq!(put(&mut client_of(&husk), "vm.resize", "{").0, 400);
    }
    let refusal = "unfinished requests of more than 1048576 bytes in all, none has waited for longer than this one";
    let oldest = &mut clients[0];
    assert_eq!(oldest.answer(), (413, json!([refusal])));
    // The last one has room, and comes to its end.
    let newest = clients.last_mut().unwrap();
    newest.0.get_mut().write_all(&vec![b' '; 8 * KIB]).unwrap();
    assert_eq!(newest.answer().0, 400);
    let more = status(&husk, "VmHWM:") - before;
    assert!(more < MOST_KIB, "{more} KiB");
    drop(clients);
    husk.shut_down();
}

/// Each of these is as long as may be, and made to take as much as can be.
#[test]
fn whatever_clients_send_husk_stays_small_and_becomes_so_again() {
    let mut husk = Husk::start(&[]);
    let mut client = client_of(&husk);
    // The first answer of each kind is what takes memory for good.
    assert_eq!(put(&mut client, "vm.create", "{}").0, 400);
    let before = status(&husk, "VmRSS:");
    let payload = r#"{"payload":{"kernel":"/k"}"#;
    let disk = r#"{"path":"/x","readonly":true}"#;
    let devices = long(&format!(r#"{payload},"disks":["#), disk, "]}", 256 * KIB);
    let (status_code, refusal) = put(&mut client, "vm.create", &devices);
    assert_eq!(status_code, 409);
    let slots = "34 devices or more, the machine's own included, 31 PCI slots are there";
    assert_eq!(refusal[1], slots, "{refusal}");
    let too_much = "the fields that husk does not know hold more than 256 values or 8192 bytes of text";
    for body in [
        long(&format!(r#"{payload},"x":["#), r#"{"a":0}"#, "]}", 256 * KIB),
        long(
            &format!(r#"{payload},"disks":[{{"path":"/x","x":["#),
            "[]",
            "]}]}",
            256 * KIB,
        ),
        format!(r#"{payload},"x":"{}"}}"#, "x".repeat(255 * KIB)),
    ] {
        let (status_code, refusal) = put(&mut client, "vm.create", &body);
        assert_eq!(status_code, 400, "{refusal}");
        assert!(refusal.to_string().contains(too_much), "{refusal}");
    }
    let resize = long(r#"{"x":["#, r#"{"a":0}"#, "]}", 4 * KIB);
    assert_eq!(put(&mut client, "vm.resize", &resize).0, 404);
    // As much as is kept.
    let fields = long(&format!(r#"{payload},"x":["#), r#"{"a":0}"#, "]}", KIB);
    assert_eq!(put(&mut client, "vm.create", &fields), (204, Value::Null));
    let note = long(r#"{"revision":0,"containers":["#, r#"{"a":0}"#, "]}", 64 * KIB);
    assert_eq!(put(&mut client, "vm.set-containers", &note), (204, Value::Null));
    // Nobody reads what it is told.
    let mut readers: Vec<Client> = (0..60).map(|_| client_of(&husk)).collect();
    for reader in &mut readers {
        reader.send("GET", "vm.containers", None, &[]);
    }
    assert_eq!(
        client.put("vm.resize", Some(json!({"desired_vcpus": 1}))),
        (204, Value::Null)
    );
    let (_, noted) = readers[0].answer();
    let sent: Value = serde_json::from_str(&note).unwrap();
    assert_eq!(noted, json!({"revision": 1, "containers": sent["containers"]}));
    let more = status(&husk, "VmHWM:") - before;
    assert!(more < MOST_KIB, "{more} KiB");
    drop(readers);
    assert_eq!(client.put("vm.delete", None), (204, Value::Null));
    // No machine has been: what is not needed goes back all the same.
    let small = before + (2 << 10);
    until(|| status(&husk, "VmRSS:") <= small);
    husk.shut_down();
}
