//! The way of monitoring that docs/operate.md shows, with the programs that it names: Prometheus
//! scrapes husk through nginx, and answers every query of the dashboard.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod process;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use husk_devices::testing::until;
use process::{Husk, command};
use serde_json::{Value, json};

/// Figures of which a VM without a network and a share has none.
const EMPTY: [&str; 6] = [
    "husk_net_rx_bytes_total",
    "husk_net_tx_bytes_total",
    "husk_fs_read_bytes_total",
    "husk_fs_write_bytes_total",
    "husk_net_tx_throttled_waits_total",
    "husk_net_rx_throttled_waits_total",
];

/// A program that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// `None` if there is no such program.
    fn start(command: &mut Command, log: &Path) -> Option<Self> {
        let log = File::create(log).unwrap();
        let started = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        match started {
            Ok(child) => Some(Self(child)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Waits until `port` is listened on.
    fn ready(&mut self, port: u16, log: &Path) {
        until(|| {
            let ended = self.0.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", fs::read_to_string(log).unwrap());
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
    }
}

/// A port that nobody had just now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The block of `language` in the section of docs/operate.md about the proxy.
fn documented(language: &str) -> String {
    let document = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operate.md")).unwrap();
    let (_, document) = document.split_once("### A proxy for a node").unwrap();
    let begin = format!("```{language}\n");
    let (_, rest) = document
        .split_once(&begin)
        .unwrap_or_else(|| panic!("no {language} in docs/operate.md"));
    rest.split_once("```").unwrap().0.to_owned()
}

/// `text` with each of `from` replaced; every one is in it.
fn with(text: String, replacements: &[(&str, String)]) -> String {
    replacements.iter().fold(text, |text, (from, to)| {
        assert!(text.contains(from), "no {from} in {text}");
        text.replace(from, to)
    })
}

/// `GET path` of whoever listens on `port`: status and body.
fn get(port: u16, method: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "{method} {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.into())
}

/// What Prometheus answers.
fn ask(port: u16, query: &str) -> Vec<Value> {
    let encoded: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let (status, body) = get(port, "GET", &format!("/api/v1/query?query={encoded}"));
    assert_eq!(status, 200, "{query}: {body}");
    let body: Value = serde_json::from_str(&body).unwrap();
    body["data"]["result"].as_array().unwrap().clone()
}

/// The only value of `query`.
fn number(port: u16, query: &str) -> f64 {
    let found = ask(port, query);
    let [one] = found.as_slice() else {
        panic!("{query}: {found:?}")
    };
    one["value"][1].as_str().unwrap().parse().unwrap()
}

/// A VM that runs a few instructions, with a disk and figures on a socket of its own; and, as Kata
/// starts it, one with the API alone.
fn husks(folder: &Path) -> [Husk; 2] {
    let metrics = folder.join("husk/web.sock");
    let husk = Husk::start(&["--metrics", metrics.to_str().unwrap()]);
    let file = |name: &str| husk.folder.path().join(name);
    let kernel = husk_benches::elf_of(&husk_benches::code(husk_benches::GuestAction::Halt));
    fs::write(file("vmlinux"), kernel).unwrap();
    fs::write(file("disk"), [0; 4096]).unwrap();
    let vm = json!({
        "memory": {"size": 64 << 20},
        "payload": {"kernel": file("vmlinux")},
        "disks": [{"path": file("disk")}],
        "serial": {"mode": "Null"},
        "console": {"mode": "Off"},
    });
    let mut client = husk.client();
    assert_eq!(client.put("vm.create", Some(vm)).0, 204);
    assert_eq!(client.put("vm.boot", None).0, 204);
    let socket = folder.join("vm/0123abcd/clh-api.sock");
    fs::create_dir_all(socket.parent().unwrap()).unwrap();
    let child = command(&socket, &[]).spawn().unwrap();
    process::ready(&child, &socket);
    let kata = Husk {
        folder: tempfile::tempdir().unwrap(),
        child,
    };
    [husk, kata]
}

#[test]
fn prometheus_answers_every_query_of_the_dashboard() {
    if !process::has_kvm() {
        return;
    }
    let tool = |variable: &str, name: &str| std::env::var_os(variable).unwrap_or(name.into());
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    fs::create_dir(place("husk")).unwrap();
    let _husks = husks(folder.path());

    let (proxy, server) = (free_port(), free_port());
    let scratch = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let scratch = scratch
        .map(|kind| format!("{kind}_temp_path {}; ", text(place(kind))))
        .concat();
    let nginx = with(
        documented("nginx"),
        &[
            ("http {", format!("http {{ access_log off; {scratch}")),
            ("127.0.0.1:9877", format!("127.0.0.1:{proxy}")),
            ("/run/husk/", text(place("husk/"))),
            ("/run/vc/vm/", text(place("vm/"))),
        ],
    );
    fs::write(place("nginx.conf"), nginx).unwrap();
    let started = Running::start(
        Command::new(tool("HUSK_TEST_NGINX", "nginx"))
            .args(["-p", &text(place("")), "-c", "nginx.conf", "-e", "stderr", "-g"])
            .arg(format!(
                "pid {}; daemon off; master_process off;",
                text(place("nginx.pid"))
            )),
        &place("nginx.log"),
    );
    let Some(mut nginx) = started else {
        println!("skipped: needs nginx: Debian's package nginx has it");
        return;
    };
    nginx.ready(proxy, &place("nginx.log"));
    // The proxy passes on nothing else than what it is for.
    assert_eq!(get(proxy, "GET", "/husk/web/metrics").0, 200);
    for (method, path) in [
        ("PUT", "/husk/web/metrics"),
        ("PUT", "/kata/0123abcd/metrics"),
        ("POST", "/kata/0123abcd/metrics"),
    ] {
        assert_eq!(get(proxy, method, path).0, 403, "{method} {path}");
    }
    for path in [
        "/kata/0123abcd/api/v1/vm.info",
        "/kata/..%2f0123abcd/metrics",
        "/husk/web",
    ] {
        assert_eq!(get(proxy, "GET", path).0, 404, "{path}");
    }

    let targets = with(documented("json"), &[("127.0.0.1:9877", format!("127.0.0.1:{proxy}"))]);
    let mut targets: Value = serde_json::from_str(&targets).unwrap();
    let kata = json!({"__metrics_path__": "/kata/0123abcd/metrics", "pod": "0123abcd"});
    let mut second = targets[0].clone();
    second["labels"] = kata;
    targets.as_array_mut().unwrap().push(second);
    fs::create_dir(place("targets")).unwrap();
    fs::write(place("targets/pods.json"), targets.to_string()).unwrap();
    let scrape = with(documented("yaml"), &[("/etc/prometheus/husk", text(place("targets")))]);
    fs::write(
        place("prometheus.yml"),
        format!("global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}\n{scrape}"),
    )
    .unwrap();
    let started = Running::start(
        Command::new(tool("HUSK_TEST_PROMETHEUS", "prometheus"))
            .arg(format!("--config.file={}", text(place("prometheus.yml"))))
            .arg(format!("--storage.tsdb.path={}", text(place("data"))))
            .arg(format!("--web.listen-address=127.0.0.1:{server}"))
            .arg("--log.level=warn"),
        &place("prometheus.log"),
    );
    let Some(mut prometheus) = started else {
        println!("skipped: needs prometheus: Debian's package prometheus has it");
        return;
    };
    prometheus.ready(server, &place("prometheus.log"));
    // Rates need two scrapes of each target, and it is ready before it has made one.
    until(|| {
        assert!(prometheus.0.try_wait().unwrap().is_none());
        get(server, "GET", "/-/ready").0 == 200
            && ask(server, "count_over_time(up{job=\"husk\"}[1m]) > 3 and up == 1").len() >= 2
    });

    let dashboard = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/grafana-husk.json")).unwrap();
    let dashboard: Value = serde_json::from_slice(&dashboard).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let queries = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let queries: Vec<&str> = queries.map(|target| target["expr"].as_str().unwrap()).collect();
    assert!(queries.len() > 20, "{queries:?}");
    for query in queries {
        let asked = [("$pod", ".*"), ("$__rate_interval", "30s"), ("$__range", "1h")];
        let asked = asked
            .iter()
            .fold(query.to_owned(), |query, (from, to)| query.replace(from, to));
        assert!(!asked.contains('$'), "{asked}");
        let found = ask(server, &asked);
        let expected = EMPTY.iter().any(|name| query.contains(name));
        assert_eq!(found.is_empty(), expected, "{asked}: {found:?}");
    }
    for name in EMPTY {
        assert!(dashboard.to_string().contains(name), "{name} is in no query");
    }
    let variable = &dashboard["templating"]["list"][1];
    assert_eq!(variable["definition"], "label_values(husk_build_info, pod)");
    let pods = get(server, "GET", "/api/v1/label/pod/values").1;
    assert!(pods.contains("\"web\"") && pods.contains("\"0123abcd\""), "{pods}");
    // What it says is what there is.
    assert_eq!(number(server, "sum(husk_vm_state{state=\"Running\"})"), 1.0);
    assert_eq!(number(server, "count(up{job=\"husk\"} == 0) or vector(0)"), 0.0);
    assert_eq!(
        number(server, "sum(husk_guest_memory_bytes{class=\"actual\", pod=\"web\"})"),
        f64::from(64 << 20)
    );
    assert_eq!(number(server, "sum(husk_vcpus{state=\"present\", pod=\"web\"})"), 1.0);
}
