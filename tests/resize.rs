//! vCPUs that come and go while the guest runs: asserted through the API and inside the guest.
#![allow(clippy::unwrap_used, reason = "helpers of a test fail as the test does")]

use std::thread;
use std::time::{Duration, Instant};

use husk_tests::agent::Agent;
use husk_tests::api::Shim;
use husk_tests::body::Shape;
use husk_tests::kernel_file;
use husk_tests::pod::{PATIENCE, Pod};
use husk_tests::resize::{Resizing, Size};
use serde_json::{Value, json};
use tempfile::TempDir;

struct Lab {
    pod: Pod,
    resizing: Resizing,
    _folder: TempDir,
}

impl Lab {
    /// A pod of one vCPU, that may have `max`.
    fn start(kernel: &str, max: u32) -> (Self, Agent) {
        Self::start_with(kernel, "", max)
    }

    /// As [`Lab::start`], with `params` for the kernel.
    fn start_with(kernel: &str, params: &str, max: u32) -> (Self, Agent) {
        let folder = tempfile::tempdir().unwrap();
        let mut shape = Shape::new(
            Shim::Rust,
            kernel_file(kernel, "vmlinux"),
            kernel_file(kernel, "pod.cpio"),
        );
        shape.kernel_params = params.into();
        let mut pod = Pod::launch(shape, folder.path()).unwrap();
        let mut body = pod.shape().create(&pod.vsock());
        body["cpus"]["max_vcpus"] = json!(max);
        body["cpus"]["topology"] = Value::Null;
        pod.api().put("vm.create", Some(&body)).unwrap().done().unwrap();
        pod.boot().unwrap();
        let (mut agent, _) = pod.agent().unwrap();
        let resizing = Resizing::begin(&mut pod, &mut agent).unwrap();
        let lab = Self {
            pod,
            resizing,
            _folder: folder,
        };
        (lab, agent)
    }

    /// Both sides have `vcpus`.
    fn resize(&mut self, agent: &mut Agent, vcpus: u32) {
        self.resizing.resize(&mut self.pod, agent, Size::Vcpus(vcpus)).unwrap();
    }

    fn ask(&mut self, vcpus: u32) {
        let body = self.pod.shape().resize_vcpus(vcpus);
        self.pod.put("vm.resize", Some(&body)).unwrap().done().unwrap();
    }

    fn status(&mut self) -> Value {
        self.pod.api().get("vm.resize-status").unwrap().json().unwrap()
    }

    /// The states of all vCPUs that there may be, once the first `online` of them are.
    fn states(&mut self) -> Vec<String> {
        let status = self.status();
        serde_json::from_value(status["vcpus"]["states"].clone()).unwrap()
    }
}

fn vcpus_come_and_go(kernel: &str) {
    let (mut lab, mut agent) = Lab::start(kernel, 4);
    assert_eq!(lab.states(), ["online", "absent", "absent", "absent"]);
    for vcpus in [4, 1, 2, 3, 1, 4] {
        lab.resize(&mut agent, vcpus);
        let status = lab.status();
        let vcpus_now = &status["vcpus"];
        assert_eq!(
            (&vcpus_now["present"], &vcpus_now["online"]),
            (&json!(vcpus), &json!(vcpus)),
            "{status}"
        );
        assert_eq!(status["last"]["outcome"], "accepted", "{status}");
    }
    let latency = &lab.status()["vcpus"]["latency"];
    let answers = ["present", "gone"].map(|name| latency[name]["count"].as_u64());
    assert_eq!(answers, [Some(3 + 1 + 1 + 3), Some(3 + 2)], "{latency}");
    // Nothing that a vCPU that comes has in common with the others has to be set on all of them at one moment.
    let flags = agent.run(&["grep", "^flags", "/proc/cpuinfo"]).unwrap();
    assert_eq!(flags.lines().count(), 4, "{flags}");
    for flag in ["mtrr", "pat"] {
        assert!(flags.split_whitespace().all(|word| word != flag), "{flag}: {flags}");
    }
    assert!(flags.split_whitespace().any(|word| word == "pge"), "{flags}");
    lab.pod.stop().unwrap();
}

#[test]
fn vcpus_come_and_go_on_the_newer_kernel() {
    vcpus_come_and_go("6.12");
}

#[test]
fn vcpus_come_and_go_on_the_older_kernel() {
    vcpus_come_and_go("6.1");
}

/// Shims ask for vCPUs and memory one after the other. This guest says of a vCPU that it has it, and has it not.
#[test]
fn a_vcpu_that_the_guest_refuses_late_fails_no_memory() {
    let (mut lab, _agent) = Lab::start_with("6.12", "nr_cpus=1", 4);
    lab.pod.put("vm.pause", None).unwrap().done().unwrap();
    lab.ask(2);
    let bytes = lab.status()["memory"]["boot_bytes"].as_u64().unwrap() + (128 << 20);
    let body = lab.pod.shape().resize_memory(bytes);
    lab.pod.put("vm.resize", Some(&body)).unwrap().done().unwrap();
    lab.pod.put("vm.resume", None).unwrap().done().unwrap();
    let start = Instant::now();
    let status = loop {
        let status = lab.status();
        let is_refused = status["vcpus"]["refusals"]
            .as_array()
            .is_some_and(|told| !told.is_empty());
        if is_refused && status["last"]["outcome"] != "timed-out" {
            break status;
        }
        assert!(start.elapsed() < PATIENCE, "{status}");
        thread::sleep(Duration::from_millis(50));
    };
    let (last, memory) = (&status["last"], &status["memory"]);
    assert_eq!(
        (&last["outcome"], &last["desired_ram"]),
        (&json!("accepted"), &json!(bytes)),
        "{status}"
    );
    assert_eq!(
        (&memory["present_bytes"], &memory["refusals"]),
        (&json!(bytes), &json!([]))
    );
    lab.pod.stop().unwrap();
}

#[test]
fn a_quick_reversal_ends_with_the_vcpus_that_were_asked_for_last() {
    let (mut lab, mut agent) = Lab::start("6.12", 4);
    for _ in 0..10 {
        for vcpus in [4, 1, 3, 1, 2] {
            lab.ask(vcpus);
        }
        lab.resize(&mut agent, 2);
    }
    lab.resize(&mut agent, 4);
    lab.pod.stop().unwrap();
}

#[test]
fn sixteen_vcpus_are_asked_for_and_none_of_them_is_offline() {
    let (mut lab, mut agent) = Lab::start("6.12", 16);
    lab.resize(&mut agent, 16);
    assert_eq!(lab.states(), ["online"; 16]);
    lab.resize(&mut agent, 1);
    lab.pod.stop().unwrap();
}

#[test]
fn a_vcpu_that_comes_while_the_vm_is_paused_is_there_when_it_goes_on() {
    let (mut lab, mut agent) = Lab::start("6.12", 2);
    lab.pod.api().put("vm.pause", None).unwrap().done().unwrap();
    lab.ask(2);
    let status = lab.status();
    assert_eq!(
        (&status["last"]["outcome"], &status["vcpus"]["present"]),
        (&json!("timed-out"), &json!(1)),
        "{status}"
    );
    lab.pod.api().put("vm.resume", None).unwrap().done().unwrap();
    // Nobody asks again, and what became of it is told.
    let deadline = Instant::now() + Duration::from_secs(60);
    while lab.status()["last"]["outcome"] != "accepted" {
        assert!(Instant::now() < deadline, "{}", lab.status());
        thread::sleep(Duration::from_millis(10));
    }
    lab.resize(&mut agent, 2);
    lab.pod.stop().unwrap();
}

#[test]
fn numbers_of_vcpus_that_cannot_be_are_refused_by_name() {
    let (mut lab, mut agent) = Lab::start("6.12", 2);
    for vcpus in [0, 3, u32::MAX] {
        let body = json!({"desired_vcpus": vcpus});
        let chain = lab.pod.put("vm.resize", Some(&body)).unwrap().failure(400).unwrap();
        let why = format!("desired_vcpus: {vcpus} asked for, 1 to 2 allowed (cpus.max_vcpus)");
        assert_eq!(chain, ["cannot resize the VM", &why]);
    }
    lab.resize(&mut agent, 2);
    lab.pod.stop().unwrap();
}
