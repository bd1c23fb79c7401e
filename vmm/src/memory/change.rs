//! How memory comes and goes: each step of [`Step`] forward, and back.

use std::error::Error;
use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, Weak};
use std::time::Instant;

use husk_devices::{error_chain, lock};
use husk_virtio::device::MemoryListener;
use husk_virtio::vhost_user::REPLY_TIMEOUT;

use super::address_map::{MapGeneration, Placement};
use super::backing::{Pages, PlaceholderPages};
use super::host::FailedRequest;
use super::mapping::Mapping;
use super::steps::{Fault, Parts, Step, hide, show};
use super::{AddressSpace, HostError, Kind, MemoryError, RegionInfo};

fn bytes_of(part: &Range<u64>) -> u64 {
    part.end.saturating_sub(part.start)
}

impl AddressSpace {
    /// Takes the first step. Waits for nobody.
    pub(super) fn take_place(&self, mut parts: Box<Parts>, placement: Placement) -> Result<Box<Parts>, MemoryError> {
        let (kind, bytes, step) = (parts.info.kind, parts.info.bytes, Step::Place);
        match self.forward(&mut parts, step, placement) {
            Ok(()) => {
                parts.reached = Some(step);
                Ok(parts)
            }
            Err(source) => Err(MemoryError::Add {
                kind,
                bytes,
                step,
                source,
            }),
        }
    }

    /// Takes all steps that `parts` has not taken yet, or takes back those that it has.
    pub(super) fn add(&self, parts: Box<Parts>, placement: Placement) -> Result<Box<Parts>, MemoryError> {
        let kind = parts.info.kind;
        let _one = self.change(kind);
        self.collect_left(kind);
        let added = self.carry_on(parts, placement);
        self.collect_left(kind);
        added
    }

    /// Takes the steps that `parts` has not taken yet. On an error those that it has are taken back.
    pub(super) fn carry_on(&self, mut parts: Box<Parts>, placement: Placement) -> Result<Box<Parts>, MemoryError> {
        let reached = parts.reached;
        for step in Step::ALL.into_iter().filter(|step| Some(*step) > reached) {
            if let Err(source) = self.forward(&mut parts, step, placement) {
                let (kind, bytes) = (parts.info.kind, parts.info.bytes);
                if let Err((parts, error)) = self.back(parts) {
                    self.keep(*parts, &*error);
                }
                return Err(MemoryError::Add {
                    kind,
                    bytes,
                    step,
                    source,
                });
            }
            parts.reached = Some(step);
        }
        self.enter(&parts);
        Ok(parts)
    }

    /// Takes `parts` back from the guest. They are to be [released](Self::release).
    ///
    /// # Errors
    /// KVM does not give it back: everything is as it was.
    pub(super) fn withdraw(&self, parts: Box<Parts>) -> Result<Box<Parts>, (Box<Parts>, MemoryError)> {
        let _one = self.change_for_removal(parts.info.kind);
        // First of all, so that an access of the guest that comes too late is one to nowhere.
        self.address_map().withdraw(&parts);
        self.take_from_guest(parts).map_err(|(parts, source)| {
            let (kind, bytes) = (parts.info.kind, parts.info.bytes);
            self.enter(&parts);
            (parts, MemoryError::Remove { kind, bytes, source })
        })
    }

    /// Gives `parts` back to the host, which the guest has no more. For gigabytes the host takes a
    /// while, in which other memory may come and go.
    pub(super) fn release(&self, parts: Box<Parts>) {
        let kind = parts.info.kind;
        self.give_back(&parts);
        let _one = self.change_for_removal(kind);
        self.free(*parts);
        self.collect_left(kind);
    }

    /// As [`AddressSpace::change`]. A file goes without a wait for another one that back-ends are asked about.
    pub(super) fn change_for_removal(&self, kind: Kind) -> Option<MutexGuard<'_, ()>> {
        (kind != Kind::Pmem).then(|| self.change(kind))
    }

    /// The guest reaches `parts`: its slot is there.
    pub(super) fn enter(&self, parts: &Parts) {
        let mut map = self.address_map();
        let MapGeneration(generation) = map.enter(parts);
        self.generation.store(generation, Ordering::Release);
    }

    /// What cannot be removed and has no owner any more stays as it is.
    pub(super) fn keep(&self, parts: Parts, why: &(dyn Error + 'static)) {
        log::error!(
            "{} at {:#x} stays: {}",
            parts.info.kind,
            parts.info.gpa,
            error_chain(why)
        );
        self.address_map().kept.push(parts);
    }

    /// Takes apart what has left and is changed by whoever may change `kind`, as far as nobody uses it any more.
    pub(super) fn collect_left(&self, kind: Kind) {
        let left = self
            .address_map()
            .left(|left| (left == Kind::Pmem) == (kind == Kind::Pmem));
        left.into_iter().for_each(super::address_map::RetiredRegion::take_apart);
    }

    fn forward(&self, parts: &mut Parts, step: Step, placement: Placement) -> Result<(), Fault> {
        match step {
            Step::Place => {
                parts.info.gpa = self.address_map().take(placement, parts.info.bytes)?;
                if let (Placement::At(_) | Placement::Reserve(_), Some(reserve)) = (placement, self.reserve()) {
                    let offset = parts.info.gpa.saturating_sub(reserve.base);
                    parts.part = offset..offset.saturating_add(parts.info.bytes);
                }
                Ok(())
            }
            Step::Host => {
                self.address_map().reuse(&parts.mapping, &parts.part);
                match &parts.placeholder {
                    Some(placeholder) => Ok(cover(&parts.mapping, &parts.part, placeholder)?),
                    None => {
                        if parts.info.kind == Kind::Dimm && parts.info.shared {
                            // A vhost-user back-end has the whole reserve, and may have filled pages of it.
                            parts.mapping.discard(&parts.part)?;
                        }
                        Ok(self.take_from_host(parts.info.kind, &parts.mapping, &parts.part)?)
                    }
                }
            }
            Step::Backends => {
                let region = parts.mapping.region(&parts.part, parts.info.gpa);
                let region = parts.memory.insert(region.ok_or("it is no range of addresses")?);
                if is_in_reserve(parts.info.kind) {
                    return Ok(());
                }
                show(&self.backends, region)?;
                self.tell()
                    .inspect_err(|_| self.forget(parts.info.gpa, parts.info.bytes))
            }
            Step::Slot => {
                let region = parts.memory.as_ref().ok_or("it has no memory")?;
                parts.slot = self.address_map().take_slot();
                let mapped = self.vm.map(parts.slot, region);
                Ok(mapped.inspect_err(|_| self.address_map().free_slot(parts.slot))?)
            }
            Step::Devices => show(&self.devices, parts.memory.as_ref().ok_or("it has no memory")?),
        }
    }

    /// Takes back the steps that `parts` has taken, the last one first.
    fn back(&self, parts: Box<Parts>) -> Result<(), (Box<Parts>, Fault)> {
        let parts = self.take_from_guest(parts)?;
        self.give_back(&parts);
        self.free(*parts);
        Ok(())
    }

    /// Takes back what is between the guest and `parts`: devices, slot, back-ends.
    fn take_from_guest(&self, parts: Box<Parts>) -> Result<Box<Parts>, (Box<Parts>, Fault)> {
        let RegionInfo { kind, gpa, bytes, .. } = parts.info;
        if parts.reached >= Some(Step::Devices)
            && let Err(source) = hide(&self.devices, gpa, bytes)
        {
            return Err((parts, source));
        }
        if parts.reached >= Some(Step::Slot) {
            if let Err(error) = self.vm.unmap(parts.slot) {
                let region = parts.memory.as_ref().filter(|_| parts.reached >= Some(Step::Devices));
                if let Some(Err(again)) = region.map(|region| show(&self.devices, region)) {
                    log::error!("{kind} at {gpa:#x} is lost to devices: {}", error_chain(&*again));
                }
                return Err((parts, error.into()));
            }
            self.address_map().free_slot(parts.slot);
        }
        if parts.reached >= Some(Step::Backends) && !is_in_reserve(kind) {
            self.forget(gpa, bytes);
        }
        Ok(parts)
    }

    /// Gives the pages of `parts` back to the host at once, whoever still uses them.
    fn give_back(&self, parts: &Parts) {
        let RegionInfo { kind, gpa, .. } = parts.info;
        if parts.reached < Some(Step::Host) || kind == Kind::Pmem {
            return;
        }
        let discarded = match parts.placeholder {
            // What is plugged of it was discarded before.
            Some(_) => parts.mapping.discard(&parts.part),
            None => parts.mapping.discard_committed(&parts.part),
        };
        if let Err(error) = discarded {
            log::warn!("{kind} at {gpa:#x} is not given back to the host: {error}");
        }
    }

    /// The addresses of `parts` are free, and its pages go for good when nobody uses them.
    pub(super) fn free(&self, parts: Parts) {
        let mut map = self.address_map();
        if parts.reached >= Some(Step::Place) {
            map.free(&parts.info);
        }
        if parts.reached >= Some(Step::Host) {
            map.retire(parts);
        }
    }

    /// Asks the host for `part` of `mapping`.
    pub(super) fn take_from_host(&self, kind: Kind, mapping: &Mapping, part: &Range<u64>) -> Result<(), HostError> {
        self.host.check(mapping.backing(), bytes_of(part))?;
        self.commit(mapping, part)?;
        // What comes later is touched by whoever adds it, and not under the lock: DIMMs by
        // `Region::prefault`, blocks of virtio-mem as they are plugged (`promise`).
        if !self.config.prefault || kind != Kind::Boot {
            return Ok(());
        }
        // What it refuses is explained by now: what is given back would be counted as free.
        self.prefault(mapping, part).inspect_err(|_| {
            if let Err(error) = mapping.decommit(part) {
                log::warn!("{kind} is not given back to the host: {error}");
            }
        })
    }

    /// Asks the host for `part` of `mapping` again, which is committed and was discarded.
    pub(super) fn promise(&self, mapping: &Mapping, part: &Range<u64>) -> Result<(), HostError> {
        self.host.check(mapping.backing(), bytes_of(part))?;
        if mapping.backing().pages != Pages::Usual {
            self.commit(mapping, part)?;
        }
        match self.config.prefault {
            true => self.prefault(mapping, part),
            false => Ok(()),
        }
    }

    /// Has the host find every page of `part` of `mapping`, which is committed.
    pub(super) fn prefault(&self, mapping: &Mapping, part: &Range<u64>) -> Result<(), HostError> {
        let found = mapping.prefault(part);
        found.map_err(|error| self.explain(mapping, part, FailedRequest::Prefault, error))
    }

    /// Makes `part` of `mapping` memory again that was covered; huge pages are set aside for what
    /// is [promised](Self::promise) of it.
    pub(super) fn uncover(&self, mapping: &Mapping, part: &Range<u64>) -> Result<(), HostError> {
        let uncovered = mapping.uncover(part);
        uncovered.map_err(|error| self.explain(mapping, part, FailedRequest::Mapping, error))
    }

    /// Has the host set aside `part` of `mapping`, whether that is new or something else was laid over it.
    pub(super) fn commit(&self, mapping: &Mapping, part: &Range<u64>) -> Result<(), HostError> {
        let committed = mapping.commit(part);
        committed.map_err(|error| self.explain(mapping, part, FailedRequest::Mapping, error))
    }

    /// Why the host refused a file of `bytes` bytes with `error`.
    pub(super) fn explain_file(&self, bytes: u64, error: io::Error) -> HostError {
        self.host.explain_file(bytes, error)
    }

    fn explain(&self, mapping: &Mapping, part: &Range<u64>, request: FailedRequest, error: io::Error) -> HostError {
        self.host
            .explain(mapping.backing().pages, bytes_of(part), request, error)
    }

    /// Tells all back-ends what there is.
    fn tell(&self) -> Result<(), Fault> {
        // One for all.
        let deadline = Instant::now() + REPLY_TIMEOUT;
        for listener in self.listeners() {
            listener.memory_added(&self.backends, deadline)?;
        }
        Ok(())
    }

    /// Takes a region from what back-ends have, and waits for none of them. One that cannot be told
    /// learns of it with the next change.
    fn forget(&self, gpa: u64, bytes: u64) {
        if let Err(error) = hide(&self.backends, gpa, bytes) {
            log::error!(
                "memory at {gpa:#x} cannot be taken from back-ends: {}",
                error_chain(&*error)
            );
        }
        for listener in self.listeners() {
            if let Err(error) = listener.memory_removed(&self.backends) {
                log::warn!(
                    "a back-end is not told that memory at {gpa:#x} is gone: {}",
                    error_chain(&error)
                );
            }
        }
    }

    fn listeners(&self) -> Vec<Arc<dyn MemoryListener>> {
        let listeners = lock(&self.listeners);
        listeners.iter().filter_map(Weak::upgrade).collect()
    }

    /// The right to change RAM, or to add a file. Back-ends are asked about files alone, and who
    /// waits for them keeps nobody from changing RAM.
    pub(super) fn change(&self, kind: Kind) -> MutexGuard<'_, ()> {
        lock(if kind == Kind::Pmem { &self.files } else { &self.changes })
    }
}

/// Lays `placeholder` over all of `part`, or nothing.
fn cover(mapping: &Mapping, part: &Range<u64>, placeholder: &PlaceholderPages) -> io::Result<()> {
    let mut units = std::iter::successors(Some(part.start), |start| start.checked_add(placeholder.bytes))
        .take_while(|start| *start < part.end)
        .map(|start| start..start.saturating_add(placeholder.bytes).min(part.end));
    units
        .try_for_each(|unit| mapping.cover(&unit, placeholder))
        .inspect_err(|_| {
            if let Err(error) = mapping.decommit(part) {
                log::warn!("addresses of the hot-plug reserve stay covered: {error}");
            }
        })
}

/// Whether back-ends have it from the start, as a part of the reserve.
fn is_in_reserve(kind: Kind) -> bool {
    matches!(kind, Kind::Dimm | Kind::VirtioMem)
}
