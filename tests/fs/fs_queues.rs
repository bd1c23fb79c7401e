//! Several request queues: a guest with a queue for each processor, and a server of the tests' own that serves them side by side.

use std::fs;

use husk_guest::tree::{self, Depth, Plan};
use husk_guest::{Call, Reply};
use husk_tests::agent::Agent;
use husk_tests::api::Shim;
use husk_tests::pod::Pod;
use serde_json::json;
use tempfile::TempDir;

use crate::server::QueuesServer;
use crate::{mount, sh, shape};

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
}

#[test]
fn each_processor_writes_and_reads_a_tree_through_a_queue_of_its_own() {
    let (lab, mut agent) = Lab::start();
    let plan = Plan {
        seed: 4,
        files: 24,
        per_folder: 12,
        empty: false,
    };
    let path = String::from("/tmp/src");
    agent.must(&Call::Plant { path, plan }).unwrap();
    sh(
        &mut agent,
        "tar -cf /tmp/src.tar -C /tmp src; mkdir /share/one /share/two
         taskset 1 tar -xf /tmp/src.tar -C /share/one & one=$!
         taskset 2 tar -xf /tmp/src.tar -C /share/two & two=$!
         wait $one; wait $two; echo 3 > /proc/sys/vm/drop_caches",
    );
    let mut look = |path: &str| {
        let (path, depth) = (path.into(), Depth::Contents);
        agent.must(&Call::Survey { path, depth }).unwrap()
    };
    let expected = look("/tmp/src");
    for name in ["one/src", "two/src"] {
        assert_eq!(look(&format!("/share/{name}")), expected, "{name} in the guest");
        let survey = tree::survey(&lab.host(name), Depth::Contents).unwrap();
        assert_eq!(Reply::Surveyed { survey }, expected, "{name} on the host");
    }
    // Each tree has a request for every entry at least.
    let requests = lab.server.requests();
    assert!(requests[1..].iter().all(|count| *count > plan.files), "{requests:?}");
    assert!(lab.pod.stop().unwrap().status.success());
    lab.server.ended();
}
