//! The API process as a shim sees it: how it starts, what it answers, what it leaves behind. No guest runs here.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod process;

use std::fs::{self, File};
use std::io::{BufRead, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use process::{Client, HUSK, Husk, Signal, command, make_fifo};
use serde_json::{Value, json};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// How long something is waited for that has to come.
const PATIENCE: Duration = Duration::from_secs(60);

fn vm() -> Value {
    json!({
        "memory": {"size": 64 << 20},
        "payload": {"kernel": "/nowhere/vmlinux", "firmware": null},
        "serial": {"mode": "Off"},
        "console": {"mode": "Off"},
        "fs": [],
        "devices": [],
        "unknown": {"to": ["husk"]},
    })
}

#[test]
fn it_starts_as_the_rust_shim_starts_it_and_ends_when_told() {
    let mut husk = Husk::start(&["-v", "--seccomp", "true"]);
    let mode = fs::symlink_metadata(husk.socket()).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o600);
    let mut client = husk.client();
    let (status, pong) = client.get("vmm.ping");
    assert_eq!((status, pong["pid"].as_u64()), (200, Some(husk.child.id().into())));
    assert_eq!(client.get("vm.info").0, 404);
    assert_eq!(client.put("vm.create", Some(vm())), (204, Value::Null));
    let (status, info) = client.get("vm.info");
    assert_eq!((status, &info["state"]), (200, &json!("Created")));
    assert_eq!(info["memory_actual_size"], 64 << 20);
    assert_eq!(info["config"]["unknown"], json!({"to": ["husk"]}));
    let status = husk.shut_down();
    assert_eq!(status.code(), Some(0));
    assert!(!husk.socket().exists());
    // Neither pipe had ended before: what is left in them is all there was.
    let mut out = String::new();
    husk.child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    assert_eq!(out, "");
}

/// Shims ask for all the memory of the host, which may be more than the guest has addresses for.
#[test]
fn of_memory_that_may_come_a_vm_has_what_there_are_addresses_for() {
    let mut husk = Husk::start(&[]);
    let mut client = husk.client();
    for (bits, asked, most) in [(46, 9_u64 << 40, (8_u64 << 40) - (2 << 30)), (40, 768 << 30, 512 << 30)] {
        let mut body = vm();
        body["cpus"] = json!({"boot_vcpus": 1, "max_vcpus": 8, "max_phys_bits": bits});
        body["memory"] = json!({"size": 2_u64 << 30, "hotplug_method": "Acpi", "hotplug_size": asked, "shared": true});
        assert_eq!(client.put("vm.create", Some(body.clone())), (204, Value::Null));
        let config = client.get("vm.info").1["config"].clone();
        let fits = config["memory"]["hotplug_size"].as_u64().unwrap();
        // A host may have narrower addresses.
        assert!((1..=most - (2 << 30)).contains(&fits), "{bits}: {fits}");
        // RAM that grows before the boot leaves less.
        assert_eq!(
            client.put("vm.resize", Some(json!({"desired_ram": 8_u64 << 30}))),
            (204, Value::Null)
        );
        let less = client.get("vm.info").1["config"]["memory"]["hotplug_size"].as_u64();
        assert!(less.unwrap() < fits, "{less:?}");
        assert_eq!(client.put("vm.delete", None), (204, Value::Null));
        // What was told can be asked for.
        body["memory"]["hotplug_size"] = json!(fits);
        assert_eq!(client.put("vm.create", Some(body)), (204, Value::Null));
        assert_eq!(client.get("vm.info").1["config"]["memory"]["hotplug_size"], fits);
        assert_eq!(client.put("vm.delete", None), (204, Value::Null));
    }
    husk.shut_down();
    let mut said = String::new();
    husk.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let warnings: Vec<_> = said.lines().filter(|line| line.contains("hotplug_size")).collect();
    assert_eq!(warnings.len(), 2, "{said}");
    assert!(
        warnings[1].contains("not 768 GiB, there are addresses for no more"),
        "{said}"
    );
}

#[test]
fn it_is_the_same_by_the_name_of_cloud_hypervisor_and_without_any_stdio() {
    let folder = tempfile::tempdir().unwrap();
    let name = folder.path().join("cloud-hypervisor");
    symlink(HUSK, &name).unwrap();
    let socket = folder.path().join("api.sock");
    let mut command = Command::new(&name);
    command
        .arg(format!("--api-socket=path={}", socket.display()))
        .args(["-vv", "--seccomp", "false"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().unwrap();
    let mut husk = Husk { folder, child };
    husk.ready();
    assert_eq!(husk.client().get("vmm.ping").0, 200);
    assert_eq!(husk.shut_down().code(), Some(0));
    for flag in ["--version", "-V"] {
        let output = Command::new(&name).arg(flag).output().unwrap();
        assert!(output.status.success());
        assert_eq!(
            output.stdout,
            format!("husk {}\n", env!("CARGO_PKG_VERSION")).into_bytes()
        );
    }
}

#[test]
fn what_a_killed_process_leaves_behind_does_not_hinder_the_next() {
    let husk = Husk::start(&[]);
    assert_eq!(husk.client().get("vmm.ping").0, 200);
    husk.signal(Signal::KILL);
    let mut husk = husk;
    assert_eq!(husk.child.wait().unwrap().signal(), Some(9));
    assert!(husk.socket().exists());
    husk.child = command(&husk.socket(), &[]).spawn().unwrap();
    husk.ready();
    assert_eq!(husk.client().get("vmm.ping").0, 200);
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn husks_own_socket_is_not_that_of_a_device() {
    let mut husk = Husk::start(&[]);
    let mut client = husk.client();
    let socket = husk.socket();
    let refusal = format!(
        "vsock and --api-socket both have the socket {}, only one of them can",
        socket.display()
    );
    let vsock = json!({"cid": 3, "socket": socket});
    let mut with = vm();
    with["vsock"] = vsock.clone();
    let chain = json!(["cannot create the VM", refusal]);
    assert_eq!(client.put("vm.create", Some(with)), (400, chain));
    assert_eq!(client.put("vm.create", Some(vm())).0, 204);
    assert_eq!(client.put("vm.add-vsock", Some(vsock)), (400, json!([refusal])));
    husk.shut_down();
}

#[test]
fn a_socket_that_is_in_use_stays_in_use() {
    let mut husk = Husk::start(&[]);
    let second = command(&husk.socket(), &[]).output().unwrap();
    let complaint = String::from_utf8(second.stderr).unwrap();
    assert_eq!((second.status.code(), complaint.lines().count()), (Some(1), 1));
    assert!(complaint.contains("already in use"), "{complaint}");
    assert_eq!(husk.client().get("vmm.ping").0, 200);
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn a_listening_socket_can_be_passed() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("api.sock")).unwrap();
    let child = Command::new(HUSK)
        .args(["--api-socket", "fd=0"])
        .stdin(OwnedFd::from(listener))
        .spawn()
        .unwrap();
    let mut husk = Husk { folder, child };
    assert_eq!(husk.client().get("vmm.ping").0, 200);
    assert_eq!(husk.shut_down().code(), Some(0));
    assert!(husk.socket().exists(), "the file is not husk's");
}

#[test]
fn what_cannot_be_understood_or_opened_is_said_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api.sock");
    let socket = socket.to_str().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let long = format!("/tmp/{}", "x".repeat(108));
    for (args, code, says) in [
        (&["-v"][..], 2, "--api-socket"),
        (&["--api-socket", ""], 2, "empty"),
        (&["--api-socket", "fd=x"], 2, "fd=x"),
        (&["--api-socket", "fd=999"], 1, "Bad file descriptor"),
        (&["--api-socket", "fd=2"], 1, "not a listening"),
        (&["--api-socket", &long], 1, "allowed: up to 107"),
        (&["--api-socket", "/nowhere/api.sock"], 1, "/nowhere/api.sock"),
        (&["--api-socket", file.to_str().unwrap()], 1, "is not a socket"),
        (&["--api-socket", socket, "--seccomp", "maybe"], 2, "maybe"),
        (&["--api-socket", socket, "--event-monitor", "x"], 2, "path=FILE"),
        (
            &["--api-socket", socket, "--event-monitor", "path=/nowhere/x"],
            1,
            "/nowhere/x",
        ),
        (&["--api-socket", socket, "--log-file", "/nowhere/x"], 1, "/nowhere/x"),
    ] {
        let output = Command::new(HUSK).args(args).stdin(Stdio::null()).output().unwrap();
        let complaint = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            (output.status.code(), complaint.lines().count()),
            (Some(code), 1),
            "{complaint}"
        );
        assert!(complaint.contains(says), "{args:?}: {complaint}");
    }
    assert!(!Path::new(socket).exists());
}

#[test]
fn a_signal_ends_it_and_the_socket_goes() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut husk = Husk::start(&[]);
        let mut client = husk.client();
        assert_eq!(client.get("vmm.ping").0, 200);
        husk.signal(signal);
        assert_eq!(husk.child.wait().unwrap().code(), Some(5));
        assert!(!husk.socket().exists());
        assert_eq!(client.0.read_line(&mut String::new()).unwrap(), 0);
    }
}

#[test]
fn sigterm_ends_it_even_if_its_parent_ignores_that() {
    let folder = tempfile::tempdir().unwrap();
    let mut ignoring = Command::new("env");
    ignoring.args(["--ignore-signal=TERM", HUSK, "--api-socket"]);
    ignoring.arg(folder.path().join("api.sock"));
    ignoring
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = ignoring.spawn().unwrap();
    let mut husk = Husk { folder, child };
    husk.ready();
    husk.signal(Signal::TERM);
    assert_eq!(husk.child.wait().unwrap().code(), Some(5));
}

#[test]
fn events_go_where_they_are_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events");
    let monitor = format!("path={}", path.display());
    let mut husk = Husk::start_in(folder, &["--event-monitor", &monitor]);
    let mut client = husk.client();
    client.put("vm.create", Some(vm()));
    assert_eq!(client.put("vm.delete", None).0, 204);
    husk.shut_down();
    assert_eq!(
        events(&fs::read_to_string(path).unwrap()),
        ["vmm starting", "vm unknown-field", "vm deleted", "vmm shutdown"]
    );

    let mut husk = Husk::start(&["--event-monitor", "fd=1"]);
    husk.shut_down();
    let mut text = String::new();
    husk.child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(events(&text), ["vmm starting", "vmm shutdown"]);
}

#[test]
fn a_slow_reader_of_a_fifo_gets_all_events_without_another_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events");
    make_fifo(&path);
    let monitor = format!("path={}", path.display());
    let mut husk = Husk::start_in(folder, &["--event-monitor", &monitor]);
    let mut reader = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&path)
        .unwrap();
    let mut client = husk.client();
    // More than a pipe holds, and less than may wait beside that.
    let count = 400;
    for _ in 0..count {
        client.put("vm.create", Some(vm()));
        assert_eq!(client.put("vm.delete", None).0, 204);
    }
    let (begun, mut text) = (Instant::now(), Vec::new());
    let deleted = |text: &[u8]| {
        events(&String::from_utf8_lossy(text))
            .iter()
            .filter(|event| *event == "vm deleted")
            .count()
    };
    while !text.ends_with(b"\n") || deleted(&text) < count {
        let mut piece = [0; 4096];
        match reader.read(&mut piece) {
            Ok(read) => text.extend(&piece[..read]),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        assert!(begun.elapsed() < PATIENCE, "{} of {count} came", deleted(&text));
    }
    assert!(text.len() > 64 << 10, "{}", text.len());
    husk.shut_down();
}

#[test]
fn a_misspelt_field_is_told_in_the_log_and_by_an_event_and_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (path, log) = (folder.path().join("events"), folder.path().join("log"));
    let monitor = format!("path={}", path.display());
    let mut husk = Husk::start_in(
        folder,
        &["--event-monitor", &monitor, "--log-file", log.to_str().unwrap()],
    );
    let mut client = husk.client();
    let mut body = vm();
    body.as_object_mut().unwrap().remove("unknown");
    assert_eq!(client.put("vm.create", Some(body)).0, 204);
    let disk = json!({"path": "/nowhere/disk", "read_only": true});
    assert_eq!(client.put("vm.add-disk", Some(disk)).0, 204);
    assert_eq!(client.put("vm.resize", Some(json!({"desired_cpus": 2}))).0, 204);
    let level = json!({"level": "warn", "lvel": "x"});
    assert_eq!(client.put("vmm.set-log-level", Some(level)).0, 204);
    let refused = json!({"level": "loud", "lvel": "x"});
    assert_eq!(client.put("vmm.set-log-level", Some(refused)).0, 400);
    assert_eq!(client.get("vm.info").1["config"]["disks"][0]["read_only"], true);
    husk.shut_down();
    let told = fs::read_to_string(path).unwrap();
    let told: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<&Value> = told
        .iter()
        .filter(|event| event["event"] == "unknown-field")
        .map(|event| &event["properties"])
        .collect();
    assert_eq!(
        told,
        [
            &json!({"request": "vm.add-disk", "field": "read_only", "nearest": "readonly"}),
            &json!({"request": "vm.resize", "field": "desired_cpus", "nearest": "desired_vcpus"}),
            &json!({"request": "vmm.set-log-level", "field": "lvel", "nearest": "level"}),
        ]
    );
    assert_eq!(
        fs::read_to_string(log).unwrap(),
        "WARN: vm.add-disk: there is no field read_only, it has no effect; is readonly meant?\n\
         WARN: vm.resize: there is no field desired_cpus, it has no effect; is desired_vcpus meant?\n\
         WARN: vmm.set-log-level: there is no field lvel, it has no effect; is level meant?\n"
    );
}

#[test]
fn what_can_be_known_is_refused_when_the_vm_is_described() {
    let mut husk = Husk::start(&[]);
    let mut client = husk.client();
    for (field, value, says) in [
        (
            "net",
            json!([{"mac": "02:00:00:00:00:01"}]),
            "neither a tap nor descriptors",
        ),
        ("net", json!([{"tap": "a/b"}]), "no name of an interface"),
        (
            "net",
            json!([{"tap": "longer-than-fifteen"}]),
            "no name of an interface",
        ),
        ("serial", json!({"mode": "Socket"}), "mode Socket needs a socket"),
        (
            "vsock",
            json!({"cid": 3, "socket": format!("/{}", "x".repeat(107))}),
            "up to 107",
        ),
        ("memory", json!({"size": 32_u64 << 40}), "GiB allowed"),
    ] {
        let mut body = vm();
        body[field] = value;
        let (status, why) = client.put("vm.create", Some(body));
        assert_eq!(status, 400, "{field}: {why}");
        assert!(why.to_string().contains(says), "{field}: {why}");
    }
    assert_eq!(client.put("vm.create", Some(vm())).0, 204);
    let (status, why) = client.put("vm.add-net", Some(json!({"num_queues": 4})));
    assert_eq!(status, 400, "{why}");
    husk.shut_down();
}

fn events(text: &str) -> Vec<String> {
    let parsed = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let named = parsed.map(|event| {
        format!(
            "{} {}",
            event["source"].as_str().unwrap(),
            event["event"].as_str().unwrap()
        )
    });
    named.collect()
}

#[test]
fn the_log_goes_where_it_is_wanted_and_nobody_needs_to_read_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let mut husk = Husk::start_in(folder, &["-v", "--log-file", path.to_str().unwrap()]);
    assert_eq!(husk.client().get("nowhere").0, 404);
    husk.shut_down();
    let log = fs::read_to_string(path).unwrap();
    let begins: Vec<&str> = log
        .lines()
        .map(|line| line.split(&[',', ':'][..]).nth(1).unwrap())
        .collect();
    assert_eq!(begins.len(), 3, "{log}");
    assert!(
        begins[0].starts_with(" husk ") && begins[0].ends_with(" serves the API"),
        "{log}"
    );
    assert_eq!(begins[1..], [" /api/v1/nowhere", " vmm.shutdown"], "{log}");

    // The reader goes, as when the shim dies.
    let mut husk = Husk::start(&["-v"]);
    drop((husk.child.stdout.take(), husk.child.stderr.take()));
    let mut client = husk.client();
    for _ in 0..10 {
        assert_eq!(client.get("nowhere").0, 404);
    }
    assert_eq!(husk.shut_down().code(), Some(0));
    // And one that stays and does not read.
    let mut husk = Husk::start(&["-v"]);
    let mut client = husk.client();
    for _ in 0..2000 {
        assert_eq!(client.get("nowhere").0, 404);
    }
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn no_descriptor_is_leaked() {
    let mut husk = Husk::start(&[]);
    let mut client = husk.client();
    client.put("vm.create", Some(vm()));
    assert_eq!(client.get("vmm.ping").0, 200);
    let before = husk.descriptors();
    let null = File::open("/dev/null").unwrap();
    let fds = [null.as_raw_fd(); 3];
    for _ in 0..100 {
        let mut other = husk.client();
        other.send("PUT", "vm.add-net", Some("{"), &fds);
        assert_eq!(other.answer().0, 400);
        other.send("GET", "vmm.ping", None, &fds);
        assert_eq!(other.answer().0, 200);
        // Never completed.
        other
            .0
            .get_ref()
            .send_with_fds(&[&b"PUT /api/v1/vm.add-net"[..]], &fds)
            .unwrap();
    }
    assert_eq!(client.get("vmm.ping").0, 200);
    // The last of those who left may not have been noticed yet: their hang-up comes before what is asked next.
    let settled = (0..1000).any(|_| client.get("vmm.ping").0 == 200 && husk.descriptors() == before);
    assert!(settled, "{} descriptors, {before} before", husk.descriptors());
    husk.shut_down();
}

#[test]
fn descriptors_sent_with_a_device_that_has_no_use_for_them_are_closed_at_once() {
    let mut husk = Husk::start(&[]);
    let mut client = husk.client();
    let mut vm = vm();
    vm["memory"]["shared"] = json!(true);
    assert_eq!(client.put("vm.create", Some(vm)), (204, Value::Null));
    let null = File::open("/dev/null").unwrap();
    let fds = [null.as_raw_fd(); 2];
    let before = husk.descriptors();
    let devices = [
        ("vm.add-disk", json!({"path": "/nowhere/disk"})),
        ("vm.add-fs", json!({"tag": "share", "socket": "/nowhere/fs.sock"})),
        ("vm.add-pmem", json!({"file": "/nowhere/pmem"})),
        ("vm.add-vsock", json!({"cid": 3, "socket": "/nowhere/vsock.sock"})),
    ];
    for (command, body) in devices {
        client.send("PUT", command, Some(&body.to_string()), &fds);
        assert_eq!(client.answer(), (204, Value::Null), "{command}");
        assert_eq!(husk.descriptors(), before, "{command}");
    }
    // A network device's are its taps, for as long as it is there.
    client.send("PUT", "vm.add-net", Some(r#"{"id": "net", "num_queues": 4}"#), &fds);
    assert_eq!(client.answer(), (204, Value::Null));
    assert_eq!(husk.descriptors(), before + fds.len());
    assert_eq!(
        client.put("vm.remove-device", Some(json!({"id": "net"}))),
        (204, Value::Null)
    );
    // A thread closes them.
    while husk.descriptors() != before {
        assert_eq!(client.get("vmm.ping").0, 200);
    }
    husk.shut_down();
}

#[test]
fn a_command_that_fails_is_named_in_the_log() {
    let mut husk = Husk::start(&["-v"]);
    let mut client = husk.client();
    assert_eq!(client.put("vm.create", Some(vm())).0, 204);
    assert_eq!(client.put("vm.remove-device", Some(json!({"id": "r0"}))).0, 404);
    assert_eq!(
        client.put("vm.add-disk", Some(json!({"path": "/d", "iommu": true}))).0,
        400
    );
    husk.shut_down();
    let mut said = String::new();
    husk.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    for line in [
        "INFO: vm.remove-device has failed: there is no device 'r0'",
        "INFO: vm.add-disk has failed: iommu: true is not supported, leave it out",
    ] {
        assert!(said.lines().any(|said| said == line), "{said}");
    }
}

/// The Go shim sends every network device again when it adds another.
#[test]
fn a_network_device_that_is_sent_twice_is_two() {
    let mut husk = Husk::start(&[]);
    let mut client = husk.client();
    client.put("vm.create", Some(vm()));
    let null = File::open("/dev/null").unwrap();
    let body =
        json!({"mac": "02:42:ac:11:00:02", "num_queues": 2, "queue_size": 256, "vhost_mode": "Client"}).to_string();
    for _ in 0..2 {
        client.send("PUT", "vm.add-net", Some(&body), &[null.as_raw_fd()]);
        assert_eq!(client.answer(), (204, Value::Null));
    }
    let (_, info) = client.get("vm.info");
    let nets = info["config"]["net"].as_array().unwrap();
    let named: Vec<_> = nets.iter().map(|net| (&net["id"], &net["mac"])).collect();
    let mac = &json!("02:42:ac:11:00:02");
    assert_eq!(named, [(&json!("_net0"), mac), (&json!("_net1"), mac)]);
    husk.shut_down();
}

#[test]
fn a_vm_that_does_not_run_has_the_size_that_it_is_given_and_no_other() {
    let mut husk = Husk::start(&[]);
    let mut client = husk.client();
    let nothing = json!({"desired_vcpus": null, "desired_ram": null, "desired_balloon": null});
    assert_eq!(client.put("vm.resize", Some(nothing.clone())).0, 404);
    client.put("vm.create", Some(vm()));
    for same in [
        nothing,
        json!({"desired_vcpus": 1}),
        json!({"desired_ram": 64 << 20}),
        json!({"desired_vcpus": 1, "desired_ram": 64 << 20, "desired_balloon": null}),
    ] {
        assert_eq!(client.put("vm.resize", Some(same)), (204, Value::Null));
    }
    for (other, says) in [
        (
            json!({"desired_vcpus": 3}),
            "desired_vcpus: 3 asked for, 1 to 1 allowed (cpus.max_vcpus)",
        ),
        (
            json!({"desired_balloon": 4096}),
            "desired_balloon: the VM has no balloon (balloon)",
        ),
        (json!({"desired_ram": 4097}), "memory: "),
    ] {
        let (status, body) = client.put("vm.resize", Some(other));
        assert_eq!(status, 400);
        assert!(
            body.as_array()
                .unwrap()
                .iter()
                .any(|line| line.as_str().unwrap().starts_with(says)),
            "{body}"
        );
    }
    assert_eq!(client.put("vm.resize", Some(json!({"desired_ram": 128 << 20}))).0, 204);
    assert_eq!(client.get("vm.resize-status"), (200, json!({"last": null})));
    let (_, info) = client.get("vm.info");
    assert_eq!(
        (&info["config"]["cpus"]["boot_vcpus"], &info["config"]["memory"]["size"]),
        (&json!(1), &json!(128 << 20))
    );
    husk.shut_down();
}

#[test]
fn of_two_who_change_the_list_of_containers_at_once_one_is_told() {
    let mut husk = Husk::start(&[]);
    let mut client = husk.client();
    assert_eq!(client.get("vm.containers").0, 404);
    let list = |revision: u64, containers: Value| json!({"revision": revision, "containers": containers});
    assert_eq!(client.put("vm.set-containers", Some(list(0, json!({})))).0, 404);
    client.put("vm.create", Some(vm()));
    assert_eq!(client.get("vm.containers"), (200, list(0, Value::Null)));
    let noted = json!({"a": {"cpu": {"quota": -1}}, "ü": null});
    assert_eq!(client.put("vm.set-containers", Some(list(0, noted.clone()))).0, 204);
    assert_eq!(husk.client().get("vm.containers"), (200, list(1, noted.clone())));
    let (status, body) = client.put("vm.set-containers", Some(list(0, json!({}))));
    let says = "the list of containers has changed: revision 0 was read, it is 1 now";
    assert_eq!((status, body), (409, json!([says])));
    assert_eq!(client.get("vm.containers"), (200, list(1, noted)));
    // So is one of two whose sizes were made of them.
    let resize = |revision: u64| json!({"desired_ram": 128 << 20, "containers_revision": revision});
    for old in [0, 2] {
        let (status, body) = client.put("vm.resize", Some(resize(old)));
        let says = format!("the list of containers has changed: revision {old} was read, it is 1 now");
        assert_eq!((status, body), (409, json!([says])));
        assert_eq!(client.get("vm.info").1["config"]["memory"]["size"], 64 << 20);
    }
    assert_eq!(client.put("vm.resize", Some(resize(1))).0, 204);
    assert_eq!(client.get("vm.info").1["config"]["memory"]["size"], 128 << 20);
    client.put("vm.delete", None);
    client.put("vm.create", Some(vm()));
    assert_eq!(client.get("vm.containers"), (200, list(0, Value::Null)));
    husk.shut_down();
}

#[test]
fn a_boot_that_fails_is_told_from_top_to_root_and_leaves_nothing() {
    let mut husk = Husk::start(&[]);
    let mut client = husk.client();
    assert_eq!(
        client.put("vm.boot", None),
        (404, json!(["there is no VM: vm.create one first"]))
    );
    client.put("vm.create", Some(vm()));
    let before = husk.descriptors();
    for _ in 0..3 {
        let (status, body) = client.put("vm.boot", None);
        // Without KVM, that is what is missing first.
        let kvm = File::options().read(true).write(true).open("/dev/kvm").is_ok();
        let (expected, missing) = if kvm {
            (400, "/nowhere/vmlinux")
        } else {
            (500, "/dev/kvm")
        };
        assert_eq!((status, &body[0]), (expected, &json!("cannot boot the VM")));
        assert!(body.to_string().contains(missing), "{body}");
    }
    assert_eq!(husk.descriptors(), before);
    assert_eq!(client.get("vm.info").1["state"], "Created");
    assert_eq!(client.put("vm.delete", None).0, 204);
    assert_eq!(client.get("vm.info").0, 404);
    husk.shut_down();
}

/// Memory that is allocated on a thread of its own comes from another place than the main thread's:
/// confinement must let it grow.
#[test]
fn many_clients_with_large_requests_are_served_while_confined() {
    let mut husk = Husk::start(&["--seccomp", "true"]);
    // As many as there is room for together.
    let mut clients: Vec<Client> = (0..30).map(|_| husk.client()).collect();
    let half = "x".repeat(30_000);
    let begin = r#"{"revision":0,"containers":""#;
    let bytes = begin.len() + 2 * half.len() + 2;
    for client in &mut clients {
        let head = format!("PUT /api/v1/vm.set-containers HTTP/1.1\r\nContent-Length: {bytes}\r\n\r\n{begin}");
        client.0.get_mut().write_all(head.as_bytes()).unwrap();
        client.0.get_mut().write_all(half.as_bytes()).unwrap();
    }
    for client in &mut clients {
        client.0.get_mut().write_all(half.as_bytes()).unwrap();
        client.0.get_mut().write_all(b"\"}").unwrap();
        assert_eq!(client.answer().0, 404);
    }
    assert_eq!(husk.shut_down().code(), Some(0));
}
