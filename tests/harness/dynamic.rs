//! How the shims size a running pod when `static_sandbox_resource_mgmt` is off: what they ask the
//! VMM and the agent, and in which order.
//!
//! | | Rust shim | Go shim |
//! |---|---|---|
//! | when | a container is created, updated, has ended | created, started, updated |
//! | vCPUs | quotas and `default_vcpus`, rounded up; if that is another number than last time; not fewer when one comes, not more when one has ended | always, after a look at `vm.info` |
//! | memory | limits and `default_memory`, if that is more than `vm.info` says, in blocks of the guest | the same, at most 48 times the present size at once |
//! | agent | as many CPUs, and all memory, each time | CPUs if there are more, then all memory |

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::agent::Agent;
use crate::api::Shim;
use crate::info::VmInfo;
use crate::pod::{PATIENCE, Pod};

/// `default_maxvcpus` of the Rust shim's configuration.
const MAX_VCPUS: u32 = 8;

/// The Go shim's `acpiMemoryHotplugFactor`.
const GO_GROWTH: u64 = 48;

/// What a container is limited to; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Thousandths of a CPU.
    pub millis: u32,
    /// MiB of memory.
    pub mib: u64,
}

/// What happens to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is created, then started.
    Add(&'static str, Limits),
    /// It has other limits now.
    Update(&'static str, Limits),
    /// It has ended.
    Remove(&'static str),
}

/// The part of a shim that sizes its pod.
#[derive(Clone, Debug)]
pub struct Sizer {
    shim: Shim,
    default_vcpus: u32,
    default_bytes: u64,
    block_bytes: u64,
    /// What the Rust shim takes for the number of vCPUs.
    vcpus: u32,
    containers: BTreeMap<&'static str, Limits>,
    /// What has been asked of the VMM since the last change.
    asked: Vec<String>,
    /// The longest that an answer to `vm.resize` took.
    longest: Duration,
}

impl Sizer {
    /// For a pod that has just started. The agent says in which blocks its memory comes, as in `get_guest_details`.
    ///
    /// # Errors
    ///
    /// It does not say.
    pub fn new(pod: &Pod, agent: &mut Agent) -> Result<Self> {
        let shape = pod.shape();
        Ok(Self {
            shim: shape.shim,
            default_vcpus: shape.vcpus,
            default_bytes: shape.memory_mib << 20,
            block_bytes: agent.resources()?.block_bytes,
            vcpus: shape.vcpus,
            containers: BTreeMap::new(),
            asked: Vec::new(),
            longest: Duration::ZERO,
        })
    }

    /// The longest that an answer to `vm.resize` took so far. The Go shim gives up after a second.
    pub fn longest(&self) -> Duration {
        self.longest
    }

    /// Does what the shim does about a container; the requests that it has sent for that.
    ///
    /// # Errors
    ///
    /// A request is refused, or the agent does not bring online what has come: the shim fails the container then.
    pub fn perform(&mut self, pod: &mut Pod, agent: &mut Agent, change: Change) -> Result<Vec<String>> {
        match change {
            Change::Add(id, limits) | Change::Update(id, limits) => {
                self.containers.insert(id, limits);
            }
            Change::Remove(id) => {
                self.containers.remove(id);
            }
        }
        match (self.shim, change) {
            (Shim::Rust, _) => self.rust(pod, agent, change)?,
            (Shim::Go, Change::Add(..)) => {
                self.go(pod, agent)?;
                self.go(pod, agent)?;
            }
            (Shim::Go, Change::Update(..)) => self.go(pod, agent)?,
            (Shim::Go, Change::Remove(_)) => {}
        }
        Ok(std::mem::take(&mut self.asked))
    }

    fn rust(&mut self, pod: &mut Pod, agent: &mut Agent, change: Change) -> Result<()> {
        let wanted = self.wanted_vcpus().clamp(1, MAX_VCPUS);
        let wanted = match change {
            Change::Add(..) => wanted.max(self.vcpus),
            Change::Update(..) => wanted,
            Change::Remove(_) => wanted.min(self.vcpus),
        };
        if wanted != self.vcpus {
            self.resize(pod, &pod.shape().resize_vcpus(wanted))?;
            self.vcpus = wanted;
        }
        let current = self.info(pod)?.config.memory.size;
        self.grow(pod, current, self.wanted_bytes())?;
        bring_online(agent, usize::try_from(self.vcpus)?)
    }

    fn go(&mut self, pod: &mut Pod, agent: &mut Agent) -> Result<()> {
        let cpus = self.info(pod)?.config.cpus;
        let wanted = self.wanted_vcpus().min(cpus.max_vcpus);
        self.resize(pod, &pod.shape().resize_vcpus(wanted))?;
        if wanted > cpus.boot_vcpus {
            bring_online(agent, usize::try_from(wanted)?)?;
        }
        loop {
            let total = self.info(pod)?.memory_actual_size;
            let wanted = self.wanted_bytes();
            let step = wanted.min(total.saturating_add(total.saturating_mul(GO_GROWTH)));
            let memory = self.info(pod)?.config.memory;
            let most = memory.hotplug_size.context("no hotplug_size")?;
            self.grow(pod, memory.size, step.min(most))?;
            bring_online(agent, 0)?;
            if step == wanted {
                return Ok(());
            }
        }
    }

    /// Rounded up.
    fn wanted_vcpus(&self) -> u32 {
        let millis: u32 = self.containers.values().map(|limits| limits.millis).sum();
        self.default_vcpus + millis.div_ceil(1000)
    }

    fn wanted_bytes(&self) -> u64 {
        let mib: u64 = self.containers.values().map(|limits| limits.mib).sum();
        self.default_bytes + (mib << 20)
    }

    /// Neither shim asks for less.
    fn grow(&mut self, pod: &mut Pod, current: u64, wanted: u64) -> Result<()> {
        let more = wanted.saturating_sub(current).next_multiple_of(self.block_bytes);
        if more == 0 {
            return Ok(());
        }
        self.resize(pod, &pod.shape().resize_memory(current + more))
    }

    fn info(&mut self, pod: &mut Pod) -> Result<VmInfo> {
        self.asked.push("GET vm.info".into());
        pod.info()
    }

    fn resize(&mut self, pod: &mut Pod, body: &Value) -> Result<()> {
        self.asked.push(format!("PUT vm.resize {body}"));
        let start = Instant::now();
        pod.put("vm.resize", Some(body))?.done()?;
        self.longest = self.longest.max(start.elapsed());
        Ok(())
    }
}

/// Kata's agent looks every 50 ms and gives up after 5 seconds, which an emulated host may take; it
/// is asked again then.
fn bring_online(agent: &mut Agent, cpus: usize) -> Result<()> {
    let start = Instant::now();
    while let Err(error) = agent.bring_online(cpus) {
        ensure!(start.elapsed() < PATIENCE, "{error:#}");
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
