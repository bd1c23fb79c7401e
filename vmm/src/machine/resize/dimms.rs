//! The slots for DIMMs, and what makes one real: a thread beside the control thread takes each from
//! the host, and gives it back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::Waker;

use husk_devices::error_chain;
use husk_firmware::layout;
use husk_hotplug::bank::{Extent, SlotKind};
use husk_hotplug::slot::State;
use husk_hotplug::{Hotplug, Plug, PlugError};

use super::super::hotplug::Slots;
use super::ResizeError;
use crate::background::BackgroundTask;
use crate::memory::{AddressSpace, Kind, MemoryError, Region, RemoveError};

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

/// What makes DIMMs real. KVM takes a slot for one, and gives it back, when no vCPU is in a page
/// fault any more, and the host needs time for the pages: a thread waits for both.
pub struct DimmPlug {
    pub(super) space: Arc<AddressSpace>,
    /// Woken when such a thread is done.
    waker: Waker,
    regions: BTreeMap<u32, Region>,
    /// DIMMs that the guest has let go of, on their way to the host.
    leaving: BTreeMap<u32, Leaving>,
    /// Those that are not wanted and of which the guest has not heard, until the host has them again.
    unwanted: Vec<Unwanted>,
    /// Those that KVM does not give back, and why.
    kept: BTreeMap<u32, String>,
}

/// A DIMM that the guest has let go of.
struct Leaving {
    extent: Extent,
    removal: BackgroundTask<Result<(), RemoveError>>,
}

/// A DIMM that the guest does not hear of.
enum Unwanted {
    /// It is still being made.
    Coming(Creation),
    /// It goes back to the host.
    Going(BackgroundTask<()>),
}

/// A DIMM that a thread is making.
type Creation = BackgroundTask<Result<Region, MemoryError>>;

/// A DIMM that is to be there before the guest hears of it.
pub(super) struct Readying {
    pub bytes: u64,
    /// It was begun for an earlier resize: what the host refuses of it is asked for anew.
    pub is_of_earlier: bool,
    progress: Progress,
}

enum Progress {
    Coming(Creation),
    There(Region),
}

impl Readying {
    /// The DIMM if it is there, otherwise this again. Never waits.
    ///
    /// # Errors
    /// The host or KVM refused it.
    pub fn finish(self) -> Result<Result<Region, Self>, MemoryError> {
        match self.progress {
            Progress::There(region) => Ok(Ok(region)),
            Progress::Coming(ref creation) => match creation.take_result() {
                Some(created) => created.map(Ok),
                None => Ok(Err(self)),
            },
        }
    }

    /// Whether this knows that it is there.
    #[cfg(test)]
    pub fn is_there(&self) -> bool {
        matches!(self.progress, Progress::There(_))
    }

    /// This, unless it was refused. Never waits.
    pub fn unless_refused(self) -> Option<Self> {
        let bytes = self.bytes;
        match self.finish() {
            Ok(Ok(region)) => Some(Self {
                bytes,
                is_of_earlier: true,
                progress: Progress::There(region),
            }),
            Ok(Err(pending)) => Some(Self {
                is_of_earlier: true,
                ..pending
            }),
            Err(error) => {
                tell_anew(&error);
                None
            }
        }
    }
}

/// Tells that what the host has refused is asked for again.
pub(super) fn tell_anew(error: &MemoryError) {
    log::info!("{}; it is asked for anew", error_chain(error));
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
        self.has_leaving() || !self.unwanted.is_empty()
    }

    /// Whether there are some among them that the guest has let go of.
    pub(super) fn has_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Of a DIMM that is not wanted any more: it goes back to the host once it is there.
    pub(super) fn abandon(&mut self, readying: Readying) {
        match readying.progress {
            Progress::Coming(creation) => self.unwanted.push(Unwanted::Coming(creation)),
            Progress::There(region) => self.discard(region),
        }
    }

    /// How many are still being made, of those that are not wanted.
    #[cfg(test)]
    pub(super) fn abandoned(&self) -> usize {
        let coming = |unwanted: &&Unwanted| matches!(unwanted, Unwanted::Coming(_));
        self.unwanted.iter().filter(coming).count()
    }

    /// Looks what has become of what is not wanted any more. Never waits.
    pub(super) fn collect_unwanted(&mut self) {
        self.unwanted.retain(|unwanted| match unwanted {
            Unwanted::Coming(creation) => !creation.abandon(),
            Unwanted::Going(removal) => removal.take_result().is_none(),
        });
    }

    /// Begins to make a DIMM of `bytes` bytes, with all its pages if [`AddressSpace::prefaults`]
    /// asks for them. Never waits.
    pub(super) fn ready(&self, bytes: u64) -> Result<Readying, ResizeError> {
        let placed = self.space.place(Kind::Dimm, bytes)?;
        let prefaults = self.space.prefaults();
        let work = move || {
            let region = placed.fill()?;
            if prefaults {
                region.prefault()?;
            }
            Ok(region)
        };
        let creation = BackgroundTask::spawn(self.waker.clone(), work).map_err(ResizeError::NoThread)?;
        Ok(Readying {
            bytes,
            is_of_earlier: false,
            progress: Progress::Coming(creation),
        })
    }
}

impl Plug for DimmPlug {
    type Unit = Region;

    fn create(&mut self, slot: u32, region: Region) -> Result<(), PlugError> {
        self.regions.insert(slot, region);
        Ok(())
    }

    fn discard(&mut self, region: Region) {
        let removal = BackgroundTask::queue(self.waker.clone(), move || drop(region));
        self.unwanted.push(Unwanted::Going(removal));
    }

    fn retire(&mut self, slot: u32) -> bool {
        if let Some(region) = self.regions.remove(&slot) {
            let extent = extent(&region);
            let removal = BackgroundTask::queue(self.waker.clone(), move || region.remove());
            self.leaving.insert(slot, Leaving { extent, removal });
        }
        let Some(leaving) = self.leaving.get(&slot) else {
            return true;
        };
        let Some(removed) = leaving.removal.take_result() else {
            return false;
        };
        self.leaving.remove(&slot);
        if let Err(error) = removed {
            // For `destroy` to tell.
            self.kept.insert(slot, error_chain(&error));
            self.regions.insert(slot, *error.region);
        }
        true
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
        let leaving = || self.leaving.get(&slot).map(|leaving| leaving.extent);
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
    bytes_of(dimms, State::will_be_plugged)
}

/// Bytes of the DIMMs that the guest has.
pub(super) fn plugged(dimms: &Dimms) -> u64 {
    bytes_of(dimms, State::plugged)
}

fn bytes_of(dimms: &Dimms, is_meant: impl Fn(State) -> bool) -> u64 {
    dimms.as_ref().map_or(0, |dimms| {
        let meant = dimms.states().into_iter().filter(|(_, state)| is_meant(*state));
        meant.map(|(slot, _)| dimms.plug().bytes(slot)).sum()
    })
}
