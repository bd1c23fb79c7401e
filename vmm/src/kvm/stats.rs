//! What KVM counts of one vCPU, or of a virtual machine (KVM api.rst 4.134 `KVM_GET_STATS_FD`): a
//! file that is read without disturbing the vCPU.
//!
//! | offset | bytes | header |
//! |---|---|---|
//! | 0x04 | 4 | length of a name |
//! | 0x08 | 4 | number of descriptors |
//! | 0x10 | 4 | where the descriptors are |
//! | 0x14 | 4 | where the data is |
//!
//! | offset | bytes | descriptor |
//! |---|---|---|
//! | 0x06 | 2 | number of values |
//! | 0x08 | 4 | where in the data they are |
//! | 0x10 | header's | name, ended by a 0 |

#![expect(unsafe_code, reason = "kvm-ioctls has no KVM_GET_STATS_FD")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

vmm_sys_util::ioctl_io_nr!(KVM_GET_STATS_FD, kvm_bindings::KVMIO, 0xce);

const HEADER_BYTES: usize = 0x18;
const DESCRIPTOR_BYTES: usize = 0x10;
/// More than any kernel has; a bound on what is read.
const DESCRIPTORS_MAX: usize = 1024;
const NAME_BYTES_MAX: usize = 256;

/// The counters of one vCPU or VM. Reading them takes no lock of the vCPU's.
#[derive(Debug)]
pub struct Stats {
    file: File,
    /// Where each counter is in the file, with its name.
    places: Vec<(String, u64)>,
}

impl Stats {
    /// The counters of a vCPU, which must not be running, since the call waits for it; or of a virtual machine.
    ///
    /// # Errors
    /// This host's KVM has none (before Linux 5.14), or in a form that is not known.
    pub(super) fn of(counts: &impl AsRawFd) -> io::Result<Self> {
        // SAFETY: the call has no argument; it returns a descriptor or an error.
        let fd = unsafe { libc::ioctl(counts.as_raw_fd(), KVM_GET_STATS_FD()) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new, and nobody else's.
        let file = unsafe { File::from_raw_fd(fd) };
        let places = places(&|bytes, offset| file.read_exact_at(bytes, offset))?;
        Ok(Self { file, places })
    }

    /// How often `name` has happened, if KVM counts it.
    pub fn get(&self, name: &str) -> Option<u64> {
        let (_, place) = self.places.iter().find(|(known, _)| known == name)?;
        let mut value = [0; 8];
        self.file.read_exact_at(&mut value, *place).ok()?;
        Some(u64::from_ne_bytes(value))
    }

    /// How often the vCPU has left the guest. Not before the guest has started it: until then it is never in the guest.
    pub fn exits(&self) -> Option<u64> {
        self.get("exits")
    }
}

/// Bytes of page tables that KVM needs at least to map so many pages of 4 KiB, 2 MiB and 1 GiB,
/// with four levels of tables of 512 entries (Intel SDM vol. 3C §28.3.2): pages that lie apart need
/// more. Nothing says how many KVM has.
pub fn page_table_bytes(pages_4k: u64, pages_2m: u64, pages_1g: u64) -> u64 {
    const ENTRIES: u64 = 512;
    const TABLE_BYTES: u64 = 4096;
    let (mut tables, mut below) = (0, 0);
    for mapped in [pages_4k, pages_2m, pages_1g, 0] {
        below = (mapped + below).div_ceil(ENTRIES);
        tables += below;
    }
    tables * TABLE_BYTES
}

/// Where each counter with a single value is, in a file that `read` reads.
fn places(read: &dyn Fn(&mut [u8], u64) -> io::Result<()>) -> io::Result<Vec<(String, u64)>> {
    let mut header = [0; HEADER_BYTES];
    read(&mut header, 0)?;
    let name_bytes = word(&header, 0x04)?;
    let count = word(&header, 0x08)?;
    let (descriptors, data) = (word(&header, 0x10)?, word(&header, 0x14)?);
    if name_bytes > NAME_BYTES_MAX || count > DESCRIPTORS_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let length = DESCRIPTOR_BYTES + name_bytes;
    let mut bytes = vec![0; length * count];
    read(&mut bytes, descriptors as u64)?;
    let mut places = Vec::new();
    for descriptor in bytes.chunks_exact(length) {
        let (values, place) = (word(descriptor, 0x04)? >> 16, word(descriptor, 0x08)?);
        let name = descriptor.get(DESCRIPTOR_BYTES..).unwrap_or_default();
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        if values == 1 {
            let name = String::from_utf8_lossy(name).into_owned();
            places.push((name, data as u64 + place as u64));
        }
    }
    Ok(places)
}

/// The 32 bits at `offset`.
fn word(bytes: &[u8], offset: usize) -> io::Result<usize> {
    let word = bytes.get(offset..offset + 4).and_then(|word| word.try_into().ok());
    let word = word.map(u32::from_ne_bytes).ok_or(io::ErrorKind::InvalidData)?;
    usize::try_from(word).map_err(|_| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of two counters, `exits` with one value and `halt_hist` with two.
    fn file() -> Vec<u8> {
        let mut file = Vec::new();
        for word in [0_u32, 16, 2, 0x18, 0x18, 0x58] {
            file.extend(word.to_ne_bytes());
        }
        for (values, place, name) in [(2_u32, 8_u32, "halt_hist"), (1, 0, "exits")] {
            for word in [0, values << 16, place, 0] {
                file.extend(word.to_ne_bytes());
            }
            let mut padded = [0; 16];
            padded[..name.len()].copy_from_slice(name.as_bytes());
            file.extend(padded);
        }
        for value in [17_u64, 1, 2] {
            file.extend(value.to_ne_bytes());
        }
        file
    }

    fn places_in(file: &[u8]) -> io::Result<Vec<(String, u64)>> {
        places(&|bytes, offset| {
            let offset = usize::try_from(offset).unwrap();
            let found = file.get(offset..offset + bytes.len());
            bytes.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    #[test]
    fn counters_are_found_by_name() {
        let file = file();
        let places = places_in(&file).unwrap();
        assert_eq!(places, [("exits".to_owned(), 0x58)]);
        assert_eq!(file[0x58], 17);
    }

    #[test]
    fn page_tables_are_as_many_as_the_pages_need_at_least() {
        assert_eq!(page_table_bytes(0, 0, 0), 0);
        assert_eq!(page_table_bytes(1, 0, 0), 4 * 4096);
        assert_eq!(page_table_bytes(0, 1, 0), 3 * 4096);
        assert_eq!(page_table_bytes(0, 0, 1), 2 * 4096);
        // 1 GiB by pages of 4 KiB; the same and one more of 2 MiB, which needs a second table of its level.
        assert_eq!(page_table_bytes(512 * 512, 0, 0), (512 + 1 + 1 + 1) * 4096);
        assert_eq!(page_table_bytes(512 * 512, 1, 0), (512 + 2 + 1 + 1) * 4096);
    }

    #[test]
    fn a_file_of_another_form_is_refused() {
        let file = file();
        for cut in [0, 0x17, 0x57] {
            assert!(places_in(&file[..cut]).is_err());
        }
        for word in [1, 2] {
            let mut odd = file.clone();
            odd[word * 4..][..4].fill(0xff);
            assert!(places_in(&odd).is_err());
        }
    }
}
