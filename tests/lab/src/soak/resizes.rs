//! One pod that is resized at random while its guest works: both sides have the same after each
//! step, and in the end there is nothing more than in the beginning.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use husk_guest::{Call, Reply, call};
use husk_tests::agent::Agent;
use husk_tests::api::Shim;
use husk_tests::body::Shape;
use husk_tests::info::PciDevice;
use husk_tests::load::Load;
use husk_tests::pod::Pod;
use husk_tests::resize::{Resizing, Size};
use husk_tests::share::FileServer;

use super::census::ResourceCensus;
use super::lives::left_behind;
use super::phases::Phases;
use super::plan::{Action, Plan, State};

const MEMORY_MIB: u64 = 512;
const DISK_BYTES: u64 = 16 << 20;

/// Streams over vsock that are never idle.
const STREAMS: u64 = 2;

/// How long a VMM that has let something go may take to close it.
const GRACE: Duration = Duration::from_secs(20);

/// Resizes a pod `count` times by the plan of `seed`, and looks for what that left.
///
/// # Errors
///
/// A resize did not come about, the load met an error, or something was left.
pub fn run(guest: &Path, count: u32, seed: u64) -> Result<()> {
    let folder = tempfile::tempdir().context("no folder for the pod")?;
    // The first pod is the one that allocates what this process and the host keep.
    Subject::start(guest, &folder.path().join("first"))?.end()?;
    let before = ResourceCensus::take(folder.path())?;
    let mut phases = Phases::default();
    let lived = live(guest, &folder.path().join("pod"), count, seed, &mut phases);
    println!("\n{phases}");
    lived.with_context(|| format!("seed {seed}"))?;
    let left = left_behind(&before, folder.path())?;
    ensure!(left.is_empty(), "left behind by {count} resizes: {}", left.join("; "));
    println!("verdict: {count} resizes of seed {seed}: both sides agreed after each, and nothing was left behind");
    Ok(())
}

fn live(guest: &Path, folder: &Path, count: u32, seed: u64, phases: &mut Phases) -> Result<()> {
    let mut subject = Subject::start(guest, folder)?;
    let mut plan = Plan::new(seed, subject.resizing.boot_bytes());
    // Once to the largest size and back: the VMM keeps what it has needed for a vCPU.
    for size in plan.largest() {
        subject.resize(size, phases)?;
    }
    let before = subject.back_to_its_start(phases)?;
    let load = subject.load()?;
    for number in 1..=count {
        let action = plan.next(&subject.state);
        let start = Instant::now();
        let done = subject.perform(action, phases).and_then(|()| subject.check());
        if let Err(error) = done {
            let output = subject.pod.output();
            return Err(error.context(format!("resize {number}, {action:?}, husk said: {output}")));
        }
        println!(
            "resize {number}: {action:?}: {:.1} ms",
            start.elapsed().as_secs_f64() * 1e3
        );
    }
    let worked = load.stop().context("the load")?;
    println!("the load met no error: {worked:?}");
    ensure!(
        worked.rounds.processors > 0
            && worked.rounds.memory > 0
            && worked.rounds.files > 0
            && worked.streamed_bytes > 0,
        "a part of the load did nothing: {worked:?}"
    );
    let start = Instant::now();
    let mut after = subject.back_to_its_start(phases)?;
    while after.is_more_than(&before) && start.elapsed() < GRACE {
        thread::sleep(Duration::from_millis(100));
        after = Holdings::of(subject.pod.pid())?;
    }
    ensure!(
        !after.is_more_than(&before),
        "husk has {after:?}, and had {before:?} at the same size"
    );
    subject.end()
}

/// What a process holds of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Holdings {
    descriptors: usize,
    threads: usize,
}

impl Holdings {
    fn of(pid: u32) -> Result<Self> {
        let count = |name: &str| anyhow::Ok(fs::read_dir(format!("/proc/{pid}/{name}"))?.count());
        Ok(Self {
            descriptors: count("fd")?,
            threads: count("task")?,
        })
    }

    fn is_more_than(&self, before: &Self) -> bool {
        self.descriptors > before.descriptors || self.threads > before.threads
    }
}

/// The pod, and what it has.
struct Subject {
    pod: Pod,
    agent: Agent,
    server: FileServer,
    resizing: Resizing,
    state: State,
    disks: Vec<PciDevice>,
    /// Disks so far, for the names of their files.
    made: u32,
    folder: PathBuf,
}

impl Subject {
    fn start(guest: &Path, folder: &Path) -> Result<Self> {
        let shared = folder.join("shared");
        fs::create_dir_all(&shared)?;
        let socket = folder.join("virtiofsd.sock");
        let server = FileServer::start(&shared, &socket)?;
        let shape = Shape {
            share: Some(socket),
            memory_mib: MEMORY_MIB,
            ..Shape::new(Shim::Rust, guest.join("vmlinux"), guest.join("pod.cpio"))
        };
        let mut pod = Pod::launch(shape, folder)?;
        let mut agent = pod.start()?;
        agent.load_module("virtio_mem")?;
        agent.mount_share("/share")?;
        let resizing = Resizing::begin(&mut pod, &mut agent)?;
        let state = State {
            vcpus: 1,
            memory: resizing.boot_bytes(),
            disks: 0,
        };
        Ok(Self {
            pod,
            agent,
            server,
            resizing,
            state,
            disks: Vec::new(),
            made: 0,
            folder: folder.into(),
        })
    }

    fn load(&self) -> Result<Load> {
        let work = call::Load {
            threads: 2,
            memory_bytes: 16 << 20,
            folder: Some("/share".into()),
            file_bytes: 64 << 10,
        };
        Load::start(&self.pod, work, STREAMS)
    }

    fn perform(&mut self, action: Action, phases: &mut Phases) -> Result<()> {
        match action {
            Action::Resize(size) => self.resize(size, phases),
            Action::AddDisk => phases.measure("disk comes", || self.add_disk()),
            Action::RemoveDisk(number) => phases.measure("disk goes", || self.remove_disk(number)),
        }
    }

    fn resize(&mut self, size: Size, phases: &mut Phases) -> Result<()> {
        let name = match size {
            Size::Vcpus(vcpus) if vcpus > self.state.vcpus => "vCPUs come",
            Size::Vcpus(_) => "vCPUs go",
            Size::Memory(bytes) if bytes > self.state.memory => "memory comes",
            Size::Memory(_) => "memory goes",
        };
        let resized = self.resizing.resize(&mut self.pod, &mut self.agent, size)?;
        phases.note(name, resized.agreed);
        phases.note("answer to vm.resize", resized.answered);
        match size {
            Size::Vcpus(vcpus) => self.state.vcpus = vcpus,
            Size::Memory(bytes) => self.state.memory = bytes,
        }
        Ok(())
    }

    fn add_disk(&mut self) -> Result<()> {
        let path = self.folder.join(format!("disk{}", self.made));
        self.made += 1;
        File::create(&path)?.set_len(DISK_BYTES)?;
        let device = self.pod.add_disk(&path)?;
        let bdf = device.bdf.clone();
        let found = self.agent.must(&Call::DiskAt { bdf })?;
        if !matches!(found, Reply::Device { .. }) {
            bail!("not a device: {found:?}");
        }
        self.disks.push(device);
        self.state.disks = self.disks.len();
        Ok(())
    }

    fn remove_disk(&mut self, number: usize) -> Result<()> {
        ensure!(number < self.disks.len(), "no disk {number}");
        let device = self.disks.remove(number);
        self.pod.remove(&device)?;
        self.agent.must(&Call::Gone { bdf: device.bdf })?;
        self.state.disks = self.disks.len();
        Ok(())
    }

    /// Both sides have what the pod should have, whatever was changed last.
    fn check(&mut self) -> Result<()> {
        self.resizing.check(&mut self.pod, &mut self.agent, self.state.vcpus)?;
        let disks = self.pod.info()?.config.disks.map_or(0, |disks| disks.len());
        ensure!(
            disks == self.state.disks,
            "the host says {disks} disks: {:?}",
            self.state
        );
        Ok(())
    }

    /// Brings the pod back to the size of its boot; what husk holds then.
    fn back_to_its_start(&mut self, phases: &mut Phases) -> Result<Holdings> {
        while !self.disks.is_empty() {
            self.remove_disk(0)?;
        }
        self.resize(Size::Memory(self.resizing.boot_bytes()), phases)?;
        self.resize(Size::Vcpus(1), phases)?;
        self.check()?;
        Holdings::of(self.pod.pid())
    }

    fn end(self) -> Result<()> {
        drop(self.agent);
        let stopped = self.pod.stop()?;
        ensure!(
            stopped.status.success(),
            "it ended with {}: {}",
            stopped.status,
            stopped.output
        );
        self.server.ended()?;
        Ok(fs::remove_dir_all(&self.folder)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holdings_are_those_of_the_process_and_more_of_either_is_more() {
        let before = Holdings::of(std::process::id()).unwrap();
        assert!(before.descriptors > 0 && before.threads > 0);
        let with = |descriptors: usize, threads: usize| Holdings { descriptors, threads };
        assert!(with(4, 2).is_more_than(&with(3, 2)) && with(3, 3).is_more_than(&with(3, 2)));
        assert!(!with(3, 2).is_more_than(&with(3, 2)) && !with(2, 1).is_more_than(&with(3, 2)));
    }
}
