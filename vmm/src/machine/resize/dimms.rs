//! The slots for DIMMs, and what makes one real: its pages come from the host, and go back to it, beside the control thread.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::Waker;

use husk_devices::error_chain;
use husk_firmware::layout;
use husk_hotplug::bank::{Extent, SlotKind};
use husk_hotplug::{Hotplug, Plug, PlugError};

use super::super::hotplug::Slots;
use super::ResizeError;
use crate::background::BackgroundTask;
use crate::memory::{AddressSpace, Kind, MemoryError, Region};

/// Slots for DIMMs: a shim that adds one for each container needs one for each.
pub(super) const DIMMS: u32 = 64;

/// The slots for DIMMs.
pub const fn slots() -> Slots {
    Slots {
        kind: SlotKind::Memory,
        address: layout::MEMORY_BANK,
        count: DIMMS,
        pinned: 0,
    }
}

/// What makes DIMMs real. Where the host needs time for one, to find its pages or to take them back, a thread beside waits for it.
pub struct DimmPlug {
    pub(super) space: Arc<AddressSpace>,
    /// Woken when such a thread is done.
    waker: Waker,
    regions: BTreeMap<u32, Region>,
    /// DIMMs that the guest has let go of, and where they were, on their way to the host.
    pub(super) leaving: BTreeMap<u32, (Extent, BackgroundTask<()>)>,
    /// Those that were never the guest's and are not wanted any more, until the host has them again.
    unwanted: Vec<Unwanted>,
    /// Those that KVM does not give back, and why.
    kept: BTreeMap<u32, String>,
}

/// A DIMM that the guest does not hear of.
enum Unwanted {
    /// The host is still finding its pages.
    Found(Readying),
    /// It goes back to the host.
    Given(BackgroundTask<()>),
}

/// A DIMM to be.
pub enum NewDimm {
    /// Memory of so many bytes, a multiple of the DIMM unit, which is mapped when the slot is filled.
    Bytes(u64),
    /// Memory that has been mapped already, and whose pages the host has found if `prefault` asks for them.
    Ready(Region),
}

/// A DIMM whose pages the host is to find before the guest hears of it.
pub(super) struct Readying {
    pub bytes: u64,
    pub region: BackgroundTask<Result<Region, MemoryError>>,
}

impl DimmPlug {
    /// DIMMs in the reserve of `space`; none yet. `waker` is woken when there is something to look at.
    pub const fn new(space: Arc<AddressSpace>, waker: Waker) -> Self {
        Self {
            space,
            waker,
            regions: BTreeMap::new(),
            leaving: BTreeMap::new(),
            unwanted: Vec::new(),
            kept: BTreeMap::new(),
        }
    }

    pub(super) fn bytes(&self, slot: u32) -> u64 {
        self.regions.get(&slot).map_or(0, |region| region.info().bytes)
    }

    /// Whether DIMMs are on their way to the host.
    pub(super) fn is_giving_back(&self) -> bool {
        !self.leaving.is_empty() || !self.unwanted.is_empty()
    }

    /// Of a DIMM that is not wanted any more: it goes back to the host once that has found its pages.
    pub(super) fn abandon(&mut self, readying: Readying) {
        self.unwanted.push(Unwanted::Found(readying));
    }

    /// For how many the host is still finding pages.
    #[cfg(test)]
    pub(super) fn abandoned(&self) -> usize {
        let found = |unwanted: &&Unwanted| matches!(unwanted, Unwanted::Found(_));
        self.unwanted.iter().filter(found).count()
    }

    /// Goes on with what is not wanted any more. Never waits.
    pub(super) fn collect_unwanted(&mut self) {
        for unwanted in std::mem::take(&mut self.unwanted) {
            match unwanted {
                Unwanted::Given(given) if given.take_result().is_some() => {}
                Unwanted::Found(readying) => match readying.region.take_result() {
                    None => self.unwanted.push(Unwanted::Found(readying)),
                    Some(Ok(region)) => {
                        let given = BackgroundTask::queue(self.waker.clone(), move || drop(region));
                        self.unwanted.push(Unwanted::Given(given));
                    }
                    // There is nothing to give back.
                    Some(Err(_)) => {}
                },
                given @ Unwanted::Given(_) => self.unwanted.push(given),
            }
        }
    }

    /// Begins to make a DIMM of `bytes` bytes with all its pages.
    pub(super) fn ready(&self, bytes: u64) -> Result<Readying, ResizeError> {
        let region = self.space.grow(Kind::Dimm, bytes)?;
        let work = move || region.prefault().map(|()| region);
        let region = BackgroundTask::spawn(self.waker.clone(), work).map_err(ResizeError::NoThread)?;
        Ok(Readying { bytes, region })
    }
}

impl Plug for DimmPlug {
    type Unit = NewDimm;

    fn create(&mut self, slot: u32, dimm: NewDimm) -> Result<(), PlugError> {
        let region = match dimm {
            NewDimm::Ready(region) => region,
            NewDimm::Bytes(bytes) => self.space.grow(Kind::Dimm, bytes).map_err(|source| PlugError {
                what: format!("fill memory slot {slot}"),
                source: source.into(),
            })?,
        };
        self.regions.insert(slot, region);
        Ok(())
    }

    /// It is the guest's no more at once. Its pages go back to the host beside the control thread: gigabytes take a while.
    fn retire(&mut self, slot: u32) -> bool {
        if let Some(region) = self.regions.remove(&slot) {
            let extent = extent(&region);
            match region.withdraw() {
                Ok(withdrawn) => {
                    let given = BackgroundTask::queue(self.waker.clone(), move || drop(withdrawn));
                    self.leaving.insert(slot, (extent, given));
                }
                Err(error) => {
                    self.kept.insert(slot, error_chain(&error));
                    self.regions.insert(slot, *error.region);
                    return true;
                }
            }
        }
        let gone = self
            .leaving
            .get(&slot)
            .is_none_or(|(_, given)| given.take_result().is_some());
        if gone {
            self.leaving.remove(&slot);
        }
        gone
    }

    fn destroy(&mut self, slot: u32) -> Result<(), PlugError> {
        self.kept.remove(&slot).map_or(Ok(()), |why| {
            Err(PlugError {
                what: format!("empty memory slot {slot}"),
                source: why.into(),
            })
        })
    }

    fn extent(&self, slot: u32) -> Extent {
        let leaving = || self.leaving.get(&slot).map(|(extent, _)| *extent);
        self.regions.get(&slot).map(extent).or_else(leaving).unwrap_or_default()
    }
}

fn extent(region: &Region) -> Extent {
    Extent {
        base: region.info().gpa,
        size_bytes: region.info().bytes,
    }
}

/// The slots for DIMMs, where memory may come so.
pub type Dimms = Option<Hotplug<DimmPlug>>;

/// Bytes of the DIMMs that there will be.
pub(super) fn filled(dimms: &Dimms) -> u64 {
    dimms.as_ref().map_or(0, |dimms| {
        let filled = dimms.states().into_iter().filter(|(_, state)| state.will_be_plugged());
        filled.map(|(slot, _)| dimms.plug().bytes(slot)).sum()
    })
}
