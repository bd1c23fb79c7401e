//! A range of host addresses for guest memory: reserved in one piece, filled part by part, given back part by part.

#![expect(
    unsafe_code,
    reason = "mmap, madvise and fallocate on ranges that only this file hands out"
)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use husk_devices::lock;
use husk_devices::memory::GuestRegionMmap;
use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};
use vm_memory::{FileOffset, GuestAddress};

use super::backing::{Backing, Pages, PlaceholderPages, Source};

/// A mapping starts on a multiple of this at least, as guest-physical memory does, so that huge pages can back both.
const HUGE_PAGE: u64 = 2 << 20;

/// Owns a range of host addresses.
///
/// What is not committed cannot be touched, and costs nothing. Whoever reads or writes guest memory
/// has a [`GuestRegionMmap`] made by [`Mapping::region`]; as long as somebody has one, the
/// addresses stay mapped, even when the mapping itself is dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    /// First byte, aligned to [`HUGE_PAGE`] or to the page, whichever is larger.
    start: *mut u8,
    bytes: u64,
    /// What mmap gave and munmap takes.
    reserved: (*mut libc::c_void, usize),
    backing: Backing,
    /// What has been handed out.
    lent: Mutex<Vec<Weak<MmapRegion>>>,
}

// SAFETY: addresses only; whoever reads or writes through them goes by volatile accesses (vm-memory).
unsafe impl Send for Mapping {}
// SAFETY: as above; parts are changed by whoever owns them (`AddressSpace` hands each to one region).
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Reserves `bytes` bytes of addresses. Nothing of it can be touched before [`Mapping::commit`].
    pub fn reserve(backing: Backing, bytes: u64) -> io::Result<Self> {
        let align = to_usize(backing.page_bytes().max(HUGE_PAGE));
        let len = usize::try_from(bytes).ok().and_then(|bytes| bytes.checked_add(align));
        let len = len.ok_or(io::ErrorKind::OutOfMemory)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choosing.
        let reserved = unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
        if reserved == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            start: reserved.map_addr(|addr| addr.next_multiple_of(align)).cast(),
            bytes,
            reserved: (reserved, len),
            backing,
            lent: Mutex::default(),
        })
    }

    /// What the memory is made of.
    pub fn backing(&self) -> &Backing {
        &self.backing
    }

    /// Makes `part` memory: with huge pages all of it is set aside now, otherwise pages come when they are touched.
    pub fn commit(&self, part: &Range<u64>) -> io::Result<()> {
        // The kernel sets huge pages aside for a mapping that does not say otherwise, and then never runs out of them.
        self.map(part, self.backing.pages == Pages::Usual)
    }

    /// Undoes [`Mapping::cover`]. Huge pages are set aside by [`Mapping::commit`] of what is to be
    /// used: nothing else may be touched.
    pub fn uncover(&self, part: &Range<u64>) -> io::Result<()> {
        self.map(part, true)
    }

    fn map(&self, part: &Range<u64>, sparing: bool) -> io::Result<()> {
        let (fd, offset, kind) = match &self.backing.source {
            Source::Anonymous => (-1, 0, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS),
            Source::Shared(file) => (file.as_raw_fd(), part.start, libc::MAP_SHARED),
            Source::File { file, kept: true } => (file.as_raw_fd(), part.start, libc::MAP_SHARED),
            Source::File { file, kept: false } => (file.as_raw_fd(), part.start, libc::MAP_PRIVATE),
        };
        let pages = match self.backing.pages {
            Pages::Usual => 0,
            Pages::Huge { bytes } => libc::MAP_HUGETLB | huge_flag(bytes),
        };
        let flags = kind | pages | if sparing { libc::MAP_NORESERVE } else { 0 };
        let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mapped = self.map_over(part, libc::PROT_READ | libc::PROT_WRITE, flags, fd, offset);
        if let Err(error) = mapped {
            // A kernel may leave a hole then, where anything might be mapped next.
            self.set_apart(part)?;
            return Err(error);
        }
        self.advise(part);
        Ok(())
    }

    /// Touches every page of `part`, for writing.
    pub fn prefault(&self, part: &Range<u64>) -> io::Result<()> {
        self.madvise(part, libc::MADV_POPULATE_WRITE)
    }

    /// Gives the pages of `part` back to the host: it reads as zeroes. Huge pages that were set
    /// aside for it are no longer.
    pub fn discard(&self, part: &Range<u64>) -> io::Result<()> {
        match &self.backing.source {
            Source::Anonymous => self.madvise(part, libc::MADV_DONTNEED),
            Source::Shared(file) => punch(file, part),
            Source::File { .. } => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// As [`Mapping::discard`], of what was committed. A hole in a shared file of huge pages leaves
    /// those set aside that were never touched, so they are touched first.
    pub fn discard_committed(&self, part: &Range<u64>) -> io::Result<()> {
        self.touch_reserved(part);
        self.discard(part)
    }

    /// Touches huge pages of a shared file that were set aside.
    pub fn touch_reserved(&self, part: &Range<u64>) {
        if matches!(
            (&self.backing.source, self.backing.pages),
            (Source::Shared(_), Pages::Huge { .. })
        ) {
            // What the host has not set aside after all is no loss.
            let _ = self.prefault(part);
        }
    }

    /// Lays `placeholder` over the pages of `part`, no more than it has: who touches `part` reaches that, until
    /// [`Mapping::uncover`].
    pub fn cover(&self, part: &Range<u64>, placeholder: &PlaceholderPages) -> io::Result<()> {
        if part.end.saturating_sub(part.start) > placeholder.bytes {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        self.map_over(part, prot, flags, placeholder.file.as_raw_fd(), 0)?;
        self.madvise(part, libc::MADV_DONTDUMP)
    }

    /// Undoes [`Mapping::commit`]: `part` is addresses and nothing else.
    pub fn decommit(&self, part: &Range<u64>) -> io::Result<()> {
        if let Source::Shared(file) = &self.backing.source {
            punch(file, part)?;
        }
        self.set_apart(part)
    }

    /// Makes `part` addresses that nobody can touch, and that nothing else takes.
    fn set_apart(&self, part: &Range<u64>) -> io::Result<()> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        self.map_over(part, libc::PROT_NONE, flags, -1, 0)
    }

    /// `part` as guest memory at `gpa`.
    pub fn region(&self, part: &Range<u64>, gpa: u64) -> Option<Arc<GuestRegionMmap>> {
        let shared = match self.backing.source {
            Source::Shared(_) | Source::File { kept: true, .. } => libc::MAP_SHARED,
            _ => libc::MAP_PRIVATE,
        };
        let len = usize::try_from(part.end.checked_sub(part.start)?).ok()?;
        let mut builder = MmapRegionBuilder::new(len)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_NORESERVE | shared);
        if let Source::Shared(file) | Source::File { file, .. } = &self.backing.source {
            builder = builder.with_file_offset(FileOffset::from_arc(file.clone(), part.start));
        }
        let address = self.at(part)?;
        // SAFETY: the range lies inside the mapping, which stays for as long as the region does (`lent`).
        let region = unsafe { builder.with_raw_mmap_pointer(address.cast()) }.build().ok()?;
        let region = Arc::new(region);
        let mut lent = lock(&self.lent);
        lent.retain(|region| region.strong_count() > 0);
        lent.push(Arc::downgrade(&region));
        GuestRegionMmap::with_arc(region, GuestAddress(gpa)).map(Arc::new)
    }

    /// Where `part` is, if it is in here.
    fn at(&self, part: &Range<u64>) -> Option<*mut libc::c_void> {
        let inside = part.start <= part.end && part.end <= self.bytes;
        inside.then(|| self.start.wrapping_add(to_usize(part.start)).cast())
    }

    fn checked(&self, part: &Range<u64>) -> io::Result<(*mut libc::c_void, usize)> {
        let start = self.at(part).ok_or(io::ErrorKind::InvalidInput)?;
        Ok((start, to_usize(part.end - part.start)))
    }

    fn map_over(&self, part: &Range<u64>, prot: i32, flags: i32, fd: RawFd, offset: libc::off_t) -> io::Result<()> {
        let (start, len) = self.checked(part)?;
        // SAFETY: replaces part of the reservation that `self` owns.
        let mapped = unsafe { libc::mmap(start, len, prot, flags | libc::MAP_FIXED, fd, offset) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Advice that the kernel may ignore: names for smaps, core dumps, huge pages, merging.
    fn advise(&self, part: &Range<u64>) {
        if matches!(self.backing.source, Source::Anonymous)
            && let Ok((start, len)) = self.checked(part)
        {
            let (set_name, name) = (libc::PR_SET_VMA_ANON_NAME, self.backing.name.as_ptr());
            // SAFETY: names a range that `self` owns; kernels without CONFIG_ANON_VMA_NAME answer EINVAL.
            unsafe { libc::prctl(libc::PR_SET_VMA, set_name, start, len, name) };
        }
        let advice = [
            // What a guest knows is not for core dumps.
            (true, libc::MADV_DONTDUMP),
            (self.backing.thp, libc::MADV_HUGEPAGE),
            (self.backing.mergeable, libc::MADV_MERGEABLE),
        ];
        for (_, advice) in advice.into_iter().filter(|(on, _)| *on) {
            let _ = self.madvise(part, advice);
        }
    }

    fn madvise(&self, part: &Range<u64>, advice: i32) -> io::Result<()> {
        let (start, len) = self.checked(part)?;
        // SAFETY: a range that `self` owns; what devices read of it changes to zeroes at most,
        // which is theirs to expect.
        match unsafe { libc::madvise(start, len, advice) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let lent = self.lent.get_mut().unwrap_or_else(PoisonError::into_inner);
        if lent.iter().any(|region| region.strong_count() > 0) {
            // A device that was left behind still has it.
            log::warn!("{} bytes of guest memory stay mapped: they are in use", self.bytes);
            return;
        }
        let (start, len) = self.reserved;
        // SAFETY: unmaps what `reserve` mapped; nobody has a region of it any more.
        unsafe { libc::munmap(start, len) };
    }
}

fn punch(file: &File, part: &Range<u64>) -> io::Result<()> {
    let offset = libc::off_t::try_from(part.start).map_err(|_| io::ErrorKind::InvalidInput)?;
    let len = libc::off_t::try_from(part.end.saturating_sub(part.start)).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: numbers and a descriptor that `file` keeps open.
    match unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The size of a huge page among the flags of mmap(2) and memfd_create(2).
pub(super) fn huge_flag(bytes: u64) -> i32 {
    // At most 63 << 26, which fits.
    i32::try_from(u64::from(bytes.trailing_zeros()) << libc::MAP_HUGE_SHIFT).unwrap_or_default()
}

fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).expect("x86_64: usize has 64 bits")
}

#[cfg(test)]
#[path = "mapping_test.rs"]
mod tests;
