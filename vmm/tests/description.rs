//! What docs/openapi.yaml and the examples of docs/api.md say, held against the server itself.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod process;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use process::{Client, Husk};
use serde_json::{Value, json};

fn document(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name)).unwrap()
}

/// A field of a schema, and what its line says of it.
struct Field {
    schema: String,
    name: String,
    line: String,
}

impl Field {
    /// The value of `key` in the line.
    fn get(&self, key: &str) -> Option<&str> {
        let rest = self.line.split_once(&format!(" {key}: "))?.1;
        let end = if rest.starts_with('[') {
            rest.find(']')?
        } else {
            rest.find([',', '}'])?
        };
        Some(rest[..end].trim_start_matches('['))
    }

    fn number(&self, key: &str) -> Option<i128> {
        self.get(key).map(|number| number.parse().unwrap())
    }

    /// Where it is, for messages and lists.
    fn place(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }
}

/// Every field of every schema whose description is one line.
fn fields() -> Vec<Field> {
    let text = document("openapi.yaml");
    let mut schema = String::new();
    let mut fields = Vec::new();
    for line in text.split_once("\n  schemas:\n").unwrap().1.lines() {
        let indent = line.len() - line.trim_start().len();
        match (indent, line.trim().split_once(':')) {
            (4, Some((name, _))) => schema = name.into(),
            (8, Some((name, rest))) if rest.starts_with(" {") => fields.push(Field {
                schema: schema.clone(),
                name: name.into(),
                line: rest.replace('{', " ").trim_start().to_owned() + "}",
            }),
            _ => {}
        }
    }
    for field in &mut fields {
        field.line.insert(0, ' ');
    }
    fields
}

fn integer(value: i128) -> Value {
    serde_json::from_str(&value.to_string()).unwrap()
}

/// A VM that has `value` as the field of the schema; `None` if the schema is not one of a VM.
fn vm_with(field: &Field, value: &Value) -> Option<Value> {
    let mut vm = json!({
        "payload": {"kernel": "/k"},
        "memory": {"size": 2_097_152},
        "cpus": {"boot_vcpus": 1, "max_vcpus": 1},
        "console": {"mode": "Off"},
    });
    let name = field.name.as_str();
    let with = |mut object: Value| {
        object[name] = value.clone();
        object
    };
    match field.schema.as_str() {
        "CpusConfig" => {
            vm["cpus"] = with(vm["cpus"].take());
            if name == "boot_vcpus" {
                vm["cpus"]["max_vcpus"] = value.clone();
            }
        }
        "CpuTopology" => {
            let one = json!({"threads_per_core": 1, "cores_per_die": 1, "dies_per_package": 1, "packages": 1});
            vm["cpus"]["topology"] = with(one);
            if name == "cores_per_die" {
                vm["cpus"]["max_vcpus"] = value.clone();
            }
        }
        "MemoryConfig" => {
            vm["memory"] = with(vm["memory"].take());
            if name == "hugepage_size" {
                (vm["memory"]["hugepages"], vm["memory"]["size"]) = (json!(true), json!(1 << 30));
            }
        }
        "BalloonConfig" => vm["balloon"] = with(json!({"size": 0})),
        "DiskConfig" => vm["disks"] = json!([with(json!({"path": "/d"}))]),
        "NetConfig" => vm["net"] = json!([with(json!({"tap": "t0"}))]),
        "FsConfig" => {
            // Some fields are of files that husk serves.
            let is_own = name == "cache" || name == "socket" && value.is_null();
            let from = if is_own { ("dir", "/") } else { ("socket", "/s") };
            vm["fs"] = json!([with(json!({"tag": "t", from.0: from.1}))]);
        }
        "VsockConfig" => {
            // The kernel has no socket.
            let is_kernels = name == "socket" && value.is_null() || *value == json!("vhost");
            let from = if is_kernels {
                ("backend", "vhost")
            } else {
                ("socket", "/s")
            };
            vm["vsock"] = with(json!({"cid": 3, from.0: from.1}));
        }
        "PmemConfig" => vm["pmem"] = json!([with(json!({"file": "/f"}))]),
        "ConsoleConfig" => {
            // Some fields mean something with one mode alone.
            let mode = match name {
                "socket" if !value.is_null() => "Socket",
                "limit" | "keep" => "File",
                "identifier" | "journal" => "Journald",
                _ => "Off",
            };
            let limit = if name == "keep" { json!(4096) } else { Value::Null };
            vm["serial"] = with(json!({"mode": mode, "file": "/f", "socket": "/s", "limit": limit}));
        }
        "PlatformConfig" => vm["platform"] = with(json!({})),
        "TokenBucket" => {
            let bucket = with(json!({"size": 1, "refill_time": 1}));
            vm["disks"] = json!([{"path": "/d", "rate_limiter_config": {"ops": bucket}}]);
        }
        _ => return None,
    }
    // Whatever has a socket has RAM that a back-end can have.
    vm["memory"]["shared"] = json!(true);
    Some(vm)
}

/// The status of a VM's creation; it is forgotten again.
fn created(client: &mut Client, vm: &Value) -> (u16, Value) {
    let answer = client.put("vm.create", Some(vm.clone()));
    assert_eq!(client.put("vm.delete", None).0, 204);
    answer
}

#[test]
fn every_bound_that_is_described_is_where_the_server_has_it() {
    /// Descriptors in its place come with another request.
    const NEEDED_HERE: &str = "NetConfig.tap";
    /// Bounds of no host, which this one may be below.
    const OF_THE_HOST: [&str; 3] = [
        "CpusConfig.boot_vcpus",
        "CpusConfig.max_vcpus",
        "CpuTopology.cores_per_die",
    ];
    let mut husk = Husk::start(&[]);
    let mut client = husk.client();
    let (mut tried, mut wrong) = (0, Vec::new());
    for field in fields() {
        let place = field.place();
        let mut expect = |value: Value, allowed: bool| {
            let Some(vm) = vm_with(&field, &value) else { return };
            let (status, why) = created(&mut client, &vm);
            tried += 1;
            if (status == 204) != allowed || ![204, 400].contains(&status) {
                wrong.push(format!("{place} = {value} is {status}: {why}"));
            }
        };
        if let Some(least) = field.number("minimum") {
            expect(integer(least), true);
            expect(integer(least - 1), false);
        }
        if let Some(most) = field.number("maximum") {
            if !OF_THE_HOST.contains(&place.as_str()) {
                expect(integer(most), true);
            }
            expect(integer(most + 1), false);
        }
        let text = |length: i128| json!("x".repeat(usize::try_from(length).unwrap()));
        if let Some(least) = field.number("minLength") {
            expect(text(least), true);
            expect(text(least - 1), false);
        }
        if let Some(most) = field.number("maxLength") {
            expect(text(most), true);
            expect(text(most + 1), false);
        }
        if let Some(all) = field.get("enum") {
            for value in all.split(", ").map(|value| value.trim_matches('"')) {
                expect(
                    value.parse().map_or_else(|_| json!(value), |number: u64| json!(number)),
                    true,
                );
            }
            expect(json!("Telnet"), false);
        }
        if field.get("nullable") == Some("true") && field.get("type").is_some() && place != NEEDED_HERE {
            expect(Value::Null, true);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(tried > 100, "the description is read: {tried}");
    husk.shut_down();
}

/// The names of each schema's fields that have to be there.
fn required() -> BTreeMap<String, String> {
    let text = document("openapi.yaml");
    let mut schema = String::new();
    let mut required = BTreeMap::new();
    for line in text.split_once("\n  schemas:\n").unwrap().1.lines() {
        let indent = line.len() - line.trim_start().len();
        match (indent, line.trim().split_once(':')) {
            (4, Some((name, _))) => schema = name.into(),
            (6, Some(("required", names))) => {
                required.insert(schema.clone(), names.to_owned());
            }
            _ => {}
        }
    }
    required
}

/// A VM with `null` as the field of the schema; `None` if the schema is not one of a VM.
fn vm_with_null(field: &Field) -> Option<Value> {
    let mut vm = json!({"payload": {"kernel": "/k"}, "memory": {"size": 2_097_152}});
    let name = field.name.as_str();
    match field.schema.as_str() {
        "VmConfig" => vm[name] = Value::Null,
        "PayloadConfig" => vm["payload"][name] = Value::Null,
        "RateLimiterConfig" => vm["disks"] = json!([{"path": "/d", "rate_limiter_config": {name: null}}]),
        _ => return vm_with(field, &Value::Null),
    }
    Some(vm)
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (name.clone(), without_nulls(value)))
            .collect(),
        Value::Array(values) => values.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}

/// What husk makes of a configuration, but for addresses that it makes up; or that it refuses it.
fn understood(client: &mut Client, vm: &Value) -> (u16, Value) {
    let (status, _) = client.put("vm.create", Some(vm.clone()));
    let mut config = client.get("vm.info").1.get("config").cloned().unwrap_or_default();
    if vm["net"][0]["mac"].is_null()
        && let Some(mac) = config.pointer_mut("/net/0/mac")
    {
        mac.take();
    }
    assert_eq!(client.put("vm.delete", None).0, 204);
    (status, config)
}

#[test]
fn null_is_the_same_as_leaving_a_field_out() {
    /// `null` takes the device away.
    const OTHERWISE: &str = "VmConfig.rng";
    let mut husk = Husk::start(&[]);
    let mut client = husk.client();
    let required = required();
    let is_required = |field: &Field| {
        let names = required
            .get(&field.schema)
            .map(|names| names.trim_matches([' ', '[', ']']));
        names.is_some_and(|names| names.split(", ").any(|name| name == field.name))
    };
    let (mut tried, mut wrong) = (0, Vec::new());
    for field in fields().iter().filter(|field| !is_required(field)) {
        let Some(vm) = vm_with_null(field).filter(|_| field.place() != OTHERWISE) else {
            continue;
        };
        tried += 1;
        let (with, without) = (
            understood(&mut client, &vm),
            understood(&mut client, &without_nulls(&vm)),
        );
        if with != without {
            wrong.push(format!(
                "{}: {} {}, not {} {}",
                field.place(),
                with.0,
                with.1,
                without.0,
                without.1
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(tried > 80, "the description is read: {tried}");
    husk.shut_down();
}

#[test]
fn every_bound_of_a_resize_before_the_boot_is_where_it_is_described() {
    let mut husk = Husk::start(&[]);
    let mut client = husk.client();
    let vm = json!({"payload": {"kernel": "/k"}, "balloon": {"size": 0}});
    assert_eq!(client.put("vm.create", Some(vm)).0, 204);
    for field in fields().iter().filter(|field| field.schema == "VmResize") {
        let least = field.number("minimum").unwrap();
        let (status, why) = client.put("vm.resize", Some(json!({field.name.as_str(): integer(least - 1)})));
        assert_eq!(status, 400, "{}: {why}", field.place());
        let (status, why) = client.put("vm.resize", Some(json!({field.name.as_str(): integer(least)})));
        assert_eq!(status, 204, "{}: {why}", field.place());
    }
    husk.shut_down();
}

/// The requests of the first example: method, name, body, and what is said of the answer.
fn requests(document: &str) -> Vec<(String, String, Option<Value>, Option<Value>)> {
    let block = document.split("```").nth(1).unwrap();
    let calls = block.split("\napi ").skip(1);
    calls
        .map(|call| {
            let mut words = call.split_whitespace();
            let (method, name) = (words.next().unwrap(), words.next().unwrap());
            let body = call.split('\'').nth(1).map(|body| serde_json::from_str(body).unwrap());
            let answer = call
                .split_once("# ")
                .map(|(_, answer)| serde_json::from_str(answer.trim()).unwrap());
            (method.into(), name.into(), body, answer)
        })
        .collect()
}

#[test]
fn the_requests_of_the_example_do_what_is_said_of_them() {
    if !process::has_kvm() {
        return;
    }
    let mut husk = Husk::start(&[]);
    let files = husk.folder.path().join("files");
    fs::create_dir(&files).unwrap();
    fs::write(
        files.join("vmlinux"),
        husk_benches::elf_of(&husk_benches::code(husk_benches::GuestAction::Halt)),
    )
    .unwrap();
    fs::write(files.join("initrd.img"), [0; 512]).unwrap();
    File::create(files.join("disk.raw")).unwrap().set_len(1 << 20).unwrap();
    let here = format!("{}/", files.display());
    let document = document("api.md").replace("/boot/", &here).replace("/var/lib/", &here);
    let requests = requests(&document);
    assert!(requests.len() > 6, "the example is read");
    let mut client = husk.client();
    for (method, name, body, expected) in requests {
        let (status, answer) = match method.as_str() {
            "GET" => client.get(&name),
            _ => client.put(&name, body),
        };
        assert!([200, 204].contains(&status), "{name}: {status} {answer}");
        if let Some(expected) = expected {
            assert_eq!(answer, expected, "{name}");
        }
    }
    assert_eq!(husk.child.wait().unwrap().code(), Some(0));
}

#[test]
fn an_error_looks_as_its_sample_does() {
    let mut husk = Husk::start(&[]);
    let mut client = husk.client();
    let document = document("api.md");
    let sample = document.lines().find(|line| line.starts_with("[\"")).unwrap();
    let sample: Value = serde_json::from_str(&sample.replace("/boot/", "/nowhere/")).unwrap();
    client.put("vm.create", Some(json!({"payload": {"kernel": "/nowhere/vmlinux"}})));
    if process::has_kvm() {
        assert_eq!(client.put("vm.boot", None), (400, sample));
    }
    husk.shut_down();
}

/// What the server answers to these bytes, up to the end of an empty answer's head or of the connection.
fn raw(husk: &Husk, request: &str) -> String {
    let mut stream = UnixStream::connect(husk.socket()).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn heads_and_statuses_are_those_of_the_document() {
    let mut husk = Husk::start(&[]);
    let document = document("api.md");
    let sample = document.lines().find(|line| line.starts_with("HTTP/1.1 204")).unwrap();
    let sample = sample.replace("\\r\\n", "\r\n");
    assert_eq!(raw(&husk, "PUT /api/v1/vm.delete HTTP/1.1\r\n\r\n"), sample);
    let row = document.lines().find(|line| line.starts_with("| 411,")).unwrap();
    let many = "a: b\r\n".repeat(65);
    for (request, status) in [
        (
            "PUT /api/v1/vm.create HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
            "411",
        ),
        (
            "PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 4194305\r\n\r\n".into(),
            "413",
        ),
        (
            "PUT /api/v1/vm.create HTTP/1.1\r\nExpect: 200-ok\r\nContent-Length: 1\r\n\r\n".into(),
            "417",
        ),
        (format!("GET /api/v1/vmm.ping HTTP/1.1\r\n{many}\r\n"), "431"),
        ("GET /api/v1/vmm.ping HTTP/2.0\r\n\r\n".into(), "505"),
    ] {
        assert!(row.contains(status), "{status} is documented");
        let answer = raw(&husk, &request);
        let found = answer.split(' ').nth(1).unwrap_or_default().to_owned();
        assert_eq!(found, status, "{request:.60}: {answer}");
    }
    husk.shut_down();
}

/// The head of an answer, but for how long the body is, and whether there is one.
fn head_of(answer: &str) -> (String, bool) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let lines = head.lines().filter(|line| !line.starts_with("Content-Length: "));
    (lines.collect::<Vec<_>>().join("\n"), !body.is_empty())
}

#[test]
fn a_head_is_that_of_what_can_be_asked_for_and_other_methods_are_told_which_there_are() {
    let folder = tempfile::tempdir().unwrap();
    let figures = folder.path().join("figures");
    let mut husk = Husk::start_in(folder, &["--metrics", figures.to_str().unwrap()]);
    let ask = |method: &str, path: &str| raw(&husk, &format!("{method} {path} HTTP/1.1\r\n\r\n"));
    for path in ["/metrics", "/api/v1/vmm.ping", "/api/v1/vm.info", "/api/v1/vm.counters"] {
        let (get, head) = (ask("GET", path), ask("HEAD", path));
        assert_eq!(head_of(&head), (head_of(&get).0, false), "{path}");
        assert!(head.contains("\r\nContent-Length: "), "{head}");
        let other = ask("POST", path);
        assert!(
            other.starts_with("HTTP/1.1 405 ") && other.contains("\r\nAllow: GET, HEAD\r\n"),
            "{other}"
        );
    }
    // The stream itself would not end.
    let (head, has_body) = head_of(&ask("HEAD", "/api/v1/vm.events"));
    assert!(head.starts_with("HTTP/1.1 200 ") && !has_body, "{head}");
    let other = ask("GET", "/api/v1/vm.boot");
    assert!(
        other.starts_with("HTTP/1.1 405 ") && other.contains("\r\nAllow: PUT\r\n"),
        "{other}"
    );
    let mut scraper = UnixStream::connect(&figures).unwrap();
    scraper
        .write_all(b"HEAD /metrics HTTP/1.1\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    scraper.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && !head_of(&answer).1, "{answer}");
    husk.shut_down();
}

#[test]
fn every_sample_of_json_is_json() {
    for block in document("api.md").split("```json\n").skip(1) {
        for line in block.split("```").next().unwrap().lines() {
            let read: Result<Value, _> = serde_json::from_str(line);
            assert!(read.is_ok(), "{line}: {read:?}");
        }
    }
}
