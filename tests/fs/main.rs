//! Shares by virtio-fs: a real guest, a real virtiofsd, and both sides asked what is there.
#![allow(clippy::unwrap_used, reason = "helpers of a test fail as the test does")]

mod bad_disk;
mod fs_failures;
mod fs_files;
mod fs_hardship;
mod fs_husk;
mod fs_own;
mod fs_pause;
mod fs_programs;
mod fs_queues;
mod fs_rules;
mod fs_sharing;
mod fs_strain;
mod fs_users;
mod modules;
mod quota;
mod served;
mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use husk_guest::tree::{self, Depth, Plan, Survey};
use husk_guest::{Call, Reply};
use husk_tests::agent::Agent;
use husk_tests::api::Shim;
use husk_tests::body::Shape;
use husk_tests::kernel_file;
use husk_tests::pod::Pod;
use husk_tests::share::FileServer;
use serde_json::json;
use tempfile::TempDir;

/// Where guests have the share.
const MOUNT: &str = "/share";
/// The share that husk serves itself, and where guests have it.
const OWN: (&str, &str) = ("own", "/own");

/// A pod with a share. What ends first comes first.
struct Lab {
    pod: Pod,
    server: FileServer,
    folder: TempDir,
}

impl Lab {
    /// A pod of the Rust shim on the kernel 6.12 that has mounted its share.
    fn start() -> (Self, Agent) {
        Self::start_as(Shim::Rust, "6.12")
    }

    fn start_as(shim: Shim, kernel: &str) -> (Self, Agent) {
        let folder = tempfile::tempdir().unwrap();
        let shared = folder.path().join("shared");
        fs::create_dir(&shared).unwrap();
        let server = FileServer::start_as(shim, &shared, &folder.path().join("virtiofsd.sock"), &[]).unwrap();
        let mut shape = shape(shim, kernel);
        shape.share = Some(server.socket().into());
        let mut pod = Pod::launch(shape, folder.path()).unwrap();
        pod.create().unwrap();
        let own = folder.path().join(OWN.0);
        fs::create_dir(&own).unwrap();
        let device = json!({"tag": OWN.0, "dir": own, "xattr": true});
        pod.api().put("vm.add-fs", Some(&device)).unwrap().done().unwrap();
        pod.boot().unwrap();
        let mut agent = pod.agent().unwrap().0;
        mount(&mut agent).unwrap();
        mount_own(&mut agent);
        (Self { pod, server, folder }, agent)
    }

    /// Both folders, each as the guest has it and as the host has it.
    fn both(&self) -> [Share; 2] {
        let own = self.folder.path().join(OWN.0);
        [(MOUNT, self.host("")), (OWN.1, own)].map(|(guest, host)| Share { guest, host })
    }

    /// A path in the share on the host.
    fn host(&self, name: &str) -> PathBuf {
        self.folder.path().join("shared").join(name)
    }

    /// Ends the pod, and with it the server, as the server's own choice.
    fn end(self) {
        assert!(self.pod.stop().unwrap().status.success());
        self.server.ended().unwrap();
    }
}

fn shape(shim: Shim, kernel: &str) -> Shape {
    Shape::new(shim, kernel_file(kernel, "vmlinux"), kernel_file(kernel, "pod.cpio"))
}

/// A folder that the guest has mounted.
struct Share {
    guest: &'static str,
    host: PathBuf,
}

impl Share {
    /// The survey of a folder, which is the same on both sides.
    fn survey(&self, agent: &mut Agent, name: &str, depth: Depth) -> Survey {
        let path = format!("{}/{name}", self.guest);
        let reply = agent.must(&Call::Survey { path, depth }).unwrap();
        let Reply::Surveyed { survey } = reply else {
            panic!("{reply:?}")
        };
        let host = self.host.join(name);
        assert_eq!(survey, tree::survey(&host, depth).unwrap(), "{name} of {}", self.guest);
        survey
    }
}

/// Unpacks a tree of `files` files on each of two processors at once, so through a queue of its own
/// where the guest's kernel has one for each, in the folder that the guest has at `at` and the host
/// at `host`. Both are the same on both sides, and stay.
fn a_tree_from_each_processor(agent: &mut Agent, at: &str, host: &Path, files: u64) {
    let plan = Plan {
        seed: 4,
        files,
        per_folder: files.div_ceil(4),
        empty: false,
    };
    let path = String::from("/tmp/src");
    agent.must(&Call::Plant { path, plan }).unwrap();
    sh(
        agent,
        &format!(
            "tar -cf /tmp/src.tar -C /tmp src; mkdir {at}/one {at}/two
             taskset 1 tar -xf /tmp/src.tar -C {at}/one & one=$!
             taskset 2 tar -xf /tmp/src.tar -C {at}/two & two=$!
             wait $one; wait $two; echo 3 > /proc/sys/vm/drop_caches"
        ),
    );
    let mut look = |path: &str| {
        let (path, depth) = (path.into(), Depth::Contents);
        agent.must(&Call::Survey { path, depth }).unwrap()
    };
    let expected = look("/tmp/src");
    for name in ["one/src", "two/src"] {
        assert_eq!(look(&format!("{at}/{name}")), expected, "{name} in the guest");
        let survey = tree::survey(&host.join(name), Depth::Contents).unwrap();
        assert_eq!(Reply::Surveyed { survey }, expected, "{name} on the host");
    }
}

/// Something that is mounted on the host until this is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn new(what: &[&str], at: &Path) -> Self {
        let mounted = Command::new("mount").args(what).arg(at).status();
        assert!(mounted.unwrap().success(), "{what:?} at {}", at.display());
        Self(at.into())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn mount_own(agent: &mut Agent) {
    let (tag, path) = OWN;
    sh(agent, &format!("mkdir {path} && mount -t virtiofs {tag} {path}"));
}

fn mount(agent: &mut Agent) -> anyhow::Result<()> {
    agent.mount_share(MOUNT).map(drop)
}

/// A path in the share in the guest.
fn guest(name: &str) -> String {
    format!("{MOUNT}/{name}")
}

/// Runs a script in the guest that must succeed; what it printed.
fn sh(agent: &mut Agent, script: &str) -> String {
    agent.run(&["sh", "-euc", script]).unwrap()
}

/// Gives the guest users: root, kim and nobody.
fn make_users(agent: &mut Agent) {
    let users = "root:x:0:0::/:/bin/sh\nkim:x:1000:1000::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n";
    let users = users.replace('\n', "\\n");
    sh(agent, &format!("mkdir -p /etc; printf '{users}' > /etc/passwd"));
}

/// Runs a script as one of the guest's users.
fn run_as(agent: &mut Agent, user: &str, script: &str) -> (i32, String) {
    match agent.must(&Call::run(&["su", user, "-c", script])).unwrap() {
        Reply::Ran { code, stdout, stderr } => (code, stdout + &stderr),
        other => panic!("{other:?}"),
    }
}

/// How much to do: a number from the environment, or what an emulated host does in some seconds.
fn amount(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).map_or(usual, |text| text.parse().unwrap())
}
