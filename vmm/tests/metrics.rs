//! Figures as a scraper sees them: where they are served, to whom, and what they say of a process
//! and of a guest of a few instructions. Those of every kind of device are in tests/kinds.rs.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod process;

use std::fs;
use std::io::{BufReader, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use husk_devices::testing::until;
use process::{Client, HUSK, Husk, Signal, command, ready};
use serde_json::json;

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// What Prometheus asks for.
const PROMETHEUS: &str = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";

/// A client at `path`, once somebody listens there: the file is there before.
fn connect(path: &Path) -> Client {
    let mut stream = None;
    until(|| match UnixStream::connect(path) {
        Ok(connected) => stream.insert(connected).peer_addr().is_ok(),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
            false
        }
    });
    Client(BufReader::new(stream.unwrap()))
}

/// The value of the sample called `name`, labels included.
fn value(text: &str, name: &str) -> f64 {
    let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let found = found.unwrap_or_else(|| panic!("no {name} in {text}"));
    found.parse().unwrap()
}

#[test]
fn the_api_tells_the_figures_of_the_process() {
    let mut husk = Husk::start(&["-v"]);
    let mut client = husk.client();
    assert_eq!(client.get("vm.info").0, 404);
    assert_eq!(client.get("vmm.ping").0, 200);
    let (kind, text) = client.scrape("/metrics", "*/*").unwrap();
    assert_eq!(kind, TEXT);
    assert_eq!(value(&text, "husk_vm_state{state=\"Created\"}"), 0.0);
    assert_eq!(value(&text, "husk_boots_total"), 0.0);
    assert!(text.contains(&format!(
        "husk_build_info{{version=\"{}\"}} 1\n",
        env!("CARGO_PKG_VERSION")
    )));
    let calls = |endpoint: &str, status: u16| {
        let labels = format!("{{endpoint=\"{endpoint}\",status=\"{status}\"}}");
        value(&text, &format!("husk_api_request_duration_seconds_count{labels}"))
    };
    assert_eq!((calls("vm.info", 404), calls("vmm.ping", 200)), (1.0, 1.0));
    // One says what the process is, one why vm.info has nothing to say.
    assert!(value(&text, "husk_log_lines_total{level=\"info\"}") >= 2.0);
    assert_eq!(value(&text, "husk_api_connections{socket=\"api\"}"), 1.0);
    // The one client and whoever counts are there either way.
    let threads = fs::read_dir(format!("/proc/{}/task", husk.child.id())).unwrap().count();
    assert_eq!(value(&text, "kata_hypervisor_threads"), threads as f64);
    assert_eq!(value(&text, "kata_hypervisor_fds"), husk.descriptors() as f64);
    assert!(value(&text, "kata_hypervisor_proc_status{item=\"vmrss\"}") > 0.0);
    assert!(value(&text, "kata_hypervisor_io_stat{item=\"rchar\"}") > 0.0);
    assert!(value(&text, "kata_hypervisor_proc_stat{item=\"utime\"}") >= 0.0);
    assert!(value(&text, "kata_hypervisor_netdev{interface=\"lo\",item=\"recv_bytes\"}") >= 0.0);
    let (kind, open) = client.scrape("/api/v1/vmm.metrics", PROMETHEUS).unwrap();
    assert_eq!(kind, OPEN_METRICS);
    assert!(
        open.contains("\n# UNIT husk_resident_memory_bytes bytes\n") && open.ends_with("\n# EOF\n"),
        "{open}"
    );
    assert_eq!(
        client.put("vm.create", Some(json!({"payload": {"kernel": "/k"}}))).0,
        204
    );
    let (_, text) = client.scrape("/metrics", "*/*").unwrap();
    assert_eq!(value(&text, "husk_vm_state{state=\"Created\"}"), 1.0);
    assert_eq!(value(&text, "husk_vcpus{state=\"wanted\"}"), 1.0);
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn what_clients_make_up_makes_no_series() {
    let mut husk = Husk::start(&[]);
    let mut client = husk.client();
    for path in 0..100 {
        assert_eq!(client.get(&format!("vm.made-up-{path}")).0, 404);
    }
    let (_, text) = client.scrape("/metrics", "*/*").unwrap();
    let unknown = "husk_api_request_duration_seconds_count{endpoint=\"unknown\",status=\"404\"}";
    assert_eq!(value(&text, unknown), 100.0);
    assert!(!text.contains("made-up"));
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn a_socket_for_figures_has_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("metrics.sock");
    let mut husk = Husk::start(&["--metrics", socket.to_str().unwrap()]);
    assert_eq!(fs::symlink_metadata(&socket).unwrap().mode() & 0o7777, 0o600);
    let mut scraper = connect(&socket);
    let (_, text) = scraper.scrape("/metrics", "*/*").unwrap();
    assert_eq!(value(&text, "husk_api_connections{socket=\"metrics\"}"), 1.0);
    for (method, name) in [
        ("PUT", "vmm.shutdown"),
        ("GET", "vm.info"),
        ("PUT", "vmm.metrics"),
        ("GET", "vmm.ping"),
    ] {
        scraper.send(method, name, None, &[]);
        let (status, body) = scraper.answer();
        assert_eq!(status, 403, "{method} {name}");
        assert!(body[0].as_str().unwrap().contains("GET /metrics alone"), "{body}");
    }
    assert!(scraper.scrape("/metrics", PROMETHEUS).is_ok(), "the connection goes on");
    // Scrapers keep nobody from the API, however many there are.
    let statuses = (0..100).map(|_| {
        let mut other = connect(&socket);
        let status = other
            .scrape("/metrics", "*/*")
            .map_or_else(|(status, _)| status, |_| 200);
        (status, other)
    });
    let statuses: Vec<_> = statuses.collect();
    assert_eq!(statuses.iter().filter(|(status, _)| *status == 200).count(), 7);
    assert!(statuses.iter().skip(7).all(|(status, _)| *status == 503));
    assert_eq!(husk.client().get("vmm.ping").0, 200);
    assert_eq!(husk.shut_down().code(), Some(0));
    assert!(!socket.exists() && !husk.socket().exists());
}

#[test]
fn a_socket_that_is_passed_serves_figures() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut command = command(&folder.path().join("api.sock"), &["--metrics", "fd=0"]);
    let child = command.stdin(OwnedFd::from(listener)).spawn().unwrap();
    let mut husk = Husk { folder, child };
    husk.ready();
    assert!(connect(&path).scrape("/metrics", "*/*").is_ok());
    assert_eq!(husk.shut_down().code(), Some(0));
    assert!(path.exists(), "the file is not husk's");
}

#[test]
fn sockets_that_cannot_be_are_refused_in_a_line_and_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api.sock");
    let taken = folder.path().join("taken");
    let _listener = UnixListener::bind(&taken).unwrap();
    for (metrics, code, says) in [
        ("tcp:127.0.0.1:9000", 2, "a Unix socket"),
        (":9000", 2, "a Unix socket"),
        ("localhost:9100", 2, "a Unix socket"),
        ("vsock:3:5", 2, "a Unix socket"),
        ("fd=77", 1, "metrics socket fd 77"),
        (taken.to_str().unwrap(), 1, "metrics socket"),
    ] {
        let output = command(&socket, &["--metrics", metrics]).output().unwrap();
        let complaint = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            (output.status.code(), complaint.lines().count()),
            (Some(code), 1),
            "{complaint}"
        );
        assert!(complaint.contains(says), "{complaint}");
        assert!(!socket.exists());
    }
}

#[test]
fn husk_run_takes_the_same_options() {
    let output = Command::new(HUSK)
        .args(["run", "--kernel", "/nowhere", "--metrics", "tcp:localhost:1"])
        .output()
        .unwrap();
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{complaint}");
    assert!(
        complaint.contains("--metrics: 'tcp:localhost:1' is an address"),
        "{complaint}"
    );
}

/// A guest of a few instructions, which waits for interrupts.
#[test]
fn a_guests_figures_are_those_of_its_counters() {
    if !process::has_kvm() {
        return;
    }
    let mut husk = Husk::start(&[]);
    let file = |name: &str| husk.folder.path().join(name);
    fs::write(
        file("vmlinux"),
        husk_benches::elf_of(&husk_benches::code(husk_benches::GuestAction::Halt)),
    )
    .unwrap();
    fs::write(file("disk"), [0; 4096]).unwrap();
    let vm = json!({
        "memory": {"size": 64 << 20},
        "payload": {"kernel": file("vmlinux")},
        "disks": [{"path": file("disk"), "id": "a \"disk\""}],
        "vsock": {"cid": 3, "socket": file("vsock")},
        "serial": {"mode": "Null"},
        "console": {"mode": "Off"},
    });
    let mut client = husk.client();
    assert_eq!(client.put("vm.create", Some(vm)).0, 204);
    assert_eq!(client.put("vm.boot", None).0, 204);
    // Its thread may not have had a processor yet.
    let begun = Instant::now();
    let ran = "husk_vcpu_run_seconds_total{vcpu=\"0\"}";
    while value(&client.scrape("/metrics", "*/*").unwrap().1, ran) == 0.0 {
        assert!(begun.elapsed() < Duration::from_secs(60), "the vCPU does not run");
    }
    // What KVM counts goes on; devices are at rest.
    let before = client.get("vm.counters").1;
    let (_, text) = client.scrape("/metrics", "*/*").unwrap();
    let after = client.get("vm.counters").1;
    let kinds = [
        ("a \"disk\"", "block"),
        ("_vsock0", "vsock"),
        ("__rng", "rng"),
        ("__serial", "serial"),
        ("__ioapic", "ioapic"),
        ("__hotplug", "hotplug"),
    ];
    for (device, counters) in before.as_object().unwrap() {
        let label = device.replace('"', "\\\"");
        for (counter, low) in counters.as_object().unwrap() {
            let name = match (device.strip_prefix("__vcpu"), counter.strip_suffix("_exits")) {
                (Some(vcpu), Some(reason)) => {
                    format!("husk_vcpu_reason_exits_total{{vcpu=\"{vcpu}\",reason=\"{reason}\"}}")
                }
                (Some(vcpu), None) => format!("husk_vcpu_exits_total{{vcpu=\"{vcpu}\"}}"),
                (None, _) => {
                    let (_, kind) = kinds.iter().find(|(name, _)| name == device).unwrap();
                    match counter.as_str() {
                        "failures" => format!("husk_device_failures_total{{device=\"{label}\",kind=\"{kind}\"}}"),
                        counter => format!("husk_{kind}_{counter}_total{{device=\"{label}\"}}"),
                    }
                }
            };
            let range = low.as_f64().unwrap()..=after[device][counter].as_f64().unwrap();
            assert!(range.contains(&value(&text, &name)), "{name}, not {range:?}: {text}");
        }
    }
    assert_eq!(value(&text, "husk_vm_state{state=\"Running\"}"), 1.0);
    assert_eq!(value(&text, "husk_boots_total"), 1.0);
    assert_eq!(value(&text, "husk_vcpus{state=\"present\"}"), 1.0);
    assert!(value(&text, ran) > 0.0);
    assert!(value(&text, "husk_boot_phase_seconds{phase=\"vcpus\"}") > 0.0);
    assert_eq!(client.put("vm.shutdown", None).0, 204);
    let (_, text) = client.scrape("/metrics", "*/*").unwrap();
    assert_eq!(value(&text, "husk_vm_state{state=\"Shutdown\"}"), 1.0);
    assert!(
        !text.contains("husk_block_") && !text.contains("husk_vcpu_exits"),
        "there are no devices"
    );
    drop(client);
    assert_eq!(husk.shut_down().code(), Some(0));
}

/// The socket for figures alone, for a VM of the command line.
#[test]
fn husk_run_serves_figures_without_the_api() {
    if !process::has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (kernel, socket) = (folder.path().join("vmlinux"), folder.path().join("metrics.sock"));
    fs::write(
        &kernel,
        husk_benches::elf_of(&husk_benches::code(husk_benches::GuestAction::Halt)),
    )
    .unwrap();
    let child = Command::new(HUSK)
        .args(["run", "--serial", "null", "--memory", "64M", "--metrics"])
        .args([&socket, Path::new("--kernel"), &kernel])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut husk = Husk { folder, child };
    ready(&husk.child, &socket);
    let mut scraper = connect(&socket);
    // It listens before the guest runs.
    let exits = "husk_vcpu_exits_total{vcpu=\"0\"}";
    until(|| scraper.scrape("/metrics", "*/*").unwrap().1.contains(exits));
    assert_eq!(
        value(&scraper.scrape("/metrics", "*/*").unwrap().1, "husk_boots_total"),
        1.0
    );
    scraper.send("PUT", "vmm.shutdown", None, &[]);
    assert_eq!(scraper.answer().0, 403);
    husk.signal(Signal::TERM);
    assert_eq!(husk.child.wait().unwrap().code(), Some(5));
    assert!(!socket.exists());
}
