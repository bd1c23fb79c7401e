//! A sandbox booted by `husk run --pod`, sized by `husk ctl container` as its containers come and
//! go: asserted through what the command prints, through the API, and inside the guest.
#![allow(clippy::unwrap_used, reason = "helpers of a test fail as the test does")]

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use std::{fs, io};

use husk_guest::AGENT_PORT;
use husk_guest::resources::Resources;
use husk_tests::agent::{Agent, dial};
use husk_tests::api::{Api, Shim};
use husk_tests::body::AGENT;
use husk_tests::info::VmInfo;
use husk_tests::pod::PATIENCE;
use husk_tests::resize::Resizing;
use husk_tests::{SHORT_BOOT, end_of, husk, kernel_file, kill};
use serde_json::{Value, json};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
/// What memory comes in, by virtio-mem.
const BLOCK: u64 = 2 * MIB;
const KATA: &str = "io.katacontainers.config.hypervisor.";

const FAILURE: i32 = 1;
const USAGE: i32 = 2;

/// A sandbox of 1 vCPU and 512 MiB whose guest brings CPUs online when it is told to.
struct Sandbox {
    child: Child,
    folder: TempDir,
    agent: Agent,
    resizing: Resizing,
}

impl Sandbox {
    /// With these options beside those of every sandbox, and in the guest these drivers that its init has left out.
    fn start(options: &[&str], drivers: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("sandbox.json");
        let annotations = json!({
            format!("{KATA}default_vcpus"): "1",
            format!("{KATA}default_memory"): "512",
            format!("{KATA}kernel_params"): format!("quiet {SHORT_BOOT} {AGENT}"),
        });
        fs::write(&config, json!({"annotations": annotations}).to_string()).unwrap();
        let mut socket = std::ffi::OsString::from("socket=");
        socket.push(vsock(folder.path()));
        let child = husk()
            .args(["run", "--serial", "null", "--kernel"])
            .arg(kernel_file("6.12", "vmlinux"))
            .arg("--initramfs")
            .arg(kernel_file("6.12", "pod.cpio"))
            .arg("--pod")
            .arg(config)
            // An emulated host has one CPU, and no pod may have more than the host.
            .args(["--cpus", "boot=1,max=4"])
            .args(options)
            .arg("--vsock")
            .arg(socket)
            .arg("--api-socket")
            .arg(api_socket(folder.path()))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut child = Started(Some(child));
        let mut agent = until(|| {
            if let Some(ended) = child.0.as_mut().and_then(|child| child.try_wait().unwrap()) {
                panic!("husk has ended: {ended}");
            }
            connect(folder.path()).ok()
        });
        for driver in drivers {
            agent.load_module(driver).unwrap();
        }
        let resizing = Resizing::of(agent.resources().unwrap(), &info(folder.path()));
        Self {
            child: child.0.take().unwrap(),
            folder,
            agent,
            resizing,
        }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn status(&self) -> Value {
        api(self.path()).get("vm.resize-status").unwrap().json().unwrap()
    }

    /// What `husk ctl SOCKET ARGS` ends with and prints: standard output, or the one line on standard error.
    fn ctl(&self, args: &[&str]) -> (i32, String) {
        let mut command = husk();
        // Resizes are answered after 800 ms at the latest, but a busy host may take its time for anything.
        command
            .arg("ctl")
            .arg(api_socket(self.path()))
            .args(["--timeout", "200"]);
        let output = command.args(args).stdin(Stdio::null()).output().unwrap();
        let (out, err) = (output.stdout, String::from_utf8(output.stderr).unwrap());
        let code = output.status.code().unwrap();
        if code == 0 {
            assert_eq!(err, "", "{args:?}");
            return (code, String::from_utf8(out).unwrap());
        }
        assert_eq!((err.lines().count(), out.len()), (1, 0), "{args:?}: {err}");
        (code, err.trim_end().to_owned())
    }

    fn list(&self) -> Value {
        let (code, text) = self.ctl(&["container", "list", "--json"]);
        assert_eq!(code, 0, "{text}");
        let list: Value = serde_json::from_str(&text).unwrap();
        list["containers"].clone()
    }

    /// The `config.json` of `name`, with this content.
    fn config(&self, name: &str, content: &Value) -> String {
        let path = self.path().join(format!("{name}.json"));
        fs::write(&path, content.to_string()).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Performs a command about containers, which need `mib` MiB then and get whole blocks, while
    /// the guest brings all that comes online, as an agent does that looks every 50 ms. The pod has
    /// `vcpus` and `mib` when the command returns, not a moment later, but for this: Linux's driver
    /// of virtio-mem plugs a block first, and adds it to what programs may use then.
    fn resize(&mut self, command: &[&str], vcpus: usize, mib: u64) {
        let bytes = (mib * MIB).next_multiple_of(BLOCK);
        let grows = bytes > info(self.path()).config.memory.size;
        // What the guest cannot give back is not waited for.
        let wait = if grows { "200" } else { "20" };
        self.with_agent(command, vcpus, wait);
        let (guest, host) = (self.agent.resources().unwrap(), info(self.path()));
        assert_eq!(
            (guest.online_cpus(), guest.present_cpus(), host.config.cpus.boot_vcpus),
            (vcpus, vcpus, vcpus.try_into().unwrap()),
            "{command:?}: {guest:?}"
        );
        assert_eq!(host.config.memory.size, bytes, "{command:?}");
        if grows {
            assert_eq!(host.memory_actual_size, bytes, "{command:?}");
        }
        let folder = self.folder.path().to_owned();
        let agent = &mut self.agent;
        let look = || Ok((info(&folder), agent.resources()?));
        self.resizing
            .check_size(look, vcpus.try_into().unwrap(), Some(bytes))
            .unwrap();
        let status = self.status();
        let (present, online) = (&status["vcpus"]["present"], &status["vcpus"]["online"]);
        assert_eq!((present, online), (&vcpus.into(), &vcpus.into()), "{status}");
    }

    /// Performs a command about containers, while the guest brings `vcpus` online.
    fn with_agent(&self, command: &[&str], vcpus: usize, wait: &str) {
        let is_over = AtomicBool::new(false);
        let mut helper = connect(self.path()).unwrap();
        let (code, said) = thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    // It gives up after 5 seconds.
                    if helper.bring_online(vcpus).is_ok() {
                        return;
                    }
                }
            });
            let ended = self.ctl(&[&["container"], command, &["--wait", wait]].concat());
            is_over.store(true, Ordering::Relaxed);
            ended
        });
        assert_eq!(code, 0, "{command:?}: {said}");
    }

    /// A command about containers that is refused, and changes nothing.
    fn refused(&mut self, command: &[&str], code: i32, says: &str) {
        let before = (
            self.list(),
            wanted(&self.status()),
            figures(&self.agent.resources().unwrap()),
        );
        let (ended, said) = self.ctl(&[&["container"], command].concat());
        assert_eq!(ended, code, "{command:?}: {said}");
        assert!(said.contains(says), "{command:?}: {said}");
        let after = (
            self.list(),
            wanted(&self.status()),
            figures(&self.agent.resources().unwrap()),
        );
        assert_eq!(after, before, "{command:?}");
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = kill(&mut self.child);
    }
}

/// Killed unless it is taken out.
struct Started(Option<Child>);

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = kill(child);
        }
    }
}

fn api_socket(folder: &Path) -> PathBuf {
    folder.join("api.sock")
}

fn vsock(folder: &Path) -> PathBuf {
    folder.join("vsock.sock")
}

fn api(folder: &Path) -> Api {
    Api::connect(&api_socket(folder), Shim::Go).unwrap()
}

fn info(folder: &Path) -> VmInfo {
    api(folder).get("vm.info").unwrap().json().unwrap()
}

/// The agent, if it listens.
fn connect(folder: &Path) -> io::Result<Agent> {
    let dialled = dial(&vsock(folder), AGENT_PORT, Shim::Go).map_err(io::Error::other)?;
    dialled
        .map(Agent::new)
        .ok_or_else(|| io::ErrorKind::ConnectionRefused.into())
}

/// What is asked for and there.
fn wanted(status: &Value) -> [Value; 4] {
    let (vcpus, memory) = (&status["vcpus"], &status["memory"]);
    [
        &vcpus["desired"],
        &vcpus["present"],
        &memory["desired_bytes"],
        &memory["present_bytes"],
    ]
    .map(Value::clone)
}

fn figures(guest: &Resources) -> (String, String, u64) {
    (guest.present.clone(), guest.online.clone(), guest.memory_kib)
}

/// Looks again and again until `look` finds something.
fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "it does not happen");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Thousandths of a CPU, and MiB.
fn limits(millis: u64, mib: u64) -> Value {
    json!({"linux": {"resources": {"cpu": {"quota": millis * 100, "period": 100_000}, "memory": {"limit": mib * MIB}}}})
}

#[test]
fn a_sandbox_grows_and_shrinks_with_its_containers() {
    let mut sandbox = Sandbox::start(&[], &["virtio_mem"]);
    let (host, guest) = (info(sandbox.path()), sandbox.agent.resources().unwrap());
    assert_eq!((host.config.cpus.boot_vcpus, host.memory_actual_size), (1, 512 * MIB));
    assert_eq!((guest.online_cpus(), guest.memory_kib >> 10 > 400), (1, true));
    assert_eq!(sandbox.list(), json!({}));

    // Nobody brings the vCPU online: the container must not start, and what came for it goes again.
    let web = sandbox.config("web", &limits(1000, 256));
    let (code, said) = sandbox.ctl(&["container", "add", "web", &web, "--wait", "3"]);
    assert_eq!(code, FAILURE, "{said}");
    assert!(
        said.starts_with("error: not there within 3 s: 2 vCPUs asked for, "),
        "{said}"
    );
    assert!(said.contains(" 1 started"), "{said}");
    assert_eq!(sandbox.list(), json!({}));
    assert_eq!(wanted(&sandbox.status())[0], 1, "{}", sandbox.status());
    let folder = sandbox.folder.path().to_owned();
    let agent = &mut sandbox.agent;
    let look = || Ok((info(&folder), agent.resources()?));
    sandbox.resizing.check_size(look, 1, Some(512 * MIB)).unwrap();

    sandbox.resize(&["add", "web", &web], 2, 768);
    let side = sandbox.config("side", &limits(500, 100));
    sandbox.resize(&["add", "side", &side], 3, 868);
    let (_, table) = sandbox.ctl(&["container", "list"]);
    let rows: Vec<Vec<&str>> = table.lines().map(|row| row.split_whitespace().collect()).collect();
    assert_eq!(
        rows,
        [
            vec!["container", "vcpus", "cpuset", "memory"],
            vec!["side", "0.5", "-", "100", "MiB"],
            vec!["web", "1", "-", "256", "MiB"],
        ]
    );

    // Nothing of what cannot be is half-done.
    sandbox.refused(&["add", "web", &web], FAILURE, "container web is there already");
    let unknown = "there is no container db, there are: side, web";
    sandbox.refused(&["update", "db", &web], FAILURE, unknown);
    sandbox.refused(&["remove", "db"], FAILURE, unknown);
    let resources = |resources: Value| json!({"linux": {"resources": resources}});
    let annotated = |key: &str, value: &str| json!({"annotations": {format!("{KATA}{key}"): value}});
    for (content, code, says) in [
        (
            resources(json!({"cpu": {"quota": 100_000, "period": -1}})),
            USAGE,
            "linux.resources.cpu.period is -1, allowed: a whole number from 0",
        ),
        (
            resources(json!({"cpu": {"cpus": "3-1"}})),
            USAGE,
            "linux.resources.cpu.cpus is \"3-1\", allowed: a list such as 0-3,8",
        ),
        (
            annotated("default_vcpus", "-1"),
            USAGE,
            "default_vcpus is \"-1\", allowed: a decimal number from 0 to ",
        ),
        (
            annotated("default_vcpus", "100000"),
            USAGE,
            "default_vcpus is \"100000\", allowed: a decimal number from 0 to ",
        ),
        (
            limits(0, 1 << 30),
            FAILURE,
            "the pod cannot be large enough: memory of ",
        ),
    ] {
        let file = sandbox.config("wrong", &content);
        sandbox.refused(&["add", "db", &file], code, says);
        sandbox.refused(&["update", "web", &file], code, says);
    }

    let more = sandbox.config("more", &limits(2000, 512));
    sandbox.resize(&["update", "web", &more], 4, 1124);
    let less = sandbox.config("less", &limits(250, 128));
    sandbox.resize(&["update", "web", &less], 2, 740);
    // A negative quota is none (OCI): no vCPU for it, and the other container's stays.
    let open = sandbox.config("open", &resources(json!({"cpu": {"quota": -1, "period": 100_000}})));
    sandbox.resize(&["update", "web", &open], 2, 612);
    sandbox.resize(&["remove", "side"], 1, 512);
    sandbox.resize(&["remove", "web"], 1, 512);
    assert_eq!(sandbox.list(), json!({}));

    let (api, vsock) = (api_socket(sandbox.path()), vsock(sandbox.path()));
    assert_eq!(sandbox.ctl(&["shutdown"]), (0, String::new()));
    let ended = end_of(&mut sandbox.child, PATIENCE).unwrap().unwrap();
    assert!(ended.success(), "{ended}");
    assert!(!api.exists() && !vsock.exists());
}

/// Linux lets no DIMM go whose memory has been brought online as an agent does: containers change and end all the same.
#[test]
fn a_guest_that_keeps_its_dimms_fails_no_container() {
    let mut sandbox = Sandbox::start(&["--memory", "size=512M,hotplug=2G,method=acpi"], &[]);
    let resources = |millis: u64, mib: u64| limits(millis, mib)["linux"]["resources"].clone();
    let [web, other, open] = [(1000, 256), (2000, 64), (1500, 0)].map(|(millis, mib)| {
        let name = format!("{millis}-{mib}");
        sandbox.config(&name, &limits(millis, mib))
    });
    for (command, vcpus, mib, noted) in [
        (
            ["add", "web", &web].as_slice(),
            2,
            768,
            json!({"web": resources(1000, 256)}),
        ),
        (&["update", "web", &other], 3, 576, json!({"web": resources(2000, 64)})),
        (&["update", "web", &open], 3, 512, json!({"web": resources(1500, 0)})),
        (&["remove", "web"], 1, 512, json!({})),
    ] {
        sandbox.with_agent(command, vcpus, "200");
        let status = sandbox.status();
        let (present, online) = (&status["vcpus"]["present"], &status["vcpus"]["online"]);
        assert_eq!(
            (present, online),
            (&vcpus.into(), &vcpus.into()),
            "{command:?}: {status}"
        );
        let memory = status["memory"]["present_bytes"].as_u64().unwrap();
        assert!(memory >= mib * MIB, "{command:?}: {status}");
        assert_eq!(sandbox.list(), noted, "{command:?}");
        let guest = sandbox.agent.resources().unwrap();
        assert_eq!(guest.online_cpus(), vcpus, "{command:?}: {guest:?}");
    }
    assert_eq!(sandbox.ctl(&["shutdown"]), (0, String::new()));
    let ended = end_of(&mut sandbox.child, PATIENCE).unwrap().unwrap();
    assert!(ended.success(), "{ended}");
}
