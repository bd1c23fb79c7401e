//! A guest that has the same thing three times: a folder served by husk in the VMM, by husk as a daemon, and by virtiofsd.

use std::fs;
use std::path::{Path, PathBuf};

use husk_tests::agent::Agent;
use husk_tests::api::Shim;
use husk_tests::pod::Pod;
use husk_tests::share::FileServer;
use serde_json::json;
use tempfile::TempDir;

use crate::{sh, shape};

/// Who serves: also the tag of the share, its place in the guest, and its folder.
pub const SERVERS: [&str; 3] = ["device", "daemon", "virtiofsd"];

/// The guest, its servers and their folders. What ends first comes first.
pub struct Served {
    pod: Pod,
    servers: [FileServer; 2],
    _sockets: TempDir,
    files: TempDir,
}

impl Served {
    /// Starts a guest of `kernel` with `vcpus` processors that has mounted all shares, with attributes and access control lists.
    pub fn start(kernel: &str, vcpus: u32) -> (Self, Agent) {
        Self::start_with(kernel, vcpus, |_| ())
    }

    /// As [`Served::start`], with something done to each folder before anybody serves it.
    pub fn start_with(kernel: &str, vcpus: u32, mut prepare: impl FnMut(&Path)) -> (Self, Agent) {
        // On a disk, as far as the host has one: its temporary files may be in memory.
        let files = tempfile::tempdir_in(std::env::current_dir().unwrap()).unwrap();
        let sockets = tempfile::tempdir().unwrap();
        let socket = |server: &str| sockets.path().join(format!("{server}.sock"));
        for server in SERVERS {
            fs::create_dir(files.path().join(server)).unwrap();
            prepare(&files.path().join(server));
        }
        let [daemon, virtiofsd] = ["daemon", "virtiofsd"].map(|server| files.path().join(server));
        let servers = [
            FileServer::start_husk(Shim::Rust, &daemon, &socket("daemon"), &["--posix-acl"]).unwrap(),
            FileServer::start_as(Shim::Rust, &virtiofsd, &socket("virtiofsd"), &["--posix-acl"]).unwrap(),
        ];
        let mut shape = shape(Shim::Rust, kernel);
        shape.vcpus = vcpus;
        let mut pod = Pod::launch(shape, sockets.path()).unwrap();
        let mut body = pod.shape().create(&pod.vsock());
        body["fs"] = json!([
            {"tag": "device", "dir": files.path().join("device"), "xattr": true, "posix_acl": true},
            {"tag": "daemon", "socket": socket("daemon")},
            {"tag": "virtiofsd", "socket": socket("virtiofsd")},
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
            _sockets: sockets,
            files,
        };
        (served, agent)
    }

    /// The folder of a server, or another beside it, on the host.
    pub fn host(&self, name: impl AsRef<Path>) -> PathBuf {
        self.files.path().join(name)
    }

    /// Ends the guest and its servers, each in order.
    pub fn end(self) {
        assert!(self.pod.stop().unwrap().status.success());
        for server in self.servers {
            server.ended().unwrap();
        }
    }
}
