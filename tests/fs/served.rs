//! A guest that has the same thing three times: a folder served by husk in the VMM, by husk as a
//! daemon, and by virtiofsd.

use std::fs;
use std::path::{Path, PathBuf};

use husk_tests::agent::Agent;
use husk_tests::api::Shim;
use husk_tests::pod::{Launch, Pod};
use husk_tests::share::FileServer;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{sh, shape};

/// Who serves: also the tag of the share, its place in the guest, and its folder.
pub const SERVERS: [&str; 3] = ["device", "daemon", "virtiofsd"];

/// A guest that is to be.
pub struct Plan {
    /// Its kernel.
    pub kernel: &'static str,
    /// Its processors.
    pub vcpus: u32,
    /// MiB of its memory.
    pub memory_mib: u64,
    /// How the VMM is started, which is the first server.
    pub launch: Launch,
    /// The share that it serves, but for tag and folder.
    pub device: Value,
    /// Options of husk as a daemon.
    pub daemon: &'static [&'static str],
    /// Options of virtiofsd.
    pub virtiofsd: &'static [&'static str],
}

impl Default for Plan {
    /// A guest with one processor whose shares have attributes and access control lists, and of
    /// husk's the locks of the host.
    fn default() -> Self {
        Self {
            kernel: "6.12",
            vcpus: 1,
            memory_mib: 256,
            launch: Launch::default(),
            device: json!({"xattr": true, "posix_acl": true, "locks": true}),
            daemon: &["--posix-acl", "--locks"],
            virtiofsd: &["--posix-acl"],
        }
    }
}

/// The guest, its servers and their folders. What ends first comes first.
pub struct Served {
    pod: Pod,
    servers: Vec<FileServer>,
    plan: Plan,
    sockets: TempDir,
    files: TempDir,
}

impl Served {
    /// Starts a guest of `kernel` with `vcpus` processors that has mounted all shares.
    pub fn start(kernel: &'static str, vcpus: u32) -> (Self, Agent) {
        let plan = Plan {
            kernel,
            vcpus,
            ..Plan::default()
        };
        Self::start_with(plan, |_| ())
    }

    /// Starts a guest that has mounted all shares, after something was done to each folder before anybody serves it.
    pub fn start_with(plan: Plan, mut prepare: impl FnMut(&Path)) -> (Self, Agent) {
        // On a disk, as far as the host has one: its temporary files may be in memory.
        let files = tempfile::tempdir_in(std::env::current_dir().unwrap()).unwrap();
        let sockets = tempfile::tempdir().unwrap();
        for server in SERVERS {
            fs::create_dir(files.path().join(server)).unwrap();
            prepare(&files.path().join(server));
        }
        let servers = serve(&plan, files.path(), sockets.path());
        let mut shape = shape(Shim::Rust, plan.kernel);
        shape.vcpus = plan.vcpus;
        shape.memory_mib = plan.memory_mib;
        let mut pod = Pod::launch_with(shape, sockets.path(), plan.launch.clone()).unwrap();
        let mut body = pod.shape().create(&pod.vsock());
        let mut device = plan.device.clone();
        device["tag"] = json!("device");
        device["dir"] = json!(files.path().join("device"));
        body["fs"] = json!([
            device,
            {"tag": "daemon", "socket": socket(sockets.path(), "daemon")},
            {"tag": "virtiofsd", "socket": socket(sockets.path(), "virtiofsd")},
        ]);
        pod.api().put("vm.create", Some(&body)).unwrap().done().unwrap();
        pod.boot().unwrap();
        let mut agent = pod.agent().unwrap().0;
        for server in SERVERS {
            sh(
                &mut agent,
                &format!("mkdir /{server} && mount -t virtiofs {server} /{server}"),
            );
        }
        let served = Self {
            pod,
            servers,
            plan,
            sockets,
            files,
        };
        (served, agent)
    }

    /// The folder of a server, or another beside it, on the host.
    pub fn host(&self, name: impl AsRef<Path>) -> PathBuf {
        self.files.path().join(name)
    }

    /// The VMM and its guest.
    pub fn pod(&mut self) -> &mut Pod {
        &mut self.pod
    }

    /// One more connection to the guest's agent.
    pub fn one_more(&self) -> Agent {
        self.pod.one_more().unwrap()
    }

    /// Kills the daemons in the middle of what they do.
    pub fn kill_daemons(&mut self) {
        for server in self.servers.drain(..) {
            server.kill().unwrap();
        }
    }

    /// Starts daemons in the place of those that were killed.
    pub fn serve_again(&mut self) {
        self.servers = serve(&self.plan, self.files.path(), self.sockets.path());
    }

    /// Ends the guest and its servers, each in order.
    pub fn end(self) {
        assert!(self.pod.stop().unwrap().status.success());
        for server in self.servers {
            server.ended().unwrap();
        }
    }
}

fn socket(folder: &Path, server: &str) -> PathBuf {
    folder.join(format!("{server}.sock"))
}

/// Starts the daemons of a guest.
fn serve(plan: &Plan, files: &Path, sockets: &Path) -> Vec<FileServer> {
    let [daemon, virtiofsd] = ["daemon", "virtiofsd"].map(|server| (files.join(server), socket(sockets, server)));
    vec![
        FileServer::start_husk(Shim::Rust, &daemon.0, &daemon.1, plan.daemon).unwrap(),
        FileServer::start_as(Shim::Rust, &virtiofsd.0, &virtiofsd.1, plan.virtiofsd).unwrap(),
    ]
}
