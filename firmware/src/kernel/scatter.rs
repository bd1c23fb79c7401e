//! Streams an image into guest RAM: every byte goes to the segment that wants it, or nowhere.
//!
//! Pages of zeroes are not written, since fresh RAM reads as zero. A stock kernel has 11 MiB of
//! them (its bss is in the file), which the guest's RAM then need not hold.

use std::io::BufRead;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::elf::{Plan, Segment};
use super::payload::PayloadError;
use crate::GuestMemoryMmap;

/// The unit of RAM that is written or left alone.
pub(super) const PAGE: usize = 4096;
const ZEROES: [u8; PAGE] = [0; PAGE];

/// Reads all of `stream`, which is to have `declared` bytes, and puts the segments of `plan` into `mem`.
pub(super) fn scatter(
    stream: &mut dyn BufRead,
    plan: &Plan,
    declared: u64,
    mem: &GuestMemoryMmap,
) -> Result<(), PayloadError> {
    let mut position = 0u64;
    loop {
        let chunk = stream.fill_buf().map_err(PayloadError::Decompress)?;
        if chunk.is_empty() {
            break;
        }
        let end = position.saturating_add(chunk.len() as u64);
        if end > declared {
            return Err(PayloadError::Long { declared });
        }
        for segment in &plan.segments {
            place(chunk, position, segment, mem)?;
        }
        let used = chunk.len();
        stream.consume(used);
        position = end;
    }
    if position < declared {
        return Err(PayloadError::Short {
            found: position,
            declared,
        });
    }
    Ok(())
}

/// Writes what `segment` wants of `chunk`, which starts at `position` of the image.
fn place(chunk: &[u8], position: u64, segment: &Segment, mem: &GuestMemoryMmap) -> Result<(), PayloadError> {
    let start = segment.file_offset.max(position);
    let end = segment.file_end().min(position.saturating_add(chunk.len() as u64));
    let (Some(skip), Some(len @ 1..)) = (start.checked_sub(position), end.checked_sub(start)) else {
        return Ok(());
    };
    let wanted = usize::try_from(skip).ok().zip(usize::try_from(len).ok());
    let bytes = wanted
        .and_then(|(skip, len)| chunk.get(skip..skip.checked_add(len)?))
        .unwrap_or_default();
    let gpa = segment.gpa.saturating_add(start.saturating_sub(segment.file_offset));
    write_pages(bytes, gpa, mem).map_err(PayloadError::Write)
}

/// Writes `bytes` at `gpa`, but no page that is all zero.
pub(super) fn write_pages(mut bytes: &[u8], mut gpa: u64, mem: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    while !bytes.is_empty() {
        let to_page_end = PAGE.saturating_sub(usize::try_from(gpa % PAGE as u64).unwrap_or(0));
        let (page, rest) = bytes.split_at_checked(to_page_end).unwrap_or((bytes, &[]));
        if ZEROES.get(..page.len()) != Some(page) {
            mem.write_slice(page, GuestAddress(gpa))?;
        }
        gpa = gpa.saturating_add(page.len() as u64);
        bytes = rest;
    }
    Ok(())
}

#[cfg(test)]
#[path = "scatter_test.rs"]
mod tests;
