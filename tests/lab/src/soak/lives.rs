//! The part of `cargo lab soak` that runs where guests run: one pod after another, as both shims start them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use husk_guest::{Answer, Call, Reply, Step, pattern};
use husk_tests::agent::Agent;
use husk_tests::api::Shim;
use husk_tests::body::Shape;
use husk_tests::pod::Pod;
use husk_tests::resize::{Resizing, Size};
use husk_tests::share::FileServer;

use super::census::{ResourceCensus, available_kib, cost_per_pod};
use super::phases::Phases;
use super::resizes;

/// What a pod may cost in the end, in KiB of the host's memory, before it is called a leak. One guest page lost a pod would be 4.
const TOLERABLE_KIB_PER_POD: f64 = 64.0;

/// Fewer pods than this say nothing about memory.
const PODS_FOR_A_TREND: usize = 20;

/// Pods after which the host's caches and pools are filled.
const WARM_UP: usize = 3;

/// The interface that each pod gets on the host, if this user may have one, and its address in the guest, which a shim chooses.
const TAP: &str = "husk-soak";
const MAC: &str = "02:42:ac:11:00:02";

/// Bytes of the disk that each pod gets, and of what it writes there.
const DISK_BYTES: u64 = 16 << 20;
const WRITTEN_BYTES: u64 = 256 << 10;

/// What to run.
#[derive(clap::Args)]
pub struct LivesArgs {
    /// How many pods.
    #[arg(long, default_value_t = 0)]
    pods: u32,
    /// How many vCPUs each pod comes to, by its boot or by a resize.
    #[arg(long, default_value_t = 1)]
    vcpus: u32,
    /// How many resizes of one pod, in place of many pods.
    #[arg(long)]
    resizes: Option<u32>,
    /// What the resizes depend on.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The folder of the guest's kernel.
    #[arg(long)]
    guest: PathBuf,
}

/// Lets the pods live, or one pod be resized, prints what it took, and looks for what they left.
///
/// # Errors
///
/// A pod did not live, or something was left.
pub fn run(arguments: &LivesArgs) -> Result<()> {
    if let Some(resizes) = arguments.resizes {
        return resizes::run(&arguments.guest, resizes, arguments.seed);
    }
    let folder = tempfile::tempdir().context("no folder for the pods")?;
    let mut phases = Phases::default();
    let mut available = Vec::new();
    let mut before = None;
    for number in 0..arguments.pods {
        let shape = shape(number, &arguments.guest, arguments.vcpus);
        let described = format!(
            "pod {number} ({:?} shim, debug {}, {} vCPUs at its boot)",
            shape.shim, shape.debug, shape.vcpus
        );
        live(
            shape,
            arguments.vcpus,
            &folder.path().join(number.to_string()),
            &mut phases,
        )
        .with_context(|| described.clone())?;
        let free = available_kib()?;
        println!("{described}: lived; {} MiB available", free / 1024);
        // The first pod is the one that allocates what this process and the host keep.
        if before.is_none() {
            before = Some(ResourceCensus::take(folder.path())?);
        }
        available.push(free);
    }
    println!("\n{phases}");
    let left = left_behind(&before.context("no pod")?, folder.path())?;
    let cost = cost_per_pod(available.get(WARM_UP..).unwrap_or_default());
    println!(
        "memory: {cost:.1} KiB of MemAvailable less for each pod (of {})",
        available.len()
    );
    if !left.is_empty() {
        bail!("left behind by {} pods: {}", arguments.pods, left.join("; "));
    }
    ensure!(
        available.len() < PODS_FOR_A_TREND || cost < TOLERABLE_KIB_PER_POD,
        "each pod costs {cost:.1} KiB for ever, more than {TOLERABLE_KIB_PER_POD}"
    );
    println!("verdict: {} pods left nothing behind", arguments.pods);
    Ok(())
}

/// Every second pod is the other shim's, two of four have debug on, four of eight boot with all of their `vcpus`.
fn shape(number: u32, guest: &Path, vcpus: u32) -> Shape {
    let shim = if number.is_multiple_of(2) { Shim::Rust } else { Shim::Go };
    Shape {
        debug: number % 4 >= 2,
        vcpus: if number % 8 < 4 { vcpus } else { 1 },
        max_vcpus: vcpus.max(8),
        ..Shape::new(shim, guest.join("vmlinux"), guest.join("pod.cpio"))
    }
}

/// One life, with `vcpus` vCPUs in the end.
fn live(mut shape: Shape, vcpus: u32, folder: &Path, phases: &mut Phases) -> Result<()> {
    let shared = folder.join("shared");
    fs::create_dir_all(&shared)?;
    let socket = folder.join("virtiofsd.sock");
    let server = phases.measure("virtiofsd", || FileServer::start_as(shape.shim, &shared, &socket, &[]))?;
    shape.share = Some(socket);
    let mut pod = phases.measure("launch to ping", || Pod::launch(shape, folder))?;
    phases.measure("vm.create", || pod.create())?;
    // As a shim: the VMM has descriptors of its own when the answer comes.
    let tap = husk_tests::tap(TAP).ok();
    if let Some(tap) = &tap {
        phases.measure("vm.add-net", || pod.add_net(tap))?;
    }
    let has_net = tap.is_some();
    drop(tap);
    phases.measure("vm.boot", || pod.boot())?;
    let (mut agent, _) = phases.measure("boot to agent", || pod.agent())?;
    phases.measure("agent call", || report(&mut agent, pod.shape().vcpus))?;
    if has_net {
        let address = agent.run(&["cat", "/sys/class/net/eth0/address"])?;
        ensure!(address.trim() == MAC, "the guest's interface is {address}");
    }
    phases.measure("program with streams", || exec(&pod))?;
    phases.measure("share", || share(&mut agent, &shared))?;
    let path = folder.join("disk.img");
    File::create(&path)?.set_len(DISK_BYTES)?;
    let device = phases.measure("vm.add-disk", || pod.add_disk(&path))?;
    let found = phases.measure("disk in the guest", || {
        agent.must(&Call::DiskAt {
            bdf: device.bdf.clone(),
        })
    })?;
    let Reply::Device { name, .. } = found else {
        bail!("not a device: {found:?}")
    };
    phases.measure("256 KiB to the disk", || {
        agent.must(&Call::step(&Step::write(&name, 0, WRITTEN_BYTES, 1)))
    })?;
    phases.measure("vm.remove-device", || {
        pod.remove(&device)?;
        agent.must(&Call::Gone {
            bdf: device.bdf.clone(),
        })
    })?;
    phases.measure("vm.resize, the same", || pod.resize_to_the_same())?;
    phases.measure("all of its vCPUs", || all_online(&mut pod, &mut agent, vcpus))?;
    drop(agent);
    let stopped = phases.measure("vmm.shutdown to end", || pod.stop())?;
    ensure!(
        stopped.status.success(),
        "it ended with {}: {}",
        stopped.status,
        stopped.output
    );
    server.ended()?;
    let stored = fs::read(&path)?;
    let expected = pattern::bytes(1, usize::try_from(WRITTEN_BYTES)?);
    ensure!(stored.starts_with(&expected), "what the guest wrote is not in the file");
    fs::remove_dir_all(folder)?;
    Ok(())
}

/// The guest has as many processors online as it booted with.
fn report(agent: &mut Agent, vcpus: u32) -> Result<()> {
    let expected = match vcpus {
        0 | 1 => "0".to_owned(),
        _ => format!("0-{}", vcpus - 1),
    };
    match agent.must(&Call::step(&Step::Report))? {
        Reply::Answer {
            answer: Answer::Report(report),
        } if report.online == expected => Ok(()),
        other => bail!("a strange report: {other:?}"),
    }
}

/// The pod comes to `vcpus` vCPUs if it has not booted with them: host and guest say so many, and none of them is offline.
fn all_online(pod: &mut Pod, agent: &mut Agent, vcpus: u32) -> Result<()> {
    let resizing = Resizing::begin(pod, agent)?;
    if pod.shape().vcpus < vcpus {
        resizing.resize(pod, agent, Size::Vcpus(vcpus))?;
    }
    resizing.check(pod, agent, vcpus)
}

fn share(agent: &mut Agent, shared: &Path) -> Result<()> {
    agent.mount_share("/share")?;
    let stored = agent.must(&Call::Store {
        path: "/share/file".into(),
        seed: 3,
        bytes: WRITTEN_BYTES,
    })?;
    let (bytes, checksum) = pattern::read(&mut File::open(shared.join("file"))?)?;
    ensure!(
        stored == Reply::Data { bytes, checksum },
        "the share has {bytes} bytes of what was stored: {stored:?}"
    );
    Ok(())
}

fn exec(pod: &Pod) -> Result<()> {
    let input = pattern::bytes(2, 100_000);
    let ran = pod.one_more()?.exec(&["cat"], &input)?;
    ensure!(ran.code == 0 && ran.output == input, "a stream was not what was sent");
    Ok(())
}

/// What there is more of than before. Kernels tear some of it down a moment after the process, so this looks again for a while.
pub(super) fn left_behind(before: &ResourceCensus, folder: &Path) -> Result<Vec<String>> {
    for _ in 0..100 {
        if ResourceCensus::take(folder)?.more_than(before).is_empty() {
            return Ok(Vec::new());
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(ResourceCensus::take(folder)?.more_than(before))
}
