//! A VM's guest-physical memory, as the rest of husk has it.

use std::ffi::CStr;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use husk_devices::lock;
use husk_devices::memory::{GuestMemory, GuestMemoryMmap};
use husk_firmware::layout;
use husk_virtio::balloon::Discard;
use husk_virtio::device::MemoryListener;

use super::address_map::{AddressMap, MapGeneration, MappedRegion, Placement};
use super::backing::{Backing, Pages, PlaceholderPages};
use super::host::{FailedRequest, Host, HostError};
use super::mapping::Mapping;
use super::region::{Placed, Region};
use super::reserve::Reserved;
use super::steps::{Parts, Slots, Step, show};
use super::{BLOCK_BYTES, Kind, MemoryError, RAM_NAME, RegionInfo};
use crate::config::{MemoryConfig, PAGE_BYTES, Size};

/// A file's mapping is called by the file in `/proc/<pid>/smaps`, whatever is said.
const PMEM_NAME: &CStr = c"guest-pmem";

/// All guest-physical memory of one VM.
///
/// What is where may be asked anywhere, vCPU threads included. Lock order: `changes` or `files`, never both, then
/// `address_map`; back-ends are waited for with `files` alone, so that no change of RAM waits for one, nor does a file
/// that goes.
pub struct AddressSpace {
    pub(super) vm: Arc<dyn Slots>,
    pub(super) config: MemoryConfig,
    pub(super) host: Host,
    /// What devices reach.
    pub(super) devices: GuestMemory,
    /// What back-ends are told: the reserve is one region of it, however much of it is used.
    pub(super) backends: GuestMemory,
    pub(super) listeners: Mutex<Vec<Weak<dyn MemoryListener>>>,
    /// One change of RAM at a time.
    pub(super) changes: Mutex<()>,
    /// One file at a time that comes.
    pub(super) files: Mutex<()>,
    reserve: Option<(Reserved, Arc<Mapping>)>,
    boot: Vec<(u64, u64)>,
    address_map: Mutex<AddressMap>,
    /// That of `address_map`, for a look without its lock.
    pub(super) generation: AtomicU64,
}

impl fmt::Debug for AddressSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressSpace")
            .field("regions", &self.regions())
            .finish_non_exhaustive()
    }
}

impl AddressSpace {
    /// RAM as `config` wants it, the guest's already, and the reserve. `phys_bits` is the width of
    /// guest-physical addresses. To be called before the VM has an interrupt controller: slots are
    /// cheapest then.
    ///
    /// # Errors
    /// The host does not have it, or KVM refuses it.
    pub fn new(config: &MemoryConfig, vm: Arc<dyn Slots>, phys_bits: u8) -> Result<Arc<Self>, MemoryError> {
        Self::on(Host::default(), config, vm, phys_bits)
    }

    /// As [`AddressSpace::new`], on a host of a test.
    pub(super) fn on(
        host: Host,
        config: &MemoryConfig,
        vm: Arc<dyn Slots>,
        phys_bits: u8,
    ) -> Result<Arc<Self>, MemoryError> {
        let boot = layout::ram_ranges(config.size);
        let limit = layout::pmem_window(u32::from(phys_bits)).map_or(0, |(base, _)| base);
        let reserve = Reserved::new(config, layout::ram_end(&boot), limit);
        let mapped =
            reserve.map(|reserve| map(&host, config, reserve.bytes, Kind::Dimm).map(|mapping| (reserve, mapping)));
        let space = Self {
            vm,
            config: config.clone(),
            host: host.keep_open(Pages::of(config)),
            devices: GuestMemory::new(GuestMemoryMmap::new()),
            backends: GuestMemory::new(GuestMemoryMmap::new()),
            listeners: Mutex::default(),
            changes: Mutex::default(),
            files: Mutex::default(),
            reserve: mapped.transpose()?,
            boot,
            address_map: Mutex::new(AddressMap::new(phys_bits, reserve)),
            generation: AtomicU64::new(0),
        };
        space.add_boot_ram()?;
        space.show_reserve()?;
        Ok(Arc::new(space))
    }

    /// What devices reach: `memory()` yields it as it is at present.
    pub fn guest(&self) -> GuestMemory {
        self.devices.clone()
    }

    /// What back-ends are to be told, those of vhost-user and of the kernel. It has the whole of
    /// the reserve from the start, so that memory that comes later changes nothing for them.
    pub fn shared(&self) -> GuestMemory {
        self.backends.clone()
    }

    /// RAM that the guest starts with (base, bytes), lowest first.
    pub fn boot_ranges(&self) -> &[(u64, u64)] {
        &self.boot
    }

    /// Where memory goes that comes later, if any may.
    pub fn reserve(&self) -> Option<Reserved> {
        self.reserve.as_ref().map(|(reserve, _)| *reserve)
    }

    /// What the guest can reach, lowest first.
    pub fn regions(&self) -> Vec<RegionInfo> {
        let mut regions: Vec<_> = self
            .address_map()
            .mapped()
            .map(|present| present.info.clone())
            .collect();
        regions.sort_by_key(|region| region.gpa);
        regions
    }

    /// The region that `gpa` is in.
    pub fn find(&self, gpa: u64) -> Option<RegionInfo> {
        self.find_with_generation(gpa).map(|(info, _)| info)
    }

    /// The region that `gpa` is in, if the guest could reach it in `generation` already. What came later may have been
    /// on its way when the guest touched it.
    pub fn find_in_generation(&self, gpa: u64, generation: MapGeneration) -> Option<RegionInfo> {
        let (info, added_in) = self.find_with_generation(gpa)?;
        (added_in <= generation).then_some(info)
    }

    /// This moment. Costs a look, and no lock.
    pub fn generation(&self) -> MapGeneration {
        MapGeneration(self.generation.load(Ordering::Acquire))
    }

    fn find_with_generation(&self, gpa: u64) -> Option<(RegionInfo, MapGeneration)> {
        let map = self.address_map();
        let found = map.mapped().find(|present| present.info.contains(gpa))?;
        Some((found.info.clone(), found.added_in))
    }

    /// Gives the pages of `range`, guest-physical addresses in RAM, back to the host: the guest
    /// reads zeroes there and has new pages when it writes. For a guest that says what it does not
    /// use (balloon, free page reporting); any thread may call it.
    ///
    /// # Errors
    /// A part of it is no RAM, is no whole pages, or is of huge pages, which the host would not
    /// have to give again. Nothing is done then. Or the host refuses.
    pub fn discard(&self, range: &Range<u64>) -> Result<(), MemoryError> {
        let bytes = range.end.saturating_sub(range.start);
        let found: Vec<_> = self
            .address_map()
            .mapped()
            .filter_map(|present| within(present, range))
            .collect();
        let covered: u64 = found.iter().map(|(_, part)| part.end - part.start).sum();
        if covered != bytes {
            return Err(MemoryError::NoRam {
                gpa: range.start,
                bytes,
            });
        }
        let unit = PAGE_BYTES;
        if !range.start.is_multiple_of(unit) || !bytes.is_multiple_of(unit) {
            let gpa = range.start;
            return Err(MemoryError::Unit { gpa, bytes, unit });
        }
        for (present, part) in found {
            let discarded = present.mapping.discard(&part);
            discarded.map_err(|error| MemoryError::Host {
                what: "give back",
                kind: present.info.kind,
                bytes: part.end - part.start,
                source: error.into(),
            })?;
        }
        Ok(())
    }

    /// Says in the log what may end this VM later: a limit of the control group that is below its
    /// size, `added` bytes of memory that came after its start included.
    pub fn warn_of_limits(&self, added: u64) {
        let bytes = self.config.size.saturating_add(added);
        if let Some(limit) = self.group_host().and_then(|host| host.group_limit_below(bytes)) {
            log::warn!("memory: the guest may use {}, {limit}", Size(bytes));
        }
    }

    /// Whether the host can give `more` bytes of memory, with which `added` bytes will have come
    /// after the start: to be asked before the guest is told of them. Nothing is set aside.
    ///
    /// # Errors
    /// [`MemoryError::Host`], with figures.
    pub fn afford(&self, more: u64, added: u64) -> Result<(), MemoryError> {
        let refused = |bytes, source| MemoryError::Host {
            what: "add",
            kind: Kind::Dimm,
            bytes,
            source,
        };
        let allowed = self.group_host().map_or(Ok(()), |host| host.allows(added));
        allowed.map_err(|why| refused(added, why))?;
        let afforded = self.host.afford(Pages::of(&self.config), more);
        afforded.map_err(|why| refused(more, why))
    }

    /// The host, if its control groups count this VM's memory: huge pages are not.
    fn group_host(&self) -> Option<&Host> {
        (!self.config.hugepages).then_some(&self.host)
    }

    /// The files that the guest has as memory; `None` without any. They are in use for as long as this is there.
    pub fn files(&self) -> Option<Files> {
        let map = self.address_map();
        let files: Vec<_> = map.mapped().filter(is_file).cloned().collect();
        (!files.is_empty()).then_some(Files(files))
    }

    /// Whether the guest has a file as memory. Any thread may ask: nobody is waited for.
    pub fn has_files(&self) -> bool {
        self.address_map().mapped().any(|present| is_file(&present))
    }

    /// What to say of a guest that has touched memory at `gpa` and found nothing, because the host has no page for it.
    pub fn missing(&self, gpa: Option<u64>) -> String {
        let Some(gpa) = gpa else {
            return "the guest touched memory that the host has no page for".into();
        };
        match self.find(gpa) {
            Some(RegionInfo {
                kind: kind @ Kind::Pmem,
                gpa: base,
                of,
                ..
            }) => format!(
                "{kind} {}: byte {} (guest address {gpa:#x}) has nothing behind it: the file was shortened, or its file system is full",
                of.unwrap_or_default(),
                gpa.saturating_sub(base)
            ),
            Some(region) => format!("{} at {gpa:#x}: the host has no page for it", region.kind),
            None => format!("no memory at {gpa:#x}"),
        }
    }

    /// Tells `listener` of memory that comes and goes from now on, for as long as it lives.
    pub fn listen(&self, listener: &Arc<dyn MemoryListener>) {
        let mut listeners = lock(&self.listeners);
        listeners.retain(|listener| listener.strong_count() > 0);
        listeners.push(Arc::downgrade(listener));
    }

    /// Takes addresses for `bytes` bytes of memory, wherever there is room in the reserve:
    /// [`Step::Place`], for which nobody is waited for. [`Placed::fill`] takes the other steps, and
    /// may wait.
    ///
    /// # Errors
    /// [`MemoryError::Unit`], or [`MemoryError::Add`] where there is no room; everything is as before.
    pub fn place(self: &Arc<Self>, kind: Kind, bytes: u64) -> Result<Placed, MemoryError> {
        let (base, unit) = self
            .reserve()
            .map_or((0, BLOCK_BYTES), |reserve| (reserve.base, reserve.unit));
        let parts = self.parts_in_reserve(kind, base, bytes, unit, None)?;
        Ok(Placed::new(
            self.clone(),
            self.take_place(parts, Placement::Reserve(unit))?,
        ))
    }

    /// Adds `bytes` bytes of memory, wherever there is room in the reserve. The guest can reach it,
    /// and knows nothing of it: whoever has the region tells it, and drops the region if that
    /// fails. Waits for KVM, so for any vCPU in a page fault.
    ///
    /// # Errors
    /// [`MemoryError::Unit`], or [`MemoryError::Add`] with the step that failed; everything is as before.
    pub fn grow(self: &Arc<Self>, kind: Kind, bytes: u64) -> Result<Region, MemoryError> {
        self.place(kind, bytes)?.fill()
    }

    /// The most of `bytes` bytes that [`AddressSpace::place`] has a place for in one piece: whole
    /// units of the reserve, 0 if there is none.
    pub fn room(&self, bytes: u64) -> u64 {
        let reserve = self.reserve();
        reserve.map_or(0, |reserve| self.address_map().room(reserve.unit, bytes))
    }

    /// As [`AddressSpace::grow`], at `gpa`, and in blocks of 2 MiB or of the page size if that is larger.
    ///
    /// # Errors
    /// As [`AddressSpace::grow`].
    pub fn grow_at(self: &Arc<Self>, kind: Kind, gpa: u64, bytes: u64) -> Result<Region, MemoryError> {
        let parts = self.parts_in_reserve(kind, gpa, bytes, self.block_bytes(), None)?;
        Ok(Region::new(self.clone(), self.add(parts, Placement::At(gpa))?))
    }

    /// As [`AddressSpace::grow_at`], of memory for blocks, all of it covered by `placeholder`: the host gives pages for
    /// what is [uncovered](Region::uncover) and [restored](Region::restore), and for nothing before.
    ///
    /// # Errors
    /// As [`AddressSpace::grow_at`].
    pub(super) fn grow_covered(
        self: &Arc<Self>,
        gpa: u64,
        bytes: u64,
        placeholder: &Arc<PlaceholderPages>,
    ) -> Result<Region, MemoryError> {
        let (kind, placeholder) = (Kind::VirtioMem, Some(placeholder.clone()));
        let parts = self.parts_in_reserve(kind, gpa, bytes, self.block_bytes(), placeholder)?;
        Ok(Region::new(self.clone(), self.add(parts, Placement::At(gpa))?))
    }

    /// Whether RAM is of huge pages, which [`AddressSpace::discard`] does not give back.
    pub fn has_huge_pages(&self) -> bool {
        self.config.hugepages
    }

    /// Whether every page is to be there before the guest has the memory: see [`Region::prefault`].
    pub fn prefaults(&self) -> bool {
        self.config.prefault
    }

    /// The least that [`AddressSpace::grow_at`] adds.
    pub fn block_bytes(&self) -> u64 {
        BLOCK_BYTES.max(self.config.page_bytes())
    }

    /// Adds the first `bytes` bytes of `file`, a multiple of [`BLOCK_BYTES`], called `name`; what
    /// is written reaches the file if it is `kept`.
    ///
    /// # Errors
    /// [`MemoryError::Add`] with the step that failed; everything is as before.
    pub fn add_file(self: &Arc<Self>, file: File, name: &str, bytes: u64, kept: bool) -> Result<Region, MemoryError> {
        let kind = Kind::Pmem;
        let mapping = Mapping::reserve(Backing::file(file, kept, PMEM_NAME), bytes);
        let mapping = mapping.map_err(|error| refused(kind, bytes, self.host.explain_file(bytes, error)))?;
        let parts = Parts::new(kind, Some(name.into()), Arc::new(mapping), 0..bytes);
        Ok(Region::new(self.clone(), self.add(Box::new(parts), Placement::Pmem)?))
    }

    /// Gives back what was removed while requests used it and is used no longer. Whatever changes
    /// memory does so as well. Returns whether a file is still in use: it stays open and mapped
    /// until it is looked at again. Of RAM addresses alone wait, whose pages went at once.
    pub fn collect(&self) -> bool {
        for kind in [Kind::Pmem, Kind::Dimm] {
            let _one = self.change_for_removal(kind);
            self.collect_left(kind);
        }
        self.has_left_file()
    }

    /// Whether there is something for [`AddressSpace::collect`] to look after.
    pub fn has_left(&self) -> bool {
        self.address_map().has_left()
    }

    /// Whether there is a file for it.
    pub fn has_left_file(&self) -> bool {
        self.address_map().is_leaving(Kind::Pmem)
    }

    /// A region of the reserve of which nothing is done yet: `bytes` bytes in units of `unit`, at
    /// `gpa` or at another multiple of that.
    fn parts_in_reserve(
        &self,
        kind: Kind,
        gpa: u64,
        bytes: u64,
        unit: u64,
        placeholder: Option<Arc<PlaceholderPages>>,
    ) -> Result<Box<Parts>, MemoryError> {
        let Some((_, mapping)) = &self.reserve else {
            return Err(MemoryError::Add {
                kind,
                bytes,
                step: Step::Place,
                source: "the VM has no hot-plug reserve (memory.hotplug_size)".into(),
            });
        };
        if bytes == 0 || !bytes.is_multiple_of(unit) || !gpa.is_multiple_of(unit) {
            return Err(MemoryError::Unit { gpa, bytes, unit });
        }
        // Which part of the mapping it is, is known with the place.
        Ok(Box::new(Parts {
            placeholder,
            ..Parts::new(kind, None, mapping.clone(), 0..bytes)
        }))
    }

    /// RAM of the start: one mapping, a slot for each range.
    fn add_boot_ram(&self) -> Result<(), MemoryError> {
        let bytes = self.config.size;
        let mapping = map(&self.host, &self.config, bytes, Kind::Boot)?;
        let taken = self.take_from_host(Kind::Boot, &mapping, &(0..bytes));
        taken.map_err(|why| refused(Kind::Boot, bytes, why))?;
        let mut offset = 0;
        for (base, len) in &self.boot {
            let end = offset + len;
            let mut parts = Parts::new(Kind::Boot, None, mapping.clone(), offset..end);
            parts.info.gpa = *base;
            parts.reached = Some(Step::Host);
            let parts = self.carry_on(Box::new(parts), Placement::At(*base))?;
            self.address_map().kept.push(*parts);
            offset = end;
        }
        Ok(())
    }

    /// Back-ends see the reserve as one region: it is theirs to map, once.
    fn show_reserve(&self) -> Result<(), MemoryError> {
        let Some((reserve, mapping)) = &self.reserve else {
            return Ok(());
        };
        let layout = || MemoryError::Layout(self.config.size);
        let region = mapping.region(&(0..reserve.bytes), reserve.base).ok_or_else(layout)?;
        show(&self.backends, &region).map_err(|_| layout())
    }

    pub(super) fn address_map(&self) -> MutexGuard<'_, AddressMap> {
        lock(&self.address_map)
    }
}

impl Discard for AddressSpace {
    fn discard(&self, gpa: u64, bytes: u64) -> io::Result<()> {
        let range = gpa..gpa.saturating_add(bytes);
        Self::discard(self, &range).map_err(io::Error::other)
    }
}

/// Files that are a guest's memory.
#[derive(Debug)]
pub struct Files(Vec<MappedRegion>);

impl Files {
    /// Where the first one ends that was shortened since it was added, as a guest-physical address. Waits for the file
    /// systems, as long as they like.
    pub fn shortened(&self) -> Option<u64> {
        self.0.iter().find_map(|file| {
            let end = file.mapping.backing().file_end()?;
            // The last page that is there has all of its bytes.
            let end = end.checked_next_multiple_of(PAGE_BYTES)?;
            (end < file.info.bytes).then(|| file.info.gpa.saturating_add(end))
        })
    }
}

fn is_file(present: &&MappedRegion) -> bool {
    present.info.kind == Kind::Pmem
}

/// What of `range` is in RAM of usual pages, and where in its mapping.
fn within(present: &MappedRegion, range: &Range<u64>) -> Option<(MappedRegion, Range<u64>)> {
    let (info, part) = (&present.info, &present.part);
    if info.kind == Kind::Pmem || info.page_bytes != PAGE_BYTES {
        return None;
    }
    let start = range.start.max(info.gpa);
    let end = range.end.min(info.gpa.saturating_add(info.bytes));
    let offset = part.start.checked_add(start.checked_sub(info.gpa)?)?;
    (start < end).then(|| (present.clone(), offset..offset.saturating_add(end - start)))
}

/// Addresses of the host for `bytes` bytes of memory as `config` wants it.
fn map(host: &Host, config: &MemoryConfig, bytes: u64, kind: Kind) -> Result<Arc<Mapping>, MemoryError> {
    let name = match kind {
        Kind::Boot => RAM_NAME,
        _ => super::RESERVE_NAME,
    };
    let backing = Backing::new(config, bytes, name);
    let mapping = backing.and_then(|backing| Mapping::reserve(backing, bytes));
    let explained = mapping.map_err(|error| host.explain(Pages::of(config), bytes, FailedRequest::Mapping, error));
    explained.map(Arc::new).map_err(|why| refused(kind, bytes, why))
}

fn refused(kind: Kind, bytes: u64, why: HostError) -> MemoryError {
    MemoryError::Add {
        kind,
        bytes,
        step: Step::Host,
        source: why.into(),
    }
}

#[cfg(test)]
#[path = "space_test.rs"]
mod tests;
