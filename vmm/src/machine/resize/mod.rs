//! How large a machine is to be, and how far it has come: vCPUs, memory and the balloon.
//!
//! A resize says what is wanted, and returns. What the guest makes of it comes as [`Change`]s,
//! whenever the control thread looks. A later resize takes the place of an earlier one at once: it
//! begins where that one has come to, and takes back what the guest has not heard.

mod cpus;
mod dimms;
mod latency;
mod memory;
mod reclaim;
mod retry;
mod shrink_limit;

use std::io;
use std::time::{Duration, Instant};

use husk_hotplug::{Hotplug, HotplugError};
use husk_virtio::balloon::{BalloonHandle, BalloonSize, BalloonTarget};
use serde_json::{Value, json};

use super::Machine;
use crate::config::{PAGE_BYTES, Size};
use crate::memory::MemoryError;
use crate::metrics::Ram;

pub use cpus::{CpuResize, Vcpus};
pub use latency::{Latency, millis};
use reclaim::Action;

pub use dimms::{DimmPlug, Dimms, slots as dimm_slots};
pub use memory::{MemoryParts, MemoryResize};
pub use reclaim::Reclaim;

/// What a machine should have. What is absent stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TargetSize {
    /// vCPUs that are to be on-line: 1 to `cpus.max_vcpus`; `None`: as many as before.
    pub vcpus: Option<u32>,
    /// RAM in all, in bytes.
    pub ram_bytes: Option<u64>,
    /// Bytes in the balloon.
    pub balloon_bytes: Option<u64>,
}

impl TargetSize {
    /// Of everything.
    #[cfg(test)]
    const ALL: Self = Self {
        vcpus: Some(0),
        ram_bytes: Some(0),
        balloon_bytes: Some(0),
    };
}

/// What a machine has, or will have once the guest has done all that it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineSize {
    /// vCPUs that there will be.
    pub vcpus: u32,
    /// RAM that there will be, in bytes.
    pub ram_bytes: u64,
    /// What a client wants in the balloon, in bytes, if there is one. What an idle guest gives back
    /// beside it is nobody's wish.
    pub balloon_bytes: Option<u64>,
    /// RAM that the guest has now, without what is in the balloon.
    pub actual_bytes: u64,
}

/// Why a size cannot be had. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// Not a number of vCPUs that this VM can have.
    #[error("desired_vcpus: {found} asked for, 1 to {max} allowed (cpus.max_vcpus)")]
    Vcpus {
        /// What was asked for.
        found: u32,
        /// `cpus.max_vcpus`.
        max: u32,
    },
    /// More RAM than this VM can have.
    #[error("desired_ram: {found} bytes asked for, at most {max} allowed (memory.size and memory.hotplug_size)")]
    Ram {
        /// What was asked for.
        found: u64,
        /// What it starts with, and what may be added.
        max: u64,
    },
    /// Less RAM than the balloon is to have.
    #[error(
        "desired_ram: {found} bytes asked for, more than the {balloon} bytes that the balloon is to have needed (desired_balloon)"
    )]
    RamOfBalloon {
        /// What there would be.
        found: u64,
        /// What the balloon is to have.
        balloon: u64,
    },
    /// There is no balloon.
    #[error("desired_balloon: the VM has no balloon (balloon)")]
    NoBalloon,
    /// No size for a balloon.
    #[error("desired_balloon: {found} bytes asked for, whole pages of 4096 bytes below the guest's {max} allowed")]
    Balloon {
        /// What was asked for.
        found: u64,
        /// RAM that there is.
        max: u64,
    },
    /// Memory comes as DIMMs, and there is no slot for one more.
    #[error("desired_ram: all {0} memory slots are taken, no more memory can be added")]
    NoSlot(u32),
    /// The host has no thread left to find the memory's pages.
    #[error("cannot start a thread")]
    NoThread(#[source] io::Error),
    /// The host cannot give it.
    #[error(transparent)]
    Host(#[from] HotplugError),
    /// The host cannot give the memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

impl ResizeError {
    /// Whether a VM with `cpus.max_vcpus` of `max` can have `found` vCPUs.
    ///
    /// # Errors
    /// [`ResizeError::Vcpus`].
    pub fn check_vcpus(found: u32, max: u32) -> Result<(), Self> {
        if (1..=max).contains(&found) {
            Ok(())
        } else {
            Err(Self::Vcpus { found, max })
        }
    }

    /// Whether whoever asked can mend it.
    pub fn is_request(&self) -> bool {
        !matches!(
            self,
            Self::NoSlot(_) | Self::NoThread(_) | Self::Host(_) | Self::Memory(_)
        )
    }
}

/// What a guest has made of a resize, and how long after it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It says that it has a vCPU, and has looked at it.
    VcpuPresent(u32, Duration),
    /// It has started a vCPU.
    VcpuOnline(u32, Duration),
    /// It has let go of a vCPU.
    VcpuGone(u32, Duration),
    /// It has more memory, by so many bytes.
    MemoryPlugged(u64, Duration),
    /// It has let go of memory.
    MemoryUnplugged(u64, Duration),
    /// It will not do what it was asked for.
    Refused(Refusal, Duration),
}

/// A part of a resize that the guest or the host has refused; it is not tried again before the next resize.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What was asked: `add vCPU 3`, `remove memory slot 0`.
    pub what: String,
    /// Who refused: the guest by an `_OST` code or by a success that nothing shows, or the host.
    pub why: Why,
}

/// Why something is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The guest said so, with an `_OST` status code (ACPI 6.5 §6.3.5).
    Code(u32),
    /// The guest said that it did it, and nothing shows that it has.
    Unproven,
    /// The host could not: [`Refusal::what`] says why.
    Host,
}

impl Refusal {
    /// The guest's `_OST` status code, if it gave one.
    pub fn code(&self) -> Option<u32> {
        match self.why {
            Why::Code(code) => Some(code),
            Why::Unproven | Why::Host => None,
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.why {
            Why::Code(code) => write!(f, "{}: the guest refused, with code {code:#x}", self.what),
            Why::Unproven => write!(f, "{}: the guest reported success, but does not have it", self.what),
            Why::Host => f.write_str(&self.what),
        }
    }
}

/// What a machine was last asked to be, and what the guest has made of it. The slots are the
/// machine's: they are lent for each call.
pub struct Resizes {
    cpus: CpuResize,
    memory: MemoryResize,
    balloon: Option<BalloonHandle>,
    /// What an idle guest gives back.
    reclaim: Option<Reclaim>,
    /// The RAM that was asked for last, in bytes, by whichever resize that was.
    asked_ram: Option<u64>,
    /// The same of the balloon.
    asked_balloon: Option<u64>,
}

impl Resizes {
    /// Nothing was asked for yet; `balloon` is the device, if there is one, and `reclaim` what an
    /// idle guest gives back by it.
    pub fn new(memory: MemoryResize, balloon: Option<BalloonHandle>, reclaim: Option<Reclaim>) -> Self {
        Self {
            cpus: CpuResize::default(),
            memory: memory.with_available_memory(balloon.clone()),
            balloon,
            reclaim,
            asked_ram: None,
            asked_balloon: None,
        }
    }

    /// What the machine has and will have.
    pub fn size<V: Vcpus>(&self, cpus: &Hotplug<V>, dimms: &Dimms) -> MachineSize {
        // No more than was asked for: a driver may say what it likes, and shims count with the sum.
        let in_balloon = |size: BalloonSize| size.actual_bytes.min(size.target_bytes);
        let balloon = self.balloon.as_ref().map_or(0, |balloon| in_balloon(balloon.size()));
        MachineSize {
            vcpus: self.cpus.target(cpus),
            ram_bytes: self.memory.wanted_bytes(),
            balloon_bytes: self.wanted_in_balloon(),
            actual_bytes: self.memory.present_bytes(dimms).saturating_sub(balloon),
        }
    }

    /// Begins to make the machine what is `wanted`, in place of what was wanted before. Returns at once.
    ///
    /// # Errors
    /// See [`ResizeError`]: all of it is looked at before anything is begun, and what was begun
    /// when the host fails is taken back.
    pub fn begin<V: Vcpus>(
        &mut self,
        cpus: &mut Hotplug<V>,
        dimms: &mut Dimms,
        wanted: TargetSize,
    ) -> Result<(), ResizeError> {
        if let Some(found) = wanted.vcpus {
            ResizeError::check_vcpus(found, cpus.plug().max())?;
        }
        let before = self.memory.wanted_bytes();
        let ram = wanted.ram_bytes.map_or(Ok(before), |bytes| self.memory.check(bytes))?;
        let balloon = self.check_balloon(wanted, ram)?;
        // What has been refused of the other kind stays so.
        let of_cpus = wanted.vcpus.map(|_| self.cpus.take_refusals());
        let of_memory = wanted.ram_bytes.map(|_| self.memory.take_refusals());
        if let Err(error) = self.begin_parts(cpus, dimms, wanted, before) {
            // The one before may not have been answered: this one has not taken its place.
            of_cpus
                .into_iter()
                .for_each(|refusals| self.cpus.restore_refusals(refusals));
            of_memory
                .into_iter()
                .for_each(|refusals| self.memory.restore_refusals(refusals));
            return Err(error);
        }
        self.asked_ram = wanted.ram_bytes.or(self.asked_ram);
        self.asked_balloon = wanted.balloon_bytes.or(self.asked_balloon);
        match (&mut self.reclaim, &self.balloon) {
            (Some(reclaim), Some(handle)) => fill(handle, reclaim.begin(wanted.balloon_bytes)),
            _ => {
                if let Some((balloon, target)) = balloon {
                    balloon.set_target(target);
                }
            }
        }
        Ok(())
    }

    /// Begins with memory and vCPUs, or neither; `before` are the bytes of RAM that were wanted until now.
    fn begin_parts<V: Vcpus>(
        &mut self,
        cpus: &mut Hotplug<V>,
        dimms: &mut Dimms,
        wanted: TargetSize,
        before: u64,
    ) -> Result<(), ResizeError> {
        let now = Instant::now();
        if let Some(bytes) = wanted.ram_bytes {
            self.memory.set(dimms, bytes, now)?;
        }
        if let Some(vcpus) = wanted.vcpus
            && let Err(error) = self.cpus.set(cpus, vcpus, now)
        {
            self.memory.restore_target(dimms, before);
            return Err(error.into());
        }
        Ok(())
    }

    /// What a client wants in the balloon, in bytes.
    fn wanted_in_balloon(&self) -> Option<u64> {
        let target = self.balloon.as_ref()?.size().target_bytes;
        Some(self.reclaim.as_ref().map_or(target, Reclaim::base))
    }

    /// The balloon and its size, if that is wanted and can be with `max` bytes of RAM; whatever is
    /// wanted of it, it leaves some of that.
    fn check_balloon(
        &self,
        wanted: TargetSize,
        max: u64,
    ) -> Result<Option<(BalloonHandle, BalloonTarget)>, ResizeError> {
        let Some(found) = wanted.balloon_bytes else {
            let stays = self.wanted_in_balloon().filter(|_| wanted.ram_bytes.is_some());
            return match stays {
                Some(balloon) if balloon >= max => Err(ResizeError::RamOfBalloon { found: max, balloon }),
                _ => Ok(None),
            };
        };
        let balloon = self.balloon.as_ref().ok_or(ResizeError::NoBalloon)?;
        // Huge pages would be taken from the guest and given to nobody.
        let is_huge = self.memory.has_huge_pages();
        let fits = |bytes: u64| bytes == 0 || (bytes < max && !is_huge);
        let target = BalloonTarget::new(found).ok().filter(|_| fits(found));
        let target = target.ok_or(ResizeError::Balloon { found, max })?;
        Ok(Some((balloon.clone(), target)))
    }

    /// What has changed since the last look; goes on with what comes next. Never waits.
    pub fn advance<V: Vcpus>(&mut self, cpus: &mut Hotplug<V>, dimms: &mut Dimms) -> Vec<Change> {
        let mut changes = Vec::new();
        self.cpus.advance(cpus, &mut changes);
        let before = self.memory.wanted_bytes();
        self.memory.advance(dimms, &mut changes);
        self.empty_balloon_below(before);
        self.take_from_idle(dimms, Instant::now());
        changes
    }

    /// There will be less RAM than the `before` bytes that the balloon was a part of. One that
    /// would leave nothing of it gives back what is missing, so that the guest keeps what it was to
    /// have beside it, as far as there is so much.
    fn empty_balloon_below(&mut self, before: u64) {
        let after = self.memory.wanted_bytes();
        let target = self
            .wanted_in_balloon()
            .filter(|target| *target > 0 && *target >= after);
        let (Some(target), Some(balloon)) = (target, &self.balloon) else {
            return;
        };
        let bytes = target.saturating_sub(before.saturating_sub(after)) / PAGE_BYTES * PAGE_BYTES;
        let (was, is) = (Size(target), Size(bytes));
        log::warn!("the balloon is to have {is} and no more {was}: there is less RAM than was asked for");
        fill(balloon, bytes);
        if let Some(reclaim) = &mut self.reclaim {
            reclaim.begin(Some(bytes));
        }
    }

    /// Follows the policy for an idle guest.
    fn take_from_idle(&mut self, dimms: &Dimms, now: Instant) {
        let (Some(reclaim), Some(balloon)) = (&mut self.reclaim, &self.balloon) else {
            return;
        };
        match reclaim.next_action(balloon.size(), &balloon.stats(), now) {
            Some(Action::Ask) => balloon.refresh(),
            // The guest may say that it has more free than there is, or will be.
            Some(Action::Fill(bytes)) => {
                let ram = self.memory.present_bytes(dimms).min(self.memory.wanted_bytes());
                fill(balloon, bytes.min(ram.saturating_sub(PAGE_BYTES)));
            }
            None => {}
        }
    }

    /// What the guest has still to do, in words; `None` when it has done everything, or refused.
    pub fn pending(&self) -> Option<String> {
        joined(self.pending_parts())
    }

    /// As [`Resizes::pending`], of what `wanted` speaks of: memory that a guest has kept of one
    /// resize is nothing that another, of vCPUs, waits for.
    pub fn awaited(&self, wanted: TargetSize) -> Option<String> {
        let [cpus, memory, balloon] = self.pending_parts();
        joined([
            cpus.filter(|_| wanted.vcpus.is_some()),
            memory.filter(|_| wanted.ram_bytes.is_some()),
            balloon.filter(|_| wanted.balloon_bytes.is_some()),
        ])
    }

    fn pending_parts(&self) -> [Option<String>; 3] {
        let balloon = self.balloon.as_ref().map(BalloonHandle::size);
        [self.cpus.pending(), self.memory.pending(), balloon.and_then(owed)]
    }

    /// What the guest would not do of what `wanted` speaks of: a vCPU that it has refused to one resize is nothing that
    /// another, of memory, fails by.
    pub fn refusals(&self, wanted: TargetSize) -> Vec<Refusal> {
        let cpus = wanted.vcpus.map(|_| self.cpus.refusals());
        let memory = wanted.ram_bytes.map(|_| self.memory.refusals());
        cpus.into_iter().chain(memory).flatten().cloned().collect()
    }

    /// Whether a lack of memory in the guest may be for what it has been asked for.
    pub fn is_straining(&self, dimms: &Dimms) -> bool {
        self.memory.is_shrinking(dimms) || self.memory.is_growing(dimms)
    }

    /// See [`MemoryResize::stop_shrinking`].
    pub fn stop_shrinking(&mut self, dimms: &Dimms, why: &str) -> Option<Change> {
        self.memory.stop_shrinking(dimms, why)
    }

    /// See [`MemoryResize::stop_growing`].
    pub fn stop_growing(&mut self, dimms: &mut Dimms, why: &str) -> Option<Change> {
        let before = self.memory.wanted_bytes();
        let change = self.memory.stop_growing(dimms, why);
        self.empty_balloon_below(before);
        change
    }

    /// The guest is paused, or runs again.
    pub fn hold(&mut self, is_held: bool) {
        self.memory.hold(is_held);
    }

    /// When to look again without having been woken.
    pub fn poll(&self) -> Option<Duration> {
        let now = Instant::now();
        let idle = self
            .reclaim
            .as_ref()
            .map(|reclaim| reclaim.due().saturating_duration_since(now));
        let starting = self.cpus.poll(now);
        starting.into_iter().chain(self.memory.poll()).chain(idle).min()
    }

    /// How long the guest has taken, by what it was asked for.
    pub fn latencies(&self) -> Vec<(&'static str, Latency)> {
        let all = self.cpus.latencies().into_iter().chain(self.memory.latencies());
        all.map(|(what, latency)| (what, latency.clone())).collect()
    }

    /// What RAM the guest has beside blocks and balloon, which count by themselves.
    pub fn ram(&self, dimms: &Dimms) -> Ram {
        self.memory.figures(dimms)
    }

    /// All of it, for `vm.resize-status`. The guest is not waited for: of its memory there is what
    /// its balloon said last, and it is asked to say more.
    pub fn status<V: Vcpus>(&self, cpus: &Hotplug<V>, dimms: &Dimms) -> Value {
        if let Some(balloon) = &self.balloon {
            balloon.refresh();
        }
        let told = |refusals: &[Refusal]| json!(refusals.iter().map(ToString::to_string).collect::<Vec<_>>());
        let mut status = json!({
            "vcpus": self.cpus.status(cpus),
            "memory": self.memory.status(dimms, self.balloon.as_ref()),
        });
        status["vcpus"]["pending"] = json!(self.cpus.pending());
        status["vcpus"]["refusals"] = told(self.cpus.refusals());
        status["memory"]["asked_bytes"] = json!(self.asked_ram);
        if let Some(balloon) = status["memory"]["balloon"].as_object_mut() {
            balloon.insert("asked_bytes".into(), json!(self.asked_balloon));
        }
        status["memory"]["pending"] = json!(self.memory.pending());
        status["memory"]["refusals"] = told(self.memory.refusals());
        status
    }
}

/// What the driver of a balloon has still to do.
fn owed(size: BalloonSize) -> Option<String> {
    let is_open = size.driver && size.actual_bytes != size.target_bytes;
    is_open.then(|| format!("balloon: {} of {} bytes", size.actual_bytes, size.target_bytes))
}

fn fill(balloon: &BalloonHandle, bytes: u64) {
    match BalloonTarget::new(bytes) {
        Ok(_) if balloon.size().target_bytes == bytes => {}
        Ok(target) => balloon.set_target(target),
        Err(error) => log::error!("{error}"),
    }
}

fn joined(parts: [Option<String>; 3]) -> Option<String> {
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

impl Machine {
    /// See [`Resizes::size`].
    pub fn size(&self) -> MachineSize {
        self.resizes.size(&self.cpus, &self.dimms)
    }

    /// See [`Resizes::begin`].
    ///
    /// # Errors
    /// As there.
    pub fn resize(&mut self, wanted: TargetSize) -> Result<(), ResizeError> {
        self.resizes.begin(&mut self.cpus, &mut self.dimms, wanted)
    }

    /// See [`Resizes::advance`].
    pub fn advance_resize(&mut self) -> Vec<Change> {
        self.resizes.advance(&mut self.cpus, &mut self.dimms)
    }

    /// See [`Resizes::awaited`].
    pub fn resize_pending(&self, wanted: TargetSize) -> Option<String> {
        self.resizes.awaited(wanted)
    }

    /// See [`Resizes::refusals`].
    pub fn resize_refusals(&self, wanted: TargetSize) -> Vec<Refusal> {
        self.resizes.refusals(wanted)
    }

    /// See [`Resizes::is_straining`].
    pub fn is_straining(&self) -> bool {
        self.resizes.is_straining(&self.dimms)
    }

    /// See [`Resizes::stop_shrinking`].
    pub fn stop_shrinking(&mut self, why: &str) -> Option<Change> {
        self.resizes.stop_shrinking(&self.dimms, why)
    }

    /// See [`Resizes::stop_growing`].
    pub fn stop_growing(&mut self, why: &str) -> Option<Change> {
        self.resizes.stop_growing(&mut self.dimms, why)
    }

    /// See [`Resizes::hold`].
    pub(super) fn hold_resize(&mut self, is_held: bool) {
        self.resizes.hold(is_held);
    }

    /// See [`Resizes::poll`].
    pub fn resize_poll(&self) -> Option<Duration> {
        self.resizes.poll()
    }

    /// See [`Resizes::status`].
    pub fn resize_status(&self) -> Value {
        self.resizes.status(&self.cpus, &self.dimms)
    }
}

#[cfg(test)]
#[path = "mod_test.rs"]
mod tests;
