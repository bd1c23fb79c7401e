//! The profile `resize`: how long a running pod waits for processors, memory and disks, in virtual time.
//!
//! Every subject is driven as Kata's Rust shim drives one: a request of the API, and when that is
//! answered Kata's agent, which brings online what has come, and looks again every 50 ms for what
//! is to come. A figure is the time from the request until the guest has what was asked for.

use std::fs::File;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use husk_guest::resources::Resources;
use husk_guest::{Call, Reply};
use husk_tests::agent::Agent;
use husk_tests::api::{Api, Shim};
use husk_tests::body::Shape;
use husk_tests::pod::{Launch, Pod};
use husk_tests::smaps::resident_kib;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Results;
use super::boot;
use super::broken::GuestFailure;
use super::emulated::{Extent, Profile, Session};
use super::rounds::{FigureDef, told};
use super::subject::{Kind, Room, Subject};
use crate::kernel::HOST_KERNEL;
use crate::paths::Lab;

/// When a subject is taken to hang, in virtual time.
const LIMIT: Duration = Duration::from_secs(60);

/// How often Kata's agent looks for what is to come.
const AGENT_PACE: Duration = Duration::from_millis(50);

/// How often the measurement looks for what goes, which no shim does.
const PACE: Duration = Duration::from_millis(5);

const MIB: u64 = 1 << 20;
const MEMORY_MIB: u64 = 512;

/// What may come: more than is asked for, in blocks of the guest.
const RESERVE: u64 = 16 << 30;
const MAX_VCPUS: u32 = 16;

/// What the boots with and without room have: Kata asks for as many vCPUs as the host has, and for its memory.
const LARGE_ROOM: Room = Room {
    max_cpus: 128,
    memory_mib: 16 << 10,
};

/// Memory that the guest writes to before it goes, and what a guest may keep of it: blocks that it cannot empty.
const WRITTEN_MIB: u64 = 256;
const KEPT: u64 = 64 * MIB;

/// What one life of a subject came to, in milliseconds but for the last two. What could not be had is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latencies {
    vcpu_1_online: Option<f64>,
    vcpu_1_gone: Option<f64>,
    vcpu_8_online: Option<f64>,
    memory_1gib_usable: Option<f64>,
    memory_8_adds_usable: Option<f64>,
    disk_uevent: Option<f64>,
    boot_init_max1: Option<f64>,
    boot_init_max128: Option<f64>,
    memory_1gib_returned: Option<f64>,
    memory_1gib_returned_kib: Option<f64>,
    memory_1gib_returned_exits: Option<f64>,
}

const UNIT: &str = "virtual_ms";

const FIGURES: [FigureDef<Latencies>; 11] = [
    ("vcpu_1_online", UNIT, |ms| number(ms.vcpu_1_online)),
    ("vcpu_8_online", UNIT, |ms| number(ms.vcpu_8_online)),
    ("vcpu_1_gone", UNIT, |ms| number(ms.vcpu_1_gone)),
    ("memory_1gib_usable", UNIT, |ms| number(ms.memory_1gib_usable)),
    ("memory_8_adds_usable", UNIT, |ms| number(ms.memory_8_adds_usable)),
    ("memory_1gib_returned", UNIT, |ms| number(ms.memory_1gib_returned)),
    ("memory_1gib_returned_kib", "KiB", |ms| {
        number(ms.memory_1gib_returned_kib)
    }),
    ("memory_1gib_returned_exits", "exits", |ms| {
        number(ms.memory_1gib_returned_exits)
    }),
    ("disk_uevent", UNIT, |ms| number(ms.disk_uevent)),
    ("boot_init_max1", UNIT, |ms| number(ms.boot_init_max1)),
    ("boot_init_max128", UNIT, |ms| number(ms.boot_init_max128)),
];

fn number(figure: Option<f64>) -> f64 {
    figure.unwrap_or(f64::NAN)
}

/// Latencies of resizes, and what room for them costs at boot.
///
/// # Errors
///
/// An emulated host cannot be made.
pub fn run(lab: &Lab, subjects: Vec<&Subject>, extent: Extent) -> Result<Results> {
    let guest_init = super::guest_init(lab)?;
    let session = Session {
        profile: Profile::Resize,
        subjects,
        extent,
        files: vec![boot::image(lab, &guest_init)?],
        guest_init,
        parts: Vec::new(),
        figure_defs: &FIGURES,
    };
    session.run(lab)
}

/// One life of `subject`, in the emulated host: two boots, a pod that is resized, and one that
/// grows in steps. What it cannot do is said, and costs no other figure.
pub fn sample(subject: &Subject, scratch: &Path) -> Result<Latencies> {
    let boot = |what, room| had(subject.kind, what, boot::sample_with(subject, scratch, room)).map(|ms| Some(ms?.0));
    let boot_init_max1 = boot("boot_init_max1", None)?;
    let boot_init_max128 = boot("boot_init_max128", Some(LARGE_ROOM))?;
    let mut latencies = Latencies {
        boot_init_max1,
        boot_init_max128,
        ..Latencies::default()
    };
    for (what, measure) in [
        ("pod that is resized", resized as Measure),
        ("pod that grows in steps", grown),
    ] {
        let measured = with_pod(subject, scratch, |pod| measure(pod, &mut latencies));
        had(subject.kind, what, measured)?;
    }
    let missing = FIGURES.iter().find(|(_, _, value)| !value(&latencies).is_finite());
    match missing {
        // It has to be able to do all of it. What it could is not lost.
        Some((what, ..)) if subject.kind.is_ours() => {
            println!("{}: {}", subject.kind.name(), told(&latencies, &FIGURES));
            bail!("no {what}")
        }
        _ => Ok(latencies),
    }
}

/// What is measured of one pod.
type Measure = fn(&mut Running, &mut Latencies) -> Result<()>;

/// What `measured` came to, or nothing, which is said in a line, if it cannot be had. A guest that
/// is broken tells nothing of anybody.
fn had<T>(kind: Kind, what: &str, measured: Result<T>) -> Result<Option<T>> {
    match measured {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is::<GuestFailure>() => Err(error.context(what.to_string())),
        Err(error) => {
            println!("{}: no {what}: {error:#}", kind.name());
            Ok(None)
        }
    }
}

/// A pod whose agent answers.
struct Running {
    kind: Kind,
    pod: Pod,
    agent: Agent,
    boot: Resources,
    folder: tempfile::TempDir,
}

/// Starts a pod, and has it measured; a guest that panics meanwhile, or never comes up, counts for nothing.
fn with_pod<T>(subject: &Subject, scratch: &Path, measure: impl FnOnce(&mut Running) -> Result<T>) -> Result<T> {
    let folder = tempfile::tempdir_in(scratch)?;
    let program = std::iter::once(subject.program.to_string_lossy().into_owned());
    let launch = Launch {
        program: program.chain(subject.first.iter().cloned()).collect(),
        ..Launch::default()
    };
    let mut pod = Pod::launch_with(shape(), folder.path(), launch)?;
    let mut agent = start(&mut pod).map_err(|error| judged(&pod.output(), error))?;
    let boot = agent.resources()?;
    let mut running = Running {
        kind: subject.kind,
        pod,
        agent,
        boot,
        folder,
    };
    let measured = measure(&mut running);
    measured.map_err(|error| judged(&running.pod.output(), error))
}

/// A guest's panic, or its silence, in place of what came of it.
fn judged(output: &str, error: anyhow::Error) -> anyhow::Error {
    GuestFailure::find(output).map_or_else(|| GuestFailure::silent(error), Into::into)
}

fn shape() -> Shape {
    let folder = Path::new("/lab").join(HOST_KERNEL.name);
    Shape {
        debug: true,
        memory_mib: MEMORY_MIB,
        kernel_params: "quiet".into(),
        ..Shape::new(Shim::Rust, folder.join("vmlinux"), folder.join("pod.cpio"))
    }
}

fn start(pod: &mut Pod) -> Result<Agent> {
    let mut body = pod.shape().create(&pod.vsock());
    body["cpus"]["max_vcpus"] = json!(MAX_VCPUS);
    body["cpus"]["topology"]["cores_per_die"] = json!(MAX_VCPUS);
    body["memory"]["hotplug_size"] = json!(RESERVE);
    pod.api().put("vm.create", Some(&body))?.done()?;
    pod.boot()?;
    let (mut agent, _) = pod.agent()?;
    // As guest kernels of Kata have it from the start.
    agent.load_module("virtio_mem")?;
    Ok(agent)
}

/// Everything but the steps and the boots. A vCPU goes last: a guest may not survive it.
fn resized(pod: &mut Running, latencies: &mut Latencies) -> Result<()> {
    latencies.disk_uevent = pod.had("disk_uevent", Running::disk)?;
    latencies.vcpu_1_online = pod.had("vcpu_1_online", |pod| pod.vcpus_online(2))?;
    latencies.memory_1gib_usable = pod.had("memory_1gib_usable", |pod| pod.memory_usable(&[1 << 30]))?;
    if pod.kind.is_ours() {
        let returned = pod.had("memory_1gib_returned", Running::memory_returned)?;
        latencies.memory_1gib_returned = returned.map(|[ms, ..]| ms);
        latencies.memory_1gib_returned_kib = returned.map(|[_, kib, _]| kib);
        latencies.memory_1gib_returned_exits = returned.map(|[.., exits]| exits);
    }
    latencies.vcpu_1_gone = pod.had("vcpu_1_gone", |pod| pod.vcpus_gone(1))?;
    Ok(())
}

/// Eight containers of the smallest size, one after the other; then as many vCPUs at once.
fn grown(pod: &mut Running, latencies: &mut Latencies) -> Result<()> {
    latencies.memory_8_adds_usable = pod.had("memory_8_adds_usable", |pod| pod.memory_usable(&[128 * MIB; 8]))?;
    latencies.vcpu_8_online = pod.had("vcpu_8_online", |pod| pod.vcpus_online(9))?;
    Ok(())
}

impl Running {
    /// As [`had`], of this pod, whose guest has come to rest before.
    fn had<T>(&mut self, what: &str, measure: impl FnOnce(&mut Self) -> Result<T>) -> Result<Option<T>> {
        let rested = self.agent.run(&["/init", "rest"]).map(drop);
        let measured = rested
            .and_then(|()| measure(self))
            .map_err(|error| judged(&self.pod.output(), error));
        had(self.kind, what, measured)
    }

    fn ask(&mut self, body: &serde_json::Value) -> Result<()> {
        self.pod.api().put("vm.resize", Some(body))?.done()
    }

    /// Until `vcpus` are online.
    fn vcpus_online(&mut self, vcpus: u32) -> Result<f64> {
        let body = self.pod.shape().resize_vcpus(vcpus);
        let start = Instant::now();
        self.ask(&body)?;
        self.agent.bring_online(usize::try_from(vcpus)?)?;
        Ok(ms(start))
    }

    /// Until the guest knows of no more than `vcpus`.
    fn vcpus_gone(&mut self, vcpus: u32) -> Result<f64> {
        let body = self.pod.shape().resize_vcpus(vcpus);
        let left = usize::try_from(vcpus)?;
        let start = Instant::now();
        self.ask(&body)?;
        wait(start, PACE, || {
            let now = self.agent.resources()?;
            Ok(now.present_cpus() == left)
        })
        .with_context(|| format!("{vcpus} vCPUs"))?;
        Ok(ms(start))
    }

    /// Until the guest has what all `adds`, asked for one after the other, come to.
    fn memory_usable(&mut self, adds: &[u64]) -> Result<f64> {
        let (start, mut more) = (Instant::now(), 0);
        for add in adds {
            more += add;
            let body = self.pod.shape().resize_memory(MEMORY_MIB * MIB + more);
            self.ask(&body)?;
            let wanted = self.boot.memory_kib + (more >> 10);
            wait(start, AGENT_PACE, || {
                let now = self.agent.bring_online(0)?;
                Ok(now.memory_kib >= wanted)
            })
            .with_context(|| format!("{more} bytes more"))?;
        }
        Ok(ms(start))
    }

    /// Until the host has what the guest had written to and let go, how many KiB those are, and how
    /// often vCPUs left the guest for it.
    fn memory_returned(&mut self) -> Result<[f64; 3]> {
        let (source, target, kind) = ("tmpfs".into(), "/filled".into(), "tmpfs".into());
        self.agent.must(&Call::Mount { source, target, kind })?;
        let script = format!("dd if=/dev/zero of=/filled/file bs=1M count={WRITTEN_MIB} 2>&1 && rm /filled/file");
        self.agent.run(&["sh", "-c", &script])?;
        let before = resident_kib(self.pod.pid(), "guest-ram-hotplug")?;
        let exits_before = self.exits()?;
        let body = self.pod.shape().resize_memory(MEMORY_MIB * MIB);
        let mut client = Api::connect(&self.pod.api_socket(), Shim::Rust)?;
        let start = Instant::now();
        let returned = thread::scope(|scope| {
            // Answered when all is back or its time is over: a guest that keeps a block does not say so.
            let asked = scope.spawn(|| client.put("vm.resize", Some(&body))?.done());
            wait(start, PACE, || {
                let left = self.pod.info()?.memory_actual_size;
                Ok(left <= MEMORY_MIB * MIB + KEPT)
            })
            .context("1 GiB back")?;
            let returned = ms(start);
            match asked.join() {
                Ok(answer) => answer.map(|()| returned),
                Err(_) => bail!("the request panicked"),
            }
        })?;
        let exits = self.exits()? - exits_before;
        let after = resident_kib(self.pod.pid(), "guest-ram-hotplug")?;
        let kib = before.checked_sub(after).context("there is more in use than before")?;
        Ok([returned, f64::from(u32::try_from(kib)?), exits])
    }

    /// How often vCPUs have left the guest.
    fn exits(&mut self) -> Result<f64> {
        let counters: serde_json::Value = self.pod.api().get("vm.counters")?.json()?;
        let devices = counters.as_object().context("no counters")?.iter();
        let vcpus = devices.filter(|(name, _)| name.starts_with("__vcpu"));
        let exits = vcpus.filter_map(|(_, counters)| counters["exits"].as_f64());
        Ok(exits.sum())
    }

    /// Until the guest can open a disk.
    fn disk(&mut self) -> Result<f64> {
        let path = self.folder.path().join("disk");
        File::create(&path)?.set_len(64 * MIB)?;
        let start = Instant::now();
        let bdf = self.pod.add_disk(&path)?.bdf;
        let found = self.agent.must(&Call::DiskAt { bdf })?;
        let took = ms(start);
        match found {
            Reply::Device { .. } => Ok(took),
            other => bail!("not a disk: {other:?}"),
        }
    }
}

/// Looks every `pace` until `done`.
fn wait(start: Instant, pace: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    while !done()? {
        ensure!(start.elapsed() < LIMIT, "not within {} s", LIMIT.as_secs());
        thread::sleep(pace);
    }
    Ok(())
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use husk_tests::pod::AgentTimeout;

    use super::*;

    #[test]
    fn what_cannot_be_had_is_no_figure() {
        let latencies = Latencies {
            vcpu_1_online: Some(1.0),
            disk_uevent: Some(2.0),
            ..Latencies::default()
        };
        // It crosses a serial line as JSON.
        let line = serde_json::to_string(&latencies).unwrap();
        assert_eq!(serde_json::from_str::<Latencies>(&line).unwrap(), latencies);
        let finite = FIGURES.iter().filter(|(_, _, value)| value(&latencies).is_finite());
        assert_eq!(finite.count(), 2);
    }

    #[test]
    fn a_life_goes_on_without_a_figure_but_not_with_a_broken_guest() {
        let error = || anyhow::anyhow!("1 vCPUs: not within 60 s");
        let peer = |measured: Result<f64>| had(Kind::CloudHypervisor, "vcpu_1_gone", measured);
        assert_eq!(peer(Err(error())).unwrap(), None);
        assert_eq!(peer(Ok(1.0)).unwrap(), Some(1.0));
        let panicked = GuestFailure::find("Kernel panic - not syncing: stack").unwrap();
        assert!(peer(Err(panicked.into())).unwrap_err().is::<GuestFailure>());
    }

    #[test]
    fn a_guest_that_panicked_or_never_came_up_is_told_from_one_that_was_not_resized() {
        let error = || anyhow::anyhow!("1 GiB back: not within 60 s");
        let said = "[ 1.5] Kernel panic - not syncing: Fatal exception in interrupt\n";
        assert!(judged(said, error()).is::<GuestFailure>());
        assert!(!judged("", error()).is::<GuestFailure>());
        let silent = judged("", AgentTimeout::new("no agent after 9 tries").into());
        assert!(silent.is::<GuestFailure>());
        assert_eq!(silent.to_string(), "no agent after 9 tries");
    }
}
