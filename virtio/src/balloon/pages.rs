//! Page numbers of the guest as ranges of bytes, neighbours taken together.

use std::io;

use crate::ring::Reader;

/// A balloon counts in pages of this size, whatever the guest's are (virtio 1.2 §5.5.6).
pub(super) const PAGE_BYTES: u64 = 4096;
/// Page numbers that are looked at in one request. Linux sends 256.
pub(super) const PAGES_MAX: usize = 4096;

/// Calls `each` with every range (first address, bytes) that the `le32` page numbers in `reader`
/// make up, in their order. Says how many numbers there were.
///
/// # Errors
/// More than [`PAGES_MAX`]: the rest is not looked at.
pub(super) fn ranges(reader: &mut Reader<'_>, mut each: impl FnMut(u64, u64)) -> io::Result<usize> {
    let mut run: Option<(u64, u64)> = None;
    let mut count = 0usize;
    while reader.available_bytes() >= 4 {
        if count == PAGES_MAX {
            run.inspect(|(base, bytes)| each(*base, *bytes));
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let number = u32::from_le_bytes(reader.read_obj::<[u8; 4]>()?);
        count = count.saturating_add(1);
        let at = u64::from(number).saturating_mul(PAGE_BYTES);
        run = match run {
            // Linux gives neighbours in either direction.
            Some((base, bytes)) if base.checked_add(bytes) == Some(at) => {
                Some((base, bytes.saturating_add(PAGE_BYTES)))
            }
            Some((base, bytes)) if at.checked_add(PAGE_BYTES) == Some(base) => {
                Some((at, bytes.saturating_add(PAGE_BYTES)))
            }
            other => {
                other.inspect(|(base, bytes)| each(*base, *bytes));
                Some((at, PAGE_BYTES))
            }
        };
    }
    run.inspect(|(base, bytes)| each(*base, *bytes));
    Ok(count)
}
