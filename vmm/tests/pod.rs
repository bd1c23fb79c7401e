//! `husk run --pod` on a guest of a few instructions. Needs `/dev/kvm`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod process;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use husk_benches::GuestAction;
use process::{HUSK, Husk, complaints, has_kvm};
use serde_json::{Value, json};

/// `husk run` for a sandbox of 256 MiB whose guest does `then`.
fn run(folder: &Path, action: GuestAction) -> Command {
    let (kernel, sandbox) = (folder.join("vmlinux"), folder.join("config.json"));
    fs::write(&kernel, husk_benches::elf_of(&husk_benches::code(action))).unwrap();
    let memory = "io.katacontainers.config.hypervisor.default_memory";
    fs::write(&sandbox, json!({"annotations": {memory: "256"}}).to_string()).unwrap();
    let mut command = Command::new(HUSK);
    command.args(["run", "--serial", "null", "--kernel"]).arg(&kernel);
    command.arg("--pod").arg(&sandbox).stdin(Stdio::null());
    command
}

/// The reserve is all that the host has: it costs nothing.
#[test]
fn a_sandbox_boots_with_its_size_and_room() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let output = run(folder.path(), GuestAction::PowerOff).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(complaints(&output), [""; 0]);
}

#[test]
fn a_sandbox_that_runs_serves_the_api_and_ends_when_a_client_says_so() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut command = run(folder.path(), GuestAction::Halt);
    command.arg("--api-socket").arg(folder.path().join("api.sock"));
    let child = command.spawn().unwrap();
    let mut husk = Husk { folder, child };
    husk.ready();
    let mut client = husk.client();
    // It listens before the guest runs.
    let info = loop {
        let (_, info) = client.get("vm.info");
        if info["state"] == "Running" {
            break info;
        }
        assert!(husk.child.try_wait().unwrap().is_none(), "it has ended");
    };
    assert_eq!(
        (&info["state"], &info["memory_actual_size"]),
        (&json!("Running"), &json!(256 << 20)),
        "{info}"
    );
    assert_eq!(client.put("vm.pause", None), (204, Value::Null));
    assert_eq!(client.put("vm.resume", None), (204, Value::Null));
    let socket = husk.socket();
    assert_eq!(husk.shut_down().code(), Some(0));
    assert!(!socket.exists());
}

/// As Kubernetes announces it: the limits of the containers are in the size of the boot, and are not added to it again.
#[test]
fn a_sandbox_whose_workload_is_announced_has_its_containers_in_it() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut command = run(folder.path(), GuestAction::Halt);
    let cri = |key: &str| format!("io.kubernetes.cri.sandbox-{key}");
    // The engine hands the annotations of the pod to its containers.
    let annotations = json!({
        cri("memory"): (256 << 20).to_string(),
        cri("cpu-quota"): "50000",
        cri("cpu-period"): "100000",
        "io.katacontainers.config.hypervisor.default_memory": "2048",
    });
    let config = |resources: Value| json!({"annotations": annotations, "linux": {"resources": resources}}).to_string();
    fs::write(folder.path().join("config.json"), config(json!({}))).unwrap();
    command.arg("--api-socket").arg(folder.path().join("api.sock"));
    let child = command.spawn().unwrap();
    let mut husk = Husk { folder, child };
    husk.ready();
    let mut client = husk.client();
    while client.get("vm.info").1["state"] != "Running" {}
    let none = json!({
        "pod": {"default_vcpus": "0.2", "max_vcpus": 0, "default_memory_bytes": 32 << 20, "least_vcpus": 1},
        "containers": {},
    });
    assert_eq!(client.get("vm.containers").1["containers"], none);
    let size = |client: &mut process::Client| {
        let config = client.get("vm.info").1["config"].clone();
        (config["cpus"]["boot_vcpus"].clone(), config["memory"]["size"].clone())
    };
    let ctl = |action: &[&str], resources: Option<Value>| {
        let mut command = Command::new(HUSK);
        command.arg("ctl").arg(husk.socket()).arg("container").args(action);
        if let Some(resources) = resources {
            let file = husk.folder.path().join("container.json");
            fs::write(&file, config(resources)).unwrap();
            command.arg(file);
        }
        let output = command.stdin(Stdio::null()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let limits =
        |quota: u64, mib: u64| json!({"cpu": {"quota": quota, "period": 100_000}, "memory": {"limit": mib << 20}});
    let done = (Some(0), String::new());
    assert_eq!(ctl(&["add", "open"], Some(json!({}))), done);
    assert_eq!(ctl(&["add", "a"], Some(limits(20_000, 100))), done);
    assert_eq!(ctl(&["add", "b"], Some(limits(30_000, 156))), done);
    assert_eq!(ctl(&["update", "b"], Some(limits(10_000, 100))), done);
    assert_eq!(ctl(&["remove", "a"], None), done);
    let boot = (json!(1), json!(288 << 20));
    assert_eq!(size(&mut client), boot);
    // More than was announced, in a VM that does not grow.
    let (code, says) = ctl(&["add", "c"], Some(limits(0, 200)));
    assert_eq!(code, Some(1), "{says}");
    assert!(
        says.starts_with("error: the pod cannot be large enough: memory of "),
        "{says}"
    );
    let noted = client.get("vm.containers").1["containers"]["containers"].clone();
    let ids: Vec<_> = noted.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!((ids, size(&mut client)), (vec!["b", "open"], boot));
    // The next guest is the same pod's.
    assert_eq!(client.put("vm.reboot", None), (204, Value::Null));
    assert_eq!(client.get("vm.containers").1["containers"], none);
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn a_socket_that_cannot_be_served_is_told_before_the_guest_starts() {
    let folder = tempfile::tempdir().unwrap();
    for (socket, code, says) in [
        ("", 2, "--api-socket: '' is empty"),
        ("fd=-1", 2, "--api-socket: 'fd=-1' is not a descriptor"),
        ("/nowhere/api.sock", 1, "/nowhere/api.sock"),
    ] {
        let output = run(folder.path(), GuestAction::PowerOff)
            .args(["--api-socket", socket])
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.lines().count()), (Some(code), 1), "{said}");
        assert!(said.starts_with("error: ") && said.contains(says), "{said}");
    }
}
