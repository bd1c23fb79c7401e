//! ELF notes: where a kernel says how PVH enters it (Xen `public/elfnote.h`).

use linux_loader::elf::Elf64_Nhdr;

use super::elf::pod;

/// The note that holds the 32-bit entry for PVH.
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
const XEN_NOTE_NAME: &[u8] = b"Xen\0";

/// A note segment: where it lies in the image, and how its notes are aligned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Notes {
    pub(super) offset: u64,
    pub(super) len: usize,
    pub(super) align: usize,
}

/// The PVH entry in the notes `bytes`, if it is among them. Notes that make no sense end the search.
pub(super) fn pvh_entry(bytes: &[u8], align: usize) -> Option<u64> {
    let mut at = 0usize;
    loop {
        let note: Elf64_Nhdr = pod(bytes, at)?;
        let name_at = at.checked_add(size_of::<Elf64_Nhdr>())?;
        let name_end = name_at.checked_add(usize::try_from(note.n_namesz).ok()?)?;
        let value_at = name_end.checked_next_multiple_of(align)?;
        let value_end = value_at.checked_add(usize::try_from(note.n_descsz).ok()?)?;
        let (name, value) = (bytes.get(name_at..name_end)?, bytes.get(value_at..value_end)?);
        if note.n_type == XEN_ELFNOTE_PHYS32_ENTRY && name == XEN_NOTE_NAME {
            // The value is an address of the kernel's own width; the entry itself is below 4 GiB.
            let mut entry = [0; 8];
            entry.get_mut(..value.len())?.copy_from_slice(value);
            return Some(u64::from_le_bytes(entry));
        }
        at = value_end.checked_next_multiple_of(align)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::note;

    #[test]
    fn the_pvh_note_is_found_behind_others() {
        let linux = note(18, b"Linux\0", &[1, 2, 3]);
        let xen = note(5, b"Xen\0", b"xen-3.0\0");
        let pvh = note(18, b"Xen\0", &0x100_0a30u32.to_le_bytes());
        assert_eq!(pvh_entry(&[linux, xen, pvh].concat(), 4), Some(0x100_0a30));
    }

    #[test]
    fn notes_that_lie_about_their_size_end_the_search() {
        let pvh = note(18, b"Xen\0", &8u64.to_le_bytes());
        for (at, value) in [(0, u32::MAX), (4, u32::MAX), (4, 9)] {
            let mut bytes = pvh.clone();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            assert_eq!(pvh_entry(&bytes, 4), None);
        }
        let long = note(18, b"Xen\0", &[0; 12]);
        assert_eq!(pvh_entry(&long, 4), None);
        assert_eq!(pvh_entry(&[], 4), None);
    }
}
