//! Guest RAM: one host mapping, split round the 32-bit hole into KVM slots.
//!
//! The mapping carries the name [`RAM_NAME`] in `/proc/<pid>/smaps`, so that the VMM's own memory can be told from the guest's.

#![expect(unsafe_code, reason = "mmap, madvise and the KVM slots that point into the mapping")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr;

use husk_devices::memory::{GuestMemory, GuestMemoryMmap, GuestRegionMmap};
use vm_memory::mmap::MmapRegion;
use vm_memory::{FileOffset, GuestAddress};

use crate::config::MemoryConfig;
use crate::kvm::{Access, KvmError, Vm};

/// What every mapping of guest RAM is called in `/proc/<pid>/smaps`: `[anon:guest-ram]` or `/memfd:guest-ram`.
pub const RAM_NAME: &std::ffi::CStr = c"guest-ram";

/// The mapping starts on a multiple of this, as guest-physical RAM does, so that huge pages can back both.
const HUGE_PAGE: usize = 2 << 20;

/// Why guest RAM could not be had.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// The host would not map it.
    #[error("cannot {what} {bytes} bytes of guest RAM")]
    Map {
        /// What was being done, in the infinitive.
        what: &'static str,
        /// How many bytes the guest was to have.
        bytes: u64,
        /// The host's answer.
        source: io::Error,
    },
    /// The ranges make no memory map.
    #[error("RAM of {0} bytes does not fit this machine's address map")]
    Layout(u64),
    /// KVM would not take a slot.
    #[error(transparent)]
    Slot(#[from] KvmError),
}

/// The RAM of one VM.
///
/// `Machine` drops it after every vCPU and every device thread: until then they hold addresses inside the mapping.
#[derive(Debug)]
pub struct Ram {
    memory: GuestMemory,
    ranges: Vec<(u64, u64)>,
    mapping: Mapping,
}

impl Ram {
    /// Reserves RAM for the guest-physical `ranges` (base, bytes), lowest first. Pages are allocated when first touched.
    ///
    /// # Errors
    /// [`RamError::Map`] or [`RamError::Layout`].
    pub fn new(config: &MemoryConfig, ranges: Vec<(u64, u64)>) -> Result<Self, RamError> {
        let bytes = ranges.iter().map(|(_, len)| len).sum();
        let mapping = Mapping::new(bytes, config)?;
        let mut regions = Vec::with_capacity(ranges.len());
        let mut offset = 0;
        for (base, len) in &ranges {
            regions.push(mapping.region(offset, *base, *len).ok_or(RamError::Layout(bytes))?);
            offset += len;
        }
        let memory = GuestMemoryMmap::from_regions(regions).map_err(|_| RamError::Layout(bytes))?;
        Ok(Self {
            memory: GuestMemory::new(memory),
            ranges,
            mapping,
        })
    }

    /// Makes the RAM the guest's: one slot a range, numbered from 0.
    ///
    /// # Errors
    /// [`RamError::Slot`].
    pub fn map_into(&self, vm: &Vm) -> Result<(), RamError> {
        let mut host = self.mapping.start;
        for (slot, (base, len)) in (0..).zip(&self.ranges) {
            // SAFETY: the range lies in the mapping, which outlives the VM's vCPUs (see `Ram`).
            unsafe { vm.map(slot, *base, host, *len, Access::ReadWrite)? };
            host = host.wrapping_add(to_usize(*len));
        }
        Ok(())
    }

    /// The RAM as devices see it.
    pub fn guest(&self) -> GuestMemory {
        self.memory.clone()
    }

    /// The guest-physical ranges, lowest first.
    pub fn ranges(&self) -> &[(u64, u64)] {
        &self.ranges
    }
}

/// Owns the host address range. Unmapped when dropped.
#[derive(Debug)]
struct Mapping {
    /// First byte of RAM, aligned to [`HUGE_PAGE`].
    start: *mut u8,
    /// What mmap gave and munmap takes.
    reserved: (*mut libc::c_void, usize),
    file: Option<std::sync::Arc<File>>,
}

// SAFETY: addresses only; whoever reads or writes through them goes by volatile accesses (vm-memory).
unsafe impl Send for Mapping {}
// SAFETY: as above; nothing here changes after construction.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(bytes: u64, config: &MemoryConfig) -> Result<Self, RamError> {
        let failed = |what| move |source| RamError::Map { what, bytes, source };
        let file = config
            .shared
            .then(|| memfd(bytes, config.hugepages))
            .transpose()
            .map_err(failed("create a file of"))?;
        let len = to_usize(bytes).checked_add(HUGE_PAGE).ok_or(RamError::Layout(bytes))?;
        let reserved = reserve(len).map_err(failed("reserve"))?;
        let start = reserved.map_addr(|addr| addr.next_multiple_of(HUGE_PAGE));
        let mapping = Self {
            start: start.cast(),
            reserved: (reserved, len),
            file: file.map(std::sync::Arc::new),
        };
        mapping.populate(to_usize(bytes), config).map_err(failed("map"))?;
        Ok(mapping)
    }

    /// Turns the reservation into memory, named and advised.
    fn populate(&self, len: usize, config: &MemoryConfig) -> io::Result<()> {
        let kind = match (&self.file, config.hugepages) {
            (Some(_), _) => libc::MAP_SHARED,
            (None, true) => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB,
            (None, false) => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        };
        let fd = self.file.as_ref().map_or(-1, |file| file.as_raw_fd());
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = kind | libc::MAP_NORESERVE | libc::MAP_FIXED;
        // SAFETY: replaces part of the reservation that `self` owns and nobody has used yet.
        let mapped = unsafe { libc::mmap(self.start.cast(), len, prot, flags, fd, 0) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        self.advise(len, config);
        if config.prefault { self.prefault(len) } else { Ok(()) }
    }

    /// Advice that the kernel may ignore: names for smaps, core dumps, huge pages, merging.
    fn advise(&self, len: usize, config: &MemoryConfig) {
        let start = self.start.cast::<libc::c_void>();
        if self.file.is_none() {
            // SAFETY: names a range that `self` owns; kernels without CONFIG_ANON_VMA_NAME answer EINVAL.
            unsafe {
                libc::prctl(
                    libc::PR_SET_VMA,
                    libc::PR_SET_VMA_ANON_NAME,
                    start,
                    len,
                    RAM_NAME.as_ptr(),
                )
            };
        }
        let advice = [
            // What a guest knows is not for core dumps.
            (true, libc::MADV_DONTDUMP),
            (config.thp, libc::MADV_HUGEPAGE),
            (config.mergeable, libc::MADV_MERGEABLE),
        ];
        for (_, advice) in advice.into_iter().filter(|(on, _)| *on) {
            // SAFETY: advice about a range that `self` owns; it changes no contents.
            unsafe { libc::madvise(start, len, advice) };
        }
    }

    fn prefault(&self, len: usize) -> io::Result<()> {
        // SAFETY: touches pages of a range that `self` owns.
        match unsafe { libc::madvise(self.start.cast(), len, libc::MADV_POPULATE_WRITE) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The part of the mapping `offset` bytes in, as guest RAM at `gpa`.
    fn region(&self, offset: u64, gpa: u64, len: u64) -> Option<GuestRegionMmap> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_NORESERVE
            | if self.file.is_some() {
                libc::MAP_SHARED
            } else {
                libc::MAP_PRIVATE
            };
        let mut builder = vm_memory::mmap::MmapRegionBuilder::new(to_usize(len))
            .with_mmap_prot(prot)
            .with_mmap_flags(flags);
        if let Some(file) = &self.file {
            builder = builder.with_file_offset(FileOffset::from_arc(file.clone(), offset));
        }
        // SAFETY: the range lies inside the mapping, and `Ram` outlives its users.
        let region: MmapRegion = unsafe { builder.with_raw_mmap_pointer(self.start.wrapping_add(to_usize(offset))) }
            .build()
            .ok()?;
        GuestRegionMmap::new(region, GuestAddress(gpa))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let (start, len) = self.reserved;
        // SAFETY: unmaps what `new` mapped; `Ram` says why nobody uses it any more.
        unsafe { libc::munmap(start, len) };
    }
}

fn reserve(len: usize) -> io::Result<*mut libc::c_void> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choosing.
    let start = unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        Err(io::Error::last_os_error())
    } else {
        Ok(start)
    }
}

fn memfd(bytes: u64, hugepages: bool) -> io::Result<File> {
    let flags = libc::MFD_CLOEXEC | if hugepages { libc::MFD_HUGETLB } else { 0 };
    // SAFETY: a constant, NUL-terminated name.
    let fd = unsafe { libc::memfd_create(RAM_NAME.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that nobody else owns yet.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(bytes)?;
    Ok(file)
}

fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).expect("x86_64: usize has 64 bits")
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddressSpace};

    use super::*;

    fn config(shared: bool) -> MemoryConfig {
        MemoryConfig {
            size: 8 << 20,
            shared,
            ..Default::default()
        }
    }

    #[test]
    fn ram_on_both_sides_of_the_hole_is_one_name_in_smaps() {
        for (shared, name) in [(false, "[anon:guest-ram]"), (true, "/memfd:guest-ram")] {
            let ram = Ram::new(&config(shared), vec![(0, 4 << 20), (4 << 30, 4 << 20)]).unwrap();
            let memory = ram.guest().memory();
            memory.write_obj(0x1234_u32, GuestAddress((4 << 30) + 16)).unwrap();
            assert_eq!(memory.read_obj::<u32>(GuestAddress((4 << 30) + 16)).unwrap(), 0x1234);
            assert!(
                memory.read_obj::<u32>(GuestAddress(4 << 20)).is_err(),
                "nothing in the hole"
            );
            let named = std::fs::read_to_string("/proc/self/maps")
                .unwrap()
                .lines()
                .filter(|l| l.contains(name))
                .count();
            assert!(
                named >= 1 || !shared,
                "{name}: CONFIG_ANON_VMA_NAME may be off, memfd names cannot be"
            );
        }
    }

    #[test]
    fn ram_begins_where_a_huge_page_can() {
        let ram = Ram::new(&config(false), vec![(0, 8 << 20)]).unwrap();
        assert_eq!(ram.mapping.start.addr() % HUGE_PAGE, 0);
    }

    #[test]
    fn ram_beyond_the_address_space_is_refused() {
        let huge = 1 << 60;
        let error = Ram::new(&config(false), vec![(0, huge)]).unwrap_err();
        assert!(error.to_string().contains("1152921504606846976"), "{error}");
    }
}
