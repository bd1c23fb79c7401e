//! Puts the segments of a kernel into guest RAM, whichever file they come from.

use std::fs::File;
use std::io;

use linux_loader::bootparam::setup_header;
use vm_memory::mmap::MmapRegion;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, VolatileMemory,
    VolatileSlice,
};

use super::elf::{Plan, Segment};
use super::payload::{Codec, Payload, PayloadError};
use super::unpack::Stage;
use super::{Format, KernelFault, LoadedKernel, Protocol, note, scatter};
use crate::GuestMemoryMmap;
use crate::layout::{KERNEL_MIN, LOW_RAM_END};

/// Highest byte of an initramfs for a kernel that does not say (boot.rst, `initrd_addr_max`).
const INITRD_ADDR_MAX: u32 = 0x7fff_ffff;

impl Plan {
    pub(super) fn load(
        &self,
        format: Format,
        mem: &GuestMemoryMmap,
        wanted: Option<Protocol>,
    ) -> Result<LoadedKernel, KernelFault> {
        let ram = self.check_ram(mem)?;
        match format {
            Format::Vmlinux { file, pvh } => {
                let kernel = self.loaded(pvh, wanted, None)?;
                self.segments.iter().try_for_each(|segment| read(&file, segment, mem))?;
                Ok(kernel)
            }
            Format::BzImage { header, payload } => {
                self.unpack(payload, ram, mem)?;
                self.loaded(self.pvh_in_ram(mem), wanted, Some(*header))
            }
        }
    }

    /// Checks that every segment is in RAM, above the boot structures and below the hole; tells where that RAM ends.
    pub(super) fn check_ram(&self, mem: &GuestMemoryMmap) -> Result<u64, KernelFault> {
        let ram_end = low_ram_end(mem);
        let outside = |segment: &&Segment| segment.gpa < KERNEL_MIN || segment.end() > ram_end;
        match self.segments.iter().find(outside) {
            Some(segment) => Err(KernelFault::OutsideRam {
                start: segment.gpa,
                end: segment.end(),
                ram_end,
            }),
            None => Ok(ram_end),
        }
    }

    fn unpack(&self, payload: Payload, ram: u64, mem: &GuestMemoryMmap) -> Result<(), PayloadError> {
        let Payload {
            codec,
            mut source,
            declared,
            mut stream,
        } = payload;
        if declared > ram {
            return Err(PayloadError::ExceedsRam { declared, ram });
        }
        if codec == Codec::Zstd
            && let Some(stage) = Stage::find(self, declared, mem)
        {
            // It would hold on to a decoder's memory for nothing.
            drop(stream);
            return stage.fill(&mut source);
        }
        scatter::scatter(&mut stream, self, declared, mem)
    }

    pub(super) fn loaded(
        &self,
        pvh: Option<u64>,
        wanted: Option<Protocol>,
        setup_header: Option<setup_header>,
    ) -> Result<LoadedKernel, KernelFault> {
        let (protocol, entry) = self.entry(pvh, wanted)?;
        let initrd_addr_max = setup_header.map_or(INITRD_ADDR_MAX, |header| header.initrd_addr_max);
        Ok(LoadedKernel {
            protocol,
            entry,
            end: self.end(),
            initrd_addr_max,
            setup_header,
        })
    }

    /// Searches the notes of a kernel that has been loaded. Those that no segment holds are not there.
    fn pvh_in_ram(&self, mem: &GuestMemoryMmap) -> Option<u64> {
        self.notes.iter().find_map(|notes| {
            let mut bytes = vec![0; notes.len];
            let gpa = self.address_of(notes.offset, notes.len as u64)?;
            mem.read_slice(&mut bytes, GuestAddress(gpa)).ok()?;
            note::pvh_entry(&bytes, notes.align)
        })
    }
}

/// The end of the RAM that starts at address 0, below the hole.
pub(crate) fn low_ram_end(mem: &GuestMemoryMmap) -> u64 {
    let grow = |end: u64, region: &vm_memory::GuestRegionMmap<()>| {
        if region.start_addr().0 == end {
            end.saturating_add(region.len())
        } else {
            end
        }
    };
    mem.iter().fold(0, grow).min(LOW_RAM_END)
}

/// Copies a segment into guest RAM from a mapping of its file: one copy, and none of the pages that are all zero.
fn read(file: &File, segment: &Segment, mem: &GuestMemoryMmap) -> Result<(), KernelFault> {
    let &Segment {
        gpa,
        file_offset: offset,
        file_size: len,
        ..
    } = segment;
    if len == 0 {
        return Ok(());
    }
    // A file that is cut short while it is copied ends the process with SIGBUS; one that has been
    // cut short is an error.
    let window = Window::open(file, offset, len).map_err(|error| KernelFault::Load {
        offset,
        len,
        source: GuestMemoryError::IOError(error),
    })?;
    let failed = |source| KernelFault::Load { offset, len, source };
    // By way of a buffer, which stays in the first cache: cheaper than looking at the mapping twice.
    let mut page = [0; scatter::PAGE];
    let mut done = 0;
    while done < len {
        let gpa = gpa.saturating_add(done);
        let to_page_end = (scatter::PAGE as u64).saturating_sub(gpa % scatter::PAGE as u64);
        let count = to_page_end.min(len.saturating_sub(done));
        let copied = window.slice(done, count).map_err(failed)?.copy_to(&mut page);
        scatter::write_pages(page.get(..copied).unwrap_or_default(), gpa, mem).map_err(failed)?;
        done = done.saturating_add(count);
    }
    Ok(())
}

/// Part of a file, mapped for reading.
struct Window {
    region: MmapRegion,
    /// Where the part begins in the mapping, which begins with a page.
    start: u64,
}

impl Window {
    fn open(file: &File, offset: u64, len: u64) -> io::Result<Self> {
        if file.metadata()?.len() < offset.saturating_add(len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let start = offset % scatter::PAGE as u64;
        let count = usize::try_from(len.saturating_add(start)).map_err(io::Error::other)?;
        let file = FileOffset::new(file.try_clone()?, offset.saturating_sub(start));
        let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
        let region = MmapRegion::build(Some(file), count, libc::PROT_READ, flags).map_err(io::Error::other)?;
        Ok(Self { region, start })
    }

    /// The `count` bytes at `at` of the part.
    fn slice(&self, at: u64, count: u64) -> Result<VolatileSlice<'_>, GuestMemoryError> {
        let place = usize::try_from(self.start.saturating_add(at))
            .ok()
            .zip(usize::try_from(count).ok());
        let (at, count) = place.ok_or(GuestMemoryError::InvalidBackendAddress)?;
        Ok(self.region.get_slice(at, count)?)
    }
}
