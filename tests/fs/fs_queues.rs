//! Several request queues: a guest with a queue for each processor, and a server of the tests' own
//! that serves them side by side.

use std::fs;

use husk_guest::{Call, Reply};
use husk_tests::agent::Agent;
use husk_tests::api::Shim;
use husk_tests::info::State;
use husk_tests::pod::Pod;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::server::{Manner, QueuesServer};
use crate::{MOUNT, a_tree_from_each_processor, mount, sh, shape};

const QUEUES: usize = 2;

/// A pod with two processors that has mounted a share with two request queues.
struct Lab {
    pod: Pod,
    server: QueuesServer,
    folder: TempDir,
}

impl Lab {
    fn start() -> (Self, Agent) {
        let folder = tempfile::tempdir().unwrap();
        let shared = folder.path().join("shared");
        fs::create_dir(&shared).unwrap();
        let socket = folder.path().join("files.sock");
        let server = QueuesServer::start(&shared, &socket, QUEUES);
        let mut shape = shape(Shim::Rust, "6.12");
        shape.share = Some(socket);
        shape.vcpus = 2;
        let mut pod = Pod::launch(shape, folder.path()).unwrap();
        let mut body = pod.shape().create(&pod.vsock());
        body["fs"][0]["num_queues"] = json!(QUEUES);
        pod.api().put("vm.create", Some(&body)).unwrap().done().unwrap();
        pod.boot().unwrap();
        let mut agent = pod.agent().unwrap().0;
        mount(&mut agent).unwrap();
        (Self { pod, server, folder }, agent)
    }

    fn host(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join("shared").join(name)
    }

    /// Two files that no guest has read, of one page each: a request for each.
    fn write_two(&self) {
        for name in ["first", "second"] {
            fs::write(self.host(name), name).unwrap();
        }
    }
}

/// Reads `first` on one processor and `second` on the other, at once; what that says. Their outputs
/// are apart: who writes to a pipe from a file holds the pipe until the file has answered.
const READ_TWO: &str = "taskset 1 cat /share/first > /tmp/first & one=$!
    taskset 2 cat /share/second > /tmp/second & two=$!
    wait $one; echo $?; wait $two; echo $?; cat /tmp/first /tmp/second";

#[test]
fn each_processor_writes_and_reads_a_tree_through_a_queue_of_its_own() {
    const FILES: u64 = 24;
    let (lab, mut agent) = Lab::start();
    a_tree_from_each_processor(&mut agent, MOUNT, &lab.host(""), FILES);
    // Each tree has a request for every entry at least.
    let requests = lab.server.requests();
    assert!(requests[1..].iter().all(|count| *count > FILES), "{requests:?}");
    assert!(lab.pod.stop().unwrap().status.success());
    lab.server.ended();
}

#[test]
fn requests_of_two_queues_are_in_progress_at_once() {
    let (lab, mut agent) = Lab::start();
    lab.write_two();
    // Neither is answered before the other has arrived, on the other queue.
    lab.server.behave(Manner::Together);
    let said = sh(&mut agent, READ_TWO);
    assert_eq!(said, "0\n0\nfirstsecond");
    assert!(lab.server.met(), "one after the other");
    assert!(lab.pod.stop().unwrap().status.success());
    lab.server.ended();
}

#[test]
fn what_a_server_owes_on_two_queues_is_an_error_on_both() {
    let (mut lab, mut agent) = Lab::start();
    lab.write_two();
    lab.server.behave(Manner::Leave);
    let reply = agent.ask(&Call::run(&["sh", "-c", READ_TWO])).unwrap();
    let Reply::Ran { stdout, stderr, .. } = &reply else {
        panic!("{reply:?}")
    };
    assert_eq!(stdout, "1\n1\n", "{reply:?}");
    assert_eq!(stderr.matches("not connected").count(), 2, "{reply:?}");
    // So is what comes later, whichever processor it comes from.
    let later = "for cpu in 1 2; do taskset $cpu cat /share/first && exit 9; done; echo alive";
    assert_eq!(sh(&mut agent, later), "alive\n");
    lab.pod.expect_state(State::Running).unwrap();
    let counters: Value = lab.pod.api().get("vm.counters").unwrap().json().unwrap();
    assert_eq!(counters["_fs0"]["backend_failures"], 1, "{counters}");
    assert!(counters["_fs0"]["refused_requests"].as_u64() >= Some(4), "{counters}");
    assert!(lab.pod.stop().unwrap().status.success());
    lab.server.ended();
}
