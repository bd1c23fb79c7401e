//! Memory that comes and goes while the guest runs: by virtio-mem, by DIMMs and by the balloon,
//! asserted through the API, inside the guest, and in what the host has to give for it.
#![allow(clippy::unwrap_used, reason = "helpers of a test fail as the test does")]

mod by_balloon;
mod by_dimms;
mod by_virtio_mem;
mod sizes;

use husk_guest::Call;
use husk_guest::resources::Resources;
use husk_tests::agent::Agent;
use husk_tests::api::Shim;
use husk_tests::body::Shape;
use husk_tests::pod::Pod;
use husk_tests::smaps::resident_kib;
use husk_tests::{found, kernel_file};
use serde_json::{Value, json};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// What the guests boot with.
const BOOT: u64 = 256 * MIB;

/// The mapping of memory that comes later, and that of the rest.
const RESERVE: &str = "guest-ram-hotplug";
const RAM: &str = "guest-ram";

struct Lab {
    pod: Pod,
    _folder: TempDir,
}

impl Lab {
    /// A pod whose kernel has `params`, with `more` in the body of `vm.create`.
    fn start(kernel: &str, params: &str, more: &Value) -> (Self, Agent) {
        let folder = tempfile::tempdir().unwrap();
        let mut shape = Shape::new(
            Shim::Rust,
            kernel_file(kernel, "vmlinux"),
            kernel_file(kernel, "pod.cpio"),
        );
        shape.kernel_params = params.into();
        let mut pod = Pod::launch(shape, folder.path()).unwrap();
        let mut body = pod.shape().create(&pod.vsock());
        for (name, value) in more.as_object().into_iter().flatten() {
            body[name] = value.clone();
        }
        pod.put("vm.create", Some(&body)).unwrap().done().unwrap();
        pod.boot().unwrap();
        let (agent, _) = pod.agent().unwrap();
        (Self { pod, _folder: folder }, agent)
    }

    /// `vm.resize` to `bytes` in all, as the shim sends it.
    fn resize(&mut self, bytes: u64) {
        let body = self.pod.shape().resize_memory(bytes);
        self.pod.put("vm.resize", Some(&body)).unwrap().done().unwrap();
    }

    fn inflate(&mut self, bytes: u64) {
        let body = json!({"desired_balloon": bytes});
        self.pod.put("vm.resize", Some(&body)).unwrap().done().unwrap();
    }

    /// What `vm.info` says that the guest has.
    fn actual_size(&mut self) -> u64 {
        self.pod.info().unwrap().memory_actual_size
    }

    fn status(&mut self) -> Value {
        self.pod.api().get("vm.resize-status").unwrap().json().unwrap()
    }

    fn counter(&mut self, device: &str, name: &str) -> u64 {
        let all: Value = self.pod.api().get("vm.counters").unwrap().json().unwrap();
        let value = all[device][name].as_u64();
        value.unwrap_or_else(|| panic!("no {name} of {device}: {all}"))
    }

    fn resident_kib(&self, mapping: &str) -> u64 {
        resident_kib(self.pod.pid(), mapping).unwrap()
    }

    /// Waits until host and guest agree that the guest has `bytes` more than when it booted,
    /// bringing memory online meanwhile as Kata's agent does.
    fn agree(&mut self, agent: &mut Agent, before: &Resources, bytes: u64) -> Resources {
        found(|| {
            let now = agent.bring_online(1).unwrap();
            let (host, guest) = (self.actual_size(), gained(before, &now));
            (host == BOOT + bytes && guest == bytes).then_some(now).ok_or_else(|| {
                format!(
                    "{bytes} more wanted, the host says {host} in all, the guest {guest} more: {}",
                    self.status()
                )
            })
        })
    }

    /// Waits until as much of a mapping is in the host's memory as `is_enough` wants.
    fn resident_until(&self, mapping: &str, is_enough: impl Fn(u64) -> bool) {
        found(|| {
            let kib = self.resident_kib(mapping);
            is_enough(kib)
                .then_some(())
                .ok_or_else(|| format!("{kib} KiB of {mapping}"))
        });
    }

    fn end(self) {
        assert!(self.pod.stop().unwrap().status.success());
    }
}

/// Bytes of memory that the guest has gained.
fn gained(before: &Resources, now: &Resources) -> u64 {
    now.memory_kib.saturating_sub(before.memory_kib) * 1024
}

/// A file system in the guest's memory, at `target`.
fn mount_memory(agent: &mut Agent, target: &str) {
    let (source, target, kind) = ("tmpfs".into(), target.into(), "tmpfs".into());
    agent.must(&Call::Mount { source, target, kind }).unwrap();
}

fn mount_filled(agent: &mut Agent) {
    mount_memory(agent, "/filled");
}

/// Has the guest fill `mib` MiB of a file system in its memory, and empty it again.
fn fill(agent: &mut Agent, mib: u64) {
    mount_filled(agent);
    let script = format!("dd if=/dev/zero of=/filled/file bs=1M count={mib} 2>&1");
    agent.run(&["sh", "-c", &script]).unwrap();
}

fn empty(agent: &mut Agent) {
    agent.run(&["rm", "/filled/file"]).unwrap();
}

fn a_balloon(free_page_reporting: bool) -> Value {
    json!({"balloon": {"size": 0, "deflate_on_oom": false, "free_page_reporting": free_page_reporting}})
}
