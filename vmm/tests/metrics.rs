//! Figures as a scraper sees them: where they are served, to whom, and what they say of a process. No guest runs here; those of a VM
//! are in tests/kinds.rs.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod process;

use std::fs;
use std::io::BufReader;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

use process::{Client, HUSK, Husk, command};
use serde_json::json;

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// What Prometheus asks for.
const PROMETHEUS: &str = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";

fn connect(path: &Path) -> Client {
    Client(BufReader::new(UnixStream::connect(path).unwrap()))
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
        complaint.contains("--metrics: 'tcp:localhost:1' is on the network"),
        "{complaint}"
    );
}
